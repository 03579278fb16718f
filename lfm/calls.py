"""The calls of a session that are not over: what is said to the manager about each, and what comes of what it says.

The session's thread's own: no locks, no clock, no socket.  What it says goes through ``say``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import InvalidStateError
from concurrent.futures._base import PENDING
from typing import Any

from lfm.blame import Sealed, at_home, error_of
from lfm.errors import CallCancelled, LfmError
from lfm.future import Future
from lfm.incoming import Incoming
from lfm.monitor.payload import Buffer
from lfm.outgoing import Outgoing
from lfm.protocol import messages as m
from lfm.protocol import outcomes as o
from lfm.protocol.ids import EnvironmentKey, FunctionId, TaskId
from lfm.repair import Repair, Repairs
from lfm.summary import Summary

LOT = 10_000  # ids in one message: a frame has a largest size


class Calls:
    """From the first word about a call to its last."""

    def __init__(
        self, say: Callable[[m.Message], None], outgoing: Outgoing, incoming: Incoming, *,
        new_id: Callable[[], TaskId], repaired: Callable[[Repair], object], keep: bool,
    ) -> None:  # fmt: skip
        """``repaired`` is called in another thread; it sees to it that ``again`` is called in ours.

        ``keep``: the manager is to keep what came of a call until somebody has taken it from its future.
        """
        self._say, self._outgoing, self._incoming, self._new_id = say, outgoing, incoming, new_id
        self._open: dict[TaskId, Future[Any]] = {}  # the manager has them
        self._keep = keep
        self._kept: dict[TaskId, Future[Any]] = {}  # over; the manager keeps what came of them
        self._adopted: set[TaskId] = set()  # that were submitted elsewhere, over or not
        self._declared: dict[FunctionId, None] = {}
        self._environments: set[EnvironmentKey] = set()  # of these
        self._released: list[TaskId] = []
        self._stopping: dict[TaskId, None] = {}  # to be killed, and the manager has not said yet how they ended
        self._repairs = Repairs(outgoing, repaired)
        self.summary = Summary()
        self.inline_over = 0  # bytes of arguments that were in messages and are not any more

    def __bool__(self) -> bool:
        """Whether any are not over."""
        return bool(self._open or self._repairs.waiting)

    def snapshot(self) -> list[Future[Any]]:
        """Those that are not over; for any thread."""
        return [*self._open.copy().values(), *(future for future, _ in self._repairs.waiting)]

    def kept(self) -> list[Future[Any]]:
        """Those that are over and not taken; for any thread."""
        return list(self._kept.copy().values())

    # -- what we say

    def send(self, future: Future[Any]) -> None:
        """A new call."""
        submit = future._submit
        if submit is None or future._state != PENDING:  # cancelled meanwhile
            self._let_go(future)
            return
        try:
            best = self._outgoing.best(submit.function)
        except Exception as error:
            self._let_go(future)
            with contextlib.suppress(InvalidStateError):  # cancelled in this very moment
                future.set_exception(error)
            return
        if best.function.function != submit.function:  # what is installed was not what it was presumed to be
            future._environment = best.environment.key
            future._submit = submit = submit.but(function=best.function.function)
        self._open[submit.task] = future
        self._submit(submit)

    def _lend(self, *payloads: o.Payload | None) -> None:
        for payload in payloads:
            if isinstance(payload, o.Blob):
                self._outgoing.spool.lend(payload)

    def _declare(self, function: FunctionId) -> None:
        if function in self._declared:
            return
        described = self._outgoing.described[function]
        self._lend(described.function.code, described.function.overlay)
        if described.environment.key not in self._environments:
            self._lend(described.environment.plan)
            self._say(described.environment)
            self._environments.add(described.environment.key)
        self._say(described.function)
        self._declared[function] = None

    def _submit(self, submit: m.Submit) -> None:
        self._declare(submit.function)
        self._lend(submit.arguments, *submit.blobs)
        self._say(submit)

    def say_all_again(self) -> None:
        """The manager knows nothing of this session.

        All that was declared is said again: calls that another process of the session submitted may wait for it.
        """
        declared, self._declared = self._declared, {}
        self._environments.clear()
        for function in declared:
            self._declare(function)
        for future in list(self._open.values()):
            if future._submit is not None:
                self._submit(future._submit)
        stopping = tuple(self._stopping)  # it may have the calls from its store, but not that wish
        for at in range(0, len(stopping), LOT):
            self._say(m.Kill(stopping[at : at + LOT]))
        self._incoming.restart()

    def withdraw(self, future: Future[Any]) -> None:
        """Cancelled here: off the books.  Kill, because it may have started without our knowing."""
        if self._open.pop(future._id, None) is not None:
            self._let_go(future)
            self._kill(future._id)

    def stop(self, future: Future[Any]) -> None:
        """Kill a call, wherever it is."""
        if (broken := self._repairs.give_up(future)) is not None:
            self._complete(future, broken.but(outcome=o.Killed()), None)
        elif future._id in self._open:
            self._kill(future._id)

    def _kill(self, task: TaskId) -> None:
        self._stopping[task] = None
        self._say(m.Kill((task,)))

    @property
    def unreleased(self) -> int:
        """How many results the manager still keeps for us."""
        return len(self._released)

    def release(self) -> None:
        """The manager may forget what we have."""
        if self._released:
            self._say(m.Release(tuple(self._released)))
            self._released.clear()

    def _let_go(self, future: Future[Any]) -> None:
        """What only this call needed is not needed any more."""
        submit, future._submit = future._submit, None
        if submit is not None:
            if isinstance(submit.arguments, o.Inline):
                self.inline_over += len(submit.arguments.data)
            self._outgoing.over(submit)

    def _category(self, future: Future[Any]) -> str:
        submit = future._submit
        if submit is None:  # somebody else's
            return future._name
        return submit.category or self._outgoing.described[submit.function].function.category

    # -- what we hear

    def yours(self, future: Future[Any]) -> None:
        """A call of this session that was submitted elsewhere.  A manager that came back says it again, also of those
        that were taken: it may have died before it could write that down."""
        if future._id not in self._adopted and future._id not in self._open:
            self._adopted.add(future._id)
            self._open[future._id] = future

    def taken(self, task: TaskId) -> None:
        """Somebody has what came of it."""
        if self._kept.pop(task, None) is not None:
            self._released.append(task)

    def started(self, message: m.Started) -> None:
        future = self._open.get(message.task)
        if future is None:
            return
        future._started = message
        with future._condition:
            if future._state == PENDING:
                future.set_running_or_notify_cancel()

    def finished(self, message: m.Finished) -> None:
        self._stopping.pop(message.task, None)
        future = self._open.get(message.task)
        if future is None:  # cancelled here: what came of it is dropped
            if message.task not in self._kept:  # else it is said again, after a cut
                self._released.append(message.task)
            return
        match message.outcome:
            case o.Returned(o.Inline(data)):
                self._complete(future, message, data)
            case o.Raised() | o.EnvironmentBroken() | o.Impossible() if (repair := self._repairs.want(future, message)) is not None:
                del self._open[message.task]
                self._released.append(message.task)
                if repair.done:
                    self._again(future, message, repair)
            case o.Raised(error=o.Inline(data)):
                self._complete(future, message, data)
            case o.Returned(o.Blob() as blob) | o.Raised(error=o.Blob() as blob):
                self._incoming.fetch(blob, lambda data: self._complete(future, message, data))
            case _:
                self._complete(future, message, None)

    def _complete(self, future: Future[Any], finished: m.Finished, data: Buffer | None) -> None:
        """The future's last moment with us.  ``data`` None: there is none, or it could not be had."""
        self._open.pop(finished.task, None)
        if self._keep and not future.cancelled() and not isinstance(finished.outcome, o.Cancelled):
            self._kept[finished.task] = future
            future._kept = True
        else:
            self._released.append(finished.task)
        self.summary.add(self._category(future), finished)
        homes = self._outgoing.homes(future._submit)
        self._let_go(future)
        if future._earlier:
            attempts = (*future._earlier, *finished.attempts)
            finished = finished.but(attempts=tuple(a.but(number=n) for n, a in enumerate(attempts, 1)))
        future._finished = finished
        with contextlib.suppress(InvalidStateError):  # cancelled in this very moment
            if isinstance(finished.outcome, o.Cancelled):
                if not future.cancel():  # by somebody else
                    future.set_exception(CallCancelled(f"{future._name} was cancelled"))
            elif not isinstance(finished.outcome, o.Returned):
                future.set_exception(error_of(at_home(finished, homes), future._name, data))
            elif data is None:
                lost = f"{future._name} gave a value that was lost with the manager; submit it again"
                future.set_exception(LfmError(lost))
            else:
                future.set_result(Sealed(data))

    def again(self, repair: Repair) -> None:
        """A repair is done: say again what waited for it."""
        repair.done = True
        for future, broken in repair.take():
            self._again(future, broken, repair)

    def _again(self, future: Future[Any], broken: m.Finished, repair: Repair) -> None:
        submit, better = future._submit, repair.better
        if submit is None or future.done():
            self._let_go(future)
        elif better is None:
            self._complete(future, broken, None)
        else:
            future._lacked += (repair.module,)
            future._earlier += broken.attempts
            future._id = self._new_id()
            future._environment = better.environment.key
            future._submit = submit.but(task=future._id, function=better.function.function)
            self._open[future._id] = future
            self._submit(future._submit)

    # -- when there is nothing more to hear

    def fail(self, task: TaskId, error: BaseException) -> None:
        """End one from here."""
        if (future := self._open.pop(task, None)) is not None:
            self._kill(task)
            self._let_go(future)
            with contextlib.suppress(InvalidStateError):
                future.set_exception(error)

    @property
    def repairing(self) -> bool:
        """Whether some wait here for a better environment."""
        return bool(self._repairs.waiting)

    def fail_all(self, error: Callable[[], BaseException]) -> None:
        """No manager any more."""
        for future in self.snapshot():
            future._kept = False
            self._let_go(future)
            with contextlib.suppress(InvalidStateError):
                future.set_exception(error())  # each its own: a traceback belongs to one
        self._open.clear()
        self._repairs.clear()
