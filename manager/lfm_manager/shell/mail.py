"""What is to be said, held back until what it rests on is written down.

A round's messages leave together, once the store has them; and what came in that round is confirmed to its peers
only then.  While the run directory cannot be written (full, gone read-only) nothing leaves and nothing is
confirmed, so every peer stops by itself when its window is full; what was said then waits here, and is bounded by
these windows.  Viewers are answered in any case: what they are told promises nothing.
"""

from __future__ import annotations

import logging
from collections import deque

from lfm.connection import Listener
from lfm.protocol import messages as m
from lfm.protocol.ids import PeerId, TaskId
from lfm_manager.core.commands import RunKept
from lfm_manager.shell.store import Store, StoreFailed

log = logging.getLogger(__name__)

AGAIN = 1.0  # seconds between two tries to write
MUCH = 16 << 20  # bytes that a peer has not confirmed, above which results wait for it in the store


class Mail:
    """Between the manager and its listener; without a store everything leaves at once."""

    def __init__(self, listener: Listener, store: Store | None) -> None:
        self._listener, self._store = listener, store
        self._held: list[tuple[PeerId, m.Message | RunKept]] = []
        self._later: dict[PeerId, deque[TaskId]] = {}  # results that lie in the store until their client keeps up
        self._again: float | None = None  # when to try to write once more
        self.trouble = ""  # why nothing can be written now

    def send(self, peer: PeerId, message: m.Message | RunKept) -> None:
        """It leaves once what was decided so far is written down; a RunKept with its arguments out of the store."""
        self._held.append((peer, message))

    def send_kept(self, peer: PeerId, task: TaskId) -> None:
        """A result that lies in the store."""
        self._later.setdefault(peer, deque()).append(task)

    def gone(self, peer: PeerId) -> None:
        self._later.pop(peer, None)

    def deliver(self, now: float) -> bool:
        """Write down what is new, and then say what waits for that; whether it was written down.

        What cannot be read back, as the disk errs or memory is short, waits with all that comes after it.
        """
        if self._again is not None and now < self._again:
            return False
        written = False
        try:
            if self._store is not None:
                self._store.commit()
            written = True
            self._listener.settle()
            self._say_held()
            for peer in list(self._later):
                self._catch_up(peer)
        except StoreFailed as error:
            if not error.passing:
                raise
            self._suffer(str(error), now)
        except MemoryError:
            self._suffer("the manager is short of memory", now)
        else:
            if self.trouble:
                log.info("the run directory can be used again")
            self.trouble, self._again = "", None
        return written

    def _suffer(self, why: str, now: float) -> None:
        if not self.trouble:
            log.error("%s; nothing new is accepted until that is mended", why)
        self.trouble, self._again = why, now + AGAIN

    def _say_held(self) -> None:
        done = 0
        try:
            for peer, message in self._held:
                self._say(peer, message)
                done += 1
        finally:
            del self._held[:done]

    def _say(self, peer: PeerId, message: m.Message | RunKept) -> None:
        if isinstance(message, m.Finished) and self._behind(peer) and self._keeps(message.task):
            self.send_kept(peer, message.task)
            return
        if isinstance(message, RunKept):
            arguments = self._store.arguments(message.message.task) if self._store is not None else None
            if arguments is None:  # while this waited here the call was over and forgotten, as its client and worker are gone
                return
            message = message.message.but(arguments=arguments)
        self._listener.send(peer, message)

    def deadline(self) -> float | None:
        """When ``deliver`` is due, if nothing happens before."""
        return self._again

    def _behind(self, peer: PeerId) -> bool:
        return peer in self._later or self._listener.backlog(peer) > MUCH

    def _keeps(self, task: TaskId) -> bool:
        return self._store is not None and self._store.keeps(task)

    def _catch_up(self, peer: PeerId) -> None:
        """Say as many results as the peer can take."""
        assert self._store is not None
        waiting = self._later[peer]
        while waiting and self._listener.backlog(peer) < MUCH:
            finished = self._store.finished(waiting[0])
            if finished is not None:
                self._listener.send(peer, finished)
            waiting.popleft()
        if not waiting:
            del self._later[peer]
