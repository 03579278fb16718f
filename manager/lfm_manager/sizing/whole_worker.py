"""Every call gets a worker to itself: what unmanaged clusters do, and what the others are measured against."""

from __future__ import annotations

from lfm_manager.sizing.limits import next_rung


class WholeWorker:
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
        return cap

    def succeeded(
        self, category: str, input_bytes: float, measured: float, wall_s: float, *, hint: float | None = None
    ) -> None:
        pass

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
        return next_rung(cap, allocation, measured, cap)  # a smaller worker took the first attempt
