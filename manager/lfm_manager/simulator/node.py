"""A worker in virtual time: what its calls use, when they come near a limit, and what it does about that.

The rules are the shipped worker's: a call near its limit grows into what is free, as far as the manager allowed;
where nothing is, the last to come makes room; one that passes its limit all the same is killed.  A call's memory rises linearly to its peak, reached at a fraction of its
life that is drawn once per call.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from lfm.protocol import messages as m
from lfm.protocol.ids import PeerId, TaskId
from lfm.protocol.resources import MAKES_ROOM_BEFORE, Resources
from lfm_manager.simulator.trace import Call

NEAR = 0.95  # of a limit: when the monitor says so
WORTH_GROWING = 0.02  # of the limit must be free
STEP = 10  # it grows by a tenth at a time: many that come near their limit never pass it
LEAST_STEP = 64 << 20


@dataclass(slots=True, eq=False)
class Running:
    """One attempt on a node."""

    run: m.Run
    call: Call
    started: float
    peak_at: float  # the fraction of its life at which its memory is largest
    allocation: Resources
    near: bool = False  # told so at the present limit

    @property
    def key(self) -> tuple[TaskId, int]:
        return self.run.task, self.run.attempt

    @property
    def limit(self) -> int:
        return self.allocation.memory

    def is_over(self) -> bool:
        """Nothing but its end is left."""
        return self.call.memory <= (self.limit if self.near else NEAR * self.limit)

    def used(self, now: float) -> int:
        """Its memory now."""
        rise = self.peak_at * self.call.wall_s
        return int(self.call.memory * min(1.0, (now - self.started) / rise if rise else 1.0))

    def next_step(self) -> float:
        """When something happens to it: it comes near its limit, passes it, or ends."""
        if self.is_over():
            return self.started + self.call.wall_s
        amount = self.limit if self.near else NEAR * self.limit
        return self.started + self.peak_at * self.call.wall_s * amount / self.call.memory


@dataclass(slots=True, eq=False)
class Node:
    peer: PeerId
    offer: Resources
    running: dict[tuple[TaskId, int], Running] = field(default_factory=dict)
    reserved: int = 0  # bytes

    def take(self, attempt: Running) -> None:
        self.running[attempt.key] = attempt
        self.reserved += attempt.limit

    def give_back(self, attempt: Running) -> None:
        del self.running[attempt.key]
        self.reserved -= attempt.limit

    def last_after(self, attempt: Running) -> Running | None:
        """The last of those that came after it and may be ended to make room; None: none, or it may not grow."""
        if attempt.limit >= attempt.run.growth:
            return None
        for other in reversed(self.running.values()):
            if other is attempt:
                return None
            if other.run.growth and other.run.attempt < MAKES_ROOM_BEFORE:
                return other
        return None

    def grow(self, attempt: Running) -> bool:
        """Let it have more, if it may, and if there is enough to be worth it."""
        free = self.offer.memory - self.reserved
        more = min(attempt.run.growth - attempt.limit, free, max(attempt.limit // STEP, LEAST_STEP))
        if more <= 0 or free < WORTH_GROWING * attempt.limit:
            return False
        self.reserved += more
        attempt.allocation = replace(attempt.allocation, memory=attempt.limit + more)
        attempt.near = False
        return True
