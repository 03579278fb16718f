"""The calls that ended last and that their clients have: for people who look back, or run a failed one again.

Bounded in calls, and in bytes of what they printed and of what it takes to run them again.  Knows what a call
was, not what became of its value.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from lfm.protocol.ids import EnvironmentKey, TaskId
from lfm.protocol.messages import Finished, Submit
from lfm.protocol.outcomes import Attempt, Blob, Cancelled, Inline, Killed, Outcome, Raised, Returned
from lfm.protocol.resources import Resources, Usage
from lfm_manager.core.blobs import Blobs
from lfm_manager.core.tasks import Done, Failed, Task

CALLS = 10_000
PRINTED, PRINTED_BYTES = 500, 16 << 20  # of so many calls, and so much, is known what they printed
AGAIN_BYTES = 64 << 20  # of arguments in messages
KEPT_BYTES = 1 << 30  # of arguments that lie in the store of blobs
_RETURNED = Returned(Inline(b""))


@dataclass(slots=True, eq=False)
class Ended:
    """What is remembered of one call.  ``submit``: what to say to run it again, if it failed."""

    id: TaskId
    session: str
    name: str
    category: str
    environment: EnvironmentKey
    submitted: float
    outcome: Outcome  # without its value
    allocation: Resources | None
    usage: Usage | None
    attempts: tuple[Attempt, ...]
    submit: Submit | None

    @property
    def state(self) -> str:
        return "done" if isinstance(self.outcome, Returned) else "failed"


class Past:
    """The last ones, the latest last."""

    def __init__(self, blobs: Blobs, calls: int = CALLS) -> None:
        self.calls: dict[TaskId, Ended] = {}
        self.kept: dict[TaskId, Blob] = {}  # arguments of failed calls, those not yet released included
        self._blobs, self._most = blobs, calls
        self._order: deque[TaskId] = deque()
        self._printed: dict[TaskId, tuple[bytes, bytes]] = {}
        self._printed_bytes = self._again_bytes = self._kept_bytes = 0

    def add(self, task: Task) -> None:
        """It is over, and nobody else will remember it."""
        state = task.state
        assert isinstance(state, Done | Failed)
        finished, submit = state.finished, None
        outcome: Outcome = _RETURNED
        if isinstance(state, Failed):
            outcome = finished.outcome
            if isinstance(outcome, Raised) and outcome.error is not None:
                outcome = outcome.but(error=None)
            submit = self._again(task)
        self.forget(task.id)  # its client had been given up, came back and submitted it once more
        declared = task.function.declared
        self.calls[task.id] = Ended(
            task.id, task.session.key, declared.name, task.category.name, declared.environment, task.submitted,
            outcome, finished.allocation, finished.usage, task.attempts, submit,
        )
        self._order.append(task.id)
        if finished.stdout or finished.stderr:
            self._print(finished)
        if len(self._order) > self._most:
            self._drop(self._order.popleft())

    def printed(self, task: TaskId) -> tuple[bytes, bytes] | None:
        """What it wrote to stdout and stderr; None: that is forgotten, or was nothing."""
        return self._printed.get(task)

    def hold(self, task: Task) -> bool:
        """A call failed: whether its large arguments are to be kept, so that it can run again."""
        blob = task.submit.arguments
        state = task.state
        if not isinstance(blob, Blob) or not isinstance(state, Failed) or task.id in self.kept:
            return False
        if self._kept_bytes + blob.size > KEPT_BYTES:
            return False
        if isinstance(state.finished.outcome, Cancelled | Killed) or task.session.over:
            return False
        self.kept[task.id] = blob
        self._kept_bytes += blob.size
        return True

    def forget(self, task: TaskId) -> None:
        """It runs again."""
        if task in self.calls:
            self._order.remove(task)
            self._drop(task)

    def spent(self, task: TaskId) -> None:
        """It runs again, under another name: not a second time."""
        self._let_go(task)
        if (ended := self.calls.get(task)) is not None:
            self._unlearn(ended)

    def close(self, session: str) -> None:
        """A session is over: its calls cannot run again."""
        for task in [t for t in self.kept if t in self.calls and self.calls[t].session == session]:
            self._let_go(task)

    def _again(self, task: Task) -> Submit | None:
        submit = task.submit
        if isinstance(submit.arguments, Blob):
            if task.id in self.kept and task.session.over:
                self._let_go(task.id)
            return submit if task.id in self.kept else None
        size = len(submit.arguments.data)
        if task.kept:
            return None  # they go with the store's record of it
        if task.session.over or self._again_bytes + size > AGAIN_BYTES:
            return None
        self._again_bytes += size
        return submit

    def _print(self, finished: Finished) -> None:
        self._printed[finished.task] = finished.stdout, finished.stderr
        self._printed_bytes += len(finished.stdout) + len(finished.stderr)
        while len(self._printed) > PRINTED or self._printed_bytes > PRINTED_BYTES:
            self._unprint(next(iter(self._printed)))

    def _unprint(self, task: TaskId) -> None:
        if (printed := self._printed.pop(task, None)) is not None:
            self._printed_bytes -= sum(map(len, printed))

    def _drop(self, task: TaskId) -> None:
        self._unlearn(self.calls.pop(task))
        self._unprint(task)
        self._let_go(task)

    def _unlearn(self, ended: Ended) -> None:
        if ended.submit is not None and isinstance(ended.submit.arguments, Inline):
            self._again_bytes -= len(ended.submit.arguments.data)
        ended.submit = None

    def _let_go(self, task: TaskId) -> None:
        if (blob := self.kept.pop(task, None)) is not None:
            self._kept_bytes -= blob.size
            self._blobs.leave(blob.digest)
