"""What a call's input size says about its need: neighbours in size, and a line along the upper edge."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque

KEPT = 2000  # points per category
NEAR = 2  # neighbours on either side whose mean is expected
FAR = 5  # neighbours on either side whose largest is expected
FIRST_UPPER = 6  # points from which the upper half is fitted alone
REFIT = 0.06  # ... and again whenever so much of them is new
FLOOR = 0.7  # of the smallest measurement: a line never says less


class Points:
    """(input size, measured) of one category, sorted by size; the oldest leaves when there are too many."""

    __slots__ = ("_arrived", "_fitted", "_fresh", "_line", "_smallest", "_sum_x", "_sum_xx", "_sum_xy", "_sum_y", "sizes", "values")  # fmt: skip

    def __init__(self) -> None:
        self.sizes: list[float] = []
        self.values: list[float] = []
        self._arrived: deque[tuple[float, float]] = deque()
        self._sum_x = self._sum_y = self._sum_xx = self._sum_xy = 0.0
        self._smallest = 0.0
        self._fitted = 0  # points at the last fit
        self._fresh = 0  # points since then
        self._line: tuple[float, float] | None = None  # slope, intercept

    def add(self, x: float, y: float) -> None:
        place = bisect_left(self.sizes, x)
        self.sizes.insert(place, x)
        self.values.insert(place, y)
        self._arrived.append((x, y))
        self._fresh += 1
        self._smallest = min(y, self._smallest) if len(self.sizes) > 1 else y
        self._sums(x, y, 1)
        if len(self.sizes) > KEPT:
            self._forget_oldest()

    def near(self, x: float) -> float:
        place = bisect_left(self.sizes, x)
        found = self.values[max(0, place - NEAR) : place + NEAR]
        return sum(found) / len(found)

    def far(self, x: float) -> float:
        place = bisect_left(self.sizes, x)
        return max(self.values[max(0, place - FAR) : place + FAR])

    def upper(self, x: float) -> float | None:
        n = len(self.sizes)
        if n < FIRST_UPPER or self._fresh >= REFIT * self._fitted:
            self._fit(n)
        if self._line is None:
            return None
        slope, intercept = self._line
        return max(slope * x + intercept, FLOOR * self._smallest)

    def _fit(self, n: int) -> None:
        self._fitted = n
        self._fresh = 0
        self._line = line = _least_squares(n, self._sum_x, self._sum_y, self._sum_xx, self._sum_xy)
        if n < FIRST_UPPER or line is None:
            return
        slope, intercept = line
        upper = [(x, y) for x, y in zip(self.sizes, self.values, strict=True) if y >= slope * x + intercept]
        self._line = None
        if len(upper) >= 3:
            self._line = _least_squares(
                len(upper),
                sum(x for x, _ in upper),
                sum(y for _, y in upper),
                sum(x * x for x, _ in upper),
                sum(x * y for x, y in upper),
            )

    def _forget_oldest(self) -> None:
        x, y = self._arrived.popleft()
        place = bisect_right(self.sizes, x) - 1  # of equal ones the last is the oldest
        del self.sizes[place]
        del self.values[place]
        self._sums(x, y, -1)

    def _sums(self, x: float, y: float, sign: int) -> None:
        self._sum_x += sign * x
        self._sum_y += sign * y
        self._sum_xx += sign * x * x
        self._sum_xy += sign * x * y


def _least_squares(n: int, sx: float, sy: float, sxx: float, sxy: float) -> tuple[float, float] | None:
    """Slope and intercept; None where the sizes hardly differ."""
    mean_x, mean_xx = sx / n, sxx / n
    variance = mean_xx - mean_x * mean_x
    if variance <= 1e-6 * mean_xx:
        return None
    slope = (sxy / n - mean_x * sy / n) / variance
    return slope, sy / n - slope * mean_x
