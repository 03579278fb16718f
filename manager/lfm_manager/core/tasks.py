"""One call, from its submission to its release: its states, and which may follow which.

A state holds what is true in it and nothing else: only a placed call has a worker.  Knows no queue, no
worker's room and no message's journey; those who move a call say ``become`` and an edge that is not in
``EDGES`` is a bug that raises.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lfm.protocol.ids import Digest, PeerId, TaskId
from lfm.protocol.messages import CallEnded, Finished, Submit
from lfm.protocol.outcomes import Attempt, Blob
from lfm.protocol.resources import Resources

if TYPE_CHECKING:
    from lfm_manager.core.categories import Category
    from lfm_manager.core.functions import Function
    from lfm_manager.core.queues import Queue
    from lfm_manager.core.sessions import Session


@dataclass(frozen=True, slots=True)
class Waiting:
    """Something that it needs is not here yet: its environment, or blobs on their way from the client."""

    environment: bool
    blobs: frozenset[Digest] = frozenset()


@dataclass(frozen=True, slots=True)
class Ready:
    """It could run, and stands in a queue."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A worker has been told to run it, and holds this much for it."""

    worker: PeerId
    attempt: int
    allocation: Resources
    gpus: tuple[str, ...]
    since: float
    started: float | None = None
    ahead: bool = False  # it waits there until a short call has made room


@dataclass(frozen=True, slots=True)
class Collecting:
    """It ended, and its result is on its way from the worker that still keeps it."""

    worker: PeerId
    digest: Digest
    ended: CallEnded
    placed: Placed


@dataclass(frozen=True, slots=True)
class Adrift:
    """It was placed when the manager stopped; its worker may come back with it until then."""

    worker: str  # the worker's session
    attempt: int
    until: float


@dataclass(frozen=True, slots=True)
class Done:
    """Its value is here, until the client has it.  ``kept``: in the store, with what it printed."""

    finished: Finished
    kept: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """It gave no value, for the reason in its outcome; kept until the client knows.  ``kept``: its details are in the store."""

    finished: Finished
    kept: bool = False


State = Waiting | Ready | Placed | Collecting | Adrift | Done | Failed

EDGES: dict[tuple[type, type], str] = {
    (Waiting, Waiting): "one of several needs is met",
    (Waiting, Ready): "all that it needs is here",
    (Waiting, Failed): "cancelled, or its environment cannot be made, or an argument cannot be had",
    (Ready, Placed): "the scheduler found room",
    (Ready, Failed): "cancelled, or no worker can use its environment",
    (Placed, Placed): "it started, or its limit was raised",
    (Placed, Collecting): "it ended with a result too large for the message",
    (Placed, Done): "it returned",
    (Placed, Failed): "it ended without a value, and is not repeated",
    (Placed, Ready): "its worker was lost, its automatic allocation too small, or its user asked for retries",
    (Placed, Waiting): "it is to run again, and after a restart its environment was not found yet",
    (Collecting, Waiting): "the same",
    (Collecting, Done): "the result is here",
    (Collecting, Ready): "the worker was lost before it could give the result",
    (Collecting, Failed): "the same, as often as it was tried; or its exception is here",
    (Waiting, Adrift): "the manager came back, and finds it placed",
    (Ready, Adrift): "the manager came back, and finds it placed",
    (Adrift, Placed): "its worker came back with it",
    (Adrift, Ready): "its worker came back without it, or not at all",
    (Adrift, Waiting): "the same, and something that it needs is not here any more",
    (Waiting, Placed): "its worker, given up before, came back with it",
    (Adrift, Failed): "cancelled, and its worker did not come back",
    (Waiting, Done): "the manager came back, and finds it finished",
}


class IllegalTransition(AssertionError):
    """A bug: the call cannot go there from where it is."""

    def __init__(self, task: Task, to: State) -> None:
        story = ", ".join(f"#{a.number} on {a.worker}: {a.outcome}" for a in task.attempts) or "no attempt yet"
        super().__init__(f"{task.id}: {task.state} -> {to} ({story})")


@dataclass(slots=True)
class Tries:
    """Why a call was repeated, each reason counted for itself."""

    lost: int = 0  # its node, template or monitor went away after it had begun
    deaths: int = 0  # its worker died under it, without a goodbye
    refused: int = 0  # handed back before it had begun
    refused_at: float = 0.0  # when that first happened
    raised: int = 0  # its own exceptions and crashes
    memory: int = 0  # automatic allocations that were too small
    disk: int = 0


@dataclass(slots=True, eq=False)
class Task:
    id: TaskId
    order: int  # of submission
    submit: Submit
    session: Session
    function: Function
    category: Category
    input_bytes: int
    state: State
    submitted: float
    attempt: int = 0  # the number of the latest one
    attempts: tuple[Attempt, ...] = ()
    tries: Tries = field(default_factory=Tries)
    least_memory: int = 0  # a rung of the ladder, after an allocation proved too small
    least_disk: int = 0
    alone: bool = False  # workers died under it: from now on it has one to itself
    wanted: str = ""  # "cancel" or "kill" once its user asked for that while it was placed
    queue: Queue | None = None
    kept: bool = False  # its arguments lie in the store, and not here

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """What of its arguments is too large for a message."""
        arguments = self.submit.arguments
        return (arguments, *self.submit.blobs) if isinstance(arguments, Blob) else self.submit.blobs

    @property
    def grows(self) -> bool:
        """Whether its memory may grow while it runs: nobody set it."""
        request = self.submit.request
        return request.memory is None and request.strategy != "fixed"

    def become(self, to: State) -> None:
        if (type(self.state), type(to)) not in EDGES:
            raise IllegalTransition(self, to)
        self.state = to


def placement(task: Task) -> Placed | None:
    """Where the call is now, if a worker has it."""
    return task.state if isinstance(task.state, Placed) else None
