"""A trace through a sizer, with no machines: what would have been wasted.

A call's first allocation is decided when it is issued; how it went is known once ``in_flight - 1`` later calls
have been issued.  A failed attempt costs its allocation for the call's whole time, a success what it left unused.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from lfm_manager.simulator.trace import Call, used
from lfm_manager.sizing import Sizer


@dataclass(slots=True)
class Tally:
    """What a replay came to.  Byte-seconds."""

    calls: int = 0
    failures: int = 0
    hopeless: int = 0  # calls that need more than the largest worker
    wasted: float = 0.0
    used: float = 0.0

    @property
    def waste_gb_h(self) -> float:
        return self.wasted / 1e9 / 3600

    @property
    def efficiency(self) -> float:
        """Used / allocated."""
        return self.used / (self.used + self.wasted) if self.used else 1.0


def replay(calls: Sequence[Call], sizer: Sizer, cap: float, in_flight: int = 1) -> Tally:
    """Size all calls in order, with the results of ``in_flight`` of them outstanding."""
    tally = Tally(calls=len(calls), used=used(calls))
    out: deque[tuple[Call, float]] = deque()
    flying: Counter[str] = Counter()
    for call in calls:
        allocation = sizer.predict(
            call.category, call.input_bytes, call.hint, cap, in_flight=flying[call.category]
        )
        out.append((call, allocation))
        flying[call.category] += 1
        if len(out) >= in_flight:
            _settle(*_landed(out, flying), sizer, cap, tally)
    while out:
        _settle(*_landed(out, flying), sizer, cap, tally)
    return tally


def _landed(out: deque[tuple[Call, float]], flying: Counter[str]) -> tuple[Call, float]:
    call, allocation = out.popleft()
    flying[call.category] -= 1
    return call, allocation


def _settle(call: Call, allocation: float, sizer: Sizer, cap: float, tally: Tally) -> None:
    """Run one call to its end: fail and climb until it fits."""
    attempt = 1
    while call.memory > allocation:
        tally.failures += 1
        tally.wasted += allocation * call.wall_s
        # how far it would have gone is not in the trace: at the kill it had used what it had
        larger = sizer.exhausted(
            call.category, attempt, allocation, allocation, cap, hint=call.hint, spent_s=call.wall_s
        )
        if larger is None:
            tally.hopeless += 1
            tally.used -= call.memory * call.wall_s
            return
        allocation = larger
        attempt += 1
    tally.wasted += (allocation - call.memory) * call.wall_s
    sizer.succeeded(call.category, call.input_bytes, call.memory, call.wall_s, hint=call.hint)
