"""The call's own process: receives its work, loads, runs, sends what came of it, and leaves with ``os._exit``.

Runs user code, so nothing it says is believed beyond its own call.  It is forked ahead of need and sleeps until
the daemon writes to its channel; all that it needs was imported by the template before the fork.

Every page that it touches costs a copy fault, which is most of what a short call costs.  So the path of an
ordinary call is flat, calls C where it can, and leaves what is rare to ``lfm.monitor.answer``.
"""

from __future__ import annotations

import _random
import gc
import mmap
import os
import pickle
import random
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from gc import enable
from marshal import loads
from pickle import dumps
from pickle import loads as unpickle
from typing import Any

from lfm.monitor import answer, linux, native, payload, wire
from lfm.monitor.variables import change

_PAYLOAD_AT = 64  # where the pickle of a payload without buffers lies
_ONE_SEGMENT = b"LFM1" + struct.pack("<I", 1)
# an ordinary answer: the result's head and a payload's, with the padding up to the pickle
_head = struct.Struct(wire.RESULT.format + "4sIQ48x").pack
_RETURNED = wire.RETURNED
_SIMPLE = frozenset((bool, int, float, complex, str, type(None)))  # have no buffers

Warm = tuple[str, Callable[..., Any]]  # a function that the forker has loaded, and the file it came from


def serve(
    receive: Callable[[], bool],
    measure: Callable[[], bool],
    respond: Callable[[bytes], object],
    channel: int,
    shared: mmap.mmap,
    buffer: bytearray,
    warm: Warm | None = None,
) -> None:
    """Wait for one call, run it, leave; the first three are of ``native``."""
    first = 0
    stage, exact, files = "load", 0, -1
    look = receive()
    work = loads(buffer)
    id, code, data, _, environ, rest = work
    try:
        if look:
            first = answer.look_first(shared, buffer)
        if rest is not None:
            answer.settle_rest(work, rest, channel, shared)
        change(environ)
        enable()
        function = warm[1] if warm is not None and warm[0] == code else answer.load_function(code)
        if data[:8] == _ONE_SEGMENT and (rest is None or not rest[wire.BLOBS]):
            arguments = unpickle(data[_PAYLOAD_AT:])
        else:
            arguments = answer.load_arguments(data, rest[wire.BLOBS] if rest is not None else "")
        stage = "call"
        if rest is not None and rest[wire.CHUNK]:
            value: Any = [function(*args, **kwargs) for args, kwargs in arguments]
        else:
            value = function(*arguments[0], **arguments[1])
        stage = "dump"
        if sys.stdout is not sys.__stdout__ or sys.stderr is not sys.__stderr__:
            answer.flush()
        plain, told = _returned(work, value)
    except BaseException as error:  # SystemExit and KeyboardInterrupt are answers too
        plain, told = None, answer.raised(work, error, stage)
    if measure() or first:
        exact, files = answer.look_last(shared, first)
    if plain is None:
        respond(wire.result(id, exact, files, *told))
        return
    size = len(plain)
    respond(_head(_RETURNED, id, exact, files, 0, 0, 0, 0, 0, 0, _PAYLOAD_AT + size, b"LFM1", 1, size) + plain)


def _returned(work: tuple[Any, ...], value: Any) -> tuple[bytes | None, answer.Told]:
    """Its pickle if it is small and has no buffers beside it; else what is told of it."""
    buffers: list[pickle.PickleBuffer] = []
    try:
        data = dumps(value, 5) if value.__class__ in _SIMPLE else dumps(value, 5, buffer_callback=buffers.append)
    except Exception as error:
        return None, answer.returned(work, answer.by_cloudpickle(value, error))
    if buffers or len(data) > wire.INLINE_LIMIT - _PAYLOAD_AT:
        return None, answer.returned(work, payload.assemble([data, *(b.raw() for b in buffers)]))
    return data, answer.NOTHING


def rehearse(bare: bool, times: int = 64) -> None:
    """Run the path of a call in the template, with a call that does nothing.

    What the interpreter learns on the way (specialised bytecode, attribute caches, linked symbols) it writes into
    pages that each call's process would otherwise have to copy for itself.
    """
    task, held = os.environ.get("LFM_TASK"), set(os.listdir("/proc/self/fd"))
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    code, shared, buffer = os.memfd_create("rehearsal"), mmap.mmap(-1, mmap.PAGESIZE), bytearray(wire.DATAGRAM)
    path: native.Path = native.Plain(shared, its.fileno(), buffer)
    if bare:
        native.give_references()
        path = native.make(shared, its.fileno(), buffer)
    receive, measure = path.receive, path.measure
    os.write(code, b"".join(payload.pack(max)))
    arguments = b"".join(payload.pack(((1, 2), {})))
    cpus, file, before = tuple(os.sched_getaffinity(0)), f"/proc/self/fd/{code}", os.getcwd()
    for turn in range(times):
        work = wire.Work(turn + 1, file, arguments, "", before, environ={b"LFM_TASK": b"%d" % turn}, cpus=cpus)
        ours.send(wire.work(work))
        # in place of the answer, which would end this process, something of its kind
        serve(receive, measure, callable, its.fileno(), shared, buffer, (file, max) if turn % 2 else None)
    if task is None:
        del os.environ["LFM_TASK"]
    else:
        change((b"LFM_TASK", os.fsencode(task)))
    gc.disable()
    os.close(code)
    ours.close()
    its.close()
    for fd in set(os.listdir("/proc/self/fd")) - held:  # what a call leaves open, as its process ends
        with suppress(OSError):
            os.close(int(fd))


def reseed(
    seed: Callable[..., None] = _random.Random.seed, into: Any = random._inst, urandom: Any = os.urandom
) -> None:
    """A cloned process must not draw the numbers that its brothers draw: where ``native`` does not see to it."""
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
