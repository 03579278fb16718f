"""A sizer is spared what is little, and told of it when it turns out not to be."""

from __future__ import annotations

from lfm_manager.core.little import ASKED, KEPT, Little
from lfm_manager.sizing import make

MB = 10**6
LEAST = 64 * MB


class Recorder:
    """A sizer that remembers what it was told, and predicts the largest."""

    def __init__(self, floor: float = 0.0) -> None:
        self.told: list[float] = []
        self.floor = floor

    def predict(self, category: str, input_bytes: float, hint: float | None, cap: float, *, in_flight: int = 0, share: float = 0.0) -> float:
        return min(cap, max([self.floor, *self.told]))

    def succeeded(self, category: str, input_bytes: float, measured: float, wall_s: float, *, hint: float | None = None) -> None:
        self.told.append(measured)

    def exhausted(self, category: str, attempt: int, allocation: float, measured: float, cap: float, *, hint: float | None = None, spent_s: float | None = None) -> float | None:
        return 2 * allocation


def test_what_stays_little_is_not_learned() -> None:
    inner = Recorder()
    little = Little(inner, LEAST)
    for n in range(1000):
        little.succeeded("a", 100, MB + n, 0.01)
    assert len(inner.told) == ASKED
    assert little.predict("a", 100, None, 10**9) == LEAST
    assert little.predict("a", 100, None, MB) == MB


def test_a_large_one_after_many_little_ones_tells_the_sizer_all_that_it_missed() -> None:
    inner = Recorder()
    little = Little(inner, LEAST)
    for _ in range(1000):
        little.succeeded("a", 100, MB, 0.01)
    little.succeeded("a", 100, 500 * MB, 1.0)
    assert len(inner.told) == ASKED + KEPT + 1 and inner.told[-1] == 500 * MB
    assert little.predict("a", 100, None, 10**9) == 500 * MB
    little.succeeded("a", 100, MB, 0.01)
    assert len(inner.told) == ASKED + KEPT + 2


def test_an_input_larger_than_all_before_is_the_sizers_to_judge() -> None:
    inner = Recorder(floor=MB)
    little = Little(inner, LEAST)
    for _ in range(ASKED):
        little.succeeded("a", 100, MB, 0.01)
    inner.floor = 300 * MB
    assert little.predict("a", 100, None, 10**9) == LEAST
    assert little.predict("a", 10**8, None, 10**9) == 300 * MB


def test_a_sizer_that_gives_more_to_little_calls_is_always_asked() -> None:
    little = Little(make("whole-worker", "memory"), LEAST)
    for _ in range(2 * ASKED):
        little.succeeded("a", 100, MB, 0.01)
    assert little.predict("a", 100, None, 10**9) == 10**9
