"""A call's future: concurrent.futures' own, that also knows what the call was given and what it used.

Values are unpickled by whoever asks for them first, not by the thread that received them.  Knows its session
by three verbs: cancelled, kill, ask.
"""

from __future__ import annotations

import concurrent.futures
from collections import Counter
from collections.abc import Generator
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, PENDING, RUNNING
from typing import Any, NamedTuple, Protocol, TypeVar

from lfm.blame import Sealed, how_it_ended
from lfm.errors import RemoteError
from lfm.protocol.ids import TaskId
from lfm.protocol.messages import Finished, Started, Submit
from lfm.protocol.outcomes import Attempt
from lfm.protocol.resources import Resources, Usage
from lfm.terminal import Waiters, terminal

T = TypeVar("T")
_OPEN = (PENDING, RUNNING)
_WHY = {  # by the outcome of an attempt that was not the last
    "memory": "too_small", "disk": "too_small", "raised": "raised", "crashed": "raised", "environmentbroken": "environment",
}  # fmt: skip


class Retries(NamedTuple):
    """How often a call ran again, by whose fault it was."""

    lost: int = 0  # its node, interpreter or monitor went away, or it was handed back before it began
    too_small: int = 0  # what it was given by itself did not suffice
    raised: int = 0  # it raised or crashed, and ``retries=`` said so
    environment: int = 0  # its environment lacked a module


class Owner(Protocol):
    """What a future asks of the session that made it."""

    def cancelled(self, future: Future[Any]) -> None: ...
    def kill(self, future: Future[Any]) -> None: ...
    def ask(self, what: str, **arguments: Any) -> dict[str, Any]: ...
    def taken(self, future: Future[Any]) -> None: ...


class Future(concurrent.futures.Future[T]):
    """The result of one call, now or later."""

    # Class attributes stand for "not yet": one that is never set costs nothing in each of many futures.
    _owner: Owner | None = None
    _submit: Submit | None = None  # until it is over: what to say again to a manager that forgot
    _started: Started | None = None
    _finished: Finished | None = None
    _name = ""
    _environment = ""
    _id = TaskId("")
    _via = 0  # the view that it was submitted by
    _earlier: tuple[Attempt, ...] = ()  # in environments that lacked a module
    _lacked: tuple[str, ...] = ()  # these modules
    _kept = False  # the manager keeps what came of it until somebody has taken it

    def __init__(self) -> None:
        super().__init__()
        self._waiters = Waiters()

    # -- what concurrent.futures promises

    def cancel(self) -> bool:
        """Take the call back if it is not known to run.  What it may still give is dropped."""
        if not super().cancel():
            return False
        with self._condition:
            first = self._state == CANCELLED
            if first:  # tell wait() and as_completed()
                self.set_running_or_notify_cancel()
        if first and self._owner is not None:
            self._owner.cancelled(self)
        return True

    def result(self, timeout: float | None = None) -> T:
        """The value, or raise what the call raised; TimeoutError after ``timeout`` seconds."""
        try:
            if self._state in _OPEN:
                with terminal:
                    value = super().result(timeout)
            else:
                value = super().result(timeout)
            return self._open() if type(value) is Sealed else value
        finally:
            if self._kept:
                self._take()
            del self  # the exception's traceback holds this frame

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What ``result`` would raise, or None."""
        if self._state in _OPEN:
            with terminal:
                error = super().exception(timeout)
        else:
            error = super().exception(timeout)
        if self._kept:
            self._take()
        if error is None and type(self._result) is Sealed:
            try:
                self._open()
            except RemoteError as trouble:
                return trouble
        return error

    def _take(self) -> None:
        """Somebody has the value or the error: the manager need not keep it for another process of this session."""
        if self.done() and self._owner is not None:
            self._kept = False
            self._owner.taken(self)

    def _open(self) -> T:
        with self._condition:
            value: Any = self._result
            if type(value) is Sealed:
                try:
                    value = self._result = value.open()
                except Exception as error:
                    self._result = None
                    self._exception = RemoteError(
                        f"{self._name} gave a value that cannot be read here: {type(error).__name__}: {error}",
                        type_name=type(error).__name__, text=str(error), traceback="",
                    )
                    self._exception.__cause__ = error
            if self._exception is not None:
                try:
                    raise self._exception
                finally:
                    del self
            return value  # type: ignore[no-any-return]

    def __await__(self) -> Generator[Any, None, T]:
        from asyncio import wrap_future  # here: it is a third of the time of importing lfm.Executor

        return wrap_future(self).__await__()

    # -- what it used

    @property
    def id(self) -> str:
        """The call's name on the command line: ``lfm explain ID``."""
        return self._id

    @property
    def usage(self) -> Usage | None:
        """What the call's last attempt used; None until it is over."""
        return self._finished.usage if self._finished else None

    @property
    def allocation(self) -> Resources | None:
        """What the call was given; None until it runs."""
        if self._finished is not None:
            return self._finished.allocation
        return self._started.allocation if self._started else None

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """Every run of the call; as far as they are known, until it is over."""
        return self._finished.attempts if self._finished else self._earlier

    @property
    def retries(self) -> Retries:
        """Why the call ran more than once, each reason counted for itself."""
        return Retries(**Counter(_WHY.get(attempt.outcome, "lost") for attempt in self.attempts[:-1]))

    @property
    def stdout(self) -> str:
        """What the call printed (head and tail, where it was much); empty until it is over."""
        return self._finished.stdout.decode(errors="replace") if self._finished else ""

    @property
    def stderr(self) -> str:
        """What the call wrote to stderr, like ``stdout``."""
        return self._finished.stderr.decode(errors="replace") if self._finished else ""

    @property
    def state(self) -> str:
        """``waiting``, ``running``, ``done``, ``failed`` or ``cancelled``."""
        with self._condition:
            if self._state == PENDING:
                return "waiting"
            if self._state == RUNNING:
                return "running"
            if self._state in (CANCELLED, CANCELLED_AND_NOTIFIED):
                return "cancelled"
            return "done" if self._exception is None else "failed"

    @property
    def environment(self) -> str:
        """The id of the call's environment: ``lfm env show ID``."""
        return self._environment

    def explain(self) -> str:
        """Why the call waits, where it runs, or how it ended, in words."""
        if self.cancelled():
            return f"{self._name} was cancelled before it was known to run"
        if self._finished is not None:
            return "\n".join(how_it_ended(self._finished, self._name))
        if self._exception is not None or self._owner is None:
            return f"{self._name} was never sent: {self._exception!r}"
        answer = self._owner.ask("explain", task=self._id)
        return str(answer.get("text") or answer)

    def kill(self) -> bool:
        """Stop the call even if it runs; ``result`` then raises CallKilled.  False if it is over already."""
        if self.done():
            return False
        if self._owner is not None:
            self._owner.kill(self)
        return True

    def __repr__(self) -> str:
        where = f" on {self._started.worker}" if self._started and self._state == RUNNING else ""
        return f"<lfm.Future {self._id or hex(id(self))} {self._name}: {self.state}{where}>"
