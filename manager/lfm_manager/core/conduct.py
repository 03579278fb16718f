"""Whether a worker does what workers are for.  Pure: it judges, and others act on that.

Three things tell against one: calls that come to nothing there one after the other; calls of several functions that
fail there, though they go well elsewhere; and calls that it accepted and never began.  What a function raises is no
evidence by itself: users' functions fail, everywhere.  A worker that is suspected gets no calls for a while, and for
twice as long each time that it does no better afterwards; one call that goes well clears it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from lfm.protocol.outcomes import Crashed, EnvironmentBroken, Lost, Outcome, Raised, Returned
from lfm_manager.core.policy import Policy

TOGETHER = 0.5  # seconds within which calls that were lost had one cause, and count once
CHANCE = math.log(1e-6)  # of such a row of failures, if the worker were as good as the others
SECOND_CHANCE = 2  # failures in a row that are enough for one that was suspected before


@dataclass(slots=True)
class Tally:
    good: int = 0
    bad: int = 0


@dataclass(slots=True, eq=False)
class Record:
    """What is known of one worker."""

    calls: dict[str, Tally] = field(default_factory=dict)  # by category
    lost: int = 0  # calls in a row that came to nothing
    failed: int = 0  # calls in a row that failed
    functions: set[str] = field(default_factory=set)  # of these
    odds: float = 0.0  # how likely these failures were, had they been elsewhere: a logarithm
    last_loss: float = -math.inf
    pauses: int = 0  # in a row
    until: float | None = None  # it is set aside
    moved: float = 0.0  # when something last began or ended there

    def clear(self) -> None:
        self.lost = self.failed = self.pauses = 0
        self.functions.clear()
        self.odds = 0.0


class Conduct:
    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._all: dict[str, Tally] = {}

    def ended(self, record: Record, category: str, outcome: Outcome, now: float) -> str:
        """A call ended on that worker; why to set it aside, for a person, or ""."""
        record.moved = now
        everywhere = self._all.setdefault(category, Tally())
        here = record.calls.setdefault(category, Tally())
        match outcome:
            case Returned():
                everywhere.good += 1
                here.good += 1
                record.clear()
                return ""
            case Lost(reason, started):
                if started and now - record.last_loss < TOGETHER:
                    return ""
                record.last_loss = now
                record.lost += 1
                if record.lost >= self._needed(record):
                    return f"{record.lost} calls in a row came to nothing, at last: {reason}"
            case Raised() | Crashed() | EnvironmentBroken():
                good, bad = everywhere.good - here.good, everywhere.bad - here.bad
                everywhere.bad += 1
                here.bad += 1
                record.failed += 1
                if good:
                    record.functions.add(category)
                    record.odds += math.log((bad + 1) / (good + bad + 2))
                enough = record.failed >= self._needed(record) and len(record.functions) > 1
                if enough and record.odds < CHANCE:
                    return f"{record.failed} calls in a row failed there, of {len(record.functions)} functions that go well elsewhere"
            case _:
                pass  # a limit, or its user's wish: says nothing about the worker
        return ""

    def _needed(self, record: Record) -> int:
        return SECOND_CHANCE if record.pauses else self._policy.failures_before_aside

    def pause(self, record: Record, now: float) -> float:
        """Set it aside; for how many seconds."""
        seconds = min(self._policy.aside * 2.0**record.pauses, self._policy.aside_most)
        record.pauses += 1
        record.lost = record.failed = 0
        record.until = now + seconds
        return seconds

    def is_stuck(self, record: Record, since: float, now: float) -> bool:
        """Whether a call that was given to it then, and has not begun, will not begin any more."""
        return now - max(since, record.moved) > self._policy.stall
