"""What the manager's core keeps in order piece by piece, against its plain definition."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lfm.protocol import messages as m
from lfm.protocol.ids import PeerId
from lfm.protocol.resources import Resources
from lfm_manager.core.census import ALIKE, Census, Largest
from lfm_manager.core.sessions import Session
from lfm_manager.core.turns import Turns
from lfm_manager.core.workers import Worker

FEW = st.integers(0, 4)


@given(st.lists(st.tuples(FEW, st.sampled_from(["enter", "leave", "charge"]), st.integers(-2000, 2000))))
def test_turns_are_those_who_wait_sorted_by_what_they_have(steps: list[tuple[int, str, int]]) -> None:
    sessions = [Session(f"s{n}", m.ClientHello(f"s{n}", "me", "here", 1), None) for n in range(5)]
    turns, waiting = Turns(), set[int]()
    for n, what, amount in steps:
        if what == "enter":
            turns.enter(sessions[n])
            waiting.add(n)
        elif what == "charge":
            before = sessions[n].millicores
            turns.charge(sessions[n], amount)
            assert sessions[n].millicores == before + amount
        elif n in waiting:
            turns.leave(sessions[n])
            waiting.remove(n)
        assert list(turns) == sorted((sessions[n] for n in waiting), key=lambda s: (s.millicores, s.key))


OFFERS = st.builds(
    Resources, cores=st.sampled_from([0.0, 0.5, 4.0, 16.0]), memory=st.integers(0, 100), disk=st.integers(0, 100), gpus=FEW
)


@given(st.lists(st.tuples(FEW, st.sampled_from(["offer", "drain", "leave"]), OFFERS)))
def test_the_census_is_what_a_look_at_every_worker_gives(steps: list[tuple[int, str, Resources]]) -> None:
    census, workers = Census(), dict[int, Worker]()
    for n, what, offer in steps:
        worker = workers.setdefault(n, Worker(PeerId(n), m.WorkerHello(f"w{n}", f"w{n}", "node", 1, offer), 0.0))
        if what == "leave":
            del workers[n]
            census.leave(worker.peer)
        else:
            worker.offer(offer, 0.0)
            worker.draining = "it says so" if what == "drain" else ""
            census.count(worker)
        there = [w for w in workers.values() if not w.draining]
        largest = Largest(*(max((getattr(w, a) for w in there), default=0) for a in ("millicores", "memory", "disk")),
                          max((len(w.devices) for w in there), default=0))
        assert census.largest() == largest
        assert (census.workers, census.millicores, census.memory) == (
            len(there), sum(w.millicores for w in there), sum(w.memory for w in there)
        )
        assert census.slots == sum(max(1, w.millicores // 1000) for w in there)
        assert census.least_disk_per_core() == min((w.disk * 1000 / w.millicores for w in there if w.millicores), default=0.0)
        assert census.least_disk() == min((w.disk for w in there if w.disk), default=0)
        assert census.least_large_memory() == min((w.memory for w in there if w.memory >= ALIKE * largest.memory), default=0)
