"""Workers that do no good are set aside and named, calls that nobody can run are given up, and nobody else pays."""

from __future__ import annotations

from lfm.protocol import messages as m
from lfm.protocol.ids import Digest, EnvironmentKey, FunctionId, PeerId, TaskId
from lfm.protocol.outcomes import Crashed, Impossible, Inline, Lost, Outcome, Raised, Returned
from lfm.protocol.resources import Request, Resources
from lfm_manager.core import commands as c
from lfm_manager.core import events as e
from lfm_manager.core.check import check
from lfm_manager.core.manager import ManagerCore
from lfm_manager.core.policy import Policy
from lfm_manager.core.tasks import Failed, Placed, Ready
from lfm_manager.shell.explain import explain
from lfm_manager.sizing import make

GB = 10**9
CLIENT, W1, W2 = PeerId(1), PeerId(11), PeerId(12)
ENV, TARBALL = EnvironmentKey("env"), Digest("t" * 64)
VALUE, NO = Returned(Inline(b"v")), Raised(None, "ValueError", "no", "")


class Desk:
    def __init__(self, policy: Policy | None = None) -> None:
        self.core = ManagerCore({r: make("auto", r) for r in ("memory", "disk")}, policy)
        self.now, self.last = 0.0, 0
        self.do(e.ClientJoined(CLIENT, m.ClientHello("s", "me", "here", 1)))
        self.do(e.ClientSaid(CLIENT, m.DeclareEnvironment(ENV, Inline(b"{}"), "numpy")))
        for name in "fgh":
            self.do(e.ClientSaid(CLIENT, m.DeclareFunction(FunctionId(name), name, name, ENV, Inline(b"code"), None, ())))
        self.do(e.EnvironmentBuilt(ENV, TARBALL, 1000, "3.11.7", "x86_64", "glibc 2.31"))

    def do(self, event: e.Event) -> list[c.Command]:
        out = self.core.handle(event, self.now)
        check(self.core, self.now)
        return out

    def worker(self, peer: PeerId = W1, cores: float = 1) -> None:
        offer = Resources(cores, 4 * GB, 0)
        self.do(e.WorkerJoined(peer, m.WorkerHello(f"w{peer}", f"worker{peer}", "node", 1, offer, (), {}, (TARBALL,))))

    def submit(self, function: str = "f") -> TaskId:
        self.last += 1
        task = TaskId(f"s-{self.last}")
        self.do(e.ClientSaid(CLIENT, m.Submit(task, FunctionId(function), Inline(b"x"), Request(cores=1, memory=GB, disk=0))))
        return task

    def where(self, task: TaskId) -> PeerId | None:
        state = self.core.calls.tasks[task].state
        return state.worker if isinstance(state, Placed) else None

    def started(self, task: TaskId) -> None:
        state = self.core.calls.tasks[task].state
        assert isinstance(state, Placed)
        self.do(e.WorkerSaid(state.worker, m.CallStarted(task, state.attempt)))

    def end(self, task: TaskId, outcome: Outcome = VALUE) -> list[c.Command]:
        state = self.core.calls.tasks[task].state
        assert isinstance(state, Placed)
        return self.do(e.WorkerSaid(state.worker, m.CallEnded(task, state.attempt, outcome, None)))

    def wait(self) -> None:
        """Until the next thing is due."""
        due = self.core.deadline()
        assert due is not None
        self.now = max(self.now, due)
        self.do(e.Ticked())

    def run(self, function: str, peer: PeerId, outcome: Outcome) -> list[c.Command]:
        """One call, on that worker, with the others away."""
        for worker in self.core.workers.values():
            if worker.peer != peer and not worker.draining:
                worker.draining = "not now"
                self.core.crew.present.count(worker)
                self.core.scheduler.gone(worker)
        task = self.submit(function)
        assert self.where(task) == peer
        out = self.end(task, outcome)
        for worker in self.core.workers.values():
            if worker.draining == "not now":
                worker.draining = ""
                self.core.crew.present.count(worker)
                self.core.scheduler.room(worker)
        self.do(e.ClientSaid(CLIENT, m.Release((task,))))
        return out

    def aside(self, peer: PeerId = W1) -> bool:
        return self.core.workers[peer].draining.startswith("set aside")


def test_a_worker_that_hands_back_all_is_tried_again_after_pauses_that_double() -> None:
    desk = Desk(Policy(failures_before_aside=3, refused_max=1000, refused_s=1e9))
    desk.worker()
    task = desk.submit()
    waited = []
    for row in (3, 2, 2, 2):
        for _ in range(row):
            assert desk.where(task) == W1
            desk.end(task, Lost("no room on its disk", started=False))
        assert desk.aside() and desk.where(task) is None
        assert "worker11 is set aside" in explain(desk.core, desk.core.calls.tasks[task], desk.now)
        before = desk.now
        while desk.aside():
            desk.wait()
        waited.append(desk.now - before)
    assert waited == [10.0, 20.0, 40.0, 80.0]
    desk.end(task)
    assert not desk.core.workers[W1].record.pauses  # cleared by one that went well


def test_a_call_that_the_only_worker_hands_back_fails_in_minutes_and_says_why() -> None:
    desk = Desk()
    desk.worker()
    task = desk.submit()
    while task in desk.core.calls.tasks and not isinstance(desk.core.calls.tasks[task].state, Failed):
        if desk.where(task) is None:
            desk.wait()
        else:
            desk.end(task, Lost("no room on its disk", started=False))
        assert desk.now < 600
    state = desk.core.calls.tasks[task].state
    assert isinstance(state, Failed) and isinstance(state.finished.outcome, Impossible)
    assert "no room on its disk" in state.finished.outcome.reason and "handed it back" in state.finished.outcome.reason


def test_several_functions_that_fail_on_one_worker_alone_tell_against_it() -> None:
    desk = Desk()
    desk.worker(W1)
    desk.worker(W2)
    for function in "fg":
        for _ in range(10):
            desk.run(function, W2, VALUE)
    notices = []
    for n in range(20):
        if desk.aside():
            break
        out = desk.run("fg"[n % 2], W1, NO)
        notices += [x.message.text for x in out if isinstance(x, c.TellClient) and isinstance(x.message, m.Notice)]
    assert desk.aside() and not desk.aside(W2) and n >= 8
    assert "2 functions" in notices[-1] and "worker11" in notices[-1]


def test_what_a_function_raises_is_no_evidence_by_itself() -> None:
    desk = Desk()
    desk.worker(W1)
    desk.worker(W2)
    for n in range(60):  # one function that fails on one worker, and two that fail everywhere
        desk.run("f", W2, VALUE)
        desk.run("f", W1, NO)
        desk.run("gh"[n % 2], W1, NO)
        desk.run("gh"[n % 2], W2, Crashed(11, None))
    assert not desk.aside(W1) and not desk.aside(W2)
    alone = Desk()
    alone.worker()
    for n in range(60):
        alone.run("fgh"[n % 3], W1, NO)
    assert not alone.aside()


def test_a_template_that_dies_under_many_calls_counts_once() -> None:
    desk = Desk(Policy(failures_before_aside=3))
    desk.worker(cores=8)
    tasks = [desk.submit() for _ in range(4)]
    for task in tasks:
        desk.started(task)
    for task in tasks:
        desk.end(task, Lost("its template died"))
    assert not desk.aside()


def test_a_worker_that_begins_nothing_is_set_aside_and_its_calls_go_elsewhere() -> None:
    desk = Desk()
    desk.worker()
    task = desk.submit()
    desk.worker(W2)
    while desk.where(task) == W1:
        desk.wait()
    assert desk.aside() and desk.where(task) == W2 and 1000 < desk.now < 4000
    late = m.CallEnded(task, 1, Returned(Inline(b"late")), None)
    assert not [x for x in desk.do(e.WorkerSaid(W1, late)) if isinstance(x, c.TellClient)]
    desk.started(task)
    desk.now += 1e6  # a call may run as long as it likes
    desk.do(e.Ticked())
    assert desk.where(task) == W2 and not desk.aside(W2)


def test_a_call_that_kills_its_worker_before_it_was_said_to_run_is_found() -> None:
    desk = Desk()
    task = desk.submit()
    for number in range(3):
        desk.worker(PeerId(20 + number))
        assert desk.where(task) == PeerId(20 + number)
        desk.do(e.PeerLost(PeerId(20 + number), "its process ended", sure=True))
    state = desk.core.calls.tasks[task].state
    assert isinstance(state, Failed) and isinstance(state.finished.outcome, Impossible) and "3 workers died" in state.finished.outcome.reason


def test_a_call_whose_environment_was_on_its_way_did_not_kill_the_worker() -> None:
    desk = Desk()
    task = desk.submit()
    for number in range(9):
        offer = Resources(1, 4 * GB, 0)
        desk.do(e.WorkerJoined(PeerId(20 + number), m.WorkerHello(f"w{number}", f"w{number}", "node", 1, offer)))
        desk.do(e.PeerLost(PeerId(20 + number), "its node failed"))
    assert isinstance(desk.core.calls.tasks[task].state, Ready) and not desk.core.calls.tasks[task].alone


def test_a_call_that_kills_its_template_runs_alone_before_its_neighbours_are_given_up() -> None:
    desk = Desk()
    desk.worker(cores=2)
    bad, good = desk.submit(), desk.submit("g")
    for _ in range(2):
        for task in (bad, good):
            desk.started(task)
        desk.now += 60
        for task in (bad, good):
            desk.end(task, Lost("its template died"))
    assert {desk.where(bad), desk.where(good)} == {W1, None}
    ends = dict.fromkeys((bad, good))
    while None in ends.values():
        task = bad if desk.where(bad) else good
        desk.now += 60
        desk.started(task)
        desk.end(task, Lost("its template died") if task == bad else VALUE)
        for one in ends:
            state = desk.core.calls.tasks[one].state
            ends[one] = type(state.finished.outcome) if hasattr(state, "finished") else None  # type: ignore[assignment]
    assert ends == {bad: Impossible, good: Returned}


def test_an_environment_that_a_worker_cannot_use_for_now_is_tried_again_and_then_given_up() -> None:
    desk = Desk()
    desk.worker()
    task = desk.submit()
    for pause in (10.0, 20.0):
        desk.do(e.WorkerSaid(W1, m.EnvironmentUnusable(TARBALL, "disk full", passing=True)))
        desk.end(task, Lost("disk full", started=False))
        assert isinstance(desk.core.calls.tasks[task].state, Ready)
        before = desk.now
        desk.wait()
        assert desk.now - before == pause and desk.where(task) == W1
    desk.do(e.WorkerSaid(W1, m.EnvironmentUnusable(TARBALL, "disk full", passing=True)))
    desk.end(task, Lost("disk full", started=False))
    state = desk.core.calls.tasks[task].state
    assert isinstance(state, Failed) and "disk full" in state.finished.outcome.reason  # type: ignore[union-attr]


def test_what_is_said_of_several_calls_on_their_way_counts_once() -> None:
    desk = Desk()
    desk.worker(cores=4)
    tasks = [desk.submit() for _ in range(4)]
    for task in tasks:
        desk.do(e.WorkerSaid(W1, m.EnvironmentUnusable(TARBALL, "no descriptors", passing=True)))
        desk.end(task, Lost("no descriptors", started=False))
    assert all(isinstance(desk.core.calls.tasks[task].state, Ready) for task in tasks)
    desk.wait()
    assert desk.now == 10.0 and all(desk.where(task) == W1 for task in tasks)


def test_a_person_who_drains_a_worker_that_is_set_aside_is_obeyed() -> None:
    desk = Desk(Policy(failures_before_aside=1))
    desk.worker()
    task = desk.submit()
    desk.end(task, Lost("no", started=False))
    assert desk.aside()
    desk.do(e.DrainAsked(W1, "somebody said so"))
    desk.now += 1000
    desk.do(e.Ticked())
    assert desk.core.workers[W1].draining == "somebody said so" and desk.where(task) is None
