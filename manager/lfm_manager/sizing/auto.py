"""The default: several experts on a call's need compete, each with the safety factor that wastes least.

An expert turns a call's input size into an expectation; a window of measured / expected ratios turns that into
an allocation.  Experts are charged the memory-time that their allocations would have wasted; the cheapest one
sizes the next call.  Where calls have no inputs to speak of, the order of results stands for their size, so that
needs that grow, fall or come in phases are followed.  A category without a result starts from what the first
calls of all others took.
"""

from __future__ import annotations

from math import inf

from lfm_manager.sizing.experts import Points
from lfm_manager.sizing.limits import SMALLEST, START, next_rung, usable, within
from lfm_manager.sizing.pool import Pool
from lfm_manager.sizing.ratios import Ratios

WINDOW = 256
LEARNERS = 4  # results from which an expert on the input size may speak
OVERHEAD_S = 1.0  # what starting a call again takes, besides its own time
DOUBT = 5  # calls for which it is believed that outgrowing an allocation costs a call's whole time
DISCOUNT = 0.995  # of a ratio's weight, per later observation
PATIENCE = 0.95  # of an expert's loss, per later observation; and how much better a rival must be
SHORTEST_S = 0.001
TELLING = 1024  # bytes of input below which its size says nothing
EARNED = 1.25  # how much worse than its loss an expert counts that goes by the order of results alone
CONSTANT, NEAR, FAR, UPPER = range(4)


class _Price:
    """What outgrowing an allocation costs, as a share of a call's time, up to all of it.

    Learned: next to nothing where calls grow in place, half where nodes are full and calls die half way.
    """

    __slots__ = ("_calls", "_known", "_lost", "_outgrown", "_seconds", "share")

    def __init__(self, known: bool = False) -> None:
        self.share = 1.0
        self._known = known  # nothing is to be learned of it
        self._calls = 0
        self._seconds = 0.0
        self._lost = 0.0  # seconds of attempts that were killed
        self._outgrown = 0.0  # seconds of calls that took more than they would have been given

    def lost(self, spent_s: float) -> None:
        self._lost += spent_s

    def ended(self, seconds: float, outgrew: bool) -> None:
        self._calls += 1
        self._seconds += seconds
        if outgrew:
            self._outgrown += seconds
        if self._known:
            return
        believed = DOUBT * self._seconds / self._calls
        self.share = min(1.0, (believed + self._lost) / (believed + self._outgrown))


class _Category:
    """What is known of one category."""

    __slots__ = ("count", "expert", "largest", "losses", "points", "price", "seconds", "sized", "windows")

    def __init__(self, price: _Price) -> None:
        self.price = price
        self.sized = False  # whether input sizes are known; else the order of results stands for them
        self.count = 0
        self.largest = 0.0
        self.seconds = 0.0
        self.points = Points()
        self.windows = [Ratios(WINDOW, DISCOUNT) for _ in range(4)]
        self.losses = [0.0] * 4
        self.expert = CONSTANT

    @property
    def failure(self) -> float:
        """What a failed second costs, its share of starting again included."""
        return self.price.share + OVERHEAD_S * self.count / self.seconds

    def expected(self, expert: int, x: float) -> float | None:
        """What one expert expects, None where it has nothing to say."""
        if expert == CONSTANT:
            return 1.0
        if not self.sized:
            x = self.count + 1
        if self.count < LEARNERS or x <= 0 or len(self.points.sizes) < LEARNERS:
            return None
        if expert == NEAR:
            return self.points.near(x)
        if expert == FAR:
            return self.points.far(x)
        return self.points.upper(x)

    def allocation(self, expert: int, expected: float | None, failure: float) -> float:
        """What an expert would give now; the constant one speaks for those that cannot."""
        window = self.windows[expert]
        if expected is None or not len(window):
            return self.windows[CONSTANT].factor(failure, self.price.share)
        return expected * window.factor(failure, self.price.share)

    def learn(self, x: float, y: float, seconds: float) -> None:
        if x > 0 and not self.sized:
            self._go_by_input()
        if self.count:
            self._charge(x, y, seconds)
        else:
            self.windows[CONSTANT].add(y, seconds, seconds)
        self.count += 1
        self.largest = max(self.largest, y)
        self.seconds += seconds
        if x > 0 or not self.sized:
            self.points.add(x if self.sized else self.count, y)

    def _go_by_input(self) -> None:
        """From now on inputs have sizes: what was learned from the order of results is void."""
        self.sized = True
        self.points = Points()
        self.windows[1:] = [Ratios(WINDOW, DISCOUNT) for _ in range(3)]
        self.losses = [self.losses[CONSTANT]] * 4
        self.expert = CONSTANT

    def _charge(self, x: float, y: float, seconds: float) -> None:
        failure = self.failure
        short = max(1.02 * self.largest - y, 0.25 * y)
        for expert, window in enumerate(self.windows):
            expected = self.expected(expert, x)
            given = self.allocation(expert, expected, failure)
            if expert == self.expert:
                self.price.ended(seconds, y > given)
            loss = given - y if given >= y else failure * given + short
            self.losses[expert] = PATIENCE * self.losses[expert] + loss * seconds
            if expected is not None:
                window.add(y / expected, seconds * expected, seconds)
        self._elect(failure)

    def _elect(self, failure: float) -> None:
        scores = [self._score(expert, failure) for expert in range(4)]
        best = min(range(4), key=scores.__getitem__)
        if scores[best] < PATIENCE * scores[self.expert]:
            self.expert = best

    def _score(self, expert: int, failure: float) -> float:
        window = self.windows[expert]
        if len(window) < 2:
            return float("inf")
        window.factor(failure, self.price.share)
        doubt = 1.0 if self.sized or expert == CONSTANT else EARNED
        return self.losses[expert] * window.cost * doubt


class Auto:
    def __init__(self, resource: str) -> None:
        self._start = START[resource]
        self._smallest = SMALLEST[resource]
        self._categories: dict[str, _Category] = {}
        self._pool = Pool(OVERHEAD_S)
        self._price = _Price(known=resource == "cores")  # who lacks cores is not killed, it only takes longer

    def predict(
        self,
        category: str,
        input_bytes: float,
        hint: float | None,
        cap: float,
        *,
        in_flight: int = 0,
        share: float = 0.0,
    ) -> float:
        known = self._categories.get(category)
        if known is None:
            size = self._pool.first(hint, self._start, crowd=in_flight > 0)
            return within(max(size, share), hint, cap)
        expected = known.expected(known.expert, _telling(input_bytes))
        return within(known.allocation(known.expert, expected, known.failure), hint, cap)

    def expected(self, category: str, input_bytes: float, at_least: float) -> float | None:
        known = self._categories.get(category)
        if known is None:
            return None
        factor = known.expected(known.expert, _telling(input_bytes))
        window = known.windows[known.expert]
        if factor is None or not len(window):
            factor, window = 1.0, known.windows[CONSTANT]
        return factor * window.mean_above(at_least / factor)

    def succeeded(
        self, category: str, input_bytes: float, measured: float, wall_s: float, *, hint: float | None = None
    ) -> None:
        if not usable(measured, wall_s):
            return
        measured = max(measured, self._smallest)
        seconds = max(wall_s, SHORTEST_S)
        self._pool.add(category, measured, seconds, hint)
        known = self._categories.get(category)
        if known is None:
            known = self._categories[category] = _Category(self._price)
        known.learn(_telling(input_bytes), measured, seconds)

    def exhausted(
        self,
        category: str,
        attempt: int,
        allocation: float,
        measured: float,
        cap: float,
        *,
        hint: float | None = None,
        spent_s: float | None = None,
    ) -> float | None:
        known = self._categories.get(category)
        if spent_s is None:
            spent_s = known.seconds / known.count if known is not None else 0.0
        if 0 <= spent_s < inf:
            self._price.lost(spent_s)
        wanted = _unseen_rung(allocation, hint) if known is None else _rung(known, attempt, allocation)
        return next_rung(wanted, allocation, measured, cap)


def _telling(input_bytes: float) -> float:
    """An input size from which something may be concluded, or 0."""
    return input_bytes if TELLING <= input_bytes < inf else 0.0


def _unseen_rung(allocation: float, hint: float | None) -> float:
    doubled = 2 * allocation
    return hint if hint is not None and allocation < hint <= doubled else doubled


def _rung(known: _Category, attempt: int, allocation: float) -> float:
    """Among the sizes seen that are larger, the one that wastes least; beyond them all, half as much again."""
    found = known.windows[CONSTANT].factor_above(allocation, known.failure, known.price.share)
    if found is not None:
        return found
    larger = allocation * (1.5 if attempt < 3 else 2)
    return max(larger, 1.02 * known.largest) if known.largest > allocation else larger
