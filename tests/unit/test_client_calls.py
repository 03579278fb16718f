"""A session's books of its calls, with a manager that forgets."""

from __future__ import annotations

from typing import Any

import pytest
from worlds.client import Pulled, Shelf

from lfm.calls import LOT, Calls
from lfm.future import Future
from lfm.protocol import messages as m
from lfm.protocol import outcomes as o
from lfm.protocol.ids import FunctionId, TaskId
from lfm.protocol.outcomes import Inline, Killed, Outcome, Returned
from lfm.protocol.resources import Request
from lfm.repair import Repairs

VALUE = Returned(Inline(b"x"))
T1, T2 = TaskId("s-1"), TaskId("s-2")


class Books:
    def __init__(self, keep: bool = False) -> None:
        self.said: list[m.Message] = []
        say = self.said.append
        self.calls = Calls(say, Shelf(), Pulled(say), new_id=lambda: T2, repaired=lambda repair: None, keep=keep)  # type: ignore[arg-type]

    def submit(self, task: TaskId = T1) -> Future[Any]:
        future: Future[Any] = Future()
        future._id, future._submit = task, m.Submit(task, FunctionId("f0"), Inline(b""), Request())
        self.calls.send(future)
        return future

    def again(self) -> list[m.Message]:
        """What a manager that came back is told."""
        self.said.clear()
        self.calls.say_all_again()
        return self.said


def finished(task: TaskId, outcome: Outcome = VALUE) -> m.Finished:
    return m.Finished(task, outcome, None, None, ())


def test_the_wish_to_stop_a_call_outlives_the_manager() -> None:
    books = Books()
    killed, cancelled = books.submit(T1), books.submit(T2)
    books.calls.stop(killed)
    assert cancelled.cancel()
    books.calls.withdraw(cancelled)
    assert m.Kill((T1, T2)) in books.again()
    books.calls.finished(finished(T1, Killed()))
    books.calls.finished(finished(T2))
    assert not any(isinstance(said, m.Kill) for said in books.again())


def test_a_wish_to_stop_very_many_is_said_in_lots() -> None:
    books = Books()
    for number in range(LOT + 5):
        books.calls.stop(books.submit(TaskId(f"s-{number}")))
    assert [len(said.tasks) for said in books.again() if isinstance(said, m.Kill)] == [LOT, 5]


def test_what_was_declared_is_declared_again_though_its_calls_are_over() -> None:
    books = Books()
    future = books.submit()
    first = [said for said in books.said if not isinstance(said, m.Submit)]
    books.calls.finished(finished(T1))
    assert future.done() and len(first) == 2
    assert books.again() == first


def test_a_call_that_was_taken_is_not_adopted_once_more() -> None:
    books = Books(keep=True)
    for _ in range(2):  # a manager, and one that came back and had not written down that it may forget the call
        future: Future[Any] = Future()
        future._id = TaskId("other-1")
        books.calls.yours(future)
        books.calls.finished(finished(future._id))
        books.calls.taken(future._id)
        assert books.calls.kept() == [] and not books.calls
    books.calls.release()
    assert books.said == [m.Release((TaskId("other-1"),) * 2)]


class Asked:
    """An Outgoing whose packages ask for one thing."""

    def asked_for(self, function: object, text: str) -> str | None:
        return "partner" if "partner" in text else None


@pytest.mark.parametrize(
    ("outcome", "module", "where"),
    [
        (o.EnvironmentBroken("alpha.part", "/site/beta/io.py", 3, "No module named 'alpha'"), "alpha.part", "io.py:3"),
        (o.Raised(None, "ImportError", "install partner", '  File "/a.py", line 1, in f\n  File "/b/c.py", line 7, in g'), "partner", "c.py:7"),
        (o.Raised(None, "ValueError", "nothing to install", ""), "", ""),
        (o.Raised(None, "ValueError", "partner is odd", ""), "", ""),
        (o.Impossible("environment", "the environment lacks 'alpha', which beta.gamma imports; a hint"), "alpha", "beta.gamma"),
        (
            o.Impossible("environment", "beta.fast cannot be imported from the packed environment: ImportError: install partner"),
            "partner", "beta.fast",
        ),
        (o.Impossible("environment", "no space left; install partner"), "", ""),
        (o.Impossible("lost", "the environment lacks 'alpha', which beta imports"), "", ""),
        (o.Killed(), "", ""),
    ],
)  # fmt: skip
def test_what_a_call_failed_for_want_of(outcome: o.Outcome, module: str, where: str) -> None:
    repairs = Repairs(Asked(), lambda repair: None)  # type: ignore[arg-type]
    assert repairs._lacks(outcome, FunctionId("f"))[:1] == (module,)
    assert not module or repairs._lacks(outcome, FunctionId("f")) == (module, where)
