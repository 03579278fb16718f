"""Bucketing (Phung et al.), as TaskVine has it: sizes fall into a few buckets, and a call gets one of them.

A bucket is drawn with the share of recent calls that it stands for; a failed call draws among the larger ones.
The draws are the golden-ratio sequence, which keeps to those shares more evenly than dice, and is the same
every time.  The way of cutting sizes into buckets is ``greedy_bucketing`` or ``exhaustive_bucketing``.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Sequence
from math import floor, log2

from lfm_manager.sizing.limits import SMALLEST, START, UNIT, next_rung, usable, within

SAMPLES = 10  # results before which sizes are doubled from a fixed start
KEPT = 1000  # results per category; cutting takes time in proportion
EPOCH = 100  # buckets are cut again when a hundredth of the results is new: as published, up to so many
GOLDEN = 0.6180339887498949

Points = Sequence[tuple[float, float]]  # (size, weight), by size
Buckets = list[tuple[float, float]]  # (size, share of the weight), by size
Cut = Callable[[Points], Buckets]


class _Category:
    __slots__ = ("_arrived", "_buckets", "_cut", "_draws", "_fresh", "_points", "_results")

    def __init__(self, cut: Cut) -> None:
        self._cut = cut
        self._points: list[tuple[float, float]] = []
        self._arrived: deque[tuple[float, float]] = deque()
        self._results = 0
        self._buckets: Buckets = []
        self._fresh = 0  # results since the last cut
        self._draws = 0

    def add(self, size: float) -> None:
        """The weight of a result is its number: the recent ones count more."""
        self._results += 1
        point = (size, float(self._results))
        insort(self._points, point)
        self._arrived.append(point)
        if len(self._points) > KEPT:
            del self._points[bisect_left(self._points, self._arrived.popleft())]
        self._fresh += 1

    def draw(self, above: float) -> float | None:
        """A bucket larger than ``above``; None where nothing that large is known."""
        if len(self._points) < SAMPLES:
            return None
        if self._fresh * EPOCH >= max(len(self._points), EPOCH):
            self._buckets = self._cut(self._points)
            self._fresh = 0
        left = self._buckets[bisect_right(self._buckets, above, key=lambda bucket: bucket[0]) :]
        if not left:
            return None
        self._draws += 1
        chance = self._draws * GOLDEN % 1.0 * sum(share for _, share in left)
        for size, share in left:
            chance -= share
            if chance < 0:
                return size
        return left[-1][0]


class Bucketing:
    def __init__(self, resource: str, cut: Cut) -> None:
        self._start = START[resource] / UNIT[resource]
        self._unit = UNIT[resource]  # buckets are cut in MB, as published: some are powers of two
        self._smallest = SMALLEST[resource] / UNIT[resource]
        self._cut = cut
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
        drawn = None if known is None else known.draw(0.0)
        return within((self._start if drawn is None else drawn) * self._unit, hint, cap)

    def succeeded(
        self, category: str, input_bytes: float, measured: float, wall_s: float, *, hint: float | None = None
    ) -> None:
        if not usable(measured, wall_s):
            return
        known = self._categories.get(category)
        if known is None:
            known = self._categories[category] = _Category(self._cut)
        known.add(max(measured / self._unit, self._smallest))

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
        outgrown = max(allocation, measured if usable(measured, 0.0) else 0.0, self._smallest) / self._unit
        drawn = None if known is None else known.draw(outgrown)
        if drawn is None:
            drawn = self._start * 2.0 ** min(1000, floor(log2(outgrown / self._start)) + 1)  # else it may be no number
        return next_rung(drawn * self._unit, allocation, measured, cap)
