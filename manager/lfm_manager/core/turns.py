"""Whose turn it is: the sessions with ready calls, the one with the fewest cores in use first.  Knows no call."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from lfm_manager.core.sessions import Session


class Turns:
    """Kept in order as shares change, so that nobody sorts all sessions to place one call."""

    def __init__(self) -> None:
        self._order: list[tuple[int, str]] = []  # shares and keys of those that wait
        self._waiting: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Session]:
        """In turn; a session that is charged meanwhile ends it."""
        waiting = self._waiting
        return (waiting[key] for _, key in self._order)

    def enter(self, session: Session) -> None:
        """It has ready calls."""
        if session.key not in self._waiting:
            self._waiting[session.key] = session
            insort(self._order, share(session))

    def leave(self, session: Session) -> None:
        """It has none any more."""
        del self._waiting[session.key], self._order[self._place(session)]

    def charge(self, session: Session, millicores: int) -> None:
        """It has so many more in use; fewer, if that is negative."""
        if self._waiting.get(session.key) is session:
            del self._order[self._place(session)]
            session.millicores += millicores
            insort(self._order, share(session))
        else:
            session.millicores += millicores

    def _place(self, session: Session) -> int:
        at = bisect_left(self._order, share(session))
        assert self._order[at] == share(session)
        return at


def share(session: Session) -> tuple[int, str]:
    """What decides whose turn is first; ties are broken by name."""
    return (session.millicores, session.key)
