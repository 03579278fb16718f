"""The call's own process: receives its work, loads, runs, sends what came of it, and leaves with ``os._exit``.

Runs user code, so nothing it says is believed beyond its own call.  It is forked ahead of need and sleeps until
the daemon writes to its channel; all that it needs was imported by the template before the fork.

Every page that it touches costs a copy fault, which is most of what a short call costs.  So the path of an
ordinary call is flat, calls C where it can, and leaves what is rare to ``lfm.monitor.answer``.
"""

from __future__ import annotations

import _random
import gc
import marshal
import mmap
import os
import pickle
import random
import socket
import struct
import sys
from collections.abc import Callable
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from time import monotonic
from typing import Any

from lfm.monitor import answer, linux, payload, wire

# The page that a slot's processes share: id of the running call (0: none began), nothing yet; of the first process
# before its call: CPU seconds, peak memory (kB), faults, mapped files (kB), and how much these grew in its call;
# then, written by the forker: the process, the bytes that the forker holds for a function that it has loaded, and
# the first process of the namespace.
PAGE = struct.Struct("<Qddqqqqqqq")
PAGE_ID = struct.Struct("<Q")
PAGE_BASE = struct.Struct("<dqqqq")
PAGE_BASE_AT = 16
PAGE_FILES, PAGE_FILES_AT = struct.Struct("<q"), 48
_WORTH_A_LOOK = 4096  # kB from which it does not matter what looking costs
PAGE_PID = struct.Struct("<q")
PAGE_PID_AT = 56
PAGE_WARM_AT = 64
PAGE_INIT_AT = 72
PAGE_SAID_AT = 80  # what the forker was told last
KB = 1024
ENVIRON: dict[bytes, bytes] = os.environ._data  # type: ignore[attr-defined]
CHUNK, BLOBS, COMMAND = wire.CHUNK, wire.BLOBS, wire.COMMAND
_PAYLOAD_AT = 64  # where the pickle of a payload without buffers lies
_ONE_SEGMENT = b"LFM1" + struct.pack("<I", 1)
_ONE_SEGMENT_HEAD = struct.Struct("<4sIQ48x")  # with the padding up to the pickle
_START = bytes(8)  # the id of no call
_UNSURE = 1 << 20  # bytes of doubt about copied pages from which smaps_rollup is worth its price


Warm = tuple[str, Callable[..., Any]]  # a function that the forker has loaded, and the file it came from


def serve(
    channel: int,
    page: mmap.mmap,
    buffer: bytearray,
    warm: Warm | None = None,
    _exit: Callable[[int], Any] = os._exit,
    readv: Callable[..., int] = os.readv,
    loads: Callable[..., Any] = marshal.loads,
    unpickle: Callable[..., Any] = pickle.loads,
) -> None:
    """Wait for one call, run it, leave."""
    first = page[PAGE_BASE_AT : PAGE_BASE_AT + 8] == _START  # of this forker's; its brothers are alike
    if first:
        used = getrusage(RUSAGE_SELF)
        cpu, rss, faults = used.ru_utime + used.ru_stime, used.ru_maxrss, used.ru_minflt
        PAGE_BASE.pack_into(page, PAGE_BASE_AT, cpu, rss, faults, answer.mapped_files(), 0)
    size = readv(channel, (buffer,))
    if not size:
        _exit(0)
    page[:8] = buffer[size - 8 : size]  # from now on it has begun
    began = monotonic()
    work = loads(buffer)
    if work[COMMAND]:
        answer.become_command(work, channel, lambda: PAGE_BASE.pack_into(page, PAGE_BASE_AT, 0.0, 0, 0, 0, 0))
    stage = "load"
    try:
        settle(work)
        function = warm[1] if warm is not None and warm[0] == work[1] else answer.load_function(work[1])
        data = work[2]
        if data[:8] == _ONE_SEGMENT and not work[BLOBS]:
            arguments = unpickle(data[_PAYLOAD_AT:])
        else:
            arguments = answer.load_arguments(data, work[BLOBS])
        stage = "call"
        if work[CHUNK]:
            value: Any = [function(*args, **kwargs) for args, kwargs in arguments]
        else:
            value = function(*arguments[0], **arguments[1])
        stage = "dump"
        if sys.stdout is not sys.__stdout__ or sys.stderr is not sys.__stderr__:
            answer.flush()
        kind, in_file, texts, pieces = _returned(work, value)
    except BaseException as error:  # SystemExit and KeyboardInterrupt are answers too
        kind, in_file, texts, pieces = answer.raised(work, error, stage)
    used = getrusage(RUSAGE_SELF)
    _, base_rss, base_faults, base_files, files = PAGE_BASE.unpack_from(page, PAGE_BASE_AT)
    low = used.ru_maxrss - base_rss
    if first or low > _WORTH_A_LOOK:
        files = max(0, answer.mapped_files() - base_files)
        if first:
            PAGE_FILES.pack_into(page, PAGE_FILES_AT, files)
    low = max(0, low - files) * KB  # pages of libraries that were only mapped are nobody's
    high = max(low, (used.ru_minflt - base_faults) * mmap.PAGESIZE)
    if high - low > _UNSURE:
        high = answer.exact(low, (base_rss + files) * KB)
    children = getrusage(RUSAGE_CHILDREN).ru_maxrss * KB
    took = monotonic() - began
    head = wire.RESULT.pack(kind, work[0], took, low, high, children, in_file, *map(len, texts), sum(map(len, pieces)))
    try:
        os.writev(channel, (head, *texts, *pieces))
    except OSError:
        _exit(1)
    _exit(0)


def settle(work: tuple[Any, ...]) -> None:
    """Directory, environment, affinity, import path."""
    _, _, _, _, sandbox, overlay, paths, environ, cpus, threads = work[:10]
    os.chdir(sandbox)
    ours = ENVIRON
    for name, text in environ.items():
        if ours.get(name) != text:
            os.putenv(name, text)
            ours[name] = text
    if cpus:
        os.sched_setaffinity(0, cpus)
    if threads > 1:
        answer.set_threads(threads)
    if overlay and sys.path[0] != overlay + "/src":
        answer.add_overlay(overlay)
    if paths:
        sys.path.extend(path for path in paths if path not in sys.path)
    gc.enable()


def _returned(work: tuple[Any, ...], value: Any) -> tuple[int, int, tuple[bytes, ...], tuple[payload.Buffer, ...]]:
    buffers: list[pickle.PickleBuffer] = []
    try:
        data = pickle.dumps(value, 5, buffer_callback=buffers.append)
    except Exception as error:
        return answer.returned(work, answer.by_cloudpickle(value, error))
    if buffers or len(data) > wire.INLINE_LIMIT - _PAYLOAD_AT:
        return answer.returned(work, payload.assemble([data, *(b.raw() for b in buffers)]))
    return wire.RETURNED, 0, wire.NO_TEXTS, (_ONE_SEGMENT_HEAD.pack(b"LFM1", 1, len(data)), data)


def rehearse(times: int = 64) -> None:
    """Run the path of a call in the template, with a call that does nothing.

    What the interpreter learns on the way (specialised bytecode, attribute caches, linked symbols) it writes into
    pages that each call's process would otherwise have to copy for itself.
    """
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    code, page, buffer = os.memfd_create("rehearsal"), mmap.mmap(-1, mmap.PAGESIZE), bytearray(wire.DATAGRAM)
    os.write(code, b"".join(payload.pack(max)))
    arguments = b"".join(payload.pack(((1, 2), {})))
    cpus = tuple(os.sched_getaffinity(0))
    for turn in range(times):
        path, before = f"/proc/self/fd/{code}", os.getcwd()
        work = wire.Work(turn + 1, path, arguments, "", before, environ={b"LFM_TASK": b"%d" % turn}, cpus=cpus)
        ours.send(wire.work(work))
        warm = (path, max) if turn % 2 else None
        serve(its.fileno(), page, buffer, warm, os.strerror)  # which ends nothing
        reseed()
        ours.recv(wire.DATAGRAM)
    os.environ.pop("LFM_TASK")
    gc.disable()
    os.close(code)
    page.close()
    ours.close()
    its.close()


def reseed(
    seed: Callable[..., None] = _random.Random.seed, into: Any = random._inst, urandom: Any = os.urandom
) -> None:
    """A cloned process must not draw the numbers that its brothers draw."""
    seed(into, int.from_bytes(urandom(8), "little"))
    into.gauss_next = None
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        numpy.seed(int.from_bytes(urandom(4), "little"))


def replay(hooks: list[linux.Hook]) -> None:
    """Run the at-fork handlers that third parties registered, as ``os.fork`` would have."""
    for before, _ in reversed(hooks):
        if before is not None:
            before()
    for _, after in hooks:
        if after is not None:
            after()
