"""What a forker and the processes that it makes do without the interpreter, as x86-64 machine code.

A process that forks has all its pages write-protected, and so has its child: each page that either writes to costs a
fault and a copy.  The interpreter writes to some sixty around one ``clone``, and as many to receive a message and to
send an answer; this code writes to none that is not shared.  Its source is ``native.S``; a test assembles that and
compares.  It is written to a page that is then made executable, and is never both.

Where this is not possible ``Plain`` does the same by the standard library, and monitors fork with ``os.fork``.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import struct
import sys
import time
from collections.abc import Callable
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from typing import Any, NamedTuple, Protocol

from lfm.monitor import linux, page

FORK = b"f"  # what the loop takes for "clone"; anything else ends it
CODE = bytes.fromhex(
    "b82d000000bfa1a1a1a148beaaaaaaaaaaaaaaaa4883c650ba010000004531d24531c04531c90f0583f8fc74d383f8010f851e020000803e"
    "660f8515020000b838000000bfa2a2a2a2488d56e831f649baabababababababab0f0585c07fa10f88ef010000b803000000bfa1a1a1a10f"
    "0541b8a3a3a3a34585c07421b89d000000bf01000000be090000000f05b86e0000000f054439c00f85ac0200004c8d05ec020000498b3848"
    "85ff0f8499010000498b700831d2b83e0100000f054983c010ebe149b9aaaaaaaaaaaaaaaa498b89000400004885c97411498b84c9000400"
    "00f080080048ffc9ebeab86200000031ff498db1800000000f0531c0bfa4a4a4a448beacacacacacacacacbaa5a5a5a50f0583f8fc74e385"
    "c00f8e26020000498941604c8d0406498b40f8498901b8e4000000bf01000000498db1300200000f05418b70f0418b40f4498d78f04829c7"
    "4889fa4829f285c07407b8500000000f054989415885f6740db8cb00000031ff0f054909415849837958000f85d300000049837970000f84"
    "c8000000e9b800000049b9aaaaaaaaaaaaaaaab86200000031ff498db1100100000f05b862000000bfffffffff498db1a00100000f05b8e4"
    "000000bf01000000498db1400200000f0549837968017539b802000000488d3d8a01000031f60f0589c749b8afafafafafafafaf498b1048"
    "85d274584d8b5008498b7010b8110000000f054983c018ebe3498b8130010000492b81a0000000483d001000007f2d492b4178498b915001"
    "0000492b91c000000048c1e2024829c24881fa000400007f0b48b8adadadadadadadadc348b8aeaeaeaeaeaeaeaec349b9aaaaaaaaaaaaaa"
    "aa488d4620498981a0020000488b4610498981a8020000498d4170498981b002000049c781b80200003002000049c7815002000000000000"
    "b802000000488d3dd500000031f60f0585c0787089c731c0498db160020000ba400000000f0583f8407559b8f700000031ff31f631d241ba"
    "050000414531c00f0583f8f6753e4983b9e0010000007534498d91c0020000bfa6a6a6a6e8540000007521bfa7a7a7a7e848000000751549"
    "83b9c802000000750b49c7815002000001000000b814000000bfa4a4a4a4498db1a0020000ba020000000f0583f8fc74e385c0780431ffeb"
    "05bf01000000b8e70000000f05b810000000be1b5400000f0585c075084183b9c002000000c32f70726f632f73656c662f706167656d6170"
    "002f70726f632f73656c662f696f0090"
)
_LOOP, _RECEIVE, _MEASURE, _ANSWER = 0, 195, 401, 607  # where these begin
_OWN = 0x81  # of a page's flags, their highest byte: present, and mapped once
_SPOTS = 8  # at most, of what is random
_STATE = 624  # words of a Mersenne twister
_METH_NOARGS, _METH_O = 4, 8
_kept: list[Any] = []  # what the machine code uses must not move or go


class _Method(ctypes.Structure):
    """CPython's PyMethodDef."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


class Path(Protocol):
    """What a call's process does at its two ends."""

    @property
    def receive(self) -> Callable[[], bool]:
        """Wait for the work, and begin.  True: something is to be looked at first, see ``page``."""

    @property
    def measure(self) -> Callable[[], bool]:
        """Take the figures.  True: memory grew so much that it is worth a look at what it is."""

    @property
    def answer(self) -> Callable[[bytes], object]:
        """Send these bytes with the figures, and leave."""


class Native(NamedTuple):
    """The functions of one forker's children, and the loop that makes these: False in a child, True when something
    else than ``FORK`` was said, which stands in the page, or no child can be had."""

    loop: Callable[[], bool]
    receive: Callable[[], bool]
    measure: Callable[[], bool]
    answer: Callable[[bytes], object]


def possible() -> bool:
    """Whether this machine, this interpreter and this system allow it."""
    return linux.can_clone() and bytes.__basicsize__ == 33 and _executable(b"\xc3") is not None


def make(
    shared: mmap.mmap,
    channel: int,
    buffer: bytearray,
    *,
    socket: int = -1,
    parent: int = 0,
    flags: int = 0,
    spots: list[tuple[int, int]] | None = None,
    pages: Pages | None = None,
    output: tuple[int, int] = (-1, -1),
) -> Native:
    """``socket``: where the loop listens; ``flags``: how it clones; ``parent``: whose death ends the children, 0 where
    something else sees to that; ``spots``: address and size of what is to be random in each of them; ``pages``: where one
    of them finds out which pages it writes to; ``output``: the pipes of stdout and stderr."""
    first = [ctypes.addressof(ctypes.c_char.from_buffer(memory)) for memory in (shared, buffer)]
    flags |= linux.CLONE_PARENT_SETTID | linux.CLONE_CHILD_SETTID | linux.CLONE_CHILD_CLEARTID
    code, table = CODE, pages.table() if pages is not None else bytes(8)
    for mark, value, size in (
        (0xA1, socket & 0xFFFFFFFF, 4),
        (0xA2, flags, 4),
        (0xA3, parent, 4),
        (0xA4, channel, 4),
        (0xA5, len(buffer), 4),
        (0xA6, output[0] & 0xFFFFFFFF, 4),
        (0xA7, output[1] & 0xFFFFFFFF, 4),
        (0xAA, first[0], 8),
        (0xAB, linux.tid_address(), 8),
        (0xAC, first[1], 8),
        (0xAD, id(False), 8),
        (0xAE, id(True), 8),
        (0xAF, id(table) + bytes.__basicsize__ - 1, 8),
    ):
        code = code.replace(bytes([mark]) * size, value.to_bytes(size, "little"))
    random_at = [number for spot in (spots or ())[:_SPOTS] for number in spot]
    held = _executable(code + struct.pack(f"<{len(random_at) + 2}Q", *random_at, 0, 0))
    if held is None:
        raise OSError("no page can be made executable")
    _kept.append((shared, buffer, held, table, pages, [ctypes.c_char.from_buffer(memory) for memory in (shared, buffer)]))
    names = ((_LOOP, _METH_NOARGS), (_RECEIVE, _METH_NOARGS), (_MEASURE, _METH_NOARGS), (_ANSWER, _METH_O))
    return Native(*(_function(ctypes.addressof(held) + at, kind) for at, kind in names))


def _function(address: int, kind: int) -> Callable[..., Any]:
    method = _Method(b"native", address, kind, None)
    _kept.append(method)
    new = ctypes.pythonapi.PyCFunction_NewEx
    new.argtypes, new.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p), ctypes.py_object
    made: Callable[..., Any] = new(ctypes.addressof(method), None, None)
    return made


def _executable(code: bytes) -> ctypes.c_char | None:
    """The first byte of a page that holds this code; None where the system does not allow one."""
    memory = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[: len(code)] = code
    first = ctypes.c_char.from_buffer(memory)  # holds on to the page
    return first if linux.make_executable(ctypes.addressof(first), mmap.PAGESIZE) else None


def give_references(times: int = 1 << 10) -> None:
    """True and False are returned without being counted: so they are counted beforehand."""
    count = ctypes.pythonapi.Py_IncRef
    count.argtypes, count.restype = (ctypes.py_object,), None
    for _ in range(times):
        count(False)
        count(True)


def random_spots() -> list[tuple[int, int]] | None:
    """Where the state of the global random generators lies: of ``random``'s, and of numpy's if it is loaded.  None:
    it was not found with certainty."""
    inst = random._inst
    words = struct.pack(f"<{_STATE}I", *inst.getstate()[1][:_STATE])
    at = ctypes.string_at(id(inst), sys.getsizeof(inst)).find(words)
    if at < 0:
        return None
    spots = [(id(inst) + at, len(words))]
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        try:
            generator = numpy.mtrand._rand._bit_generator
            address, key = generator.ctypes.state_address, generator.state["state"]["key"].tobytes()
        except Exception:  # another generator, or another numpy
            return None
        if len(key) != 4 * _STATE or ctypes.string_at(address, len(key)) != key:
            return None
        spots.append((address, len(key)))
    return spots


class Pages:
    """What the kernel knows of each page of some private memory, as one call's process finds it at its end."""

    def __init__(self, regions: list[tuple[int, int]]) -> None:
        self._regions = regions
        self._known = mmap.mmap(-1, max(8, sum(end - start for start, end in regions) // mmap.PAGESIZE * 8))

    def table(self) -> bytes:
        """For each region: how many bytes to read, where in the file that tells, and where to."""
        to, entries = ctypes.addressof(ctypes.c_char.from_buffer(self._known)), b""
        for start, end in self._regions:
            size = (end - start) // mmap.PAGESIZE * 8
            entries += struct.pack("<3Q", size, start // mmap.PAGESIZE * 8, to)
            to += size
        return entries + bytes(8)

    def own(self) -> list[int]:
        """Addresses of those that are this process's alone: it has written to them."""
        flags, own, at = self._known[7::8], [], 0
        for start, end in self._regions:
            for address in range(start, end, mmap.PAGESIZE):
                if flags[at] & _OWN == _OWN:
                    own.append(address)
                at += 1
        return own


class Plain:
    """The same for where there is no machine code."""

    def __init__(self, shared: mmap.mmap, channel: int, buffer: bytearray) -> None:
        self._page, self._channel, self._buffer = shared, channel, buffer

    def receive(self) -> bool:
        self._take(page.BEFORE_AT, RUSAGE_SELF)
        size = os.readv(self._channel, (self._buffer,))
        if not size:
            os._exit(0)
        page.NUMBER.pack_into(self._page, page.SIZE_AT, size)
        self._page[:8] = self._buffer[size - 8 : size]  # from now on it has begun
        page.TIME.pack_into(self._page, page.BEGAN_AT, *divmod(time.monotonic_ns(), 10**9))
        page.NUMBER.pack_into(self._page, page.TROUBLE_AT, 1)  # nothing was done about directory and affinity
        return True

    def measure(self) -> bool:
        self._take(page.AFTER_AT, RUSAGE_SELF)
        self._take(page.CHILDREN_AT, RUSAGE_CHILDREN)
        page.TIME.pack_into(self._page, page.ENDED_AT, *divmod(time.monotonic_ns(), 10**9))
        return True

    def answer(self, data: bytes) -> None:
        try:
            os.writev(self._channel, (data, page.figures(self._page)))
        except OSError:
            os._exit(1)
        os._exit(0)

    def _take(self, at: int, who: int) -> None:
        used = getrusage(who)
        times = (part for seconds in (used.ru_utime, used.ru_stime) for part in (int(seconds), int(seconds % 1 * 1e6)))
        page.RUSAGE.pack_into(self._page, at, *times, used.ru_maxrss, used.ru_minflt)
