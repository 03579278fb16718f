"""Time, chance, and what has happened so far.  All chance of a world comes from here, so its seed is the world."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from itertools import count
from random import Random

STORY = 120  # lines that a failure shows


class Clock:
    def __init__(self, seed: int) -> None:
        self.dice = Random(seed)
        self.now = 0.0
        self.story: deque[str] = deque(maxlen=STORY)
        self.digest = 0  # of the whole story: the same seed gives the same
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._still = 0  # things that happened in this very moment

    def at(self, moment: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (max(moment, self.now), next(self._order), act))

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        self.at(self.now + seconds, act)

    def soon(self, most: float, act: Callable[[], None]) -> None:
        """Some time within ``most`` seconds."""
        self.after(self.dice.random() * most, act)

    def step(self) -> None:
        """The next thing happens."""
        assert self._agenda, self.tale("nothing can happen any more")
        before = self.now
        self.now, _, act = heapq.heappop(self._agenda)
        self._still = self._still + 1 if self.now == before else 0
        assert self._still < 10_000, self.tale("time stands still")
        act()

    def tell(self, text: str) -> None:
        line = f"{self.now:9.3f} {text}"
        self.digest = hash((self.digest, line))
        self.story.append(line)

    def tale(self, text: str) -> str:
        return "\n".join([*self.story, text])

    def need(self, truth: object, text: str) -> None:
        """What must be true."""
        if not truth:
            raise AssertionError(self.tale(text))
