"""What the user asked, and nothing else: too small is final.  Where nothing was asked, a whole worker."""

from __future__ import annotations


class Fixed:
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
        return cap if hint is None or hint <= 0 else min(hint, cap)

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
        return None
