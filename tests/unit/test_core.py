"""The manager's core, event by event.  Whole lists of commands are compared: one too many fails a test by itself."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lfm.protocol import messages as m
from lfm.protocol.ids import Digest, EnvironmentKey, FunctionId, PeerId, TaskId
from lfm.protocol.outcomes import (
    Blob,
    Cancelled,
    Crashed,
    Exhausted,
    Impossible,
    Inline,
    Killed,
    Lost,
    Outcome,
    Raised,
    Returned,
)
from lfm.protocol.resources import Expected, Request, Resources, Usage
from lfm_manager.core import commands as c
from lfm_manager.core import events as e
from lfm_manager.core.check import check
from lfm_manager.core.manager import ManagerCore
from lfm_manager.core.policy import Policy
from lfm_manager.core.tasks import EDGES, Adrift, Failed, IllegalTransition, Placed, Ready, State, Waiting
from lfm_manager.core.unfit import too_much
from lfm_manager.core.workers import Demand, Worker
from lfm_manager.shell import query
from lfm_manager.shell.explain import explain
from lfm_manager.sizing import make

GB = 10**9
CLIENT, OTHER, W1, W2 = PeerId(1), PeerId(2), PeerId(11), PeerId(12)
ENV, FUNCTION, TARBALL = EnvironmentKey("env"), FunctionId("f"), Digest("t" * 64)
CODE, PLAN = Inline(b"code"), Inline(b"{}")
VALUE = Returned(Inline(b"value"))
ASKED = Request(cores=1, memory=GB, disk=0)


class Constant:
    """A sizer that gives what it is told, and doubles."""

    def __init__(self, first: float) -> None:
        self.first, self.learned = first, list[float]()

    def predict(self, category: str, input_bytes: float, hint: float | None, cap: float, *, in_flight: int = 0, share: float = 0.0) -> float:
        return min(self.learned[-1] if self.learned else self.first, cap)

    def succeeded(self, category: str, input_bytes: float, measured: float, wall_s: float, *, hint: float | None = None) -> None:
        self.learned.append(measured)

    def exhausted(self, category: str, attempt: int, allocation: float, measured: float, cap: float, *, hint: float | None = None, spent_s: float | None = None) -> float | None:
        return allocation * 2


class Desk:
    """A core, and short words for what happens to it.  Checks the books after every event."""

    def __init__(self, policy: Policy | None = None, environment: bool = True) -> None:
        self.core = ManagerCore({"memory": Constant(GB), "disk": Constant(GB)}, policy)
        self.now = 0.0
        if environment:
            self.client()
            self.declare()
            self.do(e.EnvironmentBuilt(ENV, TARBALL, 1000, "3.11.7", "x86_64", "glibc 2.31"))

    def do(self, event: e.Event) -> list[c.Command]:
        out = self.core.handle(event, self.now)
        check(self.core, self.now)
        return out

    def client(self, peer: PeerId = CLIENT, session: str = "s", name: str | None = None) -> list[c.Command]:
        return self.do(e.ClientJoined(peer, m.ClientHello(session, "me", "here", 1, name)))

    def declare(self, peer: PeerId = CLIENT, code: m.Payload = CODE, plan: m.Payload = PLAN) -> None:
        self.do(e.ClientSaid(peer, m.DeclareEnvironment(ENV, plan, "numpy")))
        self.do(e.ClientSaid(peer, m.DeclareFunction(FUNCTION, "mod.f", "mod.f", ENV, code, None, ())))

    def worker(
        self, peer: PeerId = W1, cores: float = 2, memory: int = 4 * GB, disk: int = 0, *, session: str = "",
        running: tuple[m.Running, ...] = (), gpus: tuple[str, ...] = (), wall_time: float | None = None,
        libc: str = "glibc 2.36", labels: dict[str, str] | None = None,
    ) -> list[c.Command]:
        offer = Resources(cores, memory, disk, len(gpus), wall_time)
        return self.do(e.WorkerJoined(peer, m.WorkerHello(
            session or f"w{peer}", f"worker{peer}", "node", 1, offer, gpus, {"libc": libc, "machine": "x86_64", **(labels or {})}, (), running,
        )))

    def submit(self, task: str, request: Request = ASKED, peer: PeerId = CLIENT, **more: object) -> list[c.Command]:
        submit = m.Submit(TaskId(task), FUNCTION, Inline(b"x"), request).but(**more)
        return self.do(e.ClientSaid(peer, submit))

    def started(self, task: str, attempt: int = 1, worker: PeerId = W1) -> list[c.Command]:
        return self.do(e.WorkerSaid(worker, m.CallStarted(TaskId(task), attempt)))

    def ended(self, task: str, outcome: Outcome = VALUE, attempt: int = 1, worker: PeerId = W1, memory: int = GB // 2) -> list[c.Command]:
        usage = Usage(wall_s=1.0, memory=memory, memory_by="self")
        return self.do(e.WorkerSaid(worker, m.CallEnded(TaskId(task), attempt, outcome, usage)))

    def state(self, task: str) -> State:
        return self.core.calls.tasks[TaskId(task)].state

    def where(self, task: str) -> PeerId | None:
        state = self.state(task)
        return state.worker if isinstance(state, Placed) else None


def runs(out: Sequence[c.Command]) -> list[tuple[str, int, PeerId]]:
    """(task, attempt, worker) of every Run."""
    return [
        (command.message.task, command.message.attempt, command.peer)
        for command in out if isinstance(command, c.TellWorker) and isinstance(command.message, m.Run)
    ]


def answers(out: Sequence[c.Command]) -> list[m.Finished]:
    return [x.message for x in out if isinstance(x, c.TellClient) and isinstance(x.message, m.Finished)]


def notices(out: Sequence[c.Command]) -> list[str]:
    return [x.message.text for x in out if isinstance(x, c.TellClient) and isinstance(x.message, m.Notice)]


def told(out: Sequence[c.Command]) -> list[object]:
    return [x.message for x in out if isinstance(x, c.TellWorker)]


# ---------------------------------------------------------------- one call's way


def test_a_call_waits_for_its_environment_runs_and_is_answered() -> None:
    desk = Desk(environment=False)
    desk.client()
    desk.declare()
    desk.worker()
    submit = m.Submit(TaskId("a"), FUNCTION, Inline(b"x"), ASKED)
    assert desk.submit("a") == [c.SaveTask("s", submit), c.BuildEnvironment(ENV, Inline(b"{}"))]
    assert desk.submit("b")[1:] == []  # the same environment is not built twice
    assert desk.state("a") == Waiting(True)
    out = desk.do(e.EnvironmentBuilt(ENV, TARBALL, 1000, "3.11.7", "x86_64", "glibc 2.31"))
    tarball, grant = Blob(TARBALL, 1000), Resources(1.0, GB, 0, 0, None)
    assert out == [
        c.TellClient(CLIENT, m.EnvironmentProgress(ENV, "numpy", "ready", 1000, 1000)),
        c.SaveAttempt(TaskId("a"), 1, "w11"),
        c.TellWorker(W1, m.DefineFunction(FUNCTION, "mod.f", tarball, Inline(b"code"), None, ())),
        c.TellWorker(W1, m.Run(TaskId("a"), 1, FUNCTION, Inline(b"x"), grant)),
        c.SaveAttempt(TaskId("b"), 1, "w11"),
        c.TellWorker(W1, m.Run(TaskId("b"), 1, FUNCTION, Inline(b"x"), grant)),
    ]
    desk.now = 1.0
    assert desk.started("a") == [c.TellClient(CLIENT, m.Started(TaskId("a"), 1, "worker11", grant))]
    assert desk.started("a") == []
    desk.now = 3.0
    (finished,) = answers(desk.ended("a"))
    assert finished.outcome == VALUE and finished.allocation == grant
    (attempt,) = finished.attempts
    assert (attempt.number, attempt.worker, attempt.started, attempt.ended, attempt.outcome) == (1, "worker11", 1.0, 3.0, "returned")
    assert desk.do(e.ClientSaid(CLIENT, m.Release((TaskId("a"),)))) == [c.ForgetTask(TaskId("a"))]
    assert TaskId("a") not in desk.core.calls.tasks


def test_a_head_that_is_thought_larger_and_then_smaller_again_goes_where_there_came_room_meanwhile() -> None:
    desk = Desk()
    auto = Request(cores=1, disk=0)
    desk.worker(W1, cores=8, memory=10 * GB)
    desk.submit("a", auto)
    desk.submit("x", Request(cores=1, memory=8 * GB, disk=0))
    desk.worker(W2, cores=8, memory=10 * GB)
    desk.submit("b", auto)
    desk.submit("y", Request(cores=1, memory=88 * GB // 10, disk=0))
    assert desk.where("a") == desk.where("x") == W1 and desk.where("b") == desk.where("y") == W2
    assert not runs(desk.submit("c", auto))  # a GB fits nowhere
    assert not runs(desk.ended("a", memory=3 * GB))  # it would now; but three do not
    assert runs(desk.ended("b", worker=W2, memory=12 * GB // 10)) == [("c", 1, W1)]


def test_a_call_submitted_twice_is_one_call() -> None:
    desk = Desk()
    desk.worker()
    assert runs(desk.submit("a")) == [("a", 1, W1)]
    assert desk.submit("a") == []
    desk.ended("a")
    (again,) = desk.submit("a")
    assert isinstance(again, c.TellClient) and isinstance(again.message, m.Finished)


def test_a_function_that_nobody_declared_is_an_answer_not_a_silence() -> None:
    desk = Desk()
    (finished,) = answers(desk.do(e.ClientSaid(CLIENT, m.Submit(TaskId("a"), FunctionId("?"), Inline(b""), Request()))))
    assert isinstance(finished.outcome, Impossible)


def test_an_environment_that_cannot_be_built_answers_all_its_calls_and_may_be_tried_again() -> None:
    desk = Desk(environment=False)
    desk.client()
    desk.declare()
    desk.submit("a")
    (finished,) = answers(desk.do(e.EnvironmentFailed(ENV, "no space left", "", "make room")))
    assert finished.outcome == Impossible("environment", "no space left (make room)")
    assert isinstance(answers(desk.submit("b"))[0].outcome, Impossible)
    desk.declare()
    assert c.BuildEnvironment(ENV, Inline(b"{}")) in desk.submit("c")


def test_a_plan_too_large_for_a_message_is_fetched_first() -> None:
    desk = Desk(environment=False)
    desk.client()
    plan = Blob(Digest("p" * 64), 10**6)
    desk.declare(plan=plan)
    assert not [x for x in desk.submit("a") if isinstance(x, c.BuildEnvironment)]
    assert desk.do(e.BlobStored(plan.digest)) == [c.BuildEnvironment(ENV, plan)]


def test_blobs_come_from_the_client_and_go_when_nobody_needs_them() -> None:
    desk = Desk()
    desk.worker()
    blob = Blob(Digest("a" * 64), 10**6)
    assert c.GetBlob(CLIENT, blob.digest, blob.size) in desk.submit("a", arguments=blob)
    desk.submit("b", arguments=blob)
    assert desk.state("a") == Waiting(False, frozenset({blob.digest}))
    assert runs(desk.do(e.BlobStored(blob.digest))) == [("a", 1, W1), ("b", 1, W1)]
    assert c.DropBlob(blob.digest) not in desk.ended("a")
    out = desk.ended("b")
    assert c.DropBlob(blob.digest) in out and m.ForgetBlob(blob.digest) in told(out)


def test_an_argument_that_cannot_be_had_fails_the_call() -> None:
    desk = Desk()
    blob = Blob(Digest("a" * 64), 10**6)
    desk.submit("a", arguments=blob)
    (finished,) = answers(desk.do(e.BlobLost(blob.digest, "gone")))
    assert isinstance(finished.outcome, Impossible)


def test_a_large_result_is_fetched_before_the_call_counts_as_done() -> None:
    desk = Desk()
    desk.worker()
    desk.submit("a")
    result = Blob(Digest("r" * 64), 10**6)
    out = desk.ended("a", Returned(result))
    assert c.GetBlob(W1, result.digest, result.size) in out and not answers(out)
    out = desk.do(e.BlobStored(result.digest))
    assert told(out)[0] == m.ForgetBlob(result.digest) and answers(out)[0].outcome == Returned(result)
    assert c.DropBlob(result.digest) in desk.do(e.ClientSaid(CLIENT, m.Release((TaskId("a"),))))


def test_a_worker_that_dies_before_it_gave_its_result_has_it_computed_again() -> None:
    desk = Desk()
    desk.worker()
    desk.submit("a")
    desk.ended("a", Returned(Blob(Digest("r" * 64), 10**6)))
    desk.do(e.PeerLost(W1, "gone"))
    assert isinstance(desk.state("a"), Ready)
    assert runs(desk.worker(W2)) == [("a", 2, W2)]


# ---------------------------------------------------------------- repeated, and not


def test_news_of_an_old_attempt_is_dropped() -> None:
    desk = Desk()
    desk.worker()
    desk.submit("a")
    desk.do(e.PeerLost(W1, "gone"))
    assert runs(desk.worker(W2)) == [("a", 2, W2)]
    assert desk.ended("a", attempt=1, worker=W2) == []
    assert desk.ended("a", attempt=2, worker=W1) == []
    assert told(desk.ended("a", Returned(Blob(Digest("r" * 64), 10**6)), attempt=1, worker=W2)) == [m.ForgetBlob(Digest("r" * 64))]
    assert answers(desk.ended("a", attempt=2, worker=W2))


def test_a_call_that_outgrew_what_nobody_asked_for_gets_more_up_to_the_largest_worker() -> None:
    desk = Desk()
    desk.worker(memory=4 * GB, cores=4)
    grants = [x.allocation.memory for x in told(desk.submit("a", Request(disk=0))) if isinstance(x, m.Run)]
    for attempt in (1, 2, 3):
        out = desk.ended("a", Exhausted("memory", grants[-1], grants[-1], 0.5), attempt)
        grants += [x.allocation.memory for x in told(out) if isinstance(x, m.Run)]
    assert [round(g / GB) for g in grants] == [1, 2, 4]
    assert isinstance(answers(out)[0].outcome, Exhausted)
    assert [a.outcome for a in answers(out)[0].attempts] == ["memory"] * 3


def test_a_users_own_limit_is_final() -> None:
    desk = Desk()
    desk.worker()
    desk.submit("a")
    assert isinstance(answers(desk.ended("a", Exhausted("memory", GB, GB, 0.5)))[0].outcome, Exhausted)
    desk.submit("b", Request(disk=0, wall_time=3))
    assert isinstance(answers(desk.ended("b", Exhausted("wall_time", 3, 3, 3)))[0].outcome, Exhausted)


def test_only_what_nobody_asked_for_may_grow() -> None:
    desk = Desk()
    desk.worker(cores=4)
    asked, free = (next(x for x in told(desk.submit(t, r)) if isinstance(x, m.Run)) for t, r in (("a", ASKED), ("b", Request(disk=0))))
    assert asked.growth == 0 and free.growth >= 2 * free.allocation.memory
    grown = Resources(1.0, free.growth, 0, 0, None)
    desk.do(e.WorkerSaid(W1, m.LimitRaised(TaskId("b"), 1, grown)))
    assert desk.core.workers[W1].free_memory == 4 * GB - GB - free.growth
    assert answers(desk.ended("b"))[0].allocation == grown


def test_its_own_exceptions_are_repeated_only_as_often_as_its_user_asked() -> None:
    desk = Desk()
    desk.worker()
    desk.submit("a", retries=1)
    raised = Raised(None, "ValueError", "no", "")
    assert runs(desk.ended("a", raised)) == [("a", 2, W1)]
    assert answers(desk.ended("a", raised, 2))[0].outcome == raised
    desk.submit("b")
    assert answers(desk.ended("b", Crashed(11, None)))[0].outcome == Crashed(11, None)


def test_an_attempt_that_never_began_costs_nothing() -> None:
    desk = Desk()
    desk.worker()
    desk.submit("a")
    for attempt in range(1, 5):
        assert runs(desk.ended("a", Lost("full", started=False), attempt)) == [("a", attempt + 1, W1)]
    assert desk.core.calls.tasks[TaskId("a")].tries.lost == 0


def test_a_call_that_is_lost_again_and_again_is_given_up() -> None:
    desk = Desk(Policy(lost_max=2))
    desk.worker()
    desk.submit("a")
    desk.ended("a", Lost("template died"))
    assert isinstance(answers(desk.ended("a", Lost("template died"), 2))[0].outcome, Impossible)


def test_a_call_that_kills_its_workers_is_found_and_its_neighbours_are_not_charged() -> None:
    desk = Desk()
    desk.submit("bad")
    desk.submit("good")
    for peer in (21, 22):
        desk.worker(PeerId(peer))
        for task in ("bad", "good"):
            desk.started(task, peer - 20, PeerId(peer))
        desk.do(e.PeerLost(PeerId(peer), "died"))
    assert desk.core.calls.tasks[TaskId("good")].alone and desk.core.calls.tasks[TaskId("bad")].alone
    desk.worker(PeerId(23))
    assert len(desk.core.workers[PeerId(23)].running) == 1  # one of them, alone
    desk.started("bad", 3, PeerId(23))
    (finished,) = answers(desk.do(e.PeerLost(PeerId(23), "died")))
    assert finished.task == "bad" and isinstance(finished.outcome, Impossible) and "3 workers died" in finished.outcome.reason
    desk.worker(PeerId(24))
    desk.started("good", 3, PeerId(24))
    assert answers(desk.ended("good", VALUE, 3, PeerId(24)))[0].outcome == VALUE


def test_a_worker_that_says_goodbye_charges_nobody() -> None:
    desk = Desk()
    desk.submit("a")
    for peer in range(21, 26):
        desk.worker(PeerId(peer))
        desk.started("a", peer - 20, PeerId(peer))
        desk.do(e.WorkerSaid(PeerId(peer), m.WorkerLeaving("its job ends")))
    assert isinstance(desk.state("a"), Ready) and not desk.core.calls.tasks[TaskId("a")].alone


# ---------------------------------------------------------------- cancelled


def test_what_has_not_started_is_cancelled_and_what_runs_is_killed() -> None:
    desk = Desk()
    desk.worker(cores=1)
    for task in ("a", "b"):
        desk.submit(task)
    assert answers(desk.do(e.ClientSaid(CLIENT, m.Cancel((TaskId("b"),)))))[0].outcome == Cancelled()
    desk.started("a")
    assert desk.do(e.ClientSaid(CLIENT, m.Cancel((TaskId("a"),)))) == []
    assert told(desk.do(e.ClientSaid(CLIENT, m.Kill((TaskId("a"),))))) == [m.KillCall(TaskId("a"), 1)]
    assert answers(desk.ended("a", Killed()))[0].outcome == Killed()


def test_a_call_on_its_way_to_a_worker_can_still_be_cancelled() -> None:
    desk = Desk()
    desk.worker()
    desk.submit("a")
    assert told(desk.do(e.ClientSaid(CLIENT, m.Cancel((TaskId("a"),))))) == [m.KillCall(TaskId("a"), 1)]
    assert answers(desk.ended("a", Killed()))[0].outcome == Cancelled()


def test_a_killed_call_whose_worker_dies_is_answered() -> None:
    desk = Desk()
    desk.worker()
    desk.submit("a")
    desk.started("a")
    desk.do(e.ClientSaid(CLIENT, m.Kill((TaskId("a"),))))
    assert answers(desk.do(e.PeerLost(W1, "died")))[0].outcome == Killed()


def test_the_calls_of_a_client_that_says_goodbye_are_stopped_and_forgotten() -> None:
    desk = Desk()
    desk.worker(cores=1)
    for task in ("a", "b", "c"):
        desk.submit(task)
    desk.ended("a")
    desk.started("b")
    out = desk.do(e.ClientSaid(CLIENT, m.Goodbye()))
    assert told(out) == [m.KillCall(TaskId("b"), 1)] and c.ForgetSession("s") in out
    assert desk.ended("b", Killed()) == [c.ForgetTask(TaskId("b"))]
    assert not desk.core.calls.tasks


def test_a_silent_client_has_time_to_come_back_and_misses_nothing() -> None:
    desk = Desk()
    desk.worker()
    desk.submit("s-1")
    desk.do(e.PeerLost(CLIENT, "silent"))
    assert not answers(desk.ended("s-1"))
    assert answers(desk.client(OTHER))[0].task == "s-1"
    desk.do(e.PeerLost(OTHER, "silent"))
    desk.now = desk.core.deadline() or 0.0
    assert c.ForgetTask(TaskId("s-1")) in desk.do(e.Ticked())


def test_the_client_whose_process_is_dead_is_not_waited_for_unless_its_session_has_a_name() -> None:
    desk = Desk()
    desk.client(OTHER, "s2", "thesis")
    desk.submit("a")
    desk.submit("b", peer=OTHER)
    assert c.ForgetTask(TaskId("a")) in desk.do(e.PeerLost(CLIENT, "its process ended", sure=True))
    desk.do(e.PeerLost(OTHER, "its process ended", sure=True))
    assert isinstance(desk.state("b"), Ready)
    desk.worker()
    desk.ended("b")
    assert answers(desk.client(PeerId(3), "s3", "thesis"))[0].task == "b"


# ---------------------------------------------------------------- sizes and places


def test_a_call_larger_than_any_worker_waits_and_its_client_is_told_once() -> None:
    desk = Desk()
    desk.worker(memory=4 * GB)
    (text,) = notices(desk.submit("a", Request(memory=64 * GB, disk=0)))
    assert "64.0 GB" in text and "worker11" in text and "4.0 GB" in text
    assert not notices(desk.submit("b", Request(memory=64 * GB, disk=0)))
    assert runs(desk.worker(W2, memory=70 * GB)) == [("a", 1, W2)]


def test_as_many_calls_of_an_unseen_category_run_at_once_as_there_are_cores() -> None:
    """At a share of the node each: with what is kept free for growth, and no rounding in the way."""
    for cores in (1, 2, 3, 7, 16):
        desk = Desk()
        core = desk.core = ManagerCore({r: make("auto", r) for r in ("memory", "disk")})
        desk.client()
        desk.declare()
        desk.do(e.EnvironmentBuilt(ENV, TARBALL, 1000, "3.11.7", "x86_64", "glibc 2.31"))
        desk.worker(cores=cores, memory=cores * 2 * GB + 12345, disk=cores * 3 * GB + 777)
        for n in range(cores + 1):
            desk.submit(f"a{n}", Request())
        assert len(core.workers[W1].running) == cores


def test_a_tenth_of_what_calls_of_unknown_growth_hold_is_kept_free_for_them() -> None:
    desk = Desk()
    desk.worker(cores=8, memory=4 * GB)
    for n in range(8):
        desk.submit(f"a{n}", Request(disk=0))
    assert len(desk.core.workers[W1].running) == 3
    other = Desk()
    other.worker(cores=8, memory=4 * GB)
    for n in range(8):
        other.submit(f"a{n}")
    assert len(other.core.workers[W1].running) == 4  # a user's own limits do not grow


class Foretelling(Constant):
    """Gives 1 GB, and foresees seven."""

    def expected(self, category: str, input_bytes: float, at_least: float) -> float | None:
        return max(7.0 * GB, at_least)


def test_a_third_of_the_growth_that_is_foreseen_is_kept_free() -> None:
    desk = Desk()
    desk.core = ManagerCore({"memory": Foretelling(GB), "disk": Constant(GB)})
    desk.client()
    desk.declare()
    desk.do(e.EnvironmentBuilt(ENV, TARBALL, 1000, "3.11.7", "x86_64", "glibc 2.31"))
    desk.worker(cores=16, memory=12 * GB)
    desk.submit("first", Request(disk=0))
    desk.do(e.WorkerSaid(W1, m.CallEnded(
        TaskId("first"), 1, Returned(Inline(b"")), Usage(wall_s=10, memory=GB, memory_by="cgroup"))))
    for n in range(16):
        desk.submit(f"a{n}", Request(disk=0))
    worker = desk.core.workers[W1]
    held = desk.core.calls.tasks[TaskId("a0")].state
    assert isinstance(held, Placed) and held.allocation.memory <= GB + (1 << 20)
    assert len(worker.running) == 3 and worker.promised <= worker.memory


def test_gpus_are_given_by_name_and_taken_back() -> None:
    desk = Desk()
    desk.worker(cores=4, gpus=("GPU-a", "GPU-b"))
    wanted = Request(cores=1, memory=GB, disk=0, gpus=1)
    given = [x.gpu_devices for t in "abc" for x in told(desk.submit(t, wanted)) if isinstance(x, m.Run)]
    assert given == [("GPU-a",), ("GPU-b",)]
    assert [x.gpu_devices for x in told(desk.ended("a")) if isinstance(x, m.Run)] == [("GPU-a",)]


def test_fractions_of_cores_add_up() -> None:
    desk = Desk()
    desk.worker(cores=1)
    for n in range(11):
        desk.submit(f"t{n}", Request(cores=0.1, memory=1000, disk=0))
    assert len(desk.core.workers[W1].running) == 10


def test_a_long_call_does_not_go_where_the_time_is_too_short() -> None:
    desk = Desk()
    desk.worker(wall_time=60)
    assert not runs(desk.submit("a", Request(cores=1, memory=GB, disk=0, wall_time=3600)))
    assert runs(desk.submit("b", Request(cores=1, memory=GB, disk=0, wall_time=30)))
    assert runs(desk.worker(W2)) == [("a", 1, W2)]


def test_a_worker_that_has_the_environment_is_preferred() -> None:
    desk = Desk()
    desk.worker(W1, memory=4 * GB, cores=4)
    desk.submit("a")
    desk.worker(W2, memory=64 * GB, cores=4)
    assert runs(desk.submit("b")) == [("b", 1, W1)]


def test_nodes_too_old_for_the_environment_are_left_out() -> None:
    desk = Desk()
    desk.worker(W1, libc="glibc 2.17")
    (finished,) = answers(desk.submit("a"))
    assert isinstance(finished.outcome, Impossible) and "glibc 2.31" in finished.outcome.reason
    desk.worker(W2)
    assert runs(desk.submit("b")) == [("b", 1, W2)]


def test_clients_hear_how_far_an_environment_is_on_its_way_to_workers() -> None:
    desk = Desk()
    desk.client(OTHER, "another")  # which has nothing to do with it
    desk.worker(W1)
    desk.worker(W2)
    desk.submit("s-1")

    def told(stage: str, done: int = 0, total: int = 0, text: str = "") -> c.Command:
        return c.TellClient(CLIENT, m.EnvironmentProgress(ENV, "numpy", stage, done, total, text))

    def say(worker: PeerId, stage: str, done: int) -> list[c.Command]:
        return desk.do(e.WorkerSaid(worker, m.EnvironmentComing(TARBALL, stage, done, 1000)))

    assert say(W1, "send", 100) == [told("send", 100, 1000, "sent to 1 worker")]
    assert say(W2, "send", 200) == []  # a moment ago they heard
    assert "is being sent there: 100 B of 1.0 kB" in explain(desk.core, desk.core.calls.tasks[TaskId("s-1")], desk.now)
    desk.now += 5
    assert say(W2, "send", 300) == [told("send", 400, 2000, "sent to 2 workers")]
    desk.now += 5
    assert say(W1, "unpack", 500) == [told("send", 300, 1000, "sent to 1 worker")]
    assert desk.do(e.WorkerSaid(W2, m.EnvironmentReady(TARBALL, 1.0))) == []
    desk.now += 5
    assert say(W1, "unpack", 600) == [told("unpack", 600, 1000, "unpacked on 1 worker")]
    (row,) = environment_rows(desk)
    assert row == [{"worker": "worker11", "stage": "unpack", "done": 600, "total": 1000}]
    assert told("unpacked") in desk.do(e.PeerLost(W1, "it died"))
    assert environment_rows(desk) == [[]]


def environment_rows(desk: Desk) -> list[object]:
    asked = query.answer(desk.core, {}, "environments", {}, desk.now)
    return [row["coming"] for row in asked["environments"]]


def test_an_environment_that_no_worker_can_use_fails_its_calls() -> None:
    desk = Desk()
    desk.worker(cores=1)
    for task in ("a", "b"):
        desk.submit(task)
    desk.do(e.WorkerSaid(W1, m.EnvironmentUnusable(TARBALL, "disk full")))
    done = answers(desk.ended("a", Lost("disk full", started=False)))
    assert {f.task for f in done} | set(desk.core.calls.tasks) >= {"a", "b"}
    assert all(isinstance(desk.state(t), Failed) for t in ("a", "b"))


def test_clients_share_fairly_whoever_came_first() -> None:
    desk = Desk()
    desk.client(OTHER, "s2")
    desk.worker(cores=2)
    for n in range(20):
        desk.submit(f"a{n}")
    desk.submit("b0", peer=OTHER)
    assert runs(desk.ended("a0")) == [("b0", 1, W1)]


def test_priority_and_repeated_calls_go_first() -> None:
    desk = Desk()
    desk.worker(cores=1)
    for task, priority in (("a", 0.0), ("low", -1.0), ("b", 0.0), ("high", 5.0)):
        desk.submit(task, priority=priority)
    order = ["a"]
    out = desk.ended("a", Lost("x"))
    attempt = {"a": 1}
    while placed := runs(out):
        task, number, _ = placed[0]
        attempt[task] = number
        order.append(task)
        out = desk.ended(task, VALUE, number)
    assert order == ["a", "high", "a", "b", "low"]


def test_a_category_without_a_result_is_probed_first_while_other_work_is_ready() -> None:
    desk = Desk()
    desk.worker(cores=1)
    desk.submit("known0", category="known")
    desk.ended("known0")
    desk.worker(W2, cores=4)
    for n in range(3):
        desk.submit(f"known{n + 1}", Request(cores=4, memory=GB, disk=0), category="known")
    for n in range(5):
        desk.submit(f"new{n}", category="new")
    desk.submit("known9", category="known")
    placed = [t for t in desk.core.calls.tasks if desk.where(t) is not None]
    assert sum(t.startswith("new") for t in placed) <= 2 or "known9" in placed


def test_a_large_call_that_small_ones_keep_passing_gets_a_worker_reserved() -> None:
    desk = Desk(Policy(patience=30))
    desk.worker(cores=4)
    for n in range(4):
        desk.submit(f"s{n}")
    desk.submit("large", Request(cores=4, memory=GB, disk=0))
    for n in range(4, 40):
        desk.submit(f"s{n}")
    done = 0
    while desk.where("large") is None and done < 30:
        desk.now += 10.0
        running = next(t for t in desk.core.workers[W1].running)
        desk.ended(running, VALUE, 1)
        done += 1
    assert 3 <= done <= 12


def test_short_calls_are_sent_ahead_of_their_room_unless_others_are_first() -> None:
    desk = Desk(Policy(ahead=2, ahead_s=10.0))
    desk.worker(cores=1)
    for n in range(9):
        desk.submit(f"s{n}")
    desk.now = 1.0
    assert [task for task, _, _ in runs(desk.ended("s0"))] == ["s1", "s2", "s3"]  # seen to be short
    assert [task for task, _, _ in runs(desk.ended("s1"))] == ["s4"]
    assert runs(desk.ended("s4", Lost("there was no room for it", started=False))) == []
    assert isinstance(desk.state("s4"), Ready) and desk.core.calls.tasks[TaskId("s4")].attempts == ()
    assert runs(desk.ended("s3", Lost("there was no room for it", started=False))) == []  # not before one has ended
    desk.client(PeerId(2), "other")
    desk.submit("first", Request(cores=1, memory=2 * GB, disk=0), PeerId(2), category="unknown")
    assert runs(desk.ended("s2"))[0] == ("first", 1, W1)  # whose client has fewer


def test_draining_workers_take_no_more() -> None:
    desk = Desk()
    desk.worker()
    assert told(desk.do(e.DrainAsked(W1, "because"))) == [m.Drain("because")]
    assert not runs(desk.submit("a"))
    assert runs(desk.worker(W2)) == [("a", 1, W2)]


def test_a_worker_that_only_loses_calls_is_set_aside_and_named() -> None:
    desk = Desk(Policy(failures_before_aside=3))
    desk.worker()
    desk.submit("a")
    for attempt in (1, 2, 3):
        out = desk.ended("a", Lost("broken", started=False), attempt)
    assert "set aside" in notices(out)[0] and not runs(out)


# ---------------------------------------------------------------- coming back


def test_a_worker_given_up_too_early_brings_back_what_still_runs() -> None:
    desk = Desk()
    desk.worker(session="w")
    desk.submit("a")
    desk.submit("b")
    desk.started("a")
    desk.do(e.PeerLost(W1, "silent"))
    held = Resources(1.0, GB, 0, 0, None)
    out = desk.worker(W2, session="w", running=(m.Running(TaskId("a"), 1, held), m.Running(TaskId("z"), 1, held)))
    assert m.KillCall(TaskId("z"), 1) in told(out) and runs(out) == [("b", 2, W2)]
    (finished,) = answers(desk.ended("a", VALUE, 1, W2))
    assert len(finished.attempts) == 1


def recovered(worker: str = "w", attempt: int = 1, finished: m.Finished | None = None) -> e.Recovered:
    hello = m.ClientHello("s", "me", "here", 1)
    submit = m.Submit(TaskId("a"), FUNCTION, Inline(b"x"), ASKED)
    return e.Recovered(
        (m.DeclareEnvironment(ENV, Inline(b"{}"), "numpy"),),
        (m.DeclareFunction(FUNCTION, "mod.f", "mod.f", ENV, Inline(b"code"), None, ()),),
        (e.SavedSession("s", hello, (e.SavedTask(submit, attempt, worker, finished),)),),
    )


def test_after_a_restart_a_running_call_goes_on_running() -> None:
    desk = Desk(environment=False)
    desk.do(recovered())
    assert isinstance(desk.state("a"), Adrift)
    desk.do(e.EnvironmentBuilt(ENV, TARBALL, 1000, "3.11.7", "x86_64", "glibc 2.31"))
    assert not runs(desk.worker(W2))
    out = desk.worker(W1, session="w", running=(m.Running(TaskId("a"), 1, Resources(1.0, GB)),))
    assert not runs(out)
    desk.client()
    assert answers(desk.ended("a"))[0].outcome == VALUE


@pytest.mark.parametrize("comes_back", [True, False])
def test_after_a_restart_a_call_whose_worker_lost_it_runs_again(comes_back: bool) -> None:
    desk = Desk(environment=False)
    assert c.BuildEnvironment(ENV, Inline(b"{}")) in desk.do(recovered())
    desk.do(e.EnvironmentBuilt(ENV, TARBALL, 1000, "3.11.7", "x86_64", "glibc 2.31"))
    if comes_back:
        assert runs(desk.worker(W1, session="w")) == [("a", 2, W1)]
    else:
        desk.worker(W2)
        desk.now = desk.core.deadline() or 0.0
        assert runs(desk.do(e.Ticked())) == [("a", 2, W2)]


def test_after_a_restart_a_finished_call_is_answered_and_not_run() -> None:
    desk = Desk(environment=False)
    desk.do(recovered(finished=m.Finished(TaskId("a"), VALUE, None, None, ())))
    desk.worker()
    (finished,) = answers(desk.client())
    assert finished.outcome == VALUE


# ---------------------------------------------------------------- the books themselves


def test_an_edge_that_is_not_in_the_table_raises_and_tells_the_story() -> None:
    desk = Desk()
    desk.worker()
    desk.submit("a")
    task = desk.core.calls.tasks[TaskId("a")]
    with pytest.raises(IllegalTransition, match="a: Placed"):
        task.become(Adrift("w", 1, 0.0))


def test_every_edge_says_why() -> None:
    assert all(why for why in EDGES.values())


def test_joining_a_blocked_queue_looks_at_no_worker() -> None:
    """The cost of an event does not grow with what waits: nobody is asked for room that is known not to be there."""
    desk = Desk()
    desk.worker(cores=1)
    desk.submit("a")
    desk.submit("b")
    asked = 0
    worker = desk.core.workers[W1]

    class Counting(Worker):
        __slots__ = ()

        def fits(self, demand: Demand, now: float) -> bool:
            nonlocal asked
            asked += 1
            return Worker.fits(self, demand, now)

    worker.__class__ = Counting
    for n in range(100):
        desk.core.handle(e.ClientSaid(CLIENT, m.Submit(TaskId(f"c{n}"), FUNCTION, Inline(b"x"), ASKED)), 0.0)
    assert asked == 0


# ---------------------------------------------------------------- what users choose


def test_a_call_goes_to_a_worker_that_has_its_labels() -> None:
    desk = Desk()
    desk.worker(W1)
    north = Request(cores=1, memory=GB, disk=0, labels=(("site", "north"),))
    (text,) = notices(desk.submit("a", north))
    assert "label site=north" in text and "none" in text
    assert runs(desk.submit("b")) == [("b", 1, W1)]  # the other is not in its way
    assert runs(desk.worker(W2, labels={"site": "south"})) == []
    assert runs(desk.worker(PeerId(13), labels={"site": "north", "disk": "fast"})) == [("a", 1, PeerId(13))]
    east = Demand(1, 0, 0, 0, 0, TARBALL, labels=(("site", "east"),))
    workers, largest = desk.core.workers.values(), desk.core.sizes.largest
    assert "there are site=north, site=south" in too_much(east, workers, largest, desk.now)


def test_a_share_of_the_disk_is_what_the_newest_worker_has_too() -> None:
    """It was found when others were there, which have a little more; without the label they would have taken it."""
    desk = auto()
    desk.worker(W1, cores=1, disk=1000 * GB)
    desk.submit("a", Request(labels=(("site", "north"),)))
    assert runs(desk.worker(W2, cores=1, disk=999 * GB, labels={"site": "north"})) == [("a", 1, W2)]


def test_a_whole_worker_is_any_of_about_that_size() -> None:
    desk = auto()
    desk.worker(W1, cores=4, memory=64 * GB, disk=1000 * GB)
    desk.worker(W2, cores=4, memory=63 * GB, disk=700 * GB)
    desk.worker(PeerId(13), cores=4, memory=8 * GB, disk=1000 * GB)
    for task in "abc":
        desk.submit(task, Request(strategy="whole-worker"))
    assert {desk.where("a"), desk.where("b"), desk.where("c")} == {W1, W2, None}


def auto(**more: object) -> Desk:
    """With the real sizers."""
    desk = Desk()
    desk.core = ManagerCore({r: make("auto", r) for r in ("memory", "disk", "cores")}, **more)  # type: ignore[arg-type]
    desk.client()
    desk.declare()
    desk.do(e.EnvironmentBuilt(ENV, TARBALL, 1000, "3.11.7", "x86_64", "glibc 2.31"))
    return desk


def given_(desk: Desk, task: str) -> Resources:
    state = desk.state(task)
    assert isinstance(state, Placed)
    return state.allocation


def over(desk: Desk, task: str, memory: int, cores: float = 0.5) -> list[c.Command]:
    usage = Usage(wall_s=10.0, cpu_s=10 * cores, cores=cores, memory=memory, memory_by="cgroup")
    return desk.do(e.WorkerSaid(W1, m.CallEnded(TaskId(task), 1, VALUE, usage)))


def test_what_is_expected_sizes_the_first_calls_and_may_be_exceeded() -> None:
    desk = auto()
    desk.worker(cores=8, memory=64 * GB)
    hopeful = Request(disk=0, expect=Expected(memory=20 * GB, cores=4, wall_time=60))
    out = desk.submit("a", hopeful)
    assert (given_(desk, "a").memory, given_(desk, "a").cores) == (20 * GB // (1 << 20) * (1 << 20), 4)
    assert [x.growth for x in told(out) if isinstance(x, m.Run)] == [64 * GB]
    over(desk, "a", 30 * GB)
    desk.submit("b", hopeful)
    assert given_(desk, "b").memory > 30 * GB  # what was seen is believed


def test_what_is_expected_is_no_limit() -> None:
    desk = auto()
    desk.worker(cores=8, memory=64 * GB)
    desk.submit("a", Request(disk=0, expect=Expected(memory=2 * GB)))
    desk.ended("a", Exhausted("memory", 2 * GB, 2 * GB, 1.0), memory=2 * GB)
    assert given_(desk, "a").memory >= 2.1 * GB


def test_a_strategy_is_chosen_for_a_call_a_category_or_the_run() -> None:
    desk = auto()
    desk.worker(cores=8, memory=64 * GB)
    desk.submit("a", Request(disk=0))
    assert given_(desk, "a").memory < 32 * GB
    over(desk, "a", 3 * GB)
    desk.submit("b", Request(disk=0, strategy="max-seen"))  # chosen late: it knows what was seen before
    assert 3 * GB <= given_(desk, "b").memory < 3.5 * GB
    over(desk, "b", 3 * GB)
    desk.submit("c", Request(disk=0, strategy="whole-worker"))
    assert given_(desk, "c").memory == 64 * GB
    over(desk, "c", 3 * GB)
    desk.submit("d", Request(disk=0, strategy="of a newer client"))
    assert given_(desk, "d").memory < 32 * GB

    chosen = auto(chosen={"mod.f": "whole-worker"})
    chosen.worker(cores=8, memory=64 * GB)
    chosen.submit("a", Request(disk=0))
    assert given_(chosen, "a").memory == 64 * GB


def test_a_call_that_made_room_runs_again_with_what_it_had() -> None:
    desk = auto()
    desk.worker(cores=8, memory=64 * GB)
    desk.submit("a", Request(disk=0))
    had = given_(desk, "a").memory
    (again,) = runs(desk.ended("a", Exhausted("memory", had, had // 2, 1.0), memory=had // 2))
    assert again == ("a", 2, W1) and given_(desk, "a").memory == had
    desk.ended("a", Exhausted("memory", had, had + 5, 1.0), attempt=2, memory=had + 5)
    grown = given_(desk, "a").memory
    assert grown > had
    desk.ended("a", Exhausted("memory", grown, grown // 2, 1.0), attempt=3)  # no worker says so of a third attempt
    assert given_(desk, "a").memory > grown


def test_fixed_is_what_is_expected_and_does_not_grow() -> None:
    desk = auto()
    desk.worker(cores=8, memory=64 * GB)
    out = desk.submit("a", Request(disk=0, strategy="fixed", expect=Expected(memory=4 << 30)))
    assert given_(desk, "a").memory == 4 << 30
    assert [x.growth for x in told(out) if isinstance(x, m.Run)] == [0]
    (answer,) = answers(desk.ended("a", Exhausted("memory", 4 << 30, 4 << 30, 1.0)))
    assert isinstance(answer.outcome, Exhausted)


def test_calls_that_keep_several_cores_busy_get_as_many() -> None:
    desk = auto()
    desk.worker(cores=8, memory=64 * GB)
    for n, cores in enumerate((0.9, 3.6, 3.8, 3.7)):
        desk.submit(f"a{n}", Request(disk=0))
        if n == 1:
            assert given_(desk, "a1").cores == 1
        over(desk, f"a{n}", GB, cores)
    desk.submit("b", Request(disk=0))
    assert given_(desk, "b").cores == 4
    desk.submit("c", Request(disk=0, cores=1))
    assert given_(desk, "c").cores == 1


@pytest.mark.parametrize("asked", [Request(memory=16 * GB, disk=0), Request(disk=0, expect=Expected(memory=16 * GB))])
def test_who_asks_five_times_too_much_is_told_once(asked: Request) -> None:
    desk = auto()
    desk.worker(cores=8, memory=64 * GB)
    said = []
    for n in range(30):
        desk.submit(f"a{n}", asked)
        said += notices(over(desk, f"a{n}", 2 * GB))
    (text,) = said
    assert "8 times" in text and "memory='2.5GB'" in text and "16GB" in text


def test_who_asks_about_right_is_told_nothing() -> None:
    desk = auto()
    desk.worker(cores=8, memory=64 * GB)
    for n in range(30):
        desk.submit(f"a{n}", Request(memory=8 * GB, disk=0))
        assert not notices(over(desk, f"a{n}", 2 * GB))


def test_a_worker_that_shrinks_keeps_what_runs_and_is_given_no_more_than_it_has() -> None:
    desk = Desk()
    desk.worker(cores=4, memory=4 * GB)
    for task in "abcd":
        desk.submit(task)
    desk.submit("e")
    desk.do(e.WorkerSaid(W1, m.OfferChanged(Resources(2, 2 * GB, 0))))
    worker = desk.core.workers[W1]
    assert len(worker.running) == 4 and worker.free_memory == -2 * GB
    assert not runs(desk.ended("a")) and not runs(desk.ended("b"))
    assert runs(desk.ended("c")) == [("e", 1, W1)]
    (text,) = notices(desk.submit("large", Request(cores=3, memory=GB, disk=0)))
    assert "3 cores" in text
    desk.do(e.WorkerSaid(W1, m.OfferChanged(Resources(4, 4 * GB, 0))))
    assert runs(desk.ended("d")) == [("large", 1, W1)]


def test_what_a_manager_lost_of_a_calls_arguments_it_asks_for_again() -> None:
    large = Blob(Digest("a" * 64), 10**6)
    desk = Desk(environment=False)
    saved = e.SavedTask(m.Submit(TaskId("s-1"), FUNCTION, large, ASKED), 0, "", None)
    declared = m.DeclareEnvironment(ENV, PLAN, "numpy"), m.DeclareFunction(FUNCTION, "mod.f", "mod.f", ENV, CODE, None, ())
    hello = m.ClientHello("s", "me", "here", 1)
    desk.do(e.Recovered(declared[:1], declared[1:], (e.SavedSession("s", hello, (saved,)),)))
    desk.client()
    assert c.GetBlob(CLIENT, large.digest, large.size) in desk.do(e.ClientSaid(CLIENT, saved.submit))


def test_a_blob_that_nobody_needed_at_a_restart_is_asked_for_when_somebody_does() -> None:
    put = Blob(Digest("a" * 64), 10**6)
    desk = Desk(environment=False)
    desk.do(e.Recovered((), (), (), (put.digest,)))  # what nobody needs is removed then
    desk.client()
    desk.declare()
    assert c.GetBlob(CLIENT, put.digest, put.size) in desk.submit("s-1", blobs=(put,))
