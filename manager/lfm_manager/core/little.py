"""What is below the least that anyone is given needs no learning, and should cost none.

Stands between the books and a sizer, and is one itself.  Calls of a tenth of a second may come by the thousand a
second; as long as a category stays little, and its sizer has said so, the sizer is left alone.  When a call takes
more, it is told what it missed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from lfm_manager.sizing.sizer import Foreseeing, Sizer

ASKED = 4  # first successes that the sizer always hears of, and decides by
KEPT = 64  # later ones that it is told of if the category turns out not to be little


@dataclass(slots=True, eq=False)
class _Category:
    heard: int = 0
    little: bool = True
    widest: float = 0.0  # the largest input of those that were little
    missed: deque[tuple[float, float, float]] = field(default_factory=lambda: deque(maxlen=KEPT))


class Little:
    """``least``: what everyone gets at least."""

    def __init__(self, sizer: Sizer, least: int) -> None:
        self._sizer, self._least = sizer, least
        self._foreseeing = sizer if isinstance(sizer, Foreseeing) else None  # to look each time costs more than to ask
        self._categories: dict[str, _Category] = {}

    def predict(
        self, category: str, input_bytes: float, hint: float | None, cap: float, *, in_flight: int = 0,
        share: float = 0.0,
    ) -> float:
        known = self._categories.get(category)
        if known is not None and known.little and known.heard >= ASKED and input_bytes <= 2 * known.widest + 4096:
            return min(self._least, cap)
        return self._sizer.predict(category, input_bytes, hint, cap, in_flight=in_flight, share=share)

    def expected(self, category: str, input_bytes: float, at_least: float) -> float | None:
        """As ``Foreseeing``.  Of what is little nothing has to be foreseen."""
        known = self._categories.get(category)
        if known is None or known.little or self._foreseeing is None:
            return None
        return self._foreseeing.expected(category, input_bytes, at_least)

    def succeeded(
        self, category: str, input_bytes: float, measured: float, wall_s: float, *, hint: float | None = None
    ) -> None:
        known = self._categories.setdefault(category, _Category())
        if known.little and measured <= 0.8 * self._least:
            known.widest = max(known.widest, input_bytes)
            if known.heard >= ASKED:
                known.missed.append((input_bytes, measured, wall_s))
                return
            self._sizer.succeeded(category, input_bytes, measured, wall_s, hint=hint)
            known.heard += 1
            if known.heard == ASKED:
                known.little = self._sizer.predict(category, input_bytes, hint, self._least * 1000.0) <= self._least
            return
        if known.little:
            known.little = False
            for missed in known.missed:
                self._sizer.succeeded(category, *missed)
            known.missed.clear()
        self._sizer.succeeded(category, input_bytes, measured, wall_s, hint=hint)

    def exhausted(
        self, category: str, attempt: int, allocation: float, measured: float, cap: float, *,
        hint: float | None = None, spent_s: float | None = None,
    ) -> float | None:
        return self._sizer.exhausted(category, attempt, allocation, measured, cap, hint=hint, spent_s=spent_s)
