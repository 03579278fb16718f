"""What calls of one kind have taken, as the scheduler and people want to know it; sizing itself is the sizers'."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lfm.protocol.resources import Resources, Usage

if TYPE_CHECKING:
    from lfm_manager.core.queues import Queue

KEPT = 512  # samples of a category that people see; sizing keeps its own


@dataclass(frozen=True, slots=True)
class Sample:
    allocation: Resources
    usage: Usage


@dataclass(slots=True, eq=False)
class Category:
    name: str
    submitted: int = 0
    in_flight: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0  # or killed
    seen: int = 0  # successes that sizing knows of, earlier runs included
    wall_s: float = 0.0  # of all successes
    too_small: int = 0
    lost: int = 0
    raised: int = 0
    grown: int = 0
    last_input: int = 0  # bytes that the latest measured call was given
    most_memory: int = 0  # bytes that any was seen to take
    most_disk: int = 0
    busy: bool = False  # some keep more than one core busy
    advised: bool = False  # its user was told that far too much is asked
    wasted_memory_s: float = 0.0  # bytes allotted and not used, times seconds
    allotted_memory_s: float = 0.0
    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=KEPT))
    queues: dict[object, Queue] = field(default_factory=dict)
    generation: int = 0  # changes when what is predicted may have changed enough to look again
    _refresh: int = 0

    @property
    def mean_wall(self) -> float:
        return self.wall_s / self.seen if self.seen else 0.0

    def learned(self, input_bytes: int, wall_s: float) -> None:
        """One more success; the generation changes ever more rarely, so that looking again stays cheap."""
        self.last_input = input_bytes
        self.seen += 1
        self.wall_s += wall_s
        if self.seen >= self._refresh:
            self._refresh = self.seen + 1 + self.seen // 16
            self.generation += 1

    def count(self, allocation: Resources, usage: Usage | None, good: bool) -> None:
        """What an attempt that ended was allotted and used."""
        if usage is None:
            return
        used = min(usage.memory, allocation.memory) if good else 0
        self.wasted_memory_s += max(0, allocation.memory - used) * usage.wall_s
        self.allotted_memory_s += allocation.memory * usage.wall_s
        if good:
            self.samples.append(Sample(allocation, usage))
