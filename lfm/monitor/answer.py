"""What a call's process does seldom: code and data from files, values by cloudpickle or in files, exceptions.

Runs in the call's own process, like ``lfm.monitor.call``, which keeps what every call does.
"""

from __future__ import annotations

import copyreg
import importlib
import io
import mmap
import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NoReturn

from lfm.monitor import page, payload, wire

Told = tuple[int, int, tuple[bytes, ...], tuple[payload.Buffer, ...]]  # kind, bytes in the file, texts, pieces
NOTHING: Told = (0, 0, (), ())
_WORTH_A_LOOK = 4 << 20  # bytes from which it does not matter what looking costs
_UNSURE = 1 << 20  # bytes of doubt about copied pages from which smaps_rollup is worth its price
NAME_LIMIT = 1000  # characters
MOST_MISSED = 20  # modules
MOST_BEHIND = 16  # exceptions behind another
ROOM = wire.DATAGRAM - 4096  # bytes: texts of four bytes a character leave less of a message than an exception may take
pages: Any = None  # native.Pages of the forker that this process comes from
runtime_lib = ""  # what the worker gave along, at the end of the import path; set by the template
_OURS = (__file__, payload.__file__, __file__.replace("answer.py", "call.py"), __file__.replace("answer.py", "native.py"))


def load_function(path: str) -> Callable[..., Any]:
    fd = os.open(path, os.O_RDONLY)
    size = os.fstat(fd).st_size
    data = os.read(fd, size)
    while len(data) < size and (more := os.read(fd, size - len(data))):
        data += more
    os.close(fd)
    function: Callable[..., Any] = payload.unpack(data)
    return function


def load_arguments(data: bytes | str, blobs: str) -> Any:
    """``blobs``: the folder with what the arguments refer to."""
    held: dict[str, Any] = {}

    def persistent(name: Any) -> Any:
        kind, digest = name
        if kind != "lfm-blob":
            raise pickle.UnpicklingError(f"unknown persistent reference {kind!r}")
        if digest not in held:
            held[digest] = payload.unpack(_map(f"{blobs}/{digest}"))
        return held[digest]

    # a private mapping, or a copy: either way arrays in it are writable
    memory = bytearray(data) if isinstance(data, bytes) else _map(data)
    return payload.unpack(memory, persistent if blobs else None)


def _map(path: str) -> memoryview:
    """A file as writable memory whose changes stay in this process."""
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE))


def add_overlay(overlay: str) -> None:
    """The user's own modules come first, what only helps them comes last."""
    sys.path.insert(0, overlay + "/src")
    sys.path.append(overlay + "/lib")
    ours = sys.modules.get("cloudpickle")
    if ours is None or not (ours.__file__ or "").startswith(runtime_lib + "/"):
        return
    theirs = _version(overlay + "/lib/cloudpickle/__init__.py")
    if theirs and theirs != ours.__version__:  # it reads best what the same version wrote
        sys.path[:] = [path for path in sys.path if path != runtime_lib]
        for name in ("cloudpickle.cloudpickle", "cloudpickle.cloudpickle_fast", "cloudpickle"):
            sys.modules.pop(name, None)


def _version(file: str) -> str:
    try:
        with open(file, "rb") as opened:
            _, _, rest = opened.read(4096).partition(b"__version__ = ")
    except OSError:
        return ""
    return rest[:32].split(b"\n")[0].strip(b"\"' ").decode("ascii", "replace")


def by_cloudpickle(value: Any, first: Exception) -> list[payload.Buffer]:
    """The pieces of what plain pickle could not do; raises pickle's own error where cloudpickle is not at hand."""
    try:
        dumps = importlib.import_module("cloudpickle").dumps
    except ImportError:
        raise first from None
    return payload.pack(value, dumps)


class Missed:
    """At the end of all that looks for modules: what was looked for here, and is not.

    A package that lacks an optional partner may say nothing about it, and just do less.
    """

    def __init__(self) -> None:
        self.names: dict[str, None] = {}

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if path is None:  # a part of a package that is there is nobody's partner
            self.names[name] = None


missed = Missed()


def returned(work: tuple[Any, ...], pieces: list[payload.Buffer]) -> Told:
    """A value in pieces: in the message if it is small, else in the call's result file."""
    if sum(memoryview(piece).nbytes for piece in pieces) <= wire.INLINE_LIMIT:
        return wire.RETURNED, 0, wire.NO_TEXTS, (b"".join(pieces),)
    digest, size = _to_file(work[wire.TO_FILE], pieces)
    return wire.RETURNED, size, (*wire.NO_TEXTS[:4], digest.encode()), ()


def _to_file(path: str, pieces: Sequence[payload.Buffer]) -> tuple[str, int]:
    import hashlib

    hashed, size = hashlib.sha256(), 0
    with open(path, "wb", buffering=0) as file:
        for piece in pieces:
            view = memoryview(piece).cast("B")
            for at in range(0, len(view), 1 << 22):
                part = view[at : at + (1 << 22)]
                hashed.update(part)
                done = 0
                while done < len(part):
                    done += file.write(part[done:])
            size += len(view)
    return hashed.hexdigest(), size


def raised(work: tuple[Any, ...], error: BaseException, stage: str) -> Told:
    """What to say of an exception: that the environment lacks a module, or the exception itself, or texts of it."""
    flush()
    if stage != "dump" and isinstance(error, ImportError) and (broken := _broken(error)):
        return broken
    name = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    try:
        text = str(error)
    except BaseException:
        text = "(its text cannot be made: str() of it raises)"
    trace = _strip(error.__traceback__)
    try:
        lines = traceback.format_exception(type(error), error, trace)
    except BaseException:
        lines = [*traceback.format_tb(trace), f"{name}: {text}\n"]
    if missed.names:
        lines.append(wire.IN_VAIN + ", ".join(list(missed.names)[-MOST_MISSED:]) + "\n")
    texts = (_short(name, NAME_LIMIT), _short(text, wire.TEXT_LIMIT), _short("".join(lines), 2 * wire.TEXT_LIMIT), stage)
    said = tuple(one.encode("utf-8", "replace") for one in texts)
    try:
        data = _portable(error)
        if len(data) <= min(wire.INLINE_LIMIT, ROOM - sum(map(len, said))):
            return wire.RAISED, 0, (*said, b""), (data,)
        digest, size = _to_file(work[wire.TO_FILE], [data])
        return wire.RAISED, size, (*said, digest.encode()), ()
    except BaseException:  # an exception whose own pickling misbehaves cannot travel
        return wire.RAISED, 0, (*said, b""), ()


def _portable(error: BaseException) -> bytes:
    """The exception's payload, tried out: many pickle well and then cannot be unpickled, because their
    ``__init__`` takes something else than ``args``.  Those come back without ``__init__`` being called."""
    try:
        try:
            pieces = payload.pack(error)
        except Exception as first:
            pieces = by_cloudpickle(error, first)
        return _tried(error, pieces)
    except Exception:
        return _tried(error, payload.assemble([_without_init(error)]))


def _tried(error: BaseException, pieces: Sequence[payload.Buffer]) -> bytes:
    data = b"".join(pieces)
    again = payload.unpack(bytearray(data))
    if type(again).__qualname__ != type(error).__qualname__:
        raise pickle.PicklingError("it comes back as something else")
    return data


def _without_init(error: BaseException) -> bytes:
    """A pickle that makes the exception by ``__new__`` alone and then gives it its attributes."""
    try:
        base: Any = importlib.import_module("cloudpickle").Pickler
    except ImportError:
        base = pickle.Pickler

    class Pickler(base):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            if obj is error:
                return copyreg.__newobj__, (type(obj), *obj.args), obj.__dict__ or None  # type: ignore[attr-defined]
            return super().reducer_override(obj) if base is not pickle.Pickler else NotImplemented

    file = io.BytesIO()
    Pickler(file, 5).dump(error)
    return file.getvalue()


def _short(text: str, limit: int) -> str:
    half = limit // 2
    return text if len(text) <= limit else f"{text[:half]}\n  [...]\n{text[-half:]}"


def _strip(trace: TracebackType | None) -> TracebackType | None:
    """The traceback without our frames at its beginning."""
    while trace is not None and trace.tb_frame.f_code.co_filename in _OURS:
        trace = trace.tb_next
    return trace


def _broken(error: ImportError) -> Told | None:
    """That the environment is broken, if what was to be imported really cannot be.

    Where a package says in words of its own what it lacks, what it had caught then is behind it.
    """
    behind: BaseException | None = error
    for _ in range(MOST_BEHIND):
        if not isinstance(behind, ImportError) or behind.name:
            break
        behind = behind.__cause__ or behind.__context__
    if not isinstance(behind, ImportError) or not behind.name:
        return None
    name = behind.name
    try:
        importlib.import_module(name)
        return None
    except ImportError as again:
        if again.name and again.name != name and not name.startswith(again.name + "."):
            name = again.name
    except BaseException:  # it is there, and fails in its own way
        return None
    file, line = "", 0
    trace = _strip(behind.__traceback__)
    while trace is not None:
        if "importlib" not in trace.tb_frame.f_code.co_filename:
            file, line = trace.tb_frame.f_code.co_filename, trace.tb_lineno
        trace = trace.tb_next
    texts = (_short(name, NAME_LIMIT), file, _short(str(error), wire.TEXT_LIMIT), str(line), "")
    return wire.BROKEN, 0, tuple(one.encode("utf-8", "replace") for one in texts), ()


def flush() -> None:
    """What the call printed through streams of its own; the original ones do not buffer."""
    for stream, original in ((sys.stdout, sys.__stdout__), (sys.stderr, sys.__stderr__)):
        if stream is not original:
            try:
                stream.flush()
            except Exception:  # a stream that the call left broken
                pass


def mapped_files() -> int:
    """kB of files (programs, libraries, data) that this process has mapped and looked at: the page cache's."""
    fd = os.open("/proc/self/status", os.O_RDONLY)
    data = os.read(fd, 4096)
    os.close(fd)
    at = data.find(b"RssFile:")
    return int(data[at + 8 : data.index(b"kB", at)]) if at >= 0 else 0


def exact(low: int, base: int) -> int:
    """The peak of this process, copied pages included.

    The kernel's high-water mark counts new pages but not copied ones; private memory at the end counts both,
    but only what is left.  ``(HWM - RSS at fork) + max(0, USS now - (RSS now - RSS at fork))`` joins them.
    """
    rss, private = rollup("/proc/self/smaps_rollup")
    return low + max(0, private - max(0, rss - base))


def rollup(path: str) -> tuple[int, int]:
    """(resident, private) bytes of a process."""
    rss = private = 0
    with open(path, "rb", buffering=0) as file:
        for line in file.read(4096).splitlines():
            if line.startswith(b"Rss:"):
                rss = int(line[4:-2]) * 1024
            elif line.startswith(b"Private_Dirty:"):
                private += int(line.split()[1]) * 1024
    return rss, private


def set_threads(count: int) -> None:
    """Libraries that the template has loaded with one thread get as many as the call has cores."""
    import ctypes

    for name, symbols in _POOLS:
        for path in _loaded(name):
            try:
                library = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
            except OSError:
                continue
            for symbol in symbols:
                setter = getattr(library, symbol, None)
                if setter is not None:
                    setter(ctypes.c_int(count))
                    break


_OPENBLAS = (
    "scipy_openblas_set_num_threads64_",
    "scipy_openblas_set_num_threads",
    "openblas_set_num_threads64_",
    "openblas_set_num_threads",
)
_POOLS = (
    ("openblas", _OPENBLAS),
    ("libmkl_rt", ("MKL_Set_Num_Threads",)),
    ("libtorch_cpu", ("MKL_Set_Num_Threads_Local",)),  # as torch.set_num_threads does: the MKL inside of it
    ("libgomp", ("omp_set_num_threads",)),
    ("libomp", ("omp_set_num_threads",)),
    ("libiomp", ("omp_set_num_threads",)),
)


def _loaded(part: str) -> set[str]:
    with open("/proc/self/maps") as file:
        lines = (line.rstrip("\n").split(maxsplit=5) for line in file)
        return {words[5] for words in lines if len(words) == 6 and part in words[5].rsplit("/", 1)[-1]}


def look_first(shared: mmap.mmap, buffer: bytearray) -> int:
    """What was not done yet, or could not be, of directory and affinity: raises what is the matter.  And if this is the
    first call of its forker, how much of files it has mapped (kB): they are told from its memory once for all."""
    if page.NUMBER.unpack_from(shared, page.TROUBLE_AT)[0]:
        directory, cpus = wire.place(buffer, page.NUMBER.unpack_from(shared, page.SIZE_AT)[0])
        if directory:
            os.chdir(directory)
        if cpus:
            os.sched_setaffinity(0, cpus)
    if page.NUMBER.unpack_from(shared, page.FILES_AT)[0]:
        return 0
    files = mapped_files()
    page.NUMBER.pack_into(shared, page.FILES_AT, files)
    return files


def look_last(shared: mmap.mmap, first: int) -> tuple[int, int]:
    """The exact peak (0: the bounds are close enough) and the mapped files that came in the call (kB; -1: not counted).

    Neither where the call has left no descriptor, or no /proc: its value is worth more than its figures.
    """
    try:
        return _look_last(shared, first)
    except OSError:
        return 0, -1


def _look_last(shared: mmap.mmap, first: int) -> tuple[int, int]:
    if page.NUMBER.unpack_from(shared, page.LEARN_AT)[0] == 1:
        page.learned(shared, pages.own() if pages is not None else [])
    figures = memoryview(page.figures(shared))
    _, base, base_files = page.base(shared)
    files = -1
    if first or page.read_figures(figures, 0).memory_low > _WORTH_A_LOOK:
        files = max(0, mapped_files() - (first or base_files // page.KB))
        if first:
            page.FILES.pack_into(shared, page.FILES_AT, first, files)
            page.NUMBER.pack_into(shared, page.LEARN_AT, 1)  # the next is an ordinary one
    found = page.read_figures(figures, files)
    if found.memory_high - found.memory_low <= _UNSURE:
        return 0, files
    grown = files if files >= 0 else page.NUMBER.unpack_from(shared, page.FILES_AT + 8)[0]
    return exact(found.memory_low, base + grown * page.KB), files


def settle_rest(work: tuple[Any, ...], rest: tuple[Any, ...], channel: int, shared: mmap.mmap) -> None:
    """What only some calls have: a command, threads, an import path."""
    if rest[wire.COMMAND]:
        become_command(work, channel, lambda: page.forget_base(shared))
    if rest[wire.THREADS] > 1:
        set_threads(rest[wire.THREADS])
    overlay = rest[wire.OVERLAY]
    if overlay and sys.path[0] != overlay + "/src":
        add_overlay(overlay)
    if rest[wire.PATHS]:
        sys.path.extend(path for path in rest[wire.PATHS] if path not in sys.path)


def become_command(work: tuple[Any, ...], channel: int, forget_base: Callable[[], None]) -> NoReturn:
    """Replace this process by a command; its descriptors 0, 1 and 2 come with the next message."""
    command, directory = work[wire.REST][wire.COMMAND], work[wire.REST][wire.DIRECTORY]
    with socket.socket(fileno=channel) as ours:
        _, fds, _, _ = socket.recv_fds(ours, 16, 3)
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    forget_base()  # nothing of the template stays after an exec
    try:
        os.chdir(directory)
        environ = work[wire.ENVIRON]
        os.environb.update(zip(environ[::2], environ[1::2], strict=True))
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"lfm monitor: {command[0]}: {error.strerror}\n".encode())
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)

