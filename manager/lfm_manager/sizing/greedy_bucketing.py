"""Greedy bucketing: cut the sizes where that lowers the expected waste most, then cut both halves again."""

from __future__ import annotations

from itertools import accumulate

from lfm_manager.sizing.bucketing import Buckets, Points


def greedy(points: Points) -> Buckets:
    weight = [0.0, *accumulate(w for _, w in points)]
    moment = [0.0, *accumulate(v * w for v, w in points)]
    ends: list[int] = []
    open_ranges = [(0, len(points) - 1)]
    while open_ranges:
        low, high = open_ranges.pop()
        cut = _best_cut(points, weight, moment, low, high) if high > low else high
        if cut == high:
            ends.append(high)
        else:
            open_ranges += [(cut + 1, high), (low, cut)]
    starts = [0, *(end + 1 for end in ends)]
    total = weight[-1]
    return [
        (points[end][0], (weight[end + 1] - weight[start]) / total)
        for start, end in zip(starts, ends, strict=False)
    ]


def _best_cut(points: Points, weight: list[float], moment: list[float], low: int, high: int) -> int:
    """The last index of the lower part: the largest of those with the least expected waste."""
    whole = weight[high + 1] - weight[low]
    top = points[high][0]
    best, found = float("inf"), high
    for cut in range(low, high + 1):
        here = points[cut][0]
        below = weight[cut + 1] - weight[low]
        p = below / whole
        lower = (moment[cut + 1] - moment[low]) / below
        above = weight[high + 1] - weight[cut + 1]
        upper = (moment[high + 1] - moment[cut + 1]) / above if cut < high else 0.0
        q = 1.0 - p if cut < high else 0.0
        cost = p * p * (here - lower) + p * q * (top - lower + here + top - upper) + q * q * (top - upper)
        if cost <= best:
            best, found = cost, cut
    return found
