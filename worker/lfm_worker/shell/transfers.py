"""Blobs come and go: pulled from the manager or another worker, a few ranges at a time, and results served.

A large blob that another worker of the node has is linked, not pulled; one that another is pulling is waited for.
So is an environment's tarball where the manager runs on this very machine; who unpacks it checks it as ever.
For a larger one still the manager is asked who gives it.  A worker that does not is given up at once, and the
rest comes from whom the manager names next, at last itself: what came stays, and the whole is checked as ever.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lfm.blobs import BadBlob, BlobStore, Fetch, answer_fetch
from lfm.protocol import messages as m
from lfm.protocol.ids import Digest
from lfm.shortage import in_words, passes
from lfm_worker.core import events as e
from lfm_worker.core.items import is_digest
from lfm_worker.shell.peers import Broken, Line, Peers
from lfm_worker.shell.places import BadPlace, lock_file
from lfm_worker.shell.prepare import cause_of

log = logging.getLogger(__name__)

AT_ONCE = {False: 4, True: 2}  # blobs being pulled, small and large ones: neither waits for the other
LARGE = 8 << 20  # bytes from which on it may come from another worker
SHARED_FROM = 1 << 20  # bytes from which on a blob is shared with the node's other workers
LOOK_EVERY = 0.2  # seconds between looks at what another worker is pulling

Ask = m.FetchBlob | m.SeekBlob | m.BlobSought  # what is to be said to the manager
Moves = tuple[list[Ask], list[e.Event]]


@dataclass(slots=True, eq=False)
class Pull:
    """One blob on its way.  ``line``: from another worker; None: from the manager, or nobody yet."""

    fetch: Fetch
    line: Line | None = None
    seeking: bool = False
    helped: bool = False  # some of it is from another worker

    @property
    def large(self) -> bool:
        return self.fetch.size >= LARGE

    def ask(self) -> list[Ask]:
        """What to ask the manager for, if it is the one."""
        if self.line is None:
            return [] if self.seeking else [*self.fetch.requests()]
        self.line.ask(self.fetch.requests())
        return []

    def hang_up(self) -> None:
        if self.line is not None:
            self.line.close()
            self.line = None

    def close(self) -> None:
        self.hang_up()
        self.fetch.close()


class Transfers:
    """What is being pulled, what waits for it, and what is served.  Without ``peers`` from and to the manager only."""

    def __init__(
        self, own: BlobStore, results: BlobStore, shared: Path, peers: Peers | None = None, shelf: Path | None = None
    ) -> None:
        """``shelf``: where the manager has its tarballs, if that is here."""
        self.own, self.results, self._shared, self._peers, self._shelf = own, results, shared, peers, shelf
        self._active: dict[Digest, Pull] = {}
        self._waiting: dict[bool, deque[tuple[Digest, int]]] = {False: deque(), True: deque()}  # small, large
        self._locks: dict[Digest, int] = {}  # held for the node while we pull
        self._unserved: list[m.FetchBlob] = []
        self._offered: set[Digest] = set()  # to other workers
        self.elsewhere: dict[Digest, int] = {}  # being pulled by another worker of the node, and their sizes

    def fetch(self, digest: Digest, size: int) -> Moves:
        """Want a blob: what to ask the manager for, and what is known at once."""
        if not is_digest(digest):
            return [], [e.FetchFailed(digest, "it has no proper name")]
        if self._have(digest) or self._is_on_the_shelf(digest, size):
            return self._offer(digest, size), [e.Fetched(digest, self.own.size(digest))]
        if size >= SHARED_FROM and not self._lock(digest):
            self.elsewhere[digest] = size
            return [], []
        self._waiting[size >= LARGE].append((digest, size))
        return self._next()

    def look(self) -> Moves:
        """Whether what another worker pulls has come; whether it has given up."""
        elsewhere, self.elsewhere = self.elsewhere, {}
        return _all([self.fetch(digest, size) for digest, size in elsewhere.items()])

    def _have(self, digest: Digest) -> bool:
        if not self.own.has(digest) and (self._shared / digest).exists():
            with suppress(OSError):  # it was removed just now, or the file system has no links
                os.link(self._shared / digest, self.own.path(digest))
        return self.own.has(digest)

    def _is_on_the_shelf(self, digest: Digest, size: int) -> bool:
        """Whether the manager's own file is this blob; then it is ours too."""
        if self._shelf is None:
            return False
        with suppress(OSError):
            tarball = (self._shelf / digest).resolve(strict=True)
            if tarball.stat().st_size != size:
                return False
            try:
                os.link(tarball, self.own.path(digest))
            except OSError:  # on another file system
                self.own.path(digest).symlink_to(tarball)
            return True
        return False

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

    # ------------------------------------------------------------ what comes

    def came(self, chunk: m.BlobChunk) -> Moves:
        """A range has come from the manager."""
        pull = self._active.get(chunk.digest)
        return self._feed(pull, chunk) if pull is not None else ([], [])

    def missing(self, message: m.BlobMissing) -> Moves:
        pull = self._active.get(message.digest)
        return self._over(pull, e.FetchFailed(message.digest, message.reason)) if pull is not None else ([], [])

    def named(self, message: m.BlobSource) -> Moves:
        """The manager says who gives a blob that we seek."""
        pull = self._active.get(message.digest)
        if pull is None or self._peers is None:  # it came, or is not wanted any more
            here = self._peers is not None and message.digest in self._offered
            return [m.BlobSought(message.digest, self._peers.offer() if self._peers and here else None)], []
        if not pull.seeking:
            return [], []
        pull.seeking = False
        if message.source is not None:
            try:
                pull.line, pull.helped = self._peers.dial(message.source), True
            except Broken as error:
                return self._elsewhere(pull, message.source, error)
        return pull.ask(), []

    def turn(self) -> Moves:
        """Take what other workers gave, and give them what they ask for."""
        if self._peers is None:
            return [], []
        self._peers.serve(self._give)
        return _all([self._take(pull, pull.line) for pull in list(self._active.values()) if pull.line is not None])

    def far(self) -> list[tuple[Digest, int, int]]:
        """How far large ones are: bytes that came, and all of them."""
        return [(p.fetch.digest, p.fetch.received, p.fetch.size) for p in self._active.values() if p.large]

    def deadline(self) -> float | None:
        """When a worker that gives us something has been silent for too long."""
        return min((pull.line.deadline for pull in self._active.values() if pull.line is not None), default=None)

    def again(self) -> list[Ask]:
        """The manager knows nothing of before: ask again for what is on no way any more, and offer anew."""
        asks: list[Ask] = []
        for pull in self._active.values():
            if pull.line is None:
                asks += self._begin(pull)
        for digest in self._offered:
            asks.append(m.BlobSought(digest, self._peers.offer() if self._peers is not None else None))
        return asks

    def _take(self, pull: Pull, line: Line) -> Moves:
        moves: list[Moves] = []
        try:
            for chunk in line.receive():
                if chunk.digest != pull.fetch.digest:
                    raise Broken("it gives another blob")
                moves.append(self._feed(pull, chunk))
                if pull.line is not line:
                    break
        except Broken as error:
            moves.append(self._elsewhere(pull, line.source, error))
        return _all(moves)

    def _feed(self, pull: Pull, chunk: m.BlobChunk) -> Moves:
        fetch = pull.fetch
        try:
            done = fetch.feed(chunk)
        except BadBlob as error:
            return self._afresh(pull, error) if pull.helped else self._over(pull, e.FetchFailed(chunk.digest, str(error), "corrupt"))
        except (OSError, MemoryError) as error:
            return self._over(pull, _failed(chunk.digest, error))
        if not done:
            return pull.ask(), []
        if fetch.size >= SHARED_FROM:
            with suppress(OSError):  # the file system has no links, or another was faster
                os.link(self.own.path(chunk.digest), self._shared / chunk.digest)
        return self._over(pull, e.Fetched(chunk.digest, fetch.size))

    def _begin(self, pull: Pull) -> list[Ask]:
        """Ask for what has not come: the manager, or a large one of whom it names."""
        pull.hang_up()
        pull.fetch.restart_requests()
        pull.seeking = pull.large and self._peers is not None
        return [m.SeekBlob(pull.fetch.digest, pull.fetch.size)] if pull.seeking else pull.ask()

    def _elsewhere(self, pull: Pull, source: m.Source, error: Broken) -> Moves:
        """This worker does not give it: the rest comes from another."""
        log.info("%s gives blob %s no more: %s", source.address, pull.fetch.digest[:12], error)
        return self._begin(pull), []

    def _afresh(self, pull: Pull, error: BadBlob) -> Moves:
        """Some worker gave bad bytes: none of them are kept."""
        log.warning("%s; it came from %s", error, pull.line.source.address if pull.line is not None else "several workers")
        pull.fetch.close()
        try:
            pull.fetch, pull.helped = Fetch(self.own, pull.fetch.digest, pull.fetch.size), False
        except OSError as full:
            return self._over(pull, _failed(pull.fetch.digest, full))
        return self._begin(pull), []

    # ------------------------------------------------------------ what is given

    def serve(self, wanted: m.FetchBlob) -> m.BlobChunk | m.BlobMissing | None:
        """To the manager.  None: for want of descriptors or memory it cannot be read now; ``serve_again`` later."""
        try:
            return self._read(wanted)
        except (OSError, MemoryError) as error:
            assert passes(error)
            self._unserved.append(wanted)
            return None

    def serve_again(self) -> list[m.BlobChunk | m.BlobMissing]:
        """What could not be read before."""
        unserved, self._unserved = self._unserved, []
        return [chunk for wanted in unserved if (chunk := self.serve(wanted)) is not None]

    @property
    def owing(self) -> bool:
        return bool(self._unserved)

    def _read(self, wanted: m.FetchBlob) -> m.BlobChunk | m.BlobMissing:
        """OSError or MemoryError if that passes."""
        try:
            store = self.results if self.results.has(wanted.digest) else self.own
            return answer_fetch(store.path(wanted.digest), wanted)
        except (OSError, MemoryError, ValueError) as error:
            if passes(error):
                raise
            return m.BlobMissing(wanted.digest, f"not on this worker: {error}")

    def _give(self, wanted: m.FetchBlob) -> m.BlobChunk | m.BlobMissing:
        """To another worker: what we have checked and offered, and nothing else."""
        if wanted.digest not in self._offered:
            return m.BlobMissing(wanted.digest, "it has it no more")
        try:
            return self._read(wanted)
        except (OSError, MemoryError) as error:
            return m.BlobMissing(wanted.digest, f"it cannot read it: {error}")

    def _offer(self, digest: Digest, size: int) -> list[Ask]:
        """It is here, whole: say so, and where others may have it."""
        if size < LARGE or self._peers is None or digest in self._offered:
            return []
        source = self._peers.offer()
        if source is not None:
            self._offered.add(digest)
        return [m.BlobSought(digest, source)]

    def drop(self, digest: Digest) -> list[Ask]:
        self.own.drop(digest)
        if digest not in self._offered:
            return []
        self._offered.discard(digest)
        return [m.BlobSought(digest, None)]

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        for pull in self._active.values():
            pull.close()
        self._active.clear()
        for digest in list(self._locks):
            self._unlock(digest)

    def _over(self, pull: Pull, event: e.Fetched | e.FetchFailed) -> Moves:
        pull.close()
        digest, size = pull.fetch.digest, pull.fetch.size
        del self._active[digest]
        self._unlock(digest)
        if isinstance(event, e.Fetched):
            said = self._offer(digest, size)
        else:
            said = [m.BlobSought(digest, None)] if pull.large and self._peers is not None else []
        return _all([(said, [event]), self._next()])

    def _next(self) -> Moves:
        moves: list[Moves] = []
        for large, queue in self._waiting.items():
            while queue and sum(pull.large == large for pull in self._active.values()) < AT_ONCE[large]:
                moves.append(self._pull(*queue.popleft()))
        return _all(moves)

    def _pull(self, digest: Digest, size: int) -> Moves:
        try:
            fetch = Fetch(self.own, digest, size)
        except (OSError, MemoryError) as error:
            self._unlock(digest)
            return [], [_failed(digest, error)]
        except BadBlob as error:  # empty, which its name does not say
            return [], [e.FetchFailed(digest, str(error), "corrupt")]
        if fetch.done:
            return [], [e.Fetched(digest, size)]
        pull = self._active[digest] = Pull(fetch)
        return self._begin(pull), []


def _all(moves: list[Moves]) -> Moves:
    return [ask for asks, _ in moves for ask in asks], [event for _, events in moves for event in events]


def _failed(digest: Digest, error: OSError | MemoryError) -> e.FetchFailed:
    return e.FetchFailed(digest, f"the worker cannot store it: {in_words(error)}", cause_of(error))
