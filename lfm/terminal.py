"""A line of ours below the cursor of the terminal that the script writes to, while the script waits inside lfm.

The script's own line, and where its cursor stands in it, are left as they are: a bar of its own goes on in its
place.  What it would write next would run over our line; so ours is there only while its main thread waits in lfm,
and is gone before it goes on.  Knows nothing of what the line says.
"""

from __future__ import annotations

import os
import select
import sys
import threading
from typing import Any

_ROOM = "\x1bD\x1bM"  # down and up again: where there is no line below, all move up by one
_SAVE, _RESTORE, _DOWN, _CLEAR, _INSERT = "\x1b7", "\x1b8", "\x1bD", "\x1b[K", "\x1b[L"


class Terminal:
    """One process's.  Any thread may draw; only the main thread is one that waits."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal's handler may come here while its thread is here already
        self._waiting = 0
        self._drawn = False

    # ------------------------------------------------------------ the main thread waits

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._waiting += 1

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            self._waiting -= 1
            self.clear()

    # ------------------------------------------------------------ drawing

    @property
    def there(self) -> bool:
        """Whether it can do more than lines."""
        try:
            return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        except ValueError:  # closed
            return False

    @property
    def width(self) -> int:
        """Columns that a line may take."""
        try:
            return (os.get_terminal_size(sys.stderr.fileno()).columns or 80) - 1  # 0: nobody has told it
        except (OSError, ValueError, AttributeError):
            return 79

    @property
    def plain(self) -> bool:
        """Whether it can show ASCII only."""
        return "utf" not in (getattr(sys.stderr, "encoding", None) or "").lower()

    def draw(self, line: str) -> bool:
        """Show ``line``, or show it anew.  False: not now."""
        with self._lock:
            before, self._drawn = self._drawn, True  # whoever goes on from here on waits for us, and clears it
            if not self._waiting or not self.there or not _in_front() or not _write(f"{_ROOM}{_SAVE}{_DOWN}\r{line}{_CLEAR}{_RESTORE}"):
                self._drawn = before
            return self._drawn

    def clear(self) -> None:
        """Nothing of ours is there any more."""
        if self._drawn:  # else there is nothing to wait for
            with self._lock:
                if self._drawn:
                    self._drawn = not _write(f"{_SAVE}{_DOWN}\r{_CLEAR}{_RESTORE}")

    def say(self, line: str) -> None:
        """Leave ``line`` there for good, above the line that the script is writing.  Nothing where nobody watches."""
        with self._lock:
            self.clear()
            if self.there:
                _write(f"{_ROOM}{_SAVE}\r{_INSERT}{line[: self.width]}{_RESTORE}{_DOWN}")
            elif _watched():
                print(line, file=sys.stderr, flush=True)


def _in_front() -> bool:
    """Whether this process has the terminal, and not the shell."""
    try:
        return os.tcgetpgrp(sys.stderr.fileno()) == os.getpgrp()
    except (OSError, ValueError, AttributeError):
        return False


def _write(text: str) -> bool:
    """All at once, so that nothing of the script's comes between; not where that would have to wait (Ctrl-S)."""
    try:
        descriptor = sys.stderr.fileno()
        if select.select([], [descriptor], [], 0)[1]:
            os.write(descriptor, text.encode(sys.stderr.encoding or "ascii", "replace"))
            return True
    except (OSError, ValueError, AttributeError):  # closed, or another object than it was
        pass
    return False


def _watched() -> bool:
    """Whether lines are read by somebody: a terminal that can no more, or a notebook."""
    try:
        return sys.stderr is not None and (sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel"))
    except ValueError:  # closed
        return False


terminal = Terminal()


class Event(threading.Event):
    """Whoever waits for it waits inside lfm."""

    def wait(self, timeout: float | None = None) -> bool:
        with terminal:
            return super().wait(timeout)


class Waiters(list[Any]):
    """Of a future: those of ``concurrent.futures.wait`` and ``as_completed``, who wait inside lfm then."""

    __slots__ = ()

    def append(self, waiter: Any) -> None:
        if type(waiter.event) is threading.Event:  # which nobody has seen yet
            waiter.event = Event()
        super().append(waiter)


def _after_fork() -> None:
    """In a child, nothing is drawn, and who held the lock is not there."""
    Terminal.__init__(terminal)


os.register_at_fork(after_in_child=_after_fork)
