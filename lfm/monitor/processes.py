"""What ``/proc`` says about processes, read through kept descriptors; and how a process tree is ended.

A tree is what descends from given roots.  Nothing here knows of calls, limits or messages.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterable
from typing import NamedTuple

from lfm.monitor import linux

PAGE = os.sysconf("SC_PAGE_SIZE")
TICK = os.sysconf("SC_CLK_TCK")


class Seen(NamedTuple):
    """One look at one process.  Bytes and seconds."""

    cpu: float  # with that of the children it has reaped
    threads: int
    rss: int
    high_water: int
    files: int  # part of rss: mapped files, which are the page cache's
    faults: int
    stack: int  # where its stack starts: the same as long as it is a fork, another after an exec


class Process:
    """One process, its files in /proc held open: they stay its own even if its number is used again."""

    __slots__ = ("_children", "_stat", "_status", "pid", "threads")

    def __init__(self, pid: int) -> None:
        """ProcessLookupError if there is none; another OSError where no descriptor is left."""
        self.pid = pid
        self.threads = 1
        self._stat = self._status = self._children = -1
        try:
            self._stat = _open(f"/proc/{pid}/stat")
            self._status = _open(f"/proc/{pid}/status")
            self._children = _open(f"/proc/{pid}/task/{pid}/children")
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self.close()
                raise
            if self._status < 0:
                self.close()
                raise ProcessLookupError(pid) from None

    def look(self) -> Seen | None:
        """None when it has ended."""
        try:
            stat = os.pread(self._stat, 1024, 0)
            status = os.pread(self._status, 2048, 0)
        except OSError:
            return None
        # fields after "pid (any name) ": the third is the first of these
        fields = stat[stat.rindex(b")") + 2 :].split()
        if fields[0] in b"ZX":
            return None
        at = status.find(b"VmHWM:")
        high = int(status[at + 6 : status.index(b"kB", at)]) * 1024 if at >= 0 else 0
        at = status.find(b"RssFile:", at)
        files = int(status[at + 8 : status.index(b"kB", at)]) * 1024 if at >= 0 else 0
        self.threads = int(fields[17])
        rss = int(fields[21]) * PAGE
        cpu = sum(map(int, fields[11:15])) / TICK
        return Seen(cpu, self.threads, rss, max(high, rss), files, int(fields[7]), int(fields[25]))

    def children(self) -> list[int]:
        """Children of all its threads; none where the kernel does not tell (CONFIG_PROC_CHILDREN)."""
        try:
            found = os.pread(self._children, 65536, 0).split() if self._children >= 0 else []
            if self.threads > 1:
                for thread in os.listdir(f"/proc/{self.pid}/task"):
                    if int(thread) != self.pid:
                        found += _read(f"/proc/{self.pid}/task/{thread}/children").split()
        except OSError:
            return []
        return [int(pid) for pid in found]

    def close(self) -> None:
        for fd in (self._stat, self._status, self._children):
            if fd >= 0:
                os.close(fd)
        self._stat = self._status = self._children = -1


class Tree:
    """The processes below some roots, remembered from one look to the next."""

    def __init__(self) -> None:
        self._held: dict[int, Process] = {}
        self._there: list[int] = []

    def walk(self, roots: Iterable[int]) -> list[tuple[Process, Seen]]:
        """Every living process of the tree, roots first."""
        found: list[tuple[Process, Seen]] = []
        met: set[int] = set()
        todo, short = list(roots), False
        while todo:
            pid = todo.pop()
            if pid in met:
                continue
            met.add(pid)
            process = self._held.get(pid)
            seen = process.look() if process is not None else None
            if seen is None:
                self._forget(pid)
                try:
                    try:
                        process = Process(pid)
                    except (ProcessLookupError, PermissionError):
                        continue
                    except OSError:  # more processes than descriptors: the others' are opened anew at the next look
                        short = True
                        self.close()
                        process = Process(pid)
                except OSError:
                    continue
                self._held[pid] = process
                seen = process.look()
            assert process is not None
            if seen is not None:
                found.append((process, seen))
            todo += process.children()
        for pid in list(self._held) if short else self._held.keys() - met:
            self._forget(pid)
        self._there = [process.pid for process, _ in found]
        return found

    def pids(self) -> list[int]:
        """Who was there at the last look."""
        return self._there

    def _forget(self, pid: int) -> None:
        process = self._held.pop(pid, None)
        if process is not None:
            process.close()

    def close(self) -> None:
        for pid in list(self._held):
            self._forget(pid)


def _open(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return b""


class Children:
    """Who the children of a single-threaded process are, this one by default: an entry leaves the list only when it
    is reaped."""

    def __init__(self, pid: int = 0) -> None:
        self.of = pid = pid or os.getpid()
        try:
            self._fd = _open(f"/proc/{pid}/task/{pid}/children")
        except OSError:
            self._fd = -1

    def known(self) -> bool:
        return self._fd >= 0

    def raw(self) -> bytes:
        return os.pread(self._fd, 4096, 0)

    def pids(self) -> list[int]:
        if self._fd < 0:
            return children_by_scan(self.of)
        data, at = b"", 0
        while part := os.pread(self._fd, 4096, at):
            data += part
            at += len(part)
        return [int(pid) for pid in data.split()]

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def children_by_scan(parent: int) -> list[int]:
    """For kernels without the ``children`` files."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and (stat := _read(f"/proc/{name}/stat")):
            fields = stat[stat.rindex(b")") + 2 :].split()
            if int(fields[1]) == parent:
                found.append(int(name))
    return found


class Reaped(NamedTuple):
    """One ended child: CPU seconds are its own and those of children that it waited for."""

    pid: int
    status: int
    cpu: float
    peak_rss: int  # as rusage has it


def reap() -> list[Reaped]:
    """Every child that has ended, whatever kind of child it is."""
    ended: list[Reaped] = []
    while True:
        try:
            pid, status, used = os.wait4(-1, os.WNOHANG | linux.WALL)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.append(Reaped(pid, status, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024))


def end_tree(children: Children, keep: Iterable[int], roots: Iterable[int] = ()) -> list[Reaped]:
    """Stop, kill and reap all our descendants but ``keep`` (and what descends from these).

    Nothing escapes by forking: whoever is stopped does not fork, and whatever was forked meanwhile is found
    in the next round; orphans come to us, as we are a subreaper.  Ends when the kernel lists no other child.
    """
    spared = set(keep)
    ended: list[Reaped] = []
    pause = 0.0
    while True:
        stopped: set[int] = set()
        while new := [pid for pid in _descendants(children, spared) if pid not in stopped]:
            for pid in new:
                stopped.add(pid)
                _signal(pid, signal.SIGSTOP)
        for pid in stopped:
            _signal(pid, signal.SIGKILL)
        ended += reap()
        if not [pid for pid in children.pids() if pid not in spared]:
            return ended
        if pause:
            _wait_for_end(pause)
        pause = min(0.02, pause * 2 or 0.0005)
        ended += reap()


def stop(pids: Iterable[int]) -> list[int]:
    """Stop them; those that were not stopped already, for ``go_on``."""
    stopped = []
    for pid in pids:
        stat = _read(f"/proc/{pid}/stat")
        if stat and stat[stat.rindex(b")") + 2 : stat.rindex(b")") + 3] not in b"TtZX":
            _signal(pid, signal.SIGSTOP)
            stopped.append(pid)
    return stopped


def go_on(pids: Iterable[int]) -> None:
    for pid in pids:
        _signal(pid, signal.SIGCONT)


def _wait_for_end(seconds: float) -> None:
    signal.sigtimedwait((signal.SIGCHLD, signal.SIGUSR1), seconds)


def _descendants(children: Children, spared: set[int]) -> list[int]:
    found: list[int] = []
    todo = [pid for pid in children.pids() if pid not in spared]
    while todo:
        pid = todo.pop()
        found.append(pid)
        try:
            threads = os.listdir(f"/proc/{pid}/task")
        except OSError:
            continue
        for thread in threads:
            todo += [int(child) for child in _read(f"/proc/{pid}/task/{thread}/children").split()]
    return found


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass
