"""The table at the end of a script."""

import pytest

from lfm.protocol.ids import TaskId
from lfm.protocol.messages import Finished
from lfm.protocol.outcomes import Attempt, Inline, Raised, Returned
from lfm.protocol.resources import Resources, Usage
from lfm.summary import SHOWN, Summary, wanted

GB = 10**9
VALUE = Returned(Inline(b""))


def attempt(number: int, given: int, taken: int, outcome: str = "returned") -> Attempt:
    return Attempt(number, "w", "h", Resources(1, given), Usage(wall_s=10.0, memory=taken), 0.0, 10.0, outcome)


def finished(*attempts: Attempt, good: bool = True) -> Finished:
    last = attempts[-1]
    outcome = VALUE if good else Raised(None, "E", "", "")
    return Finished(TaskId("t"), outcome, last.usage, last.allocation, attempts)


def test_a_category_by_hand() -> None:
    summary = Summary()
    summary.add("fit", finished(attempt(1, 2 * GB, GB)))
    summary.add("fit", finished(attempt(1, 2 * GB, 2 * GB, "memory"), attempt(2, 4 * GB, 3 * GB)))
    summary.add("plot", finished(attempt(1, GB, GB // 2), good=False))
    _, fit, plot = summary.table().splitlines()
    # 10 s x (1 + 3) GB taken of 10 s x (2 + 2 + 4) GB
    assert fit.split() == ["fit", "2", "0", "1", "4.0", "GB", "3.0", "GB", "3.0", "GB", "10.0", "s", "50%"]
    assert plot.split() == ["plot", "1", "1", "0", "-", "-", "-", "-", "0%"]


def test_nothing_has_run() -> None:
    assert Summary().table() == ""


def test_of_many_categories_the_longest_are_shown() -> None:
    summary = Summary()
    for n in range(SHOWN + 5):
        summary.add(f"c{n}", finished(attempt(1, GB, GB)))
    assert len(summary.table().splitlines()) == SHOWN + 2
    assert "5 more" in summary.table()


@pytest.mark.parametrize(("said", "answer"), [("on", True), ("off", False), ("0", False), ("", False)])
def test_where_it_is_written(monkeypatch: pytest.MonkeyPatch, said: str, answer: bool) -> None:
    monkeypatch.setenv("LFM_SUMMARY", said)  # under pytest stderr is no terminal
    assert wanted() is answer
