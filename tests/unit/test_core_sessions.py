"""Sessions that change hands, and failed calls that run again."""

from __future__ import annotations

from lfm.protocol import messages as m
from lfm.protocol.ids import Digest, EnvironmentKey, FunctionId, PeerId, TaskId
from lfm.protocol.outcomes import Blob, Cancelled, Impossible, Inline, Outcome, Raised, Returned
from lfm.protocol.resources import Request, Resources
from lfm_manager.core import commands as c
from lfm_manager.core import events as e
from lfm_manager.core.check import check
from lfm_manager.core.manager import ManagerCore
from lfm_manager.core.past import Past
from lfm_manager.core.policy import Policy
from lfm_manager.core.tasks import Done, Failed, Placed, Ready, Waiting
from lfm_manager.shell.explain import explain
from lfm_manager.sizing import make

A, B, WORKER = PeerId(1), PeerId(2), PeerId(9)
ENV, FUNCTION, TARBALL = EnvironmentKey("env"), FunctionId("f"), Digest("t" * 64)
SMALL = Inline(b"x")
WRONG = Raised(Inline(b"pickled"), "ValueError", "no", "at line 1")
GB = 10**9
DAY = 86400.0


class Desk:
    def __init__(self, policy: Policy | None = None) -> None:
        policy = policy or Policy(client_grace=300.0, retention=7 * DAY)
        self.core = ManagerCore({r: make("auto", r) for r in ("memory", "disk")}, policy)
        self.now = 0.0
        self.attempts: dict[str, int] = {}

    def do(self, event: e.Event) -> list[c.Command]:
        out = self.core.handle(event, self.now)
        check(self.core, self.now)
        return out

    def client(self, peer: PeerId, session: str, name: str | None = "thesis") -> list[m.Message]:
        return told(self.do(e.ClientJoined(peer, m.ClientHello(session, "me", f"host-{session}", 1, name))), peer)

    def ready(self, name: str | None = "thesis") -> Desk:
        self.client(A, "a", name)
        self.do(e.ClientSaid(A, m.DeclareEnvironment(ENV, Inline(b"{}"), "numpy")))
        self.do(e.ClientSaid(A, m.DeclareFunction(FUNCTION, "mod.f", "mod.f", ENV, Inline(b"code"), None, ())))
        self.do(e.EnvironmentBuilt(ENV, TARBALL, 1000, "3.11.7", "x86_64", "glibc 2.31"))
        return self

    def submit(self, task: str, arguments: m.Payload = SMALL) -> None:
        self.do(e.ClientSaid(A, m.Submit(TaskId(task), FUNCTION, arguments, Request(cores=1, memory=GB, disk=0))))

    def worker(self) -> None:
        self.do(e.WorkerJoined(WORKER, m.WorkerHello("w", "w1", "node", 1, Resources(4, 16 * GB, 16 * GB))))

    def end(self, task: str, outcome: Outcome) -> list[c.Command]:
        state = self.core.calls.tasks[TaskId(task)].state
        assert isinstance(state, Placed)
        return self.do(e.WorkerSaid(WORKER, m.CallEnded(TaskId(task), state.attempt, outcome, None, b"said", b"")))

    def tasks(self) -> list[str]:
        return list(self.core.calls.tasks)


def told(commands: list[c.Command], peer: PeerId) -> list[m.Message]:
    return [one.message for one in commands if isinstance(one, c.TellClient) and one.peer == peer]


def test_a_named_session_is_found_again_by_another_client_with_all_its_calls() -> None:
    desk = Desk().ready()
    desk.worker()
    for task in ("a-1", "a-2"):
        desk.submit(task)
        desk.do(e.WorkerSaid(WORKER, m.CallStarted(TaskId(task), 1)))
    desk.end("a-1", Returned(Inline(b"1")))
    desk.do(e.PeerLost(A, "its process ended", sure=True))
    desk.now += 6 * DAY
    desk.do(e.Ticked())
    heard = desk.client(B, "b")
    yours = [said for said in heard if isinstance(said, m.Yours)]
    assert yours == [m.Yours(TaskId("a-1"), "mod.f", ENV), m.Yours(TaskId("a-2"), "mod.f", ENV)]
    assert [said.task for said in heard if isinstance(said, m.Finished)] == ["a-1"]
    assert told(desk.end("a-2", Returned(Inline(b"2"))), B)[0].task == "a-2"  # type: ignore[union-attr]
    desk.do(e.ClientSaid(B, m.Release((TaskId("a-1"), TaskId("a-2")))))
    assert desk.tasks() == []


def test_nobody_comes_back_for_it() -> None:
    desk = Desk().ready()
    desk.submit("a-1")
    desk.do(e.PeerLost(A, "its process ended", sure=True))
    desk.now += 8 * DAY
    assert c.ForgetSession("me/thesis") in desk.do(e.Ticked()) and desk.tasks() == []


def test_a_named_session_without_calls_ends_with_its_client() -> None:
    desk = Desk().ready()
    assert c.ForgetSession("me/thesis") in desk.do(e.PeerLost(A, "goodbye", sure=True, goodbye=True))


def test_the_second_client_takes_the_session_over_and_the_first_is_told_also_when_it_comes_back() -> None:
    desk = Desk().ready()
    desk.submit("a-1")
    out = desk.do(e.ClientJoined(B, m.ClientHello("b", "me", "laptop", 7, "thesis")))
    assert told(out, A) == [m.SessionTaken("laptop", 7)]
    assert m.Yours(TaskId("a-1"), "mod.f", ENV) in told(out, B)
    assert desk.do(e.ClientSaid(A, m.Kill((TaskId("a-1"),)))) == []  # not its own any more
    desk.do(e.PeerLost(A, "goodbye", sure=True, goodbye=True))
    assert desk.client(PeerId(3), "a") == [m.SessionTaken("laptop", 7)]
    assert desk.core.clients.sessions["me/thesis"].peer == B


def test_who_comes_back_from_a_cut_is_not_told_of_its_own() -> None:
    desk = Desk().ready()
    desk.submit("a-1")
    assert not [said for said in desk.client(B, "a") if isinstance(said, m.Yours | m.SessionTaken)]


BLOB = Blob(Digest("b" * 64), 10**6)


def test_who_was_cut_off_for_longer_than_its_lease_brings_what_its_calls_wait_for() -> None:
    desk = Desk().ready(name=None)
    desk.worker()
    desk.submit("a-1", BLOB)
    desk.do(e.PeerLost(A, "silent for 60 s"))
    assert isinstance(desk.core.calls.tasks[TaskId("a-1")].state, Waiting)
    assert "not here" in explain(desk.core, desk.core.calls.tasks[TaskId("a-1")], desk.now)
    desk.client(B, "a", None)
    out = desk.do(e.ClientSaid(B, m.Submit(TaskId("a-1"), FUNCTION, BLOB, Request(cores=1, memory=GB, disk=0))))
    assert out == [c.GetBlob(B, BLOB.digest, BLOB.size)]
    desk.do(e.BlobStored(BLOB.digest))
    assert isinstance(desk.core.calls.tasks[TaskId("a-1")].state, Placed)


def test_what_only_the_client_before_had_is_given_up_once_another_has_its_session() -> None:
    desk = Desk().ready()
    desk.submit("a-1", BLOB)
    desk.submit("a-2")
    desk.do(e.PeerLost(A, "silent for 60 s"))
    desk.now += DAY  # nobody is there to be told
    desk.do(e.Ticked())
    assert isinstance(desk.core.calls.tasks[TaskId("a-1")].state, Waiting)
    desk.client(B, "b")
    due = desk.core.deadline()
    assert due is not None and due <= desk.now + 200
    desk.now = due
    (finished,) = told(desk.do(e.Ticked()), B)
    assert isinstance(finished, m.Finished) and isinstance(finished.outcome, Impossible)
    assert "an argument was with the client that submitted it (process 1 on host-a)" in finished.outcome.reason
    assert not isinstance(desk.core.calls.tasks[TaskId("a-2")].state, Failed)


def test_who_is_followed_while_its_argument_is_on_its_way_is_not_waited_for_for_ever() -> None:
    desk = Desk().ready()
    desk.submit("a-1", BLOB)
    desk.client(B, "b")
    desk.do(e.PeerLost(A, "goodbye", goodbye=True))  # it was told that another has its session
    desk.now += 200
    (finished,) = told(desk.do(e.Ticked()), B)
    assert isinstance(finished, m.Finished) and isinstance(finished.outcome, Impossible)


def test_who_leaves_is_told_what_still_needs_it() -> None:
    desk = Desk().ready()
    desk.submit("a-1", Blob(Digest("b" * 64), 10**6))
    desk.submit("a-2")
    assert isinstance(desk.core.calls.tasks[TaskId("a-1")].state, Waiting)
    assert desk.core.clients.needed(A) == 1 and desk.core.clients.needed(B) == 0
    desk.do(e.BlobStored(Digest("b" * 64)))
    assert desk.core.clients.needed(A) == 0


def test_a_failed_call_runs_again_under_another_name() -> None:
    desk = Desk().ready(name=None)
    desk.worker()
    desk.submit("a-1", Blob(Digest("b" * 64), 10**6))
    desk.do(e.BlobStored(Digest("b" * 64)))
    desk.end("a-1", WRONG)
    desk.do(e.ClientSaid(A, m.Release((TaskId("a-1"),))))
    past = desk.core.calls.past
    assert past.calls[TaskId("a-1")].state == "failed" and past.printed(TaskId("a-1")) == (b"said", b"")
    heard = told(desk.do(e.RetryAsked(TaskId("a-1"))), A)
    assert heard == [m.Yours(TaskId("a-1.1"), "mod.f", ENV)]
    assert isinstance(desk.core.calls.tasks[TaskId("a-1.1")].state, Placed)
    assert desk.core.clients.why_not_again(TaskId("a-1")) == "its arguments are not kept any more"  # not twice
    desk.end("a-1.1", WRONG)
    desk.do(e.RetryAsked(TaskId("a-1.1")))
    desk.end("a-1.2", Returned(Inline(b"1")))
    assert isinstance(desk.core.calls.tasks[TaskId("a-1.2")].state, Done)
    assert desk.core.clients.why_not_again(TaskId("a-1.2")) == "it has not failed"
    assert desk.core.clients.why_not_again(TaskId("nobody")) == "it is not remembered any more"


def test_nobody_is_there_for_the_call_that_runs_again() -> None:
    desk = Desk().ready()
    desk.worker()
    desk.submit("a-1")
    desk.do(e.PeerLost(A, "its process ended", sure=True))
    desk.end("a-1", WRONG)
    desk.do(e.RetryAsked(TaskId("a-1")))
    assert desk.tasks() == ["a-1.1"]  # who comes back finds the new one instead
    heard = desk.client(B, "b")
    assert m.Yours(TaskId("a-1.1"), "mod.f", ENV) in heard and not [s for s in heard if isinstance(s, m.Finished)]


def test_the_calls_of_a_client_that_is_gone_do_not_run_again() -> None:
    desk = Desk().ready(name=None)
    desk.worker()
    desk.submit("a-1", Blob(Digest("b" * 64), 10**6))
    desk.do(e.BlobStored(Digest("b" * 64)))
    desk.end("a-1", WRONG)
    desk.do(e.PeerLost(A, "goodbye", sure=True, goodbye=True))
    assert desk.core.clients.why_not_again(TaskId("a-1")) == "its client is gone"
    assert desk.do(e.RetryAsked(TaskId("a-1"))) == [] and not desk.core.blobs.known


def test_the_past_is_bounded() -> None:
    desk = Desk().ready(name=None)
    past = desk.core.calls.past = Past(desk.core.blobs, calls=3)
    for n in range(5):
        desk.submit(f"a-{n}")
        desk.do(e.ClientSaid(A, m.Kill((TaskId(f"a-{n}"),))))
        assert not isinstance(desk.core.calls.tasks[TaskId(f"a-{n}")].state, Ready)
        desk.do(e.ClientSaid(A, m.Release((TaskId(f"a-{n}"),))))
    assert list(past.calls) == ["a-2", "a-3", "a-4"] and past.calls[TaskId("a-2")].outcome == Cancelled()
    desk.submit("a-3")  # given up, and submitted once more
    desk.do(e.ClientSaid(A, m.Kill((TaskId("a-3"),))))
    desk.do(e.ClientSaid(A, m.Release((TaskId("a-3"),))))
    assert list(past.calls) == ["a-2", "a-4", "a-3"] and len(past._order) == 3
    assert past._again_bytes == 3


# ------------------------------------------------------------ what nobody uses any more


def test_functions_and_environments_that_nobody_uses_are_forgotten_the_longest_unused_first() -> None:
    """Not those that are packed, nor what a call still needs that another session left."""
    desk = Desk(Policy(idle=2)).ready(None)
    code, plan = Blob(Digest("c" * 64), 10**6), Blob(Digest("p" * 64), 10**6)
    for n in range(5):
        key = EnvironmentKey(f"e{n}")
        desk.do(e.ClientSaid(A, m.DeclareEnvironment(key, plan.but(digest=Digest(f"{n}" * 64)), "numpy")))
        desk.do(e.ClientSaid(A, m.DeclareFunction(FunctionId(f"f{n}"), "g", "g", key, code, None, ())))
    assert len(desk.core.calls.functions) == len(desk.core.environments.known) == 6
    desk.client(B, "b", None)
    desk.do(e.ClientSaid(B, m.Submit(TaskId("b-1"), FUNCTION, SMALL, Request(cores=1, memory=GB, disk=0))))
    out = desk.do(e.PeerLost(A, "goodbye", sure=True, goodbye=True))
    assert FUNCTION in desk.core.calls.functions and len(desk.core.calls.functions) == 3
    known = desk.core.environments.known
    assert ENV in known and {f.environment.key for f in desk.core.calls.functions.values()} <= known.keys() and len(known) <= 5
    gone = {command.id for command in out if isinstance(command, c.ForgetDeclared)}
    assert gone == {f"f{n}" for n in range(5)} - desk.core.calls.functions.keys() | {f"e{n}" for n in range(5)} - known.keys()
    desk.client(PeerId(3), "c", None)  # who comes and says it again is served
    desk.do(e.ClientSaid(PeerId(3), m.DeclareEnvironment(EnvironmentKey("e0"), Inline(b"{}"), "numpy")))
    desk.do(e.ClientSaid(PeerId(3), m.DeclareFunction(FunctionId("f0"), "g", "g", EnvironmentKey("e0"), SMALL, None, ())))
    desk.do(e.ClientSaid(PeerId(3), m.Submit(TaskId("c-1"), FunctionId("f0"), SMALL, Request(cores=1, memory=GB, disk=0))))
    assert isinstance(desk.core.calls.tasks[TaskId("c-1")].state, Waiting)


def test_a_worker_is_told_which_functions_it_may_forget() -> None:
    desk = Desk(Policy(idle=0)).ready(None)
    desk.worker()
    worker = desk.core.workers[WORKER]
    desk.submit("a-1")
    assert worker.functions == {FUNCTION}
    desk.end("a-1", Returned(SMALL))
    desk.do(e.ClientSaid(A, m.Release((TaskId("a-1"),))))
    out = desk.do(e.PeerLost(A, "goodbye", sure=True, goodbye=True))
    assert c.TellWorker(WORKER, m.ForgetFunction(FUNCTION)) in out and not worker.functions


def test_a_device_that_was_taken_back_while_a_call_had_it_is_still_taken_when_it_is_offered_again() -> None:
    desk = Desk().ready()
    desk.do(e.WorkerJoined(WORKER, m.WorkerHello("w", "w1", "node", 1, Resources(4, 16 * GB, 16 * GB, 1), ("g0",))))
    for task in ("a-1", "a-2"):
        desk.do(e.ClientSaid(A, m.Submit(TaskId(task), FUNCTION, SMALL, Request(cores=1, memory=GB, disk=0, gpus=1))))
    for gpus in (0, 1):
        desk.do(e.WorkerSaid(WORKER, m.OfferChanged(Resources(4, 16 * GB, 16 * GB, gpus), False)))
    assert isinstance(desk.core.calls.tasks[TaskId("a-2")].state, Ready)
    desk.end("a-1", Returned(SMALL))
    assert isinstance(desk.core.calls.tasks[TaskId("a-2")].state, Placed)
