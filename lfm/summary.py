"""What a session's calls were given and took, per category: the table at the end of a script.

Counts as calls end; knows nothing of where the table goes, but for ``wanted``.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from dataclasses import dataclass, field

from lfm.protocol.messages import Finished
from lfm.protocol.outcomes import Returned
from lfm.protocol.resources import format_duration, format_size

KEPT = 1000  # calls of a category, of which the middle is shown
SHOWN = 20  # categories
HEAD = ("", "calls", "failed", "retried", "given p50", "taken p50", "max", "time p50", "used")


@dataclass(slots=True)
class _Category:
    calls: int = 0
    failed: int = 0
    retried: int = 0
    largest: int = 0
    given_s: float = 0.0  # byte-seconds, failed attempts included
    taken_s: float = 0.0
    given: deque[int] = field(default_factory=lambda: deque(maxlen=KEPT))
    taken: deque[int] = field(default_factory=lambda: deque(maxlen=KEPT))
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))


class Summary:
    """One session's."""

    def __init__(self) -> None:
        self._categories: dict[str, _Category] = {}

    def add(self, category: str, finished: Finished) -> None:
        """A call is over."""
        known = self._categories.get(category)
        if known is None:
            known = self._categories[category] = _Category()
        known.calls += 1
        known.retried += max(0, len(finished.attempts) - 1)
        good = isinstance(finished.outcome, Returned)
        known.failed += not good
        for attempt in finished.attempts:
            if attempt.usage is not None:
                known.given_s += attempt.allocation.memory * attempt.usage.wall_s
        usage, given = finished.usage, finished.allocation
        if good and usage is not None and given is not None:
            known.taken_s += usage.memory * usage.wall_s
            known.largest = max(known.largest, usage.memory)
            known.given.append(given.memory)
            known.taken.append(usage.memory)
            known.seconds.append(usage.wall_s)

    def table(self) -> str:
        """Lines of text; empty if nothing has run."""
        if not self._categories:
            return ""
        most = sorted(self._categories.items(), key=lambda one: -sum(one[1].seconds))
        rows = [HEAD, *(_row(name, known) for name, known in most[:SHOWN])]
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
        lines = [
            "  ".join(cell.rjust(w) if column else cell.ljust(w) for column, (cell, w) in enumerate(zip(row, widths, strict=True)))
            for row in rows
        ]
        if len(most) > SHOWN:
            lines.append(f"... and {len(most) - SHOWN} more categories")
        return "\n".join(lines)


def _row(name: str, known: _Category) -> tuple[str, ...]:
    memory, seconds = [f"{known.calls:,}", f"{known.failed:,}", f"{known.retried:,}"], "-"
    if known.taken:
        memory += [format_size(_middle(known.given)), format_size(_middle(known.taken)), format_size(known.largest)]
        seconds = format_duration(_middle(known.seconds))
    else:
        memory += ["-"] * 3
    used = f"{min(1.0, known.taken_s / known.given_s):.0%}" if known.given_s else "-"
    return (name, *memory, seconds, used)


def _middle(values: deque[int] | deque[float]) -> float:
    return float(sorted(values)[len(values) // 2])


def wanted() -> bool:
    """Whether the table is to be written: LFM_SUMMARY says so, else where somebody sits before it."""
    said = os.environ.get("LFM_SUMMARY", "").lower()
    if said:
        return said not in ("off", "0", "no")
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # closed, or none
        return False
