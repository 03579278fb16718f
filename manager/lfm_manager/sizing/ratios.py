"""A window of measured / expected ratios, and the safety factor that wastes least over them.

The factor is chosen as if the past came again: every candidate is charged what it would have left unused,
what its failures would have thrown away, and what the second rung would have cost; above the largest ratio the
tail is taken as exponential, for the observation not seen yet.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from math import exp, log
from operator import mul

GROWTH = 1.5  # what the third rung is expected to be, in second rungs
SPREAD = 0.05  # of the largest ratio: how far the tail reaches while little is known
DOUBT = 2  # observations after which half of the tail's scale is measured
REFRESH = 16  # the factor is chosen again when a 16th of the window is new; half that if one outgrew it
NARROW = 0.999  # what is nearly the next larger ratio is no candidate
RESCALE = 1e60  # weights grow as they discount the past; brought back before they overflow


class Ratios:
    """Sorted ratios with weights; the oldest leaves when there are more than ``size``."""

    __slots__ = (
        "_arrived",
        "_factor",
        "_fresh",
        "_grow",
        "_stale",
        "_time",
        "_unit",
        "cost",
        "ratios",
        "rung",
        "size",
        "weights",
    )  # fmt: skip

    def __init__(self, size: int, discount: float) -> None:
        self.size = size
        self.ratios: list[float] = []
        self.weights: list[float] = []
        self._arrived: deque[tuple[float, float]] = deque()  # ratio, discounted seconds
        self._grow = 1 / discount
        self._unit = 1.0  # the weight of one observation now; older ones weigh less
        self._time = 0.0  # discounted seconds in the window
        self._fresh = 0  # insertions since the factor was chosen
        self._stale = True
        self._factor = 0.0
        self.rung = 0.0  # the second rung that goes with the factor
        self.cost = 0.0  # expected waste per second of a call, at the factor

    def __len__(self) -> int:
        return len(self.ratios)

    @property
    def largest(self) -> float:
        return self.ratios[-1]

    def add(self, ratio: float, weight: float, wall_s: float) -> None:
        """One observation; ``weight`` is its expected size x its seconds."""
        self._unit *= self._grow
        if self._unit > RESCALE:
            self._rescale()
        weight *= self._unit
        seconds = wall_s * self._unit
        place = bisect_right(self.ratios, ratio)
        if place == len(self.ratios):
            self._stale = True
        self.ratios.insert(place, ratio)
        self.weights.insert(place, weight)
        self._arrived.append((ratio, seconds))
        self._time += seconds
        if len(self.ratios) > self.size:
            self._forget_oldest()
        self._fresh += 1
        often = 2 * REFRESH if ratio > self._factor else REFRESH
        if self._fresh * often >= len(self.ratios):
            self._stale = True

    def factor(self, failure: float, lost: float = 1.0) -> float:
        """The safety factor; ``failure`` is what a failed second costs, in seconds of the same size.

        ``lost``: the share of those that outgrow it which start again; the rest grow where they run.
        """
        if self._stale:
            self._factor, self.rung, cost = cheapest(self.ratios, self.weights, failure, lost)
            self.cost = cost / self._time
            self._stale = False
            self._fresh = 0
        return self._factor

    def factor_above(self, ratio: float, failure: float, lost: float = 1.0) -> float | None:
        """The same choice among what is larger than ``ratio``; None where nothing is."""
        first = bisect_right(self.ratios, ratio)
        if first == len(self.ratios):
            return None
        return cheapest(self.ratios[first:], self.weights[first:], failure, lost)[0]

    def mean_above(self, ratio: float) -> float:
        """What one that is larger than ``ratio`` comes to, on average over time; beyond them all, the next rung."""
        first = bisect_right(self.ratios, ratio)
        if first == len(self.ratios):
            return GROWTH * ratio
        weights = self.weights[first:]
        return float(sum(map(mul, self.ratios[first:], weights)) / sum(weights))

    def _forget_oldest(self) -> None:
        ratio, seconds = self._arrived.popleft()
        place = bisect_left(self.ratios, ratio)  # of equal ones the first is the oldest
        if place == len(self.ratios) - 1:
            self._stale = True
        del self.ratios[place]
        del self.weights[place]
        self._time -= seconds

    def _rescale(self) -> None:
        down = 1 / self._unit
        self._unit = 1.0
        self._time *= down
        self.weights = [w * down for w in self.weights]
        self._arrived = deque((r, s * down) for r, s in self._arrived)


def cheapest(
    ratios: Sequence[float], weights: Sequence[float], failure: float, lost: float = 1.0
) -> tuple[float, float, float]:
    """The factor that wastes least over sorted weighted ratios, the rung above it, and what it would have wasted."""
    n = len(ratios)
    top = ratios[-1]
    total = sum(weights)
    moment = sum(map(mul, ratios, weights))
    below, above_half = (n - 1) // 2, (n + 1) // 2  # an odd window's middle one is in neither half
    median = (ratios[below] + ratios[n // 2]) / 2
    excess = sum(ratios[above_half:]) / (n - above_half) - median if n > 1 else 0.0
    scale = (excess * n + SPREAD * top * DOUBT) / (n + DOUBT)
    again = lost * (GROWTH - 1)
    unseen = total / (n + 1)  # the weight of one observation not made yet
    reach = scale * log(max(1.0, (failure + again) * top / (scale * (n + 1))))
    rung = top + reach
    # what all candidates share is added at the end
    tail = unseen * again * top
    best = total * rung + unseen * exp(-reach / scale) * (failure + again) * rung - tail
    factor = rung
    each, more = total + failure * unseen, failure - 1
    short, fits = lost * rung, 1 - lost  # per weight above: what starts again gets the rung, what grows what it needs
    above, moment_above, last = 0.0, 0.0, top
    if ratios[0] >= top * NARROW:
        return factor, rung, best + tail - moment  # all alike: no other candidate
    for q, weight in zip(reversed(ratios), reversed(weights), strict=True):
        if q < last * NARROW:
            beyond = short * above + fits * moment_above
            cost = q * (each + more * above) + beyond
            if cost < best:
                best, factor = cost, q
            elif beyond >= best:
                break  # whatever is smaller costs more
        last = q
        above += weight
        moment_above += q * weight
    return factor, rung, best + tail - moment
