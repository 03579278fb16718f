"""What was said to the manager and may have to be said again.  Pure.

The link delivers exactly once while both ends live.  A manager that restarts has forgotten the link, and may
have forgotten what it confirmed a moment before it died: so the ends of calls are kept a while longer, within
a bound, and said again to a manager that does not know the session.  They are idempotent there.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from lfm.protocol import messages as m
from lfm.protocol.outcomes import Inline, Raised, Returned

KEEP_S = 60.0  # after its confirmation
KEEP_BYTES = 32 << 20


@dataclass(slots=True)
class _Kept:
    number: int  # how many messages had been said, this one included
    ended: m.CallEnded
    size: int
    confirmed: float | None = None


class Outbox:
    """Ends of calls that the manager may not have."""

    def __init__(self) -> None:
        self._said = 0
        self._kept: deque[_Kept] = deque()
        self._confirmed_bytes = 0
        self._named = False  # in a hello that was not answered yet: its manager waits for them

    def said(self, message: m.Message) -> None:
        """This was given to the link."""
        self._said += 1
        if isinstance(message, m.CallEnded):
            self._kept.append(_Kept(self._said, message, _size(message)))

    def confirmed(self, unacknowledged: int, now: float) -> None:
        """All but the last ``unacknowledged`` messages have arrived."""
        through = self._said - unacknowledged
        for kept in reversed(self._kept):
            if kept.confirmed is not None:
                break
            if kept.number <= through:
                kept.confirmed = now
                self._confirmed_bytes += kept.size
        while not self._named and self._kept and (since := self._kept[0].confirmed) is not None and (
            now - since > KEEP_S or self._confirmed_bytes > KEEP_BYTES
        ):
            self._confirmed_bytes -= self._kept.popleft().size

    def again(self) -> list[m.CallEnded]:
        """What a manager that knows nothing of this session is told again: call ``said`` for each."""
        ends = [kept.ended for kept in self._kept]
        self._kept.clear()
        self._confirmed_bytes = 0
        return ends

    def welcomed(self) -> None:
        """The manager knew this session, and what it was told."""
        self._named = False

    def running(self) -> tuple[m.Running, ...]:
        """The attempts that are over, for a hello: none is forgotten until ``welcomed``."""
        self._named = bool(self._kept)
        return tuple(m.Running(kept.ended.task, kept.ended.attempt) for kept in self._kept)


def _size(message: m.CallEnded) -> int:
    size = 512 + len(message.stdout) + len(message.stderr)
    outcome = message.outcome
    value = outcome.value if isinstance(outcome, Returned) else outcome.error if isinstance(outcome, Raised) else None
    return size + (len(value.data) if isinstance(value, Inline) else 0)
