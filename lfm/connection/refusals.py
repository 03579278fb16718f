"""What was refused: counted, and said in the log once for each who and why.  Bounded, whoever knocks how often."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)

DIFFERENT = 256  # of whom and why the log speaks; of more only their number is known


class Refusals:
    def __init__(self) -> None:
        self.total = 0
        self._times: dict[tuple[str, str], int] = {}

    def note(self, who: str, why: str) -> None:
        """Refused once more; the log hears of the first time, and then of each tenfold."""
        self.total += 1
        who, why = who[:80], why[:200]
        known = self._times.get((who, why))
        if known is None and len(self._times) >= DIFFERENT:
            return
        times = self._times[who, why] = (known or 0) + 1
        if times == 1:
            log.warning("refused %s: %s", who, why)
            if len(self._times) == DIFFERENT:
                log.warning("refused so many that no more are named here; lfm status counts them")
        elif str(times).strip("0") == "1":
            log.warning("refused %s %d times: %s", who, times, why)
