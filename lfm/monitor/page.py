"""The page that the processes of a slot share: who runs, and the figures of its call as the kernel gives them.

Written by the call's own process (``native``), its forker and its monitor; ``native.S`` has the same places.  A call
can write anything here: nobody is signalled, and nothing of another call decided, by what it says alone.
"""

from __future__ import annotations

import mmap
import struct

KB = 1024
ID, NUMBER, TIME = struct.Struct("<Q"), struct.Struct("<q"), struct.Struct("<qq")
RUSAGE = struct.Struct("<5q24xq")  # the first half of struct rusage: user and system time, peak memory (kB), faults

ID_AT = 0  # of the running call; 0: none began
PID_AT = 56  # of the call's process, written by the kernel as it is made
WARM_AT = 64  # bytes that the forker holds for a function that it has loaded
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
PAGES_AT = 1024  # how many pages calls write to, and their addresses: they are copied before there is work
MOST_PAGES = 255  # so much of a call's memory may be taken for what all calls need
END_AT = PAGES_AT + 8  # of what a new forker must not find
FIGURES = slice(FILES_AT, 592)  # what goes with the answer
_FIGURES = struct.Struct("<16x32xq24xq72x 32xq24xq72x 32xq104x 4q")  # FILES and what is not used of each left out
PAGES = struct.Struct(f"<{MOST_PAGES + 1}q")
_FILES = struct.Struct("<2q")
FIGURES_SIZE = _FIGURES.size


def forget(shared: mmap.mmap) -> None:
    """A new forker: nothing is known any more."""
    shared[8:END_AT] = bytes(END_AT - 8)


def learned(shared: mmap.mmap, pages: list[int]) -> None:
    """What a call wrote to: so will others, unless they do much else."""
    if len(pages) <= MOST_PAGES:
        PAGES.pack_into(shared, PAGES_AT, len(pages), *pages, *[0] * (MOST_PAGES - len(pages)))
    NUMBER.pack_into(shared, LEARN_AT, 2)


def forget_loaded(shared: mmap.mmap) -> None:
    """The forker has changed: what was found out about its children is to be found out anew."""
    for at in (FILES_AT, LEARN_AT, PAGES_AT):
        NUMBER.pack_into(shared, at, 0)


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


def figures(shared: mmap.mmap) -> bytes:
    return shared[FIGURES]


def read_figures(data: memoryview | bytes, files: int) -> tuple[float, int, int, int, int]:
    """Wall seconds; bytes: memory (a lower and an upper bound), the largest of the processes it waited for, and what
    it began with.

    ``files``: kB of mapped files that came with the call, if it looked; less than 0: as in the first one.
    """
    before, faults_before, after, faults, children, began, began_ns, ended, ended_ns = _FIGURES.unpack(data)
    if files < 0:
        files = _FILES.unpack_from(data)[1]
    low = max(0, after - before - files) * KB  # pages of libraries that were only mapped are nobody's
    high = max(low, (faults - faults_before) * mmap.PAGESIZE)
    return ended - began + (ended_ns - began_ns) / 1e9, low, high, children * KB, before * KB
