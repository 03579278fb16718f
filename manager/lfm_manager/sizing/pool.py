"""What the first calls of all categories took: from it a category without a result gets its first size."""

from __future__ import annotations

from lfm_manager.sizing.ratios import SPREAD, Ratios

WINDOW = 400
PER_CATEGORY = 3  # calls of each category that enter
ENOUGH = 3  # categories from which sizes are taken
ENOUGH_HINTED = 5  # ... and ratios to hints


class Pool:
    """Sizes, and ratios of sizes to hints, each weighted by what it stood for."""

    def __init__(self, overhead: float) -> None:
        self._overhead = overhead
        self._sizes = Ratios(WINDOW, 1.0)
        self._to_hints = Ratios(WINDOW, 1.0)
        self._entered: dict[str, int] = {}
        self._hinted: set[str] = set()
        self._seconds = 0.0
        self._hinted_seconds = 0.0
        self._hinted_count = 0

    def add(self, category: str, measured: float, wall_s: float, hint: float | None) -> None:
        entered = self._entered.get(category, 0)
        if entered == PER_CATEGORY:
            return
        self._entered[category] = entered + 1
        self._sizes.add(measured, wall_s, wall_s)
        self._seconds += wall_s
        if hint is not None and hint > 0:
            self._hinted.add(category)
            self._to_hints.add(measured / hint, wall_s * hint, wall_s)
            self._hinted_seconds += wall_s
            self._hinted_count += 1

    def first(self, hint: float | None, start: float, *, crowd: bool) -> float:
        """The size of a call whose category has no result; ``crowd``: another such call is already out."""
        enough = len(self._entered) >= ENOUGH
        if enough:
            size = self._quantile(self._sizes, self._seconds, sum(self._entered.values()), crowd)
        else:
            size = start
        if hint is None or hint <= 0:
            return size
        if len(self._hinted) >= ENOUGH_HINTED and (enough or not crowd):
            ratio = self._quantile(self._to_hints, self._hinted_seconds, self._hinted_count, crowd)
            size = min(size, hint * ratio)
        return min(size, hint)

    def _quantile(self, window: Ratios, seconds: float, count: int, crowd: bool) -> float:
        failure = 1.0 + self._overhead * count / seconds
        return _least_regret(window, failure) if crowd else window.factor(failure)


def _least_regret(window: Ratios, failure: float) -> float:
    """The size q whose waste is least if those above it are tried again at about what they need."""
    best, found = float("inf"), window.ratios[-1]
    total = sum(window.weights)
    moment = sum(y * t for y, t in zip(window.ratios, window.weights, strict=True))
    below = below_moment = 0.0
    for y, t in zip(window.ratios, window.weights, strict=True):
        below += t
        below_moment += t * y
        cost = y * below - below_moment + failure * y * (total - below) + SPREAD * (moment - below_moment)
        if cost < best:
            best, found = cost, y
    return found
