"""Watching one running call: how often to look, what was seen at most, and whether it broke a limit."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from lfm.monitor import answer
from lfm.monitor.gpu import Gpus
from lfm.monitor.group import SlotGroup
from lfm.monitor.processes import PAGE, Process, Seen, Tree, go_on, stop
from lfm.monitor.wire import Limits

FIRST = 0.010  # seconds between looks: grows by GROWTH up to SLOWEST
GROWTH = 1.25
SLOWEST = 1.0
FILL_RATE = 1.5e9  # bytes/s that one core can touch: looks are close enough that a limit is not overrun by much
SHARE = 1500  # looks may take one part in so many of the time, ...
CREDIT = 0.0010  # ... and this many CPU seconds at first; but a near memory limit goes before
CREDIT_IN_GROUP = 0.0005  # where nothing can hide between two looks
LONGEST = 900  # characters of a path: the kernel takes 4096 bytes, and one more name is to fit
DISK_SHARE = 100  # a walk of the sandbox may take one part in so many of the time
GPU_SHARE = 500  # asking for GPU memory may take one part in so many of the time
NEARLY = 0.95
ANSWER_WITHIN = 5.0  # seconds that a call which outgrew its limit stands still for its daemon to answer
EXACT_COST = 7e-12  # CPU seconds a resident byte, about: a large tree is looked at late, unless a limit may be broken
EXACT_SHARE = 2000  # exact looks at memory may take one part in so many of the time
UNSURE = 1 << 20  # bytes between the bounds from which an exact look is worth it


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
    gpu_memory: int = 0


@dataclass(slots=True)
class Watch:
    """One call from the moment that the daemon asked to watch it."""

    started: float  # monotonic
    limits: Limits
    sandbox: str
    group: SlotGroup | None = None
    gpus: Gpus | None = None  # if it was given some
    pid: int = 0  # of the call's process; 0: not made yet
    base: int = 0  # bytes resident in it before the call
    base_files: int = 0  # of these, of mapped files
    peaks: Peaks = field(default_factory=Peaks)
    next_look: float = 0.0
    near_told: int = 0  # the limit that the daemon was told is near
    held: Breach | None = None  # of a limit that may grow: nothing of the call runs until the daemon has answered
    _stopped: list[int] = field(default_factory=list)
    _tree: Tree = field(default_factory=Tree)
    _interval: float = FIRST
    _cpu: dict[int, float] = field(default_factory=dict)
    _looked: float = 0.0
    _cpu_before: float = field(default_factory=time.process_time)
    _spent: float = 0.0  # CPU seconds since
    _cores: int = 0  # that it may use; 0: not asked yet
    _disk_at: float = 0.0
    _gpus_at: float = 0.0
    _exact_at: float = 0.0
    _exact: int = 0
    _exact_of: tuple[int, int, int, int] = (0, 0, 0, 0)  # processes, exact, upper bound and faults at that look

    def due(self) -> float:
        """When to look next (monotonic)."""
        if self.limits.wall_time and self.pid and self.held is None:
            return min(self.next_look, self.started + self.limits.wall_time)
        return self.next_look

    def look(self, now: float, strays: Iterable[int]) -> Breach | None:
        """Look at the whole tree; the first limit that it broke, if any."""
        at = now - self.started
        if self.held is not None:
            return self.held
        if self.limits.wall_time and at >= self.limits.wall_time:
            return Breach("wall_time", self.limits.wall_time, at, at)
        found = self._tree.walk([self.pid, *strays])
        self._count(found, now)
        memory = self._memory(found, now)
        if self.limits.memory and memory > self.limits.memory:
            return Breach("memory", self.limits.memory, memory, at)
        if self.limits.processes and len(found) > self.limits.processes:
            return Breach("processes", self.limits.processes, len(found), at)
        if self.gpus is not None and now >= self._gpus_at:
            self._ask_gpus(self.gpus, [process.pid for process, _ in found], now)
        if self.sandbox and now >= self._disk_at:
            self._walk_disk(now)
            if self.limits.disk and self.peaks.disk > self.limits.disk:
                return Breach("disk", self.limits.disk, self.peaks.disk, at)
        self._schedule(max(memory, self.group.apparent) if self.group else memory, now)
        return None

    def near_memory(self) -> bool:
        return bool(self.limits.memory) and self.peaks.memory_low >= NEARLY * self.limits.memory

    def hold(self, breach: Breach, now: float) -> None:
        """Stop all of the call while the daemon is asked; at the next look it is too late for an answer."""
        self.held, self._stopped = breach, stop(self._tree.pids())
        self.next_look = now + ANSWER_WITHIN

    def release(self, memory: int) -> Breach | None:
        """The daemon's answer: the call goes on, unless that is too little for what it has already."""
        self.limits = self.limits._replace(memory=memory)
        self.next_look = 0.0
        if self.held is None:
            return None
        if memory < self.held.measured:
            return self.held
        self.held = None
        go_on(self._stopped)
        return None

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
        """Bytes in use.  Cheap bounds always; the exact figure, which costs a walk of page tables, where it decides.

        Lower bound: new pages of the largest process (forks may share all they have).  Upper bound: all pages of
        all processes but the template's and mapped files, and as many copied ones as there were faults; after an
        exact look, that figure and what was added since.
        """
        low = high = faults = 0
        for process, seen in found:
            if seen.stack != _ours().stack:  # another program: nothing of ours is in it
                low += max(0, seen.rss - seen.files)
                high += max(0, seen.high_water - seen.files)
            else:
                base = self.base or _ours().rss  # of one about to become a command, or that has written over its page
                files = max(0, seen.files - self.base_files)
                own = max(0, seen.high_water - base - files)
                low = max(low, own)
                high += max(own, min(seen.rss, seen.faults * PAGE) if process.pid == self.pid else own)
            faults += seen.faults
        if self.group is not None:
            low = max(low, self.group.used(low, now, self.limits.memory))
            self.peaks.memory_low = max(self.peaks.memory_low, low)
            self.peaks.memory_high = max(self.peaks.memory_high, high, low)
            return low
        if self._exact_of[2] and len(found) == self._exact_of[0]:
            exact, upper, then = self._exact_of[1:]
            high = min(high, exact + max(0, high - upper, (faults - then) * PAGE))
        limit = self.limits.memory
        unsure, broken = high - low > max(UNSURE, low / 50), bool(limit) and high > limit
        dear = EXACT_SHARE * EXACT_COST * sum(seen.rss for _, seen in found)
        curious = (len(found) > 1 or not limit) and now >= max(self._exact_at, self.started + dear)
        if unsure and (broken or curious):
            exact = self._exactly(found, now)
            self._exact_of = (len(found), exact, high, faults)
            low, high = max(low, exact), max(low, exact)
        self.peaks.memory_low = max(self.peaks.memory_low, low)
        self.peaks.memory_high = max(self.peaks.memory_high, high, low)
        return low

    def _exactly(self, found: list[tuple[Process, Seen]], now: float) -> int:
        """Private memory of one process; where several share, each page divided by how many share it."""
        if now < self._exact_at:
            return self._exact
        total, share = 0, -1
        for process, seen in found:
            try:
                if len(found) == 1:
                    total += answer.rollup(_rollup(process.pid))[1]
                    continue
                own = proportional(process.pid)
                if seen.stack == _ours().stack:
                    if share < 0:  # of the template's pages, which this process holds as they do
                        share = max(0, proportional(os.getpid()) - answer.rollup("/proc/self/smaps_rollup")[1])
                    own = max(0, own - share)
                total += own
            except (OSError, ValueError):
                continue
        self._exact, self._exact_at = total, now + EXACT_SHARE * (time.monotonic() - now)
        return total

    def _ask_gpus(self, gpus: Gpus, pids: list[int], now: float) -> None:
        self.peaks.gpu_memory = max(self.peaks.gpu_memory, gpus.used(pids))
        self._gpus_at = now + GPU_SHARE * (time.monotonic() - now)

    def _walk_disk(self, now: float) -> None:
        self.peaks.disk = max(self.peaks.disk, disk_usage(self.sandbox))
        self._disk_at = now + DISK_SHARE * (time.monotonic() - now)

    def _schedule(self, memory: int, now: float) -> None:
        wait = self._interval = min(SLOWEST, self._interval * GROWTH)
        spent = time.process_time() - self._cpu_before
        credit = CREDIT if self.group is None else CREDIT_IN_GROUP
        affordable = self.started + SHARE * (2 * spent - self._spent - credit)  # as the next costs what this one did
        self._spent = spent
        wait = min(SLOWEST, max(wait, affordable - now))
        if limit := self.limits.memory:
            writers = min(self.peaks.threads, self._usable_cores())
            wait = max(FIRST, min(wait, (limit - memory) / (FILL_RATE * max(1, writers))))
        self.next_look = now + wait

    def _usable_cores(self) -> int:
        """How many of its threads can run at a time."""
        if not self._cores:
            try:
                self._cores = len(os.sched_getaffinity(self.pid))
            except OSError:
                return os.cpu_count() or 1
        return self._cores


@functools.cache
def _ours() -> Seen:
    """This process, which all that it forks are like at first; where a stack starts is another place after an exec."""
    own = Process(os.getpid())
    seen = own.look()
    own.close()
    assert seen is not None
    return seen


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
    held: list[int] = []
    while todo:
        try:
            if len(path := todo.pop()) > LONGEST:
                held.append(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC))
                path = f"/proc/self/fd/{held[-1]}"
            with os.scandir(path) as entries:
                for entry in entries:
                    try:
                        if entry.is_dir(follow_symlinks=False):
                            todo.append(entry.path)
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
                    except OSError:
                        continue
        except OSError:
            continue
    for fd in held:
        os.close(fd)
    return total
