"""Blobs in and out of the manager: what the core asked for is pulled, what others ask for is served.

Nothing is read or sent unless it was asked for, range by range, so that no peer can be flooded.  What cannot be stored
because there is no room, or no descriptor, is asked for again every few seconds, and what cannot be read for such a
reason is given then: that passes, and no call is to fail by it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

from lfm.blobs import BadBlob, BlobStore, Fetch, answer_fetch
from lfm.protocol import messages as m
from lfm.protocol.ids import Digest, PeerId
from lfm.shortage import in_words, passes
from lfm_manager.core.events import BlobLost, BlobStored

log = logging.getLogger(__name__)

AGAIN = 2.0  # seconds until what could not be stored is asked for again
Send = Callable[[PeerId, m.FetchBlob | m.BlobChunk | m.BlobMissing], None]


class Transfers:
    """``tarballs`` are served beside the store's own blobs."""

    def __init__(self, store: BlobStore, tarballs: dict[Digest, Path], send: Send) -> None:
        self.store = store
        self._tarballs, self._send = tarballs, send
        self._pulls: dict[Digest, tuple[PeerId, Fetch]] = {}
        self._put_off: dict[Digest, tuple[PeerId, int]] = {}  # cannot be stored now
        self._unserved: list[tuple[PeerId, m.FetchBlob]] = []  # cannot be read now; no peer asks for more than a few at a time
        self._again = math.inf  # when to try
        self.trouble = ""  # why, for people
        self.sent = 0  # bytes of blobs, to whomever

    def pull(self, peer: PeerId, digest: Digest, size: int) -> BlobStored | BlobLost | None:
        """Get a blob from a peer; an answer at once if it is here, or cannot be taken."""
        try:
            if self.store.has(digest):
                if self.store.size(digest) == size:
                    return BlobStored(digest)
                self.store.drop(digest)  # damaged: a neighbour that may link what it has was cut short
            self._give_up(digest)
            fetch = Fetch(self.store, digest, size)
        except (OSError, MemoryError, ValueError, BadBlob) as error:
            return self._failed(peer, digest, size, error)
        if fetch.done:
            return BlobStored(digest)
        self._pulls[digest] = (peer, fetch)
        self._ask(peer, fetch)
        return None

    def _failed(self, peer: PeerId, digest: Digest, size: int, error: Exception) -> BlobLost | None:
        """Lost, or put off if that passes."""
        if not passes(error):
            return BlobLost(digest, str(error) if isinstance(error, BadBlob) else f"the manager cannot store it: {error}")
        self._suffer(f"blobs cannot be stored in {self.store.directory}: {in_words(error)}")
        self._put_off[digest] = (peer, size)
        return None

    def _suffer(self, trouble: str) -> None:
        if not self.trouble:
            log.error("%s; it is tried again every %.0f s", trouble, AGAIN)
        self._again = min(self._again, time.monotonic() + AGAIN)
        self.trouble = trouble

    def deadline(self) -> float:
        """When ``retry`` is due."""
        return self._again

    def retry(self) -> list[BlobStored | BlobLost]:
        """Ask again for what could not be stored, and give what could not be read."""
        waiting, self._put_off = self._put_off, {}
        unserved, self._unserved = self._unserved, []
        self._again = math.inf
        for peer, wanted in unserved:
            self.serve(peer, wanted)
        self._forget_trouble()
        answers = [self.pull(peer, digest, size) for digest, (peer, size) in waiting.items()]
        return [answer for answer in answers if answer is not None]

    def _ask(self, peer: PeerId, fetch: Fetch) -> None:
        for request in fetch.requests():
            self._send(peer, request)

    def _give_up(self, digest: Digest) -> None:
        pull = self._pulls.pop(digest, None)
        if pull is not None:
            pull[1].close()

    def _pulled_from(self, peer: PeerId, digest: Digest) -> Fetch | None:
        owner, fetch = self._pulls.get(digest, (None, None))
        return fetch if owner == peer else None

    def came(self, peer: PeerId, chunk: m.BlobChunk) -> BlobStored | BlobLost | None:
        """A range of what is being pulled."""
        fetch = self._pulled_from(peer, chunk.digest)
        if fetch is None:
            return None
        try:
            done = fetch.feed(chunk)
        except (BadBlob, OSError, MemoryError) as error:
            self._give_up(chunk.digest)
            return self._failed(peer, chunk.digest, fetch.size, error)
        if done:
            del self._pulls[chunk.digest]
            self.trouble = ""
            return BlobStored(chunk.digest)
        self._ask(peer, fetch)
        return None

    def missing(self, peer: PeerId, news: m.BlobMissing) -> BlobLost | None:
        """The peer does not have it."""
        if self._pulled_from(peer, news.digest) is None:
            return None
        self._give_up(news.digest)
        return BlobLost(news.digest, news.reason)

    def gone(self, peer: PeerId) -> None:
        """A peer left; the core knows what it had asked of it."""
        for digest in [d for d, (owner, _) in self._pulls.items() if owner == peer]:
            self._give_up(digest)
        self._put_off = {d: who for d, who in self._put_off.items() if who[0] != peer}
        self._unserved = [one for one in self._unserved if one[0] != peer]
        self._forget_trouble()

    def serve(self, peer: PeerId, fetch: m.FetchBlob) -> None:
        """Give a peer the range that it asks for."""
        try:
            path = self._tarballs.get(fetch.digest) or self.store.path(fetch.digest)
            chunk = answer_fetch(path, fetch)
        except (OSError, ValueError, MemoryError) as error:
            if passes(error):
                self._unserved.append((peer, fetch))
                self._suffer(f"blobs cannot be read: {in_words(error)}")
            else:
                self._send(peer, m.BlobMissing(fetch.digest, f"the manager cannot read it: {error}"))
            return
        self.sent += len(chunk.data)
        self._send(peer, chunk)

    def drop(self, digest: Digest) -> None:
        self._give_up(digest)
        self._put_off.pop(digest, None)
        self._forget_trouble()
        self.store.drop(digest)

    def _forget_trouble(self) -> None:
        if not (self._put_off or self._pulls or self._unserved):
            self.trouble = ""

    def close(self) -> None:
        for digest in list(self._pulls):
            self._give_up(digest)
