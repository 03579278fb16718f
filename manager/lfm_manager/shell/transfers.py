"""Blobs in and out of the manager: what the core asked for is pulled, what others ask for is served.

Nothing is read or sent unless it was asked for, range by range, so that no peer can be flooded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lfm.blobs import BadBlob, BlobStore, Fetch, answer_fetch
from lfm.protocol import messages as m
from lfm.protocol.ids import Digest, PeerId
from lfm_manager.core.events import BlobLost, BlobStored

Send = Callable[[PeerId, m.FetchBlob | m.BlobChunk | m.BlobMissing], None]


class Transfers:
    """``tarballs`` are served beside the store's own blobs."""

    def __init__(self, store: BlobStore, tarballs: dict[Digest, Path], send: Send) -> None:
        self.store = store
        self._tarballs, self._send = tarballs, send
        self._pulls: dict[Digest, tuple[PeerId, Fetch]] = {}
        self.sent = 0  # bytes of blobs, to whomever

    def pull(self, peer: PeerId, digest: Digest, size: int) -> BlobStored | BlobLost | None:
        """Get a blob from a peer; an answer at once if it is here, or cannot be taken."""
        try:
            if self.store.has(digest):
                return BlobStored(digest)
            self._give_up(digest)
            fetch = Fetch(self.store, digest, size)
        except (OSError, ValueError, BadBlob) as error:
            return BlobLost(digest, f"the manager cannot store it: {error}")
        if fetch.done:
            return BlobStored(digest)
        self._pulls[digest] = (peer, fetch)
        self._ask(peer, fetch)
        return None

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
        except (BadBlob, OSError) as error:
            self._give_up(chunk.digest)
            return BlobLost(chunk.digest, str(error))
        if done:
            del self._pulls[chunk.digest]
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

    def serve(self, peer: PeerId, fetch: m.FetchBlob) -> None:
        """Give a peer the range that it asks for."""
        try:
            path = self._tarballs.get(fetch.digest) or self.store.path(fetch.digest)
            chunk = answer_fetch(path, fetch)
        except (OSError, ValueError) as error:
            self._send(peer, m.BlobMissing(fetch.digest, f"the manager cannot read it: {error}"))
            return
        self.sent += len(chunk.data)
        self._send(peer, chunk)

    def drop(self, digest: Digest) -> None:
        self._give_up(digest)
        self.store.drop(digest)

    def close(self) -> None:
        for digest in list(self._pulls):
            self._give_up(digest)
