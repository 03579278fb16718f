"""Blobs come and go: pulled from the manager a few ranges at a time, and results served to whoever asks.

A large blob that another worker of the node has is linked, not pulled; one that another is pulling is waited for.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections import deque
from contextlib import suppress
from pathlib import Path

from lfm.blobs import BadBlob, BlobStore, Fetch, answer_fetch
from lfm.protocol import messages as m
from lfm.protocol.ids import Digest
from lfm_worker.core import events as e
from lfm_worker.core.items import is_digest
from lfm_worker.shell.places import BadPlace, lock_file

AT_ONCE = 4  # blobs being pulled; each has some ranges on the way
SHARED_FROM = 1 << 20  # bytes from which on a blob is shared with the node's other workers
LOOK_EVERY = 0.2  # seconds between looks at what another worker is pulling


class Transfers:
    """What is being pulled, what waits for it, and what is served."""

    def __init__(self, own: BlobStore, results: BlobStore, shared: Path) -> None:
        self.own, self.results, self._shared = own, results, shared
        self._active: dict[Digest, Fetch] = {}
        self._waiting: deque[tuple[Digest, int]] = deque()
        self._locks: dict[Digest, int] = {}  # held for the node while we pull
        self.elsewhere: dict[Digest, int] = {}  # being pulled by another worker of the node, and their sizes

    def fetch(self, digest: Digest, size: int) -> tuple[list[m.FetchBlob], list[e.Event]]:
        """Want a blob: what to ask the manager for, and what is known at once."""
        if not is_digest(digest):
            return [], [e.FetchFailed(digest, "it has no proper name")]
        if self._have(digest):
            return [], [e.Fetched(digest, self.own.size(digest))]
        if size >= SHARED_FROM and not self._lock(digest):
            self.elsewhere[digest] = size
            return [], []
        self._waiting.append((digest, size))
        return self._next()

    def look(self) -> tuple[list[m.FetchBlob], list[e.Event]]:
        """Whether what another worker pulls has come; whether it has given up."""
        asks: list[m.FetchBlob] = []
        events: list[e.Event] = []
        elsewhere, self.elsewhere = self.elsewhere, {}
        for digest, size in elsewhere.items():
            more, news = self.fetch(digest, size)
            asks += more
            events += news
        return asks, events

    def _have(self, digest: Digest) -> bool:
        if not self.own.has(digest) and (self._shared / digest).exists():
            with suppress(OSError):  # it was removed just now, or the file system has no links
                os.link(self._shared / digest, self.own.path(digest))
        return self.own.has(digest)

    def _lock(self, digest: Digest) -> bool:
        """Whether it is ours to pull for this node."""
        if digest not in self._locks:
            try:
                self._locks[digest] = lock_file(self._shared / f".pulling-{digest}", fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            except (OSError, BadPlace):
                return True  # it cannot be known: pull it
        return True

    def _unlock(self, digest: Digest) -> None:
        if (lock := self._locks.pop(digest, None)) is not None:
            (self._shared / f".pulling-{digest}").unlink(missing_ok=True)
            os.close(lock)

    def came(self, chunk: m.BlobChunk) -> tuple[list[m.FetchBlob], list[e.Event]]:
        """A range has come."""
        fetch = self._active.get(chunk.digest)
        if fetch is None:
            return [], []
        try:
            done = fetch.feed(chunk)
        except BadBlob as error:
            return self._over(fetch, e.FetchFailed(chunk.digest, str(error), "corrupt"))
        except OSError as error:
            return self._over(fetch, _failed(chunk.digest, error))
        if not done:
            return fetch.requests(), []
        if fetch.size >= SHARED_FROM:
            with suppress(OSError):  # the file system has no links, or another was faster
                os.link(self.own.path(chunk.digest), self._shared / chunk.digest)
        return self._over(fetch, e.Fetched(chunk.digest, fetch.size))

    def missing(self, message: m.BlobMissing) -> tuple[list[m.FetchBlob], list[e.Event]]:
        fetch = self._active.get(message.digest)
        return self._over(fetch, e.FetchFailed(message.digest, message.reason)) if fetch is not None else ([], [])

    def again(self) -> list[m.FetchBlob]:
        """The link was made anew: ask again for what is on no way any more."""
        asks = []
        for fetch in self._active.values():
            fetch.restart_requests()
            asks += fetch.requests()
        return asks

    def serve(self, wanted: m.FetchBlob) -> m.BlobChunk | m.BlobMissing:
        try:
            store = self.results if self.results.has(wanted.digest) else self.own
            return answer_fetch(store.path(wanted.digest), wanted)
        except (OSError, ValueError) as error:
            return m.BlobMissing(wanted.digest, f"not on this worker: {error}")

    def drop(self, digest: Digest) -> None:
        self.own.drop(digest)

    def close(self) -> None:
        for fetch in self._active.values():
            fetch.close()
        self._active.clear()
        for digest in list(self._locks):
            self._unlock(digest)

    def _over(self, fetch: Fetch, event: e.Event) -> tuple[list[m.FetchBlob], list[e.Event]]:
        fetch.close()
        del self._active[fetch.digest]
        self._unlock(fetch.digest)
        asks, events = self._next()
        return asks, [event, *events]

    def _next(self) -> tuple[list[m.FetchBlob], list[e.Event]]:
        asks: list[m.FetchBlob] = []
        events: list[e.Event] = []
        while self._waiting and len(self._active) < AT_ONCE:
            digest, size = self._waiting.popleft()
            try:
                fetch = Fetch(self.own, digest, size)
            except OSError as error:
                self._unlock(digest)
                events.append(_failed(digest, error))
                continue
            if fetch.done:
                events.append(e.Fetched(digest, size))
                continue
            self._active[digest] = fetch
            asks += fetch.requests()
        return asks, events


def _failed(digest: Digest, error: OSError) -> e.FetchFailed:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return e.FetchFailed(digest, f"the worker cannot store it: {error.strerror}", "full" if full else "other")
