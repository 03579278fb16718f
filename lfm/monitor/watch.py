"""Watching one running call: how often to look, what was seen at most, and whether it broke a limit."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from lfm.monitor import answer
from lfm.monitor.processes import PAGE, Process, Seen, Tree
from lfm.monitor.wire import Limits

FIRST = 0.010  # seconds between looks: grows by GROWTH up to SLOWEST
GROWTH = 1.25
SLOWEST = 1.0
NEAR_SLOWEST = 0.100  # above half of the memory limit
FILL_RATE = 1.5e9  # bytes/s that one thread can touch
DISK_SHARE = 100  # a walk of the sandbox may take one part in so many of the time
NEARLY = 0.95


@dataclass(frozen=True, slots=True)
class Breach:
    resource: str
    limit: float
    measured: float
    at_s: float


@dataclass(slots=True)
class Peaks:
    memory_low: int = 0
    memory_high: int = 0
    disk: int = 0
    processes: int = 1
    threads: int = 1
    cores: float = 0.0


@dataclass(slots=True)
class Watch:
    """One call from the moment that the daemon asked to watch it."""

    started: float  # monotonic
    limits: Limits
    sandbox: str
    pid: int = 0  # of the call's process; 0: not made yet
    base: int = 0  # bytes resident in it before the call
    peaks: Peaks = field(default_factory=Peaks)
    next_look: float = 0.0
    near_told: int = 0  # the limit that the daemon was told is near
    _tree: Tree = field(default_factory=Tree)
    _interval: float = FIRST
    _stack: int = 0
    _cpu: dict[int, float] = field(default_factory=dict)
    _looked: float = 0.0
    _disk_at: float = 0.0
    _exact_at: float = 0.0
    _exact: int = 0

    def due(self) -> float:
        """When to look next (monotonic)."""
        if self.limits.wall_time and self.pid:
            return min(self.next_look, self.started + self.limits.wall_time)
        return self.next_look

    def look(self, now: float, strays: Iterable[int]) -> Breach | None:
        """Look at the whole tree; the first limit that it broke, if any."""
        at = now - self.started
        if self.limits.wall_time and at >= self.limits.wall_time:
            return Breach("wall_time", self.limits.wall_time, at, at)
        found = self._tree.walk([self.pid, *strays])
        self._count(found, now)
        memory = self._memory(found, now)
        if self.limits.memory and memory > self.limits.memory:
            return Breach("memory", self.limits.memory, memory, at)
        if self.limits.processes and len(found) > self.limits.processes:
            return Breach("processes", self.limits.processes, len(found), at)
        if self.sandbox and now >= self._disk_at:
            self._walk_disk(now)
            if self.limits.disk and self.peaks.disk > self.limits.disk:
                return Breach("disk", self.limits.disk, self.peaks.disk, at)
        self._schedule(memory, now)
        return None

    def near_memory(self) -> bool:
        return bool(self.limits.memory) and self.peaks.memory_low >= NEARLY * self.limits.memory

    def close(self) -> None:
        self._tree.close()

    def _count(self, found: list[tuple[Process, Seen]], now: float) -> None:
        peaks = self.peaks
        peaks.processes = max(peaks.processes, len(found))
        peaks.threads = max(peaks.threads, sum(seen.threads for _, seen in found))
        cpu = {process.pid: seen.cpu for process, seen in found}
        if self._looked and now > self._looked:
            used = sum(spent - self._cpu.get(pid, 0.0) for pid, spent in cpu.items())
            if now - self._looked >= 0.05:  # the kernel counts in ticks of 4 or 10 ms
                peaks.cores = max(peaks.cores, used / (now - self._looked))
        self._cpu, self._looked = cpu, now

    def _memory(self, found: list[tuple[Process, Seen]], now: float) -> int:
        """Bytes in use, as exactly as it is worth: exact only where the cheap upper bound passes the limit."""
        low = high = top = 0
        for process, seen in found:
            if process.pid == self.pid and not self._stack:
                self._stack = seen.stack
            forked = seen.stack == self._stack
            own = max(0, seen.rss - self.base) if forked else seen.rss
            peak = max(0, seen.high_water - self.base) if forked else seen.high_water
            top += peak
            low = max(low, peak) if forked else low + seen.rss
            high += max(own, min(seen.rss, seen.faults * PAGE)) if forked else seen.rss
        self.peaks.memory_low = max(self.peaks.memory_low, low if len(found) > 1 else top)
        self.peaks.memory_high = max(self.peaks.memory_high, high, top if len(found) == 1 else 0)
        if not self.limits.memory or max(high, top) <= self.limits.memory:
            return max(low, top if len(found) == 1 else 0)
        return max(self._exactly(found, now), top if len(found) == 1 else 0)

    def _exactly(self, found: list[tuple[Process, Seen]], now: float) -> int:
        """Private memory of one process; proportional shares where several share."""
        if now < self._exact_at:
            return self._exact
        total = 0
        for process, _ in found:
            try:
                total += proportional(process.pid) if len(found) > 1 else answer.rollup(_rollup(process.pid))[1]
            except (OSError, ValueError):
                continue
        self._exact, self._exact_at = total, now + 20 * (time.monotonic() - now)
        self.peaks.memory_low = max(self.peaks.memory_low, total)
        self.peaks.memory_high = max(self.peaks.memory_high, total)
        return total

    def _walk_disk(self, now: float) -> None:
        self.peaks.disk = max(self.peaks.disk, disk_usage(self.sandbox))
        self._disk_at = now + DISK_SHARE * (time.monotonic() - now)

    def _schedule(self, memory: int, now: float) -> None:
        wait = self._interval = min(SLOWEST, self._interval * GROWTH)
        if limit := self.limits.memory:
            if memory > limit / 2:
                wait = min(wait, NEAR_SLOWEST)
            wait = max(FIRST, min(wait, (limit - memory) / (FILL_RATE * max(1, self.peaks.threads))))
        self.next_look = now + wait


def _rollup(pid: int) -> str:
    return f"/proc/{pid}/smaps_rollup"


def proportional(pid: int) -> int:
    """Bytes of a process, each page divided by how many processes share it."""
    with open(_rollup(pid), "rb", buffering=0) as file:
        data = file.read(4096)
    at = data.index(b"\nPss:") + 5
    return int(data[at : data.index(b"kB", at)]) * 1024


def disk_usage(folder: str) -> int:
    """Bytes that the files below a folder take on its disk."""
    total, todo = 0, [folder]
    while todo:
        try:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    try:
                        if entry.is_dir(follow_symlinks=False):
                            todo.append(entry.path)
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
                    except OSError:
                        continue
        except OSError:
            continue
    return total
