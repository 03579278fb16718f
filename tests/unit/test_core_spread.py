"""Who gives a large blob to whom: the manager to a few, these to the others, and nobody waits for ever."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lfm.protocol.ids import Digest, PeerId
from lfm.protocol.messages import BlobSought, BlobSource, SeekBlob, Source, WorkerHello
from lfm.protocol.resources import Resources
from lfm_manager.core import events as e
from lfm_manager.core.check import check
from lfm_manager.core.commands import Command, TellWorker
from lfm_manager.core.manager import ManagerCore
from lfm_manager.core.spread import CHILDREN, PACE, PATIENCE, SEEDS, STRIKES, Spread
from lfm_manager.core.workers import Worker
from lfm_manager.sizing import make

BLOB, OTHER = Digest("b" * 64), Digest("c" * 64)
SIZE = 200_000_000


def at(peer: int, host: str = "10.0.0.1") -> Source:
    return Source(f"tcp://{host}:{1000 + peer}", "k" * 40)


class Run:
    """Workers 1, 2, ... that seek, and what they are told."""

    def __init__(self, count: int) -> None:
        self.out: list[Command] = []
        self.workers: dict[PeerId, Worker] = {}
        self.spread = Spread(self.workers, self.out)
        for peer in range(1, count + 1):
            self.join(peer)

    def join(self, peer: int, host: str = "node") -> None:
        hello = WorkerHello(str(peer), f"w{peer}", f"{host}{peer}", 1, Resources(1, 1))
        self.workers[PeerId(peer)] = Worker(PeerId(peer), hello, 0.0)

    def seek(self, *peers: int, digest: Digest = BLOB, now: float = 0.0) -> dict[int, int | None]:
        for peer in peers:
            self.spread.seek(PeerId(peer), digest, SIZE, now)
        return self.told()

    def sought(self, peer: int, offers: bool = True, digest: Digest = BLOB) -> dict[int, int | None]:
        self.spread.sought(PeerId(peer), digest, at(peer) if offers else None)
        return self.told()

    def lose(self, peer: int) -> dict[int, int | None]:
        self.spread.gone(PeerId(peer))
        del self.workers[PeerId(peer)]
        return self.told()

    def told(self) -> dict[int, int | None]:
        """Who was sent to whom just now; None: the manager gives it."""
        self.spread.check()
        out, self.out[:] = self.out[:], []
        found: dict[int, int | None] = {}
        for command in out:
            assert isinstance(command, TellWorker) and isinstance(command.message, BlobSource)
            source = command.message.source
            found[command.peer] = None if source is None else int(source.address.rsplit(":", 1)[1]) - 1000
        return found


def test_the_manager_feeds_a_few_and_these_the_others() -> None:
    run = Run(10)
    assert run.seek(*range(1, 11)) == {1: None, 2: None}
    assert run.sought(1) == {3: 1, 4: 1}
    assert run.sought(2) == {5: 2, 6: 2}
    assert run.sought(3) == {7: 3, 8: 1, 9: 3}
    assert run.sought(4) == {10: 4}
    for peer in range(5, 11):
        assert run.sought(peer) == {}
    run.join(11)
    assert run.seek(11) == {11: 1}


@pytest.mark.parametrize("count", [10, 100, 1000])
def test_the_manager_gives_it_no_oftener_to_many(count: int) -> None:
    run = Run(count)
    feeding = run.seek(*range(1, count + 1))
    fed = Counter(feeding.values())
    rounds = 0
    while feeding:
        news: dict[int, int | None] = {}
        for peer in feeding:
            news |= run.sought(peer)
        fed.update(news.values())
        feeding, rounds = news, rounds + 1
    assert fed.pop(None) == SEEDS and fed.total() == count - SEEDS
    assert rounds <= 8  # threefold each time


class Counted(dict[PeerId, Worker]):
    """Workers, and how often one was looked up."""

    looked = 0

    def __getitem__(self, peer: PeerId) -> Worker:
        self.looked += 1
        return super().__getitem__(peer)


def test_news_of_one_costs_no_look_at_each_who_waits() -> None:
    """Of 1000 workers that wait for five blobs: once it took milliseconds each time that one of them had got one."""
    looks = []
    for count in (50, 400):
        run = Run(0)
        counted = run.spread._workers = Counted()  # type: ignore[assignment]
        run.workers = counted
        for peer in range(1, count + 1):
            run.join(peer)
        digests = [BLOB, OTHER]
        for digest in digests:
            run.seek(*range(1, count + 1), digest=digest)
        while run.spread._hungry:
            for digest in digests:
                for peer in list(run.spread.trees[digest].fed):
                    run.spread.sought(peer, digest, at(peer))
        looks.append(counted.looked / count)
    assert looks[1] < 3 * looks[0], f"looks at workers for each one: {looks}"


def test_who_is_failed_by_its_source_is_sent_elsewhere_and_at_last_to_the_manager() -> None:
    run = Run(5)
    run.seek(1, 2, 3)
    run.sought(1)
    run.sought(2)
    assert run.seek(3) == {3: 2}  # it was sent to 1
    assert run.seek(3) == {3: None}
    assert run.seek(4) == {4: 1}  # others may fare better
    assert run.sought(4) == {}


def test_a_source_that_fails_all_is_not_named_any_more() -> None:
    run = Run(9)
    run.seek(1)
    run.sought(1)
    for peer in range(2, 2 + STRIKES):
        assert run.seek(peer) == {peer: 1}
        assert run.seek(peer) == {peer: None}
        run.sought(peer, offers=False)
    assert run.seek(9) == {9: None}


def test_who_reaches_nobody_is_not_sent_to_anybody() -> None:
    run = Run(9)
    for peer in range(1, 8):
        run.seek(peer)
        run.sought(peer)
    told = [run.seek(9)[9] for _ in range(STRIKES + 1)]
    assert None not in told[:STRIKES] and len(set(told)) == STRIKES + 1 and told[-1] is None
    run.sought(9)
    run.spread.sought(PeerId(1), OTHER, at(1))
    assert run.seek(9, digest=OTHER) == {9: None}


def test_nobody_waits_for_ever() -> None:
    run = Run(4)
    run.seek(1, 2, 3, now=1.0)
    assert run.seek(4, now=2.0) == {}
    due = run.spread.deadline()
    assert due == 1.0 + PATIENCE + SIZE / PACE
    run.spread.tick(due)
    assert run.told() == {3: None}
    run.spread.tick(due + 1.0)
    assert run.told() == {4: None} and run.spread.deadline() is None


def test_who_leaves_is_nobodys_source_and_waits_for_nothing() -> None:
    run = Run(6)
    run.seek(1, 2, 3, 4)
    assert run.lose(3) == {}
    assert run.lose(1) == {4: None}  # its place is free
    assert run.sought(2) == {}
    assert run.seek(5) == {5: 2}
    run.lose(2)
    assert run.seek(5) == {5: None}
    run.lose(5)
    assert run.lose(4) == {} and not run.spread.trees


def test_one_that_offers_nothing_or_is_leaving_is_no_source() -> None:
    run = Run(4)
    run.seek(1, 2, 3)
    assert run.sought(1, offers=False) == {3: None}
    run.sought(2)
    run.workers[PeerId(2)].draining = "told to leave"
    run.sought(3, offers=False)
    assert run.seek(4) == {4: None}


def test_one_that_dropped_it_is_no_source() -> None:
    run = Run(3)
    run.seek(1)
    run.sought(1)
    run.sought(1, offers=False)
    assert not run.spread.trees
    assert run.seek(2) == {2: None}


def test_a_loopback_address_is_for_the_same_machine() -> None:
    run = Run(2)
    run.workers[PeerId(3)] = Worker(PeerId(3), WorkerHello("3", "w3", "node1", 1, Resources(1, 1)), 0.0)
    run.spread.sought(PeerId(1), BLOB, at(1, "127.0.0.1"))
    assert run.seek(2) == {2: None} and run.seek(3) == {3: 1}


def test_a_worker_feeds_few_at_a_time_of_all_its_blobs() -> None:
    run = Run(9)
    for digest in (BLOB, OTHER):
        run.seek(1, digest=digest)
        run.sought(1, digest=digest)
    assert run.seek(2, 3) == {2: 1, 3: 1}
    assert run.seek(4, digest=OTHER) == {}
    assert run.sought(2) == {4: 1}


def test_what_nobody_needs_is_forgotten() -> None:
    run = Run(4)
    run.seek(1, 2, 3)
    run.spread.forget(BLOB)
    assert run.told() == {3: None}  # from whom it will hear that it is no more
    assert run.sought(1, offers=False) == {} and not run.spread.trees


steps = st.lists(st.tuples(st.sampled_from(["seek", "has", "lacks", "leave", "tick", "forget"]), st.integers(1, 6), st.sampled_from([BLOB, OTHER])))


@given(steps)
def test_whatever_happens_the_books_are_right_and_all_are_fed(course: list[tuple[str, int, Digest]]) -> None:
    run = Run(6)
    present = {number: number for number in range(1, 7)}  # who comes back is another peer
    for now, (what, number, digest) in enumerate(course):
        peer = present[number]
        if what == "seek":
            run.seek(peer, digest=digest, now=now)
        elif what == "leave":
            run.lose(peer)
            present[number] = 10 + now
            run.join(10 + now)
        elif what == "tick":
            run.spread.tick(now)
        elif what == "forget":
            run.spread.forget(digest)
        else:
            run.sought(peer, offers=what == "has", digest=digest)
        run.told()
        assert all(n <= CHILDREN for n in run.spread._children.values())
    run.spread.tick(1e9)
    run.told()
    assert run.spread.deadline() is None


def test_the_core_hears_and_tells_workers() -> None:
    core = ManagerCore({resource: make("auto", resource) for resource in ("memory", "disk")})
    for peer in (1, 2, 3):
        core.handle(e.WorkerJoined(PeerId(peer), WorkerHello(str(peer), f"w{peer}", "n", 1, Resources(1, 1))), 0.0)

    def say(peer: int, message: SeekBlob | BlobSought, now: float = 1.0) -> list[Command]:
        out = core.handle(e.WorkerSaid(PeerId(peer), message), now)
        check(core, now)
        return out

    for peer in (1, 2):
        assert say(peer, SeekBlob(BLOB, SIZE)) == [TellWorker(PeerId(peer), BlobSource(BLOB, None))]
    assert say(3, SeekBlob(BLOB, SIZE)) == []
    assert core.deadline() == 1.0 + PATIENCE + SIZE / PACE
    assert say(1, BlobSought(BLOB, at(1))) == [TellWorker(PeerId(3), BlobSource(BLOB, at(1)))]
    lost = core.handle(e.PeerLost(PeerId(1), "gone", True), 2.0)
    check(core, 2.0)
    assert not any(isinstance(c, TellWorker) for c in lost)
    assert say(3, SeekBlob(BLOB, SIZE), 3.0) == [TellWorker(PeerId(3), BlobSource(BLOB, None))]
