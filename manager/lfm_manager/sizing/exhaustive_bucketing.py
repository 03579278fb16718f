"""Exhaustive bucketing: try one to ten even parts of the largest size, with powers of two below; keep the best."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from math import floor, log2

from lfm_manager.sizing.bucketing import Buckets, Points

MOST = 10


def exhaustive(points: Points) -> Buckets:
    values = [v for v, _ in points]
    weight = [0.0, *accumulate(w for _, w in points)]
    moment = [0.0, *accumulate(v * w for v, w in points)]
    best, found = float("inf"), []
    for parts in range(1, MOST + 1):
        buckets, means = _covering(_candidates(values[-1], parts), values, weight, moment)
        cost = expected_waste(buckets, means)
        if cost < best:
            best, found = cost, buckets
    return found


def _candidates(largest: float, parts: int) -> list[float]:
    """Powers of two below the first part's end, then the ends of even parts."""
    powers = max(0, floor(log2(largest / parts)))
    return [2.0**k for k in range(powers)] + [largest * part / parts for part in range(1, parts)] + [largest]


def _covering(
    candidates: list[float], values: list[float], weight: list[float], moment: list[float]
) -> tuple[Buckets, list[float]]:
    """Every candidate lowered to the largest size that it covers; the empty ones dropped.  Also the mean sizes."""
    buckets: Buckets = []
    means: list[float] = []
    start = 0
    for top in candidates:
        end = bisect_right(values, top)
        if end > start:
            share = weight[end] - weight[start]
            buckets.append((values[end - 1], share / weight[-1]))
            means.append((moment[end] - moment[start]) / share)
            start = end
    return buckets, means


def expected_waste(buckets: Buckets, means: list[float]) -> float:
    """Mean over what a call needs and what it draws; too small a draw is lost, and the next is among the larger."""
    waste = 0.0
    for need, (_, needed) in enumerate(buckets):
        larger = larger_cost = 0.0  # shares of the buckets above, and share x cost
        for drawn in range(len(buckets) - 1, -1, -1):
            size, share = buckets[drawn]
            cost = size - means[need] if drawn >= need else size + larger_cost / larger
            waste += needed * share * cost
            larger += share
            larger_cost += share * cost
    return waste
