"""What daemon, template, monitor and call say to each other: fixed structs and raw bytes.

One datagram each.  The daemon only ever reads numbers, texts and opaque bytes; nothing that comes from a
call is unpickled by anyone but the client.  Marshal goes one way only: from the daemon to the call.
"""

from __future__ import annotations

import marshal
import os
import struct
from typing import NamedTuple

from lfm.monitor import page
from lfm.monitor.sandbox import Owned

DATAGRAM = 200 * 1024  # bytes; the largest message, below the kernel's default socket buffer
NO_TEXTS = (b"",) * 5
_NO_TEXTS = ("",) * 5
Buffer = bytes | bytearray | memoryview
INLINE_LIMIT = 64 * 1024  # bytes; what is larger goes through a file
TEXT_LIMIT = 16 * 1024  # characters of an exception's text; a traceback may have twice that

# daemon -> monitor
WATCH, RAISE, KILL, CLEAN, WARM = 1, 2, 3, 4, 5
# monitor -> daemon
READY, REPORT, NEAR, CLEANED, COLD, ENDED = 11, 12, 13, 14, 15, 16
# call -> daemon
RETURNED, RAISED, BROKEN = 21, 22, 23
IN_VAIN = "modules looked for in vain: "  # how a line begins that may end a traceback

VERDICTS = ("", "memory", "disk", "wall_time", "processes", "killed")
STARTED, STRAY, OUT_OF_MEMORY, SPOILED = 1, 2, 4, 8  # flags of a report; spoiled: the slot's channel, by the call
MEMORY_BY = ("none", "poll", "cgroup", "self")

_HEAD = struct.Struct("<BQ")
_WATCH = struct.Struct("<BQdqqdqB")
_CLEAN = struct.Struct("<BQQ")
_RAISE = struct.Struct("<BQq")
_NEAR = struct.Struct("<BQqq")
_REPORT = struct.Struct("<BQiBB5d8q2I2QIB")
RESULT = struct.Struct("<BQqqQ6I")
_PLACE = struct.Struct("<IIQ")


class Limits(NamedTuple):
    """Bytes, seconds and a number; 0: none."""

    memory: int = 0
    disk: int = 0
    wall_time: float = 0.0
    processes: int = 0
    grow: bool = False  # tell the daemon when memory is nearly used up; at the limit stand still until it answers
    gpus: bool = False  # it was given some: see what it holds of their memory


class Work(NamedTuple):
    """All that a call's process needs to know of its call."""

    id: int
    code: str
    arguments: bytes | str  # a payload, or the file it lies in
    result: str
    sandbox: str = ""  # its slot's, filled in by the host; of a command: whose size is watched, and no more
    environ: dict[bytes, bytes] = {}  # noqa: RUF012 (nobody writes to it)
    cpus: tuple[int, ...] | None = None
    overlay: str | None = None  # from here on: what most calls do not have
    paths: tuple[str, ...] = ()  # added to the end of sys.path
    threads: int = 1
    chunk: bool = False
    blobs: str = ""  # the folder with what its arguments refer to, each named by its digest: however many
    directory: str = ""  # of a command: its user's, where nothing is ever removed
    command: tuple[str, ...] = ()  # run this instead of a function, with the descriptors that came along


_REST_AT = Work._fields.index("overlay")
_NO_REST = tuple(Work._field_defaults[name] for name in Work._fields[_REST_AT:])
CODE, ARGUMENTS, TO_FILE, ENVIRON, REST = 1, 2, 3, 4, 5  # of what travels
OVERLAY, PATHS, THREADS, CHUNK, BLOBS, DIRECTORY, COMMAND = range(len(_NO_REST))  # of the rest


def work(values: Work) -> bytes:
    """A tuple by marshal, then what is needed before anything is parsed: CPUs (a mask), directory, their lengths, id."""
    rest = values[_REST_AT:]
    environ = tuple(part for pair in values.environ.items() for part in pair)
    told = marshal.dumps((*values[:4], environ, rest if rest != _NO_REST else None), 4)
    directory = b"" if values.command else os.fsencode(values.sandbox) + b"\0"
    mask = b""
    if values.cpus:
        mask = sum(1 << cpu for cpu in values.cpus).to_bytes(max(values.cpus) // 8 + 1, "little")
    return b"".join((told, mask, directory, _PLACE.pack(len(mask), len(directory), values.id)))


def place(message: bytes | bytearray, size: int) -> tuple[bytes, set[int]]:
    """Directory and CPUs of a message with work of this size."""
    mask, directory, _ = _PLACE.unpack_from(message, size - _PLACE.size)
    at = size - _PLACE.size - directory
    bits = int.from_bytes(message[at - mask : at], "little")
    return bytes(message[at : at + max(0, directory - 1)]), {cpu for cpu in range(8 * mask) if bits >> cpu & 1}


class Result(NamedTuple):
    """What a call says of itself as its last act."""

    kind: int  # RETURNED, RAISED, BROKEN
    id: int
    figures: page.Figures
    size: int  # of the payload in the file, 0: it is in ``data``
    texts: tuple[str, str, str, str, str]  # RAISED: type, text, traceback, stage, digest; BROKEN: module, file, line, reason
    data: bytes


class Report(NamedTuple):
    """What a monitor says of a call that is over, with nothing of it left."""

    id: int
    status: int  # as wait gives it
    verdict: int
    flags: int
    limit: float
    measured: float
    at_s: float
    cpu_s: float
    cores_peak: float
    memory_low: int
    memory_high: int
    disk: int
    read: int
    written: int
    gpu_memory: int
    peak_rss: int  # by rusage, more than before the call: an upper bound, too large after an exec
    warm: int  # bytes that the forker holds for the loaded function: the call's too, though it did not load it
    processes: int
    threads: int
    stdout: int  # bytes written, of which the capture may hold fewer
    stderr: int
    fault: int
    memory_by: int


def quiet(id: int, figures: page.Figures | None = None) -> Report:
    """What its monitor would say of a call whose own figures are all there is to tell."""
    if figures is None:
        return _QUIET._replace(id=id)
    read, written = page.read_io(figures.io)
    return _QUIET._replace(id=id, cpu_s=max(0.0, figures.cpu_s), read=read, written=written, warm=max(0, figures.held))


_QUIET = Report(
    id=0, status=0, verdict=0, flags=STARTED, limit=0.0, measured=0.0, at_s=0.0, cpu_s=0.0, cores_peak=0.0,
    memory_low=0, memory_high=0, disk=0, read=0, written=0, gpu_memory=0, peak_rss=0, warm=0, processes=1, threads=1,
    stdout=0, stderr=0, fault=0, memory_by=0,
)  # fmt: skip


def watch(id: int, began: float, limits: Limits, sandbox: str) -> bytes:
    head = _WATCH.pack(
        WATCH, id, began, limits.memory, limits.disk, limits.wall_time, limits.processes, limits.grow | limits.gpus << 1
    )
    return head + sandbox.encode("utf-8", "surrogateescape")


def read_watch(data: bytes) -> tuple[int, float, Limits, str]:
    _, id, began, memory, disk, wall_time, processes, flags = _WATCH.unpack_from(data)
    limits = Limits(memory, disk, wall_time, processes, bool(flags & 1), bool(flags & 2))
    return id, began, limits, data[_WATCH.size :].decode("utf-8", "surrogateescape")


def clean(owned: Owned) -> bytes:
    return _CLEAN.pack(CLEAN, owned.device, owned.inode) + os.fsencode(owned.path)


def read_clean(data: bytes) -> Owned:
    _, device, inode = _CLEAN.unpack_from(data)
    return Owned(os.fsdecode(data[_CLEAN.size :]), device, inode)


def raise_memory(id: int, memory: int) -> bytes:
    return _RAISE.pack(RAISE, id, memory)


def read_raise(data: bytes) -> tuple[int, int]:
    return _RAISE.unpack(data)[1:]


def simple(kind: int, id: int = 0, rest: bytes = b"") -> bytes:
    return _HEAD.pack(kind, id) + rest


def read_simple(data: bytes) -> tuple[int, bytes]:
    return _HEAD.unpack_from(data)[1], data[_HEAD.size :]


def near(id: int, measured: int, limit: int) -> bytes:
    return _NEAR.pack(NEAR, id, measured, limit)


def read_near(data: bytes) -> tuple[int, int, int]:
    return _NEAR.unpack(data)[1:]


def report(values: Report) -> bytes:
    return _REPORT.pack(REPORT, *values)


def read_report(data: bytes) -> Report:
    return Report(*_REPORT.unpack(data)[1:])


def result(
    id: int, exact: int, files: int, kind: int, in_file: int, texts: tuple[bytes, ...], pieces: tuple[Buffer, ...]
) -> bytes:
    """What a call says: its figures go with it, at the end."""
    data = b"".join(pieces)
    return b"".join((RESULT.pack(kind, id, exact, files, in_file, *map(len, texts), len(data)), *texts, data))


def read_result(data: memoryview | bytes) -> Result:
    """ValueError for what is none: anything may come from a call."""
    try:
        fixed = RESULT.unpack_from(data)
    except struct.error:
        raise ValueError("not a result") from None
    kind, id, exact, files, in_file, *lengths, size = fixed
    texts: tuple[str, ...] = _NO_TEXTS
    at = RESULT.size
    if any(lengths):
        ends = [at := at + length for length in lengths]
        texts = tuple(
            bytes(data[end - length : end]).decode("utf-8", "replace") for end, length in zip(ends, lengths, strict=True)
        )
    if at + size + page.FIGURES_SIZE != len(data) or kind not in (RETURNED, RAISED, BROKEN):
        raise ValueError("not a result")
    figures = page.read_figures(data[at + size :], files)
    if exact:
        figures = figures._replace(memory_high=max(figures.memory_low, exact))
    a, b, c, d, e = texts
    return Result(kind, id, figures, in_file, (a, b, c, d, e), bytes(data[at : at + size]))
