"""What lies on the node's disk, what is on its way there, and how often it was tried in vain.  Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from lfm.protocol.ids import Digest
from lfm_worker.core.events import Cause
from lfm_worker.core.items import Item, evict

TRIES: dict[Cause, int] = {"corrupt": 3, "gone": 3, "full": 2, "short": 1, "other": 1}  # until an item is given up


class Stock:
    """The node's cache as one worker knows it."""

    def __init__(self, held: Mapping[Item, tuple[int, float]]) -> None:
        self.ready: set[Item] = set()  # here, and held by this worker
        self.coming: set[Item] = set()  # being fetched or unpacked
        self._held = dict(held)  # all that is here: bytes, when last used
        self._bytes = _sum(held)
        self._tries: dict[Item, int] = {}

    def holds(self, item: Item) -> bool:
        """Some worker of the node has it, or had it a moment ago."""
        return item in self._held

    def environments(self) -> tuple[Digest, ...]:
        return tuple(sorted(item.digest for item in {*self.ready, *self._held} if item.kind == "environment"))

    def arrive(self, item: Item, size: int, now: float) -> None:
        self.coming.discard(item)
        self._tries.pop(item, None)
        self.ready.add(item)
        self._hold(item, size, now)

    def fail(self, item: Item, cause: Cause) -> bool:
        """It could not be had; whether it is worth another try."""
        self.coming.discard(item)
        if cause == "gone":
            self._let_go(item)
        self._tries[item] = self._tries.get(item, 0) + 1
        if self._tries[item] < TRIES[cause]:
            return True
        del self._tries[item]
        return False

    def use(self, items: Iterable[Item], now: float) -> None:
        for item in items:
            if item in self._held:
                self._held[item] = (self._held[item][0], now)

    def scan(self, held: Mapping[Item, tuple[int, float]]) -> None:
        """What all workers of the node hold; of its own this one knows better."""
        self._held = {**held, **{item: self._held[item] for item in self.ready if item in self._held}}
        self._bytes = _sum(self._held)

    def exceeds(self, limit: int) -> bool:
        """Whether more than ``limit`` bytes are here: asked whenever something comes, however much that is."""
        return self._bytes > limit

    def excess(self, in_use: Collection[Item], limit: int) -> list[Item]:
        """What should go so that the rest is within ``limit`` bytes."""
        return evict(self._held, in_use, limit)

    def drop(self, item: Item) -> None:
        self.ready.discard(item)
        self._let_go(item)

    def _hold(self, item: Item, size: int, now: float) -> None:
        self._let_go(item)
        self._held[item] = (size, now)
        self._bytes += size

    def _let_go(self, item: Item) -> None:
        size, _ = self._held.pop(item, (0, 0.0))
        self._bytes -= size


def _sum(held: Mapping[Item, tuple[int, float]]) -> int:
    return sum(size for size, _ in held.values())
