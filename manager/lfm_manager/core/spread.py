"""Which worker gets a large blob from whom: a tree whose root is the manager.  Pure; holds names, never bytes.

The manager feeds the first few.  Whoever has the blob whole offers it, and feeds a few others at a time; who
comes while all are busy waits, but not for ever.  A source that cannot be dialled, is slow or lies is not told
of: the worker that it failed asks again, is never sent there again, and after a few such the manager feeds it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from lfm.protocol.ids import Digest, PeerId
from lfm.protocol.messages import BlobSource, Source
from lfm_manager.core.commands import Command, TellWorker
from lfm_manager.core.workers import Worker

SEEDS = 2  # workers that the manager feeds with one blob at a time
CHILDREN = 2  # workers that one worker feeds at a time
STRIKES = 3  # failures in a row after which a worker is not named any more, or not sent to another
PATIENCE, PACE = 10.0, 10e6  # seconds, and bytes a second: how long a worker waits for one that is free


@dataclass(slots=True, eq=False)
class Tree:
    """One blob.  A worker is in at most one of ``holders``, ``fed`` and ``waiting``."""

    holders: dict[PeerId, Source] = field(default_factory=dict)
    fed: dict[PeerId, PeerId | None] = field(default_factory=dict)  # who pulls it, and from whom; None: the manager
    waiting: dict[PeerId, float] = field(default_factory=dict)  # first come first; until when
    failed: set[tuple[PeerId, PeerId]] = field(default_factory=set)  # (who pulled in vain, from whom)


class Spread:
    def __init__(self, workers: Mapping[PeerId, Worker], out: list[Command]) -> None:
        self.trees: dict[Digest, Tree] = {}
        self._hungry: dict[Digest, None] = {}  # trees in which somebody waits
        self._children: Counter[PeerId] = Counter()
        self._strikes: Counter[PeerId] = Counter()
        self._workers, self._out = workers, out

    # ------------------------------------------------------------ what workers say

    def seek(self, peer: PeerId, digest: Digest, size: int, now: float) -> None:
        """A worker lacks it; or the source that it was told is none."""
        tree = self.trees.setdefault(digest, Tree())
        tree.holders.pop(peer, None)
        tree.waiting.pop(peer, None)
        feeder = self._part(tree, peer)
        if feeder is not None and feeder in self._workers:
            tree.failed.add((peer, feeder))
            self._strikes.update((peer, feeder))
        tree.waiting[peer] = now + PATIENCE + size / PACE
        self._hungry[digest] = None
        self._feed()

    def sought(self, peer: PeerId, digest: Digest, offer: Source | None) -> None:
        """A worker has it, and offers it or not; or does not want it, or has dropped it."""
        tree = self.trees.setdefault(digest, Tree())
        feeder = self._part(tree, peer)
        tree.waiting.pop(peer, None)
        if offer is None:
            tree.holders.pop(peer, None)
        else:
            tree.holders[peer] = offer
            if feeder is not None:
                del self._strikes[feeder], self._strikes[peer]
        self._prune(digest)
        self._feed()

    def gone(self, peer: PeerId) -> None:
        """A worker left.  Those that it fed notice, and ask again."""
        for digest, tree in list(self.trees.items()):
            tree.holders.pop(peer, None)
            tree.waiting.pop(peer, None)
            self._part(tree, peer)
            self._prune(digest)
        del self._children[peer], self._strikes[peer]
        self._feed()

    def forget(self, digest: Digest) -> None:
        """Nobody needs it: who still waits for it shall hear so from the manager, which has it no more."""
        tree = self.trees.pop(digest, None)
        if tree is None:
            return
        self._hungry.pop(digest, None)
        for peer in tree.fed:
            self._left(tree.fed[peer])
        self._out.extend(TellWorker(peer, BlobSource(digest, None)) for peer in tree.waiting)
        self._feed()

    # ------------------------------------------------------------ time

    def deadline(self) -> float | None:
        """When somebody has waited long enough."""
        return min((next(iter(self.trees[digest].waiting.values())) for digest in self._hungry), default=None)

    def tick(self, now: float) -> None:
        for digest in list(self._hungry):
            for peer, due in list(self.trees[digest].waiting.items()):
                if now >= due:
                    self._name(digest, peer, None)
            self._prune(digest)

    # ------------------------------------------------------------ who feeds whom

    def _feed(self) -> None:
        for digest in list(self._hungry):
            tree = self.trees[digest]
            free = {f for f in tree.holders if self._children.get(f, 0) < CHILDREN}
            if not free and self._all_can_wait(tree):
                continue
            seeds = sum(feeder is None for feeder in tree.fed.values())
            for peer in list(tree.waiting):
                if not free and seeds >= SEEDS:
                    break
                useful = (f for f in free if self._could(tree, peer, f))
                feeder = min(useful, key=lambda f: (self._children[f], f), default=None)
                if feeder is not None:
                    self._name(digest, peer, feeder)
                    free = {f for f in free if self._children[f] < CHILDREN}
                    if not free and self._all_can_wait(tree):
                        break
                elif seeds < SEEDS and not any(self._could(tree, peer, f) for f in tree.holders):
                    self._name(digest, peer, None)
                    seeds += 1
            self._prune(digest)

    def _all_can_wait(self, tree: Tree) -> bool:
        """Whether it is plain that each who waits will be fed by a worker: then nobody is looked at one by one."""
        if tree.failed or max(self._strikes.values(), default=0) >= STRIKES:
            return False
        return any(
            not self._workers[f].draining and not offer.address.startswith("tcp://127.") for f, offer in tree.holders.items()
        )

    def _could(self, tree: Tree, peer: PeerId, feeder: PeerId) -> bool:
        """Whether ``feeder``, free or not, can be expected to feed ``peer``."""
        struck = self._strikes[peer] >= STRIKES or self._strikes[feeder] >= STRIKES
        source, target = self._workers[feeder], self._workers[peer]
        near = source.hello.host == target.hello.host
        return (
            not struck and (peer, feeder) not in tree.failed and not source.draining
            and (near or not tree.holders[feeder].address.startswith("tcp://127."))
        )  # fmt: skip

    def _name(self, digest: Digest, peer: PeerId, feeder: PeerId | None) -> None:
        tree = self.trees[digest]
        del tree.waiting[peer]
        tree.fed[peer] = feeder
        if feeder is not None:
            self._children[feeder] += 1
        self._out.append(TellWorker(peer, BlobSource(digest, None if feeder is None else tree.holders[feeder])))

    def _part(self, tree: Tree, peer: PeerId) -> PeerId | None:
        """Nobody feeds ``peer`` any more; which worker did."""
        feeder = tree.fed.pop(peer, None)
        self._left(feeder)
        return feeder

    def _left(self, feeder: PeerId | None) -> None:
        """It has a child fewer."""
        if feeder is not None and feeder in self._workers:
            self._children[feeder] -= 1

    def _prune(self, digest: Digest) -> None:
        tree = self.trees[digest]
        if not tree.waiting:
            self._hungry.pop(digest, None)
        if not (tree.waiting or tree.fed or tree.holders):
            del self.trees[digest]

    def check(self) -> None:
        """What must be true between any two events."""
        children: Counter[PeerId] = Counter()
        for digest, tree in self.trees.items():
            assert tree.holders or tree.fed or tree.waiting, "a tree of nobody"
            assert bool(tree.waiting) == (digest in self._hungry), "who waits is forgotten"
            parts = [*tree.holders, *tree.fed, *tree.waiting]
            assert len(parts) == len(set(parts)) and all(p in self._workers for p in parts), "in two places, or gone"
            children.update(f for f in tree.fed.values() if f is not None and f in self._workers)
        assert +children == +self._children and -self._children == Counter(), "children miscounted"
