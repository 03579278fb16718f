"""The few rules of arithmetic that all strategies share: what a measurement is, and what a retry must at least be."""

from __future__ import annotations

from math import inf, isfinite

MARGIN = 1.05  # a retry gets at least this much more than what was measured at the kill
STEP = 1.02  # ... and than what it had
START = {"memory": 1e9, "disk": 1e9, "cores": 1.0}  # what a call gets of which nothing at all is known
BUCKET = {"memory": 250e6, "disk": 250e6, "cores": 1.0}  # of histograms, as in TaskVine
UNIT = {"memory": 1e6, "disk": 1e6, "cores": 1.0}  # in which published algorithms count
SMALLEST = {"memory": 1.0, "disk": 1.0, "cores": 0.01}  # a measurement of nothing still has a size


def usable(measured: float, wall_s: float) -> bool:
    """Whether these are measurements at all: absent, negative and endless ones are not."""
    return 0 <= measured < inf and 0 <= wall_s < inf


def within(amount: float, hint: float | None, cap: float) -> float:
    """A first allocation: no more than was hinted, no more than there is."""
    if hint is not None and hint > 0 and amount > hint:
        amount = hint
    return amount if amount < cap else cap


def next_rung(wanted: float, allocation: float, measured: float, cap: float) -> float | None:
    """A retry: clearly above what was too small and what was measured, within ``cap``; None where that is hopeless."""
    if allocation >= cap or cap <= measured < inf:
        return None
    least = STEP * allocation
    if isfinite(measured):
        least = max(least, MARGIN * measured)
    return min(cap, max(wanted, least))
