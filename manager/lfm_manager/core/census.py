"""What the workers that take calls offer together: sums, largest and smallest.  Knows amounts only.

Kept up to date worker by worker, in order: with ten thousand of them nobody can look at all whenever one comes.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

from lfm.protocol.ids import PeerId
from lfm_manager.core.workers import Worker

ALIKE = 0.9  # of the largest worker's memory: such are large as well


@dataclass(frozen=True, slots=True)
class Largest:
    """The most that any one worker offers, resource by resource."""

    millicores: int = 0
    memory: int = 0  # bytes
    disk: int = 0  # bytes
    gpus: int = 0


@dataclass(frozen=True, slots=True)
class _Counted:
    """What a worker was counted with."""

    millicores: int
    memory: int
    disk: int
    gpus: int
    slots: int


class Census:
    """``workers``: how many; ``millicores``, ``memory`` (bytes), ``slots`` (calls of one core at once): of all together."""

    def __init__(self) -> None:
        self.millicores = self.memory = self.slots = 0
        self._counted: dict[PeerId, _Counted] = {}
        self._cores: list[float] = []  # of each worker, in order; these too
        self._memories: list[float] = []
        self._disks: list[float] = []
        self._gpus: list[float] = []
        self._disks_per_core: list[float] = []  # of those that have cores

    @property
    def workers(self) -> int:
        return len(self._counted)

    def count(self, worker: Worker) -> None:
        """Take note of what a worker offers from now on; nothing while it takes no calls."""
        self.leave(worker.peer)
        if not worker.draining:
            slots = max(1, worker.millicores // 1000)
            now = _Counted(worker.millicores, worker.memory, worker.disk, len(worker.devices), slots)
            self._counted[worker.peer] = now
            for amounts, amount in self._entries(now):
                insort(amounts, amount)
            self._add(now, 1)

    def leave(self, peer: PeerId) -> None:
        """It offers nothing any more."""
        before = self._counted.pop(peer, None)
        if before is not None:
            for amounts, amount in self._entries(before):
                del amounts[bisect_left(amounts, amount)]
            self._add(before, -1)

    def _add(self, counted: _Counted, sign: int) -> None:
        self.millicores += sign * counted.millicores
        self.memory += sign * counted.memory
        self.slots += sign * counted.slots

    def _entries(self, counted: _Counted) -> list[tuple[list[float], float]]:
        entries: list[tuple[list[float], float]] = [
            (self._cores, counted.millicores), (self._memories, counted.memory), (self._disks, counted.disk),
            (self._gpus, counted.gpus),
        ]
        if counted.millicores:
            entries.append((self._disks_per_core, counted.disk * 1000 / counted.millicores))
        return entries

    def largest(self) -> Largest:
        if not self._counted:
            return Largest()
        return Largest(*(int(amounts[-1]) for amounts in (self._cores, self._memories, self._disks, self._gpus)))

    def least_disk_per_core(self) -> float:
        """Bytes that any worker has for each of its cores."""
        return self._disks_per_core[0] if self._disks_per_core else 0.0

    def least_large_memory(self) -> int:
        """Bytes that every worker has whose memory is about as large as the largest."""
        memories = self._memories
        return int(memories[bisect_left(memories, ALIKE * memories[-1])]) if memories else 0

    def least_disk(self) -> int:
        """Bytes that every worker has that offers any."""
        at = bisect_left(self._disks, 1)
        return int(self._disks[at]) if at < len(self._disks) else 0
