"""What a simulated run came to: memory and cores over time, offered, reserved and truly needed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from lfm_manager.simulator.trace import Call

POINTS = 400  # of the series over time


class Moment(NamedTuple):
    """How things stood from ``at`` on."""

    at: float
    cores: float  # offered
    busy: float  # cores
    memory: float  # offered, bytes
    reserved: float  # bytes


@dataclass(slots=True)
class Ledger:
    """Counts, integrals over time, and how things stood over time."""

    calls: int = 0
    failures: int = 0  # attempts killed at an automatic limit
    growths: int = 0
    lost: int = 0  # attempts that went with their worker
    hopeless: int = 0  # calls that ended without a value, or never
    makespan: float = 0.0
    used: float = 0.0  # byte-seconds that calls needed in the attempt that gave their value
    core_seconds: float = 0.0  # the same for cores
    allocated: float = 0.0  # byte-seconds
    offered: float = 0.0  # byte-seconds
    offered_core_seconds: float = 0.0
    _now: float = 0.0
    _cores: float = 0.0
    _busy: float = 0.0
    _memory: float = 0.0
    _reserved: float = 0.0
    _moments: list[Moment] = field(default_factory=list)

    @property
    def waste_gb_h(self) -> float:
        return (self.allocated - self.used) / 1e9 / 3600

    @property
    def efficiency(self) -> float:
        """Memory needed / allocated."""
        return self.used / self.allocated if self.allocated else 1.0

    @property
    def memory_use(self) -> float:
        """Memory needed / offered."""
        return self.used / self.offered if self.offered else 0.0

    @property
    def core_use(self) -> float:
        return self.core_seconds / self.offered_core_seconds if self.offered_core_seconds else 0.0

    def until(self, now: float) -> None:
        """Time passes with nothing changed."""
        span = now - self._now
        if span > 0:
            self.allocated += span * self._reserved
            self.offered += span * self._memory
            self.offered_core_seconds += span * self._cores
            self._moments.append(Moment(self._now, self._cores, self._busy, self._memory, self._reserved))
            if len(self._moments) >= 64 * POINTS:
                del self._moments[1::2]
            self._now = now

    def changed(self, *, cores: float = 0, busy: float = 0, memory: float = 0, reserved: float = 0) -> None:
        self._cores += cores
        self._busy += busy
        self._memory += memory
        self._reserved += reserved

    def gave_value(self, call: Call) -> None:
        self.used += call.memory * call.wall_s
        self.core_seconds += call.cores * call.wall_s

    def series(self) -> list[Moment]:
        """How things stood at evenly spaced times."""
        points: list[Moment] = []
        found = 0
        for k in range(POINTS if self._moments else 0):
            at = self._now * k / POINTS
            while found + 1 < len(self._moments) and self._moments[found + 1].at <= at:
                found += 1
            points.append(self._moments[found]._replace(at=at))
        return points
