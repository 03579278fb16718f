"""The largest that any call of the category ever used, rounded up; a whole worker when that was too small."""

from __future__ import annotations

from math import ceil, floor

from lfm_manager.sizing.limits import BUCKET, next_rung, usable, within


class MaxSeen:
    def __init__(self, resource: str) -> None:
        self._bucket = BUCKET[resource]
        self._largest: dict[str, float] = {}

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
        largest = self._largest.get(category)
        return within(cap if largest is None else self._rounded(largest), hint, cap)

    def succeeded(
        self, category: str, input_bytes: float, measured: float, wall_s: float, *, hint: float | None = None
    ) -> None:
        if usable(measured, wall_s):
            self._largest[category] = max(measured, self._largest.get(category, 0.0))

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
        return next_rung(cap, allocation, measured, cap)

    def _rounded(self, largest: float) -> float:
        bucket = self._bucket  # a third of a bucket of slack, then up to its end
        return max(1, ceil((largest + floor(bucket / 3)) / bucket)) * bucket
