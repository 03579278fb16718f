"""Blobs between a session and its manager, both ways: large arguments are pulled from here, large results to here.

Where this process lacks disk, descriptors or memory, both wait, and are tried again every second: that passes, and no
call is to fail by it.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

from lfm.blobs import BadBlob, Fetch, answer_fetch
from lfm.monitor.payload import Buffer
from lfm.protocol import messages as m
from lfm.protocol.ids import Digest
from lfm.protocol.outcomes import Blob
from lfm.shortage import in_words, passes
from lfm.spool import Spool

AT_ONCE = 4  # blobs pulled at a time
AGAIN = 1.0  # seconds until what could not be done is tried again
Taker = Callable[[Buffer | None], None]


class Incoming:
    """One session's transfers.  The session's thread's own."""

    def __init__(self, spool: Spool, say: Callable[[m.Message], None], warn: Callable[[str], object]) -> None:
        self._spool, self._say, self._warn = spool, say, warn
        self._takers: dict[Digest, list[Taker]] = {}
        self._waiting: deque[Blob] = deque()
        self._fetches: dict[Digest, Fetch] = {}
        self._unanswered: list[m.FetchBlob] = []
        self._again = math.inf  # when to try what could not be done
        self._warned = False

    def fetch(self, blob: Blob, take: Taker) -> None:
        """Pull a blob; ``take`` gets its content, or None if it cannot be had."""
        takers = self._takers.setdefault(blob.digest, [])
        takers.append(take)
        if len(takers) == 1:
            self._waiting.append(blob)
            self._start()

    def hear(self, message: m.FetchBlob | m.BlobChunk | m.BlobMissing) -> None:
        if isinstance(message, m.FetchBlob):
            self._serve(message)
            return
        fetch = self._fetches.get(message.digest)
        if fetch is None:
            return
        if isinstance(message, m.BlobMissing):
            self._over(fetch, there=False)
            return
        try:
            done = fetch.feed(message)
        except (BadBlob, OSError, MemoryError) as error:
            self._failed(fetch, error)
            return
        if done:
            self._over(fetch, there=True)
        else:
            self._ask(fetch)

    def _serve(self, wanted: m.FetchBlob) -> None:
        try:
            self._say(answer_fetch(self._spool.store.path(wanted.digest), wanted))
        except (OSError, MemoryError, ValueError) as error:
            if passes(error):
                self._unanswered.append(wanted)
                self._put_off(error)
            else:
                self._say(m.BlobMissing(wanted.digest, str(error)))

    def _put_off(self, error: Exception) -> None:
        self._again = min(self._again, time.monotonic() + AGAIN)
        if not self._warned:
            self._warned = True
            self._warn(f"large arguments and results wait: {in_words(error)}; they are tried again every second")

    def deadline(self) -> float:
        """When ``retry`` is due."""
        return self._again

    def retry(self) -> None:
        """Try again what could not be done."""
        self._again = math.inf
        unanswered, self._unanswered = self._unanswered, []
        for wanted in unanswered:
            self._serve(wanted)
        self._start()
        self._warned = self._warned and self._again < math.inf

    def _start(self) -> None:
        while self._waiting and len(self._fetches) < AT_ONCE and self._again == math.inf:
            blob = self._waiting[0]
            try:
                if (content := self._spool.borrow(blob)) is not None:
                    contents = [content, *(self._spool.borrow(blob) for _ in self._takers[blob.digest][1:])]
                    self._waiting.popleft()
                    self._give(blob.digest, contents)
                    continue
                fetch = Fetch(self._spool.store, blob.digest, blob.size)
            except (OSError, MemoryError) as error:
                if passes(error) or isinstance(error, FileNotFoundError):  # so says Python where no temporary directory can be written
                    self._put_off(error)
                    return
                self._waiting.popleft()
                self._give(blob.digest, [None for _ in self._takers[blob.digest]])
                continue
            self._waiting.popleft()
            self._fetches[blob.digest] = fetch
            self._ask(fetch)

    def _ask(self, fetch: Fetch) -> None:
        for request in fetch.requests():
            self._say(request)

    def _failed(self, fetch: Fetch, error: Exception) -> None:
        """Anew later, if that may help."""
        if not passes(error):
            self._over(fetch, there=False)
            return
        self._fetches.pop(fetch.digest).close()
        self._waiting.append(Blob(fetch.digest, fetch.size))
        self._put_off(error)

    def _over(self, fetch: Fetch, there: bool) -> None:
        digest = fetch.digest
        try:
            contents = [self._spool.map(digest) if there else None for _ in self._takers[digest]]  # to each its own memory
        except (OSError, MemoryError) as error:
            self._failed(fetch, error)
            return
        finally:
            self._spool.forget(digest)
        self._fetches.pop(digest).close()
        self._give(digest, contents)
        self._start()

    def _give(self, digest: Digest, contents: list[Buffer | None]) -> None:
        for take, content in zip(self._takers.pop(digest), contents, strict=True):
            take(content)

    def restart(self) -> None:
        """The manager forgot what it was asked."""
        self._unanswered.clear()
        for fetch in self._fetches.values():
            fetch.restart_requests()
            self._ask(fetch)

    def close(self) -> None:
        for fetch in self._fetches.values():
            fetch.close()
        self._fetches.clear()
        self._takers.clear()
