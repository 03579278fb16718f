"""Which workers there are, from when and until when: given, or drawn from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from lfm.protocol.resources import Resources


@dataclass(frozen=True, slots=True)
class Stay:
    """One worker's time.  ``ends`` None: as long as there is work."""

    offer: Resources
    joins: float
    ends: float | None = None
    says_so: bool = True  # False: it dies without a word


@dataclass(frozen=True, slots=True)
class Plan:
    """``workers`` alike; they come evenly over ``join_over``, live ``lifetime`` on average, and are replaced."""

    workers: int
    cores: float
    memory: int
    join_over: float = 0.0
    lifetime: float | None = None
    replaced_after: float = 60.0
    seed: int = 1

    def places(self) -> list[Iterator[Stay]]:
        """For every place in the cluster, who fills it, one after the other."""
        return [self._place(number) for number in range(self.workers)]

    def _place(self, number: int) -> Iterator[Stay]:
        offer = Resources(self.cores, self.memory)
        joins = self.join_over * number / self.workers
        if self.lifetime is None:
            yield Stay(offer, joins)
            return
        dice = Random(f"{self.seed}/{number}")
        while True:
            ends = joins + dice.expovariate(1 / self.lifetime)
            yield Stay(offer, joins, ends, says_so=dice.random() < 0.5)
            joins = ends + self.replaced_after
