"""One Python object as bytes: its pickle and its large buffers beside it, never copied into it (PEP 574).

Layout, little-endian: magic ``LFM1``, u32 number of segments n, n x u64 lengths, then the segments, each
starting at a multiple of 64 so that a mapped file serves arrays in place.  Segment 0 is the pickle, the
others are its out-of-band buffers.  Standard library only: the call's interpreter reads this too.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable, Sequence
from typing import Any

MAGIC = b"LFM1"
ALIGN = 64
_ONE = struct.Struct(f"<4sIQ{ALIGN - 16}x")
Buffer = bytes | bytearray | memoryview


def pack(obj: Any, dumps: Callable[..., bytes] = pickle.dumps) -> list[Buffer]:
    """The pieces of ``obj``: written one after the other they are its payload.  Raises what ``dumps`` raises.

    ``dumps`` takes (obj, protocol, buffer_callback=): ``pickle.dumps`` or ``cloudpickle.dumps``.
    Buffers are views of the object's own memory, not copies.
    """
    buffers: list[pickle.PickleBuffer] = []
    head = dumps(obj, protocol=5, buffer_callback=buffers.append)
    return assemble([head, *(b.raw() for b in buffers)])


def assemble(segments: Sequence[Buffer]) -> list[Buffer]:
    """Header, segments and the padding between them."""
    if len(segments) == 1:  # most calls' arguments and values
        return [_ONE.pack(MAGIC, 1, memoryview(segments[0]).nbytes), segments[0]]
    sizes = [memoryview(s).nbytes for s in segments]
    pieces: list[Buffer] = [struct.pack(f"<4sI{len(sizes)}Q", MAGIC, len(sizes), *sizes)]
    at = len(pieces[0])
    for segment, size in zip(segments, sizes, strict=True):
        if pad := -at % ALIGN:
            pieces.append(bytes(pad))
        pieces.append(segment)
        at += pad + size
    return pieces


def segments(data: Buffer) -> list[memoryview]:
    """The segments of a payload, as views into it.  ValueError if it is not one."""
    view = memoryview(data).cast("B")
    try:
        magic, count = struct.unpack_from("<4sI", view)
        if magic != MAGIC or not 0 < count <= (len(view) - 8) // 8:
            raise ValueError("not a payload")
        sizes = struct.unpack_from(f"<{count}Q", view, 8)
    except struct.error:
        raise ValueError("not a payload") from None
    found, at = [], 8 + 8 * count
    for size in sizes:
        at += -at % ALIGN
        if at + size > len(view):
            raise ValueError("truncated payload")
        found.append(view[at : at + size])
        at += size
    return found


def unpack(data: Buffer, persistent_load: Callable[[Any], Any] | None = None) -> Any:
    """The object of a payload; raises what unpickling raises.  Writable ``data`` (a bytearray, a private
    mapping) gives writable arrays that use its memory.  ``persistent_load`` turns what ``Executor.put``
    left behind, ("lfm-blob", digest), into the object."""
    head, *buffers = segments(data)
    if persistent_load is None:
        return pickle.loads(head, buffers=buffers)
    return _Unpickler(io.BytesIO(head), buffers, persistent_load).load()


class _Unpickler(pickle.Unpickler):
    """With its own answer to persistent ids; an instance's attribute will not do since Python 3.13."""

    def __init__(self, file: io.BytesIO, buffers: list[memoryview], load: Callable[[Any], Any]) -> None:
        super().__init__(file, buffers=buffers)
        self._load = load

    def persistent_load(self, pid: Any) -> Any:
        return self._load(pid)
