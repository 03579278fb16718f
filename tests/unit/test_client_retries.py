"""Why a call ran again is told apart on its future."""

from lfm.future import Future, Retries
from lfm.protocol.ids import TaskId
from lfm.protocol.messages import Finished
from lfm.protocol.outcomes import Attempt, Inline, Returned
from lfm.protocol.resources import Resources


def test_each_reason_is_counted_for_itself() -> None:
    names = ["lost", "memory", "raised", "lost", "disk", "crashed", "environmentbroken", "returned"]
    attempts = tuple(Attempt(n, "w", "h", Resources(), None, 0.0, 1.0, name) for n, name in enumerate(names, 1))
    future: Future[int] = Future()
    assert future.retries == Retries()
    future._finished = Finished(TaskId("a"), Returned(Inline(b"")), None, None, attempts)
    assert future.retries == Retries(lost=2, too_small=2, raised=2, environment=1)
    future._finished = Finished(TaskId("a"), Returned(Inline(b"")), None, None, attempts[2:3])
    assert future.retries == Retries()  # it failed the first time, and that was that
