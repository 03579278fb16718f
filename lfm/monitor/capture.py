"""What a call prints: pumped from a pipe into a bounded file of head and tail, by the kernel (splice).

The monitor never holds a byte of it, so no later call can find it in inherited memory; the daemon reads the
file.  A call that prints nothing costs nothing; one that prints 10 GB fills nothing.
"""

from __future__ import annotations

import os

HEAD = 32 * 1024
TAIL = 96 * 1024
BURST = 1 << 20


class Capture:
    """The monitor's side of one stream of one slot: ``write_end`` is the call's, ``file`` the daemon's too."""

    def __init__(self, file: int) -> None:
        self.file = file
        self.read_end, self.write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.read_end, False)
        self.total = 0

    def pump(self) -> bool:
        """Move what waits in the pipe.  True if there may be more."""
        budget = BURST
        while budget > 0:
            room = _room(self.total)
            try:
                moved = os.splice(self.read_end, self.file, room, offset_dst=_place(self.total), flags=2)
            except BlockingIOError:
                return False
            if moved == 0:
                return False
            self.total += moved
            budget -= moved
            os.lseek(self.file, self.total, os.SEEK_SET)  # the daemon shares the position: it reads the total there
        return True

    def restart(self) -> None:
        """Forget the last call's output; the daemon has read it."""
        os.set_blocking(self.write_end, True)  # the last call may have changed that, also for those to come
        if self.total:
            self.total = os.lseek(self.file, 0, os.SEEK_SET)


def _place(position: int) -> int:
    return position if position < HEAD else HEAD + (position - HEAD) % TAIL


def _room(position: int) -> int:
    if position < HEAD:
        return HEAD - position
    return TAIL - (position - HEAD) % TAIL


def read(file: int, total: int) -> bytes:
    """What the bounded file holds of ``total`` bytes written; where some are left out it says how many."""
    if total <= HEAD + TAIL:
        return os.pread(file, total, 0)
    turn = _place(total)
    head, end, start = os.pread(file, HEAD, 0), os.pread(file, TAIL, turn), b""
    if turn > HEAD:
        end = os.pread(file, HEAD + TAIL - turn, turn)
        start = os.pread(file, turn - HEAD, HEAD)
    left_out = total - HEAD - TAIL
    return b"".join((head, b"\n[... %d bytes left out ...]\n" % left_out, end, start))


def since(file: int, position: int) -> tuple[int, bytes]:
    """What a call that still runs has printed from ``position`` on, and where that begins: later, if it is gone."""
    total = os.lseek(file, 0, os.SEEK_CUR)
    if not 0 <= position < total:  # of a call that was begun anew, and has not printed as much again
        return position, b""
    if total <= HEAD + TAIL or position < HEAD:
        end = total if total <= HEAD + TAIL else HEAD
        return position, os.pread(file, max(0, end - position), position)
    first = max(position, total - TAIL)
    place, left = _place(first), total - first
    data = os.pread(file, min(left, HEAD + TAIL - place), place)
    return first, data + (os.pread(file, left - len(data), HEAD) if left > len(data) else b"")
