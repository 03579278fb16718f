"""First allocation (Tovar et al., TPDS 2018), as TaskVine has it: one size for all, the largest seen as a retry.

Until 25 results have come without a new largest one, calls get what was hinted, or a whole worker.  Then the
first allocation is a bucket of the histogram of sizes: the one that wastes least if what outgrows it is tried
again at the top, or the one that lets most calls through.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil

from lfm_manager.sizing.limits import BUCKET, next_rung, usable, within

STEADY = 25  # results after which the histogram is believed, and between two looks at it

Histogram = Mapping[float, tuple[int, float]]  # upper end of a bucket -> calls, their seconds
Choice = Callable[[Histogram, float], float]


def least_waste(histogram: Histogram, top: float) -> float:
    """The bucket a that minimises a x (mean time) + top x (mean time owed to calls larger than a)."""
    count, seconds = _totals(histogram)
    mean, larger = seconds / count, seconds
    best, found = float("inf"), top
    for size in sorted(histogram):
        larger -= histogram[size][1]
        cost = size * mean + top * larger / count
        if size > 0 and cost < best:
            best, found = cost, size
    return min(found, top)


def most_throughput(histogram: Histogram, top: float) -> float:
    """The bucket a that maximises (calls within a x top / a + calls larger) / (mean time + time owed to the larger)."""
    count, seconds = _totals(histogram)
    mean, larger, fitting = seconds / count, seconds, 0
    best, found = -float("inf"), top
    for size in sorted(histogram):
        calls, spent = histogram[size]
        fitting += calls
        larger -= spent
        if size <= 0:
            continue
        rate = (fitting * top / size + count - fitting) / (mean + max(larger, 0.0) / count)
        if rate > best:
            best, found = rate, size
    return min(found, top)


def _totals(histogram: Histogram) -> tuple[int, float]:
    """Calls, and their seconds: at least a moment, so that calls of no length have a mean too."""
    return sum(n for n, _ in histogram.values()), max(1e-9, sum(t for _, t in histogram.values()))


class _Category:
    __slots__ = ("first", "histogram", "largest", "since_new", "steady")

    def __init__(self) -> None:
        self.histogram: dict[float, tuple[int, float]] = {}
        self.largest = 0.0  # seen, failed attempts included
        self.since_new = 0  # results since the largest one grew
        self.steady = False
        self.first: float | None = None

    def seen(self, measured: float) -> None:
        """One attempt, however it ended."""
        if not self.steady and measured > max(self.histogram, default=0.0):
            self.first = None
            self.since_new = 0
        self.steady = self.since_new >= STEADY
        self.largest = max(self.largest, measured)

    def finished(self, measured: float, wall_s: float, bucket: float, choose: Choice) -> None:
        size = ceil(measured / bucket) * bucket
        calls, seconds = self.histogram.get(size, (0, 0.0))
        self.histogram[size] = (calls + 1, seconds + wall_s)
        self.since_new += 1
        if self.since_new % STEADY == 0:
            self.first = ceil(choose(self.histogram, self.largest) / bucket) * bucket


class FirstAllocation:
    def __init__(self, resource: str, choose: Choice) -> None:
        self._bucket = BUCKET[resource]
        self._choose = choose
        self._categories: dict[str, _Category] = {}

    def predict(
        self,
        category: str,
        input_bytes: float,
        hint: float | None,
        cap: float,
        *,
        in_flight: int = 0,
        share: float = 0.0,
    ) -> float:
        known = self._categories.get(category)
        if known is None or not known.steady:
            return within(cap, hint, cap)
        return within(known.largest if known.first is None else known.first, hint, cap)

    def succeeded(
        self, category: str, input_bytes: float, measured: float, wall_s: float, *, hint: float | None = None
    ) -> None:
        if usable(measured, wall_s):
            known = self._categories.setdefault(category, _Category())
            known.seen(measured)
            known.finished(measured, wall_s, self._bucket, self._choose)

    def exhausted(
        self,
        category: str,
        attempt: int,
        allocation: float,
        measured: float,
        cap: float,
        *,
        hint: float | None = None,
        spent_s: float | None = None,
    ) -> float | None:
        known = self._categories.get(category)
        wanted = cap
        if known is not None:
            if known.steady and known.largest > allocation:
                wanted = known.largest
            if usable(measured, 0.0):
                known.seen(measured)
        return next_rung(wanted, allocation, measured, cap)
