"""Which blobs the manager has, who needs them, and who could give them.  Holds names, never bytes.

Counts users: a blob without one is dropped here, and forgotten by the workers that were told of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lfm.protocol.ids import Digest, PeerId, TaskId
from lfm.protocol.messages import ForgetBlob
from lfm.protocol.outcomes import Blob
from lfm_manager.core.commands import Command, DropBlob, GetBlob, TellWorker
from lfm_manager.core.spread import Spread


@dataclass(slots=True, eq=False)
class Known:
    """One blob.  ``asked`` is the peer that it is being pulled from."""

    blob: Blob
    users: int = 0
    here: bool = False
    asked: PeerId | None = None
    sources: dict[PeerId, None] = field(default_factory=dict)
    waiters: dict[TaskId, None] = field(default_factory=dict)  # calls that cannot go on without it
    told: dict[PeerId, None] = field(default_factory=dict)  # workers that may hold a copy


class Blobs:
    def __init__(self, spread: Spread, out: list[Command]) -> None:
        self.known: dict[Digest, Known] = {}
        self.present: set[Digest] = set()  # left in the store by the manager before this one
        self._asked_of: dict[PeerId, dict[Digest, None]] = {}
        self._spread, self._out = spread, out

    def use(self, blob: Blob, source: PeerId | None) -> Known:
        """One more user; pulled from ``source`` if it is not here."""
        known = self.known.get(blob.digest)
        if known is None:
            known = self.known[blob.digest] = Known(blob, here=blob.digest in self.present)
        known.users += 1
        self.offer(blob.digest, source)
        return known

    def offer(self, digest: Digest, source: PeerId | None) -> None:
        """A peer has it, and could give it if it is needed and not here."""
        known = self.known.get(digest)
        if known is not None and source is not None and not known.here:
            known.sources[source] = None
            self._ask(known)

    def leave(self, digest: Digest) -> None:
        """One user fewer."""
        known = self.known[digest]
        known.users -= 1
        if known.users:
            return
        del self.known[digest]
        self.present.discard(digest)
        if known.asked is not None:
            del self._asked_of[known.asked][digest]
        self._out.append(DropBlob(digest))
        self._spread.forget(digest)
        self._out.extend(TellWorker(peer, ForgetBlob(digest)) for peer in known.told)

    def stored(self, digest: Digest) -> list[TaskId]:
        """It has come; who waited for it."""
        known = self.known.get(digest)
        if known is None:
            self._out.append(DropBlob(digest))
            return []
        known.here = True
        self._answered(known)
        known.sources.clear()
        waiters = list(known.waiters)
        known.waiters.clear()
        return waiters

    def lost(self, digest: Digest) -> list[TaskId] | None:
        """It cannot be had from whom it was asked; who waits in vain, or None if somebody else may have it."""
        known = self.known.get(digest)
        if known is None or known.here:
            return None
        if known.asked is not None:
            known.sources.pop(known.asked, None)
            self._answered(known)
        self._ask(known)
        return None if known.asked is not None else list(known.waiters)

    def put_off(self, digest: Digest) -> None:
        """Whom it was asked of is away: another one gives it, or it has to wait."""
        known = self.known.get(digest)
        if known is not None and not known.here:
            self._answered(known)
            self._ask(known)

    def is_nowhere(self, digest: Digest) -> bool:
        """Nobody who is here has it."""
        known = self.known.get(digest)
        return known is not None and not known.here and known.asked is None

    def gone(self, peer: PeerId) -> list[Digest]:
        """A peer left; what was asked of it and is now lost."""
        for known in self.known.values():
            known.sources.pop(peer, None)
            known.told.pop(peer, None)
        return list(self._asked_of.get(peer, ()))

    def _ask(self, known: Known) -> None:
        if known.asked is None and known.sources:
            peer = known.asked = next(iter(known.sources))
            self._asked_of.setdefault(peer, {})[known.blob.digest] = None
            self._out.append(GetBlob(peer, known.blob.digest, known.blob.size))

    def _answered(self, known: Known) -> None:
        if known.asked is not None:
            mine = self._asked_of[known.asked]
            del mine[known.blob.digest]
            if not mine:
                del self._asked_of[known.asked]
            known.asked = None
