"""The call's own process: receives its work, loads, runs, sends what came of it, and leaves with ``os._exit``.

Runs user code, so nothing it says is believed beyond its own call.  It is forked ahead of need and sleeps in
``recv`` until the daemon writes to its channel; what it needs was imported by the template before the fork.
"""

from __future__ import annotations

import gc
import importlib
import mmap
import os
import pickle
import random
import resource
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn

from lfm.monitor import payload, wire

# The page that a slot's processes share: id of the running call (0: none began), its start (monotonic clock),
# CPU seconds and peak memory (kB) of the process before it, and the process (written by the forker).
PAGE = struct.Struct("<Qddqq")
PAGE_START = struct.Struct("<Qd")
PAGE_BASE = struct.Struct("<dq")
PAGE_BASE_AT = 16
PAGE_PID = struct.Struct("<q")
PAGE_PID_AT = 32
_KB = 1024
_PAGE_SIZE = mmap.PAGESIZE
_UNSURE = 1 << 20  # bytes of doubt about copied pages from which smaps_rollup is worth its price
_MARGIN = 512  # the result's header, and a little
_here = __file__


class Base:
    """What the process had used before its call."""

    __slots__ = ("cpu", "faults", "rss")

    def __init__(self) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        self.cpu = used.ru_utime + used.ru_stime
        self.rss = used.ru_maxrss * _KB
        self.faults = used.ru_minflt


def serve(channel: socket.socket, page: mmap.mmap, buffer: bytearray, reseed: bool) -> NoReturn:
    """Wait for one call, run it, leave."""
    if reseed:
        reseed_random()
    base = Base()
    PAGE_BASE.pack_into(page, PAGE_BASE_AT, base.cpu, base.rss)
    fds: list[int] = []
    try:
        size, ancillary, _, _ = channel.recvmsg_into((buffer,), 64)
        if not size:
            os._exit(0)
        began = time.monotonic()
        work = wire.Work(*pickle.loads(memoryview(buffer)[:size]))
        PAGE_START.pack_into(page, 0, work.id, began)
        for _, _, data in ancillary:
            fds.extend(struct.unpack(f"{len(data) // 4}i", data))
    except KeyboardInterrupt:
        os._exit(1)
    try:
        if work.command:
            PAGE_BASE.pack_into(page, PAGE_BASE_AT, base.cpu, 0)  # nothing of the template stays after an exec
            _become(work, fds)
        answer = _run(work)
        leave = 0
    except BaseException as error:  # the last line of defence: whatever it is, it is told
        answer, leave = _raised(work, error, "dump"), 0
    low, high, children = _memory(base)
    message = wire.result(
        answer._replace(wall_s=time.monotonic() - began, memory_low=low, memory_high=high, children=children)
    )
    try:
        channel.send(message)
    except OSError:
        leave = 1
    os._exit(leave)


def reseed_random() -> None:
    """A cloned process must not draw the numbers that its brothers draw."""
    random.seed(int.from_bytes(os.urandom(16), "little"))
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        numpy.seed(int.from_bytes(os.urandom(4), "little"))


def _run(work: wire.Work) -> wire.Result:
    stage = "load"
    try:
        _settle(work)
        function, calls = _load(work)
        stage = "call"
        if work.chunk:
            value: Any = [function(*args, **kwargs) for args, kwargs in calls]
        else:
            args, kwargs = calls
            value = function(*args, **kwargs)
        stage = "dump"
        _flush()
        return _returned(work, value)
    except BaseException as error:  # SystemExit and KeyboardInterrupt are answers too
        _flush()
        if stage != "dump" and isinstance(error, ImportError) and (broken := _broken(work, error)):
            return broken
        return _raised(work, error, stage)


def _settle(work: wire.Work) -> None:
    """Directory, environment, affinity, import path."""
    os.chdir(work.sandbox)
    os.environ.update(work.environ)
    if work.cpus:
        os.sched_setaffinity(0, work.cpus)
    if work.threads > 1:
        set_threads(work.threads)
    if work.overlay:
        sys.path.insert(0, work.overlay + "/src")
        sys.path.append(work.overlay + "/lib")
    sys.path.extend(path for path in work.paths if path not in sys.path)
    gc.enable()


def _load(work: wire.Work) -> tuple[Callable[..., Any], Any]:
    with open(work.code, "rb") as file:
        function = payload.unpack(file.read())
    data: Any = work.arguments if isinstance(work.arguments, bytes) else _map(work.arguments)
    if isinstance(data, bytes):
        data = bytearray(data)  # so that arrays in it are writable
    held: dict[str, Any] = {}

    def persistent(name: Any) -> Any:
        kind, digest = name
        if kind != "lfm-blob":
            raise pickle.UnpicklingError(f"unknown persistent reference {kind!r}")
        if digest not in held:
            held[digest] = payload.unpack(_map(work.blobs[digest]))
        return held[digest]

    return function, payload.unpack(data, persistent if work.blobs else None)


def _map(path: str) -> memoryview:
    """A file as writable memory whose changes stay in this process."""
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE))


def _pieces(value: Any) -> list[payload.Buffer]:
    try:
        return payload.pack(value)
    except Exception as first:
        try:
            from cloudpickle import dumps
        except ImportError:
            raise first from None
        return payload.pack(value, dumps)


def _size(pieces: list[payload.Buffer]) -> int:
    return sum(memoryview(piece).nbytes for piece in pieces)


def _returned(work: wire.Work, value: Any) -> wire.Result:
    pieces = _pieces(value)
    blank = wire.Result(wire.RETURNED, work.id, 0.0, 0, 0, 0, 0, ("", "", "", "", ""), b"")
    if _size(pieces) <= wire.INLINE_LIMIT:
        return blank._replace(data=b"".join(pieces))
    digest, size = _to_file(work.result, pieces)
    return blank._replace(size=size, texts=("", "", "", "", digest))


def _to_file(path: str, pieces: list[payload.Buffer]) -> tuple[str, int]:
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


def _raised(work: wire.Work, error: BaseException, stage: str) -> wire.Result:
    name = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    try:
        text = str(error)
    except Exception:
        text = "(its text cannot be made: str() of it raises)"
    trace = _strip(error.__traceback__)
    try:
        lines = traceback.format_exception(type(error), error, trace)
    except Exception:
        lines = [*traceback.format_tb(trace), f"{name}: {text}\n"]
    full = "".join(lines)
    if len(full) > 2 * wire.TEXT_LIMIT:
        full = full[: wire.TEXT_LIMIT] + "\n  [...]\n" + full[-wire.TEXT_LIMIT :]
    text = text if len(text) <= wire.TEXT_LIMIT else text[: wire.TEXT_LIMIT] + " [...]"
    blank = wire.Result(wire.RAISED, work.id, 0.0, 0, 0, 0, 0, (name, text, full, stage, ""), b"")
    try:
        pieces = _pieces(error)
        data = b"".join(pieces)
        again = payload.unpack(bytearray(data))
        if type(again).__qualname__ != type(error).__qualname__:
            return blank
        if len(data) <= wire.INLINE_LIMIT:
            return blank._replace(data=data)
        digest, size = _to_file(work.result, [data])
        return blank._replace(size=size, texts=(name, text, full, stage, digest))
    except BaseException:  # an exception whose own pickling misbehaves cannot travel
        return blank


def _strip(trace: TracebackType | None) -> TracebackType | None:
    """The traceback without our frames at its beginning."""
    while trace is not None and trace.tb_frame.f_code.co_filename in (_here, payload.__file__):
        trace = trace.tb_next
    return trace


def _broken(work: wire.Work, error: ImportError) -> wire.Result | None:
    """EnvironmentBroken, if what was to be imported really cannot be."""
    name = error.name
    if not name:
        return None
    try:
        importlib.import_module(name)
        return None
    except ImportError as again:
        if again.name and again.name != name and not name.startswith(again.name + "."):
            name = again.name
    except BaseException:  # it is there, and fails in its own way
        return None
    file, line = "", 0
    trace = _strip(error.__traceback__)
    while trace is not None:
        if "importlib" not in trace.tb_frame.f_code.co_filename:
            file, line = trace.tb_frame.f_code.co_filename, trace.tb_lineno
        trace = trace.tb_next
    texts = (name, file, str(error)[: wire.TEXT_LIMIT], str(line), "")
    return wire.Result(wire.BROKEN, work.id, 0.0, 0, 0, 0, 0, texts, b"")


def _flush() -> None:
    """What the call printed through streams of its own; the original ones do not buffer."""
    for stream, original in ((sys.stdout, sys.__stdout__), (sys.stderr, sys.__stderr__)):
        if stream is not original:
            try:
                stream.flush()
            except Exception:  # a stream that the call left broken
                pass


def _memory(base: Base) -> tuple[int, int, int]:
    """(lower bound, upper bound) of this process's peak, and the largest peak among children it waited for.

    The kernel's high-water mark counts new pages but not copied ones; private memory at the end counts both
    but only what is left.  ``(HWM - RSS at fork) + max(0, USS now - (RSS now - RSS at fork))`` joins them.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    low = max(0, used.ru_maxrss * _KB - base.rss)
    high = max(low, (used.ru_minflt - base.faults) * _PAGE_SIZE)
    if high - low > _UNSURE:
        rss, private = rollup("/proc/self/smaps_rollup")
        high = low + max(0, private - max(0, rss - base.rss))
    return low, high, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * _KB


def rollup(path: str) -> tuple[int, int]:
    """(resident, private) bytes of a process."""
    rss = private = 0
    with open(path, "rb", buffering=0) as file:
        for line in file.read(4096).splitlines():
            if line.startswith(b"Rss:"):
                rss = int(line[4:-2]) * _KB
            elif line.startswith(b"Private_"):
                private += int(line.split()[1]) * _KB
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


_POOLS = (
    (
        "openblas",
        (
            "scipy_openblas_set_num_threads64_",
            "scipy_openblas_set_num_threads",
            "openblas_set_num_threads64_",
            "openblas_set_num_threads",
        ),
    ),
    ("libmkl_rt", ("MKL_Set_Num_Threads",)),
    ("libgomp", ("omp_set_num_threads",)),
    ("libomp", ("omp_set_num_threads",)),
    ("libiomp", ("omp_set_num_threads",)),
)


def _loaded(part: str) -> set[str]:
    with open("/proc/self/maps") as file:
        lines = (line.rstrip("\n").split(maxsplit=5) for line in file)
        return {words[5] for words in lines if len(words) == 6 and part in words[5].rsplit("/", 1)[-1]}


def _become(work: wire.Work, fds: list[int]) -> NoReturn:
    """Replace this process by a command, which gets the descriptors that came along as its own 0, 1 and 2."""
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
    os.chdir(work.directory)
    os.environ.update(work.environ)
    try:
        os.execvp(work.command[0], work.command)
    except OSError as error:
        os.write(2, f"lfm monitor: {work.command[0]}: {error.strerror}\n".encode())
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)
