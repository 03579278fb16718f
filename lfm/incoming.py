"""Blobs between a session and its manager, both ways: large arguments are pulled from here, large results to here."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from lfm.blobs import BadBlob, Fetch, answer_fetch
from lfm.monitor.payload import Buffer
from lfm.protocol import messages as m
from lfm.protocol.ids import Digest
from lfm.protocol.outcomes import Blob
from lfm.spool import Spool

AT_ONCE = 4  # blobs pulled at a time
Taker = Callable[[Buffer | None], None]


class Incoming:
    """One session's transfers.  The session's thread's own."""

    def __init__(self, spool: Spool, say: Callable[[m.Message], None]) -> None:
        self._spool, self._say = spool, say
        self._takers: dict[Digest, list[Taker]] = {}
        self._waiting: deque[Blob] = deque()
        self._fetches: dict[Digest, Fetch] = {}

    def fetch(self, blob: Blob, take: Taker) -> None:
        """Pull a blob; ``take`` gets its content, or None if it cannot be had."""
        if (content := self._spool.borrow(blob)) is not None:
            take(content)
            return
        takers = self._takers.setdefault(blob.digest, [])
        takers.append(take)
        if len(takers) == 1:
            self._waiting.append(blob)
            self._start()

    def hear(self, message: m.FetchBlob | m.BlobChunk | m.BlobMissing) -> None:
        if isinstance(message, m.FetchBlob):
            try:
                self._say(answer_fetch(self._spool.store.path(message.digest), message))
            except (OSError, ValueError) as error:
                self._say(m.BlobMissing(message.digest, str(error)))
            return
        fetch = self._fetches.get(message.digest)
        if fetch is None:
            return
        if isinstance(message, m.BlobMissing):
            self._over(message.digest, there=False)
            return
        try:
            done = fetch.feed(message)
        except BadBlob:
            self._over(message.digest, there=False)
            return
        if done:
            self._over(message.digest, there=True)
        else:
            self._ask(fetch)

    def _start(self) -> None:
        while self._waiting and len(self._fetches) < AT_ONCE:
            blob = self._waiting.popleft()
            fetch = self._fetches[blob.digest] = Fetch(self._spool.store, blob.digest, blob.size)
            self._ask(fetch)

    def _ask(self, fetch: Fetch) -> None:
        for request in fetch.requests():
            self._say(request)

    def _over(self, digest: Digest, there: bool) -> None:
        self._fetches.pop(digest).close()
        takers = self._takers.pop(digest)
        contents = [self._spool.map(digest) if there else None for _ in takers]  # to each its own memory
        self._spool.forget(digest)
        for take, content in zip(takers, contents, strict=True):
            take(content)
        self._start()

    def restart(self) -> None:
        """The manager forgot what it was asked."""
        for fetch in self._fetches.values():
            fetch.restart_requests()
            self._ask(fetch)

    def close(self) -> None:
        for fetch in self._fetches.values():
            fetch.close()
        self._fetches.clear()
        self._takers.clear()
