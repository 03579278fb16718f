"""What the daemon does about processes: signals as readable bytes, and orphans of templates that died.

The daemon is a subreaper: when a template is killed, what it leaves falls to the daemon, which kills it.
Everything else that is a child of the daemon is known to it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

PR_SET_CHILD_SUBREAPER = 36
WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD)


class Signals:
    """While entered, signals are bytes to read at ``fileno()`` and interrupt nothing."""

    def __enter__(self) -> Signals:
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)
        self._before = {number: signal.signal(number, _ignore) for number in WATCHED}
        self._wakeup = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._read.close()
        self._write.close()

    def fileno(self) -> int:
        return self._read.fileno()

    def take(self) -> list[signal.Signals]:
        """What came since."""
        try:
            return [signal.Signals(number) for number in self._read.recv(4096)]
        except BlockingIOError:
            return []


def _ignore(*_: object) -> None:
    pass


def notify(state: str) -> None:
    """Tell systemd, where it has started us and wants to know: "READY=1", "STOPPING=1"."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


def become_subreaper() -> bool:
    """Orphans of what we start become our children.  False where the platform has no such thing."""
    try:
        return bool(ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
    except AttributeError:
        return False


def children() -> list[int]:
    """Pids of this process's children, dead ones that nobody has waited for included."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return [pid for pid in _all_pids() if _parent(pid) == os.getpid()]


def kill_orphans(known: Collection[int]) -> bool:
    """Kill and reap every child that is not ``known``; whether none is left.

    Stopped first, so that none can fork its way out while the others die; what a dead one leaves behind
    comes to us in turn: call it again after the next SIGCHLD.
    """
    try:
        orphans = [pid for pid in children() if pid not in known]
    except OSError:  # no descriptor to look with
        return False
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in orphans:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
    for pid in orphans:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return not orphans


def _all_pids() -> Iterable[int]:
    return (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def _parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return 0
