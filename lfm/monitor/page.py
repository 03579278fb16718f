"""The page that the processes of a slot share: who runs, and the figures of its call as the kernel gives them.

Written by the call's own process (``native``), its forker and its monitor; ``native.S`` has the same places.  A call
can write anything here: nobody is signalled, and nothing of another call decided, by what it says alone.  What
outlives a call the monitor keeps for itself (``Known``), and writes anew for each.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from typing import NamedTuple

KB = 1024
ID, NUMBER, TIME = struct.Struct("<Q"), struct.Struct("<q"), struct.Struct("<qq")
RUSAGE = struct.Struct("<5q24xq")  # the first half of struct rusage: user and system time, peak memory (kB), faults

ID_AT = 0  # of the running call; 0: none began
PID_AT = 56  # of the call's process, written by the kernel as it is made
SAID_AT = 80  # what the forker was told last
TROUBLE_AT = 88  # what the kernel said against the call's directory and affinity; 0: nothing
SIZE_AT = 96  # of the message with the work
LEARN_AT = 104  # 1: find out which pages calls write to; 2: that is known
FILES_AT = 112  # kB of mapped files before the first call of a forker (0: not counted yet), and how much they grew in it
BEFORE_AT = 128  # struct rusage before the call,
AFTER_AT = 272  # after it,
CHILDREN_AT = 416  # and of the processes that it waited for
BEGAN_AT = 560  # struct timespec, monotonic
ENDED_AT = 576
QUIET_AT = 592  # 1: the call has printed nothing and has no other process, so that its figures are all there is to tell
HELD_AT = 600  # bytes that the forker holds for a function that it has loaded
IO_AT = 608  # the beginning of its /proc/self/io
IOVEC_AT = 672
PRINTED_AT = 712  # 1: the monitor has taken something out of its pipes
PAGES_AT = 1024  # how many pages calls write to, and their addresses: they are copied before there is work
MOST_PAGES = 255  # so much of a call's memory may be taken for what all calls need
END_AT = PAGES_AT + 8  # of what a new forker must not find
FIGURES = slice(FILES_AT, IOVEC_AT)  # what goes with the answer
_FIGURES = struct.Struct("<16x 4qq24xq72x 4qq24xq72x 32xq104x 4q 2q 64s")  # FILES and what is not used of each left out
PAGES = struct.Struct(f"<{MOST_PAGES + 1}q")
FILES = struct.Struct("<2q")
FIGURES_SIZE = _FIGURES.size


def forget(shared: mmap.mmap) -> None:
    """A new forker: nothing is known any more."""
    shared[8:END_AT] = bytes(END_AT - 8)


def learned(shared: mmap.mmap, pages: list[int]) -> None:
    """What a call wrote to: so will others, unless they do much else."""
    if len(pages) <= MOST_PAGES:
        PAGES.pack_into(shared, PAGES_AT, len(pages), *pages, *[0] * (MOST_PAGES - len(pages)))
    NUMBER.pack_into(shared, LEARN_AT, 2)


class Known:
    """What one forker's calls have found out about all that it makes: how much of files they have mapped, and which
    pages they write to.  Each step is taken over once, from a call that ended well, if it can be true."""

    def __init__(self, shared: mmap.mmap) -> None:
        self._shared = shared
        self.forget()

    def forget(self) -> None:
        """The forker has changed: it is to be found out anew."""
        self.step, self._files, self._pages = 0, bytes(FILES.size), bytes(8)

    def write(self, held: int) -> None:
        """For the next call, over whatever the last one made of it."""
        NUMBER.pack_into(self._shared, HELD_AT, held)
        self._shared[LEARN_AT:BEFORE_AT] = NUMBER.pack(self.step) + self._files
        self._shared[PAGES_AT : PAGES_AT + len(self._pages)] = self._pages

    def take(self, peak: int, writable: Callable[[], list[tuple[int, int]]]) -> None:
        """``peak``: bytes that the call's process held, as the kernel says; ``writable``: the memory that all of them
        can write to."""
        if self.step == 2 or NUMBER.unpack_from(self._shared, LEARN_AT)[0] != self.step + 1:
            return
        if self.step == 0:
            files, grown = FILES.unpack_from(self._shared, FILES_AT)
            if not (files > 0 and grown >= 0 and (files + grown) * KB <= peak):
                return
            self._files = self._shared[FILES_AT:BEFORE_AT]
        else:
            count, *pages = PAGES.unpack_from(self._shared, PAGES_AT)
            if not 0 <= count <= MOST_PAGES or not _lie_in(pages[:count], writable() if count else []):
                return
            self._pages = self._shared[PAGES_AT : PAGES_AT + 8 * (count + 1)]
        self.step += 1


def _lie_in(pages: list[int], regions: list[tuple[int, int]]) -> bool:
    return all(at % mmap.PAGESIZE == 0 and any(start <= at < end for start, end in regions) for at in pages)


def forget_base(shared: mmap.mmap) -> None:
    """What the process was before its call is nothing to what it becomes."""
    shared[FILES_AT:AFTER_AT] = bytes(AFTER_AT - FILES_AT)


def pid(shared: mmap.mmap) -> int:
    return int(NUMBER.unpack_from(shared, PID_AT)[0])


def base(shared: mmap.mmap) -> tuple[float, int, int]:
    """Of the call's process before its call: CPU seconds, peak memory and mapped files (bytes)."""
    user, user_us, system, system_us, peak, _ = RUSAGE.unpack_from(shared, BEFORE_AT)
    files = NUMBER.unpack_from(shared, FILES_AT)[0]
    return user + system + (user_us + system_us) / 1e6, peak * KB, files * KB


def quiet(shared: mmap.mmap) -> bool:
    return bool(NUMBER.unpack_from(shared, QUIET_AT)[0] == 1)


def figures(shared: mmap.mmap) -> bytes:
    return shared[FIGURES]


class Figures(NamedTuple):
    """What the kernel says of a call's process, as it says it itself at its end.  Bytes and seconds."""

    wall_s: float
    cpu_s: float
    memory_low: int
    memory_high: int
    children: int  # the largest of the processes that it waited for
    before: int  # what it began with
    quiet: bool
    held: int
    io: bytes  # text: bytes read and written


def read_figures(data: memoryview | bytes, files: int) -> Figures:
    """``files``: kB of mapped files that came with the call, if it looked; less than 0: as in the first one."""
    (
        user0, user0_us, system0, system0_us, before, faults_before,
        user1, user1_us, system1, system1_us, after, faults, children,
        began, began_ns, ended, ended_ns, quiet, held, io,
    ) = _FIGURES.unpack(data)  # fmt: skip
    if files < 0:
        files = FILES.unpack_from(data)[1]
    low = max(0, after - before - files) * KB  # pages of libraries that were only mapped are nobody's
    high = max(low, (faults - faults_before) * mmap.PAGESIZE)
    return Figures(
        ended - began + (ended_ns - began_ns) / 1e9,
        user1 + system1 - user0 - system0 + (user1_us + system1_us - user0_us - system0_us) / 1e6,
        low, high, children * KB, before * KB, quiet == 1, held, io,
    )  # fmt: skip


def read_io(text: bytes) -> tuple[int, int]:
    """Bytes read and written, of a /proc/PID/io or its beginning."""
    words = text.split(None, 4)
    try:
        return max(0, int(words[1])), max(0, int(words[3]))
    except (IndexError, ValueError):  # there was none; or a call has written over it
        return 0, 0
