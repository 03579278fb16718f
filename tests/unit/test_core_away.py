"""Environments that only clients can make, because the manager's machine does not see the files: who is asked, when."""

from __future__ import annotations

from lfm.protocol import messages as m
from lfm.protocol.ids import Digest, EnvironmentKey, FunctionId, PeerId, TaskId
from lfm.protocol.outcomes import Blob, Impossible, Inline
from lfm.protocol.resources import Request, Resources
from lfm_manager.core import commands as c
from lfm_manager.core import events as e
from lfm_manager.core.check import check
from lfm_manager.core.functions import Away, Built, Coming, Unbuildable
from lfm_manager.core.manager import ManagerCore
from lfm_manager.sizing import make

A, B, WORKER = PeerId(1), PeerId(2), PeerId(9)
ENV, FUNCTION, PLAN = EnvironmentKey("env"), FunctionId("f"), Inline(b"{}")
TARBALL = Blob(Digest("t" * 64), 5000)
MADE = m.EnvironmentMade(ENV, TARBALL, b"{...}")
NOT_MADE = m.EnvironmentNotMade(ENV, "its disk is full", "", "")
ASKED, KEPT = m.MakeEnvironment(ENV), c.KeepEnvironment(ENV, TARBALL, b"{...}")
UNSEEN = e.EnvironmentOutOfSight(ENV, "/home/me/venv of there is not in sight of here")
BUILT = e.EnvironmentBuilt(ENV, TARBALL.digest, TARBALL.size, "3.11.7", "x86_64", "glibc 2.17")


class Desk:
    """A core with one environment that two clients may declare; the books are checked after every event."""

    def __init__(self, *clients: PeerId, events: tuple[e.Event, ...] = ()) -> None:
        self.core = ManagerCore({"memory": make("auto", "memory"), "disk": make("auto", "disk")})
        self.now = 0.0
        for event in events:
            self.do(event)
        self.do(e.WorkerJoined(WORKER, m.WorkerHello("w", "w", "node", 1, Resources(4, 10**10, 10**10))))
        for client in clients:
            self.join(client)
            self.submit(client)

    def do(self, event: e.Event) -> list[c.Command]:
        out = self.core.handle(event, self.now)
        check(self.core, self.now)
        return out

    def say(self, peer: PeerId, message: object) -> list[c.Command]:
        return self.do(e.ClientSaid(peer, message))  # type: ignore[arg-type]

    def join(self, peer: PeerId, session: str = "") -> None:
        """And say all that a session says first."""
        self.do(e.ClientJoined(peer, m.ClientHello(session or f"s{peer}", "me", "here", peer)))

    def declare(self, peer: PeerId) -> list[c.Command]:
        out = self.say(peer, m.DeclareEnvironment(ENV, PLAN, "numpy"))
        return out + self.say(peer, m.DeclareFunction(FUNCTION, "f", "f", ENV, Inline(b"code"), None, ()))

    def submit(self, peer: PeerId) -> list[c.Command]:
        out = self.declare(peer)
        return out + self.say(peer, m.Submit(TaskId(f"s{peer}-1"), FUNCTION, Inline(b"x"), Request()))

    @property
    def state(self) -> object:
        return self.core.environments.known[ENV].state


def asked(out: list[c.Command]) -> list[PeerId]:
    return [x.peer for x in out if isinstance(x, c.TellClient) and x.message == ASKED]


def refused(out: list[c.Command]) -> list[m.Finished]:
    return [x.message for x in out if isinstance(x, c.TellClient) and isinstance(x.message, m.Finished)]


def runs(out: list[c.Command]) -> int:
    return sum(isinstance(x, c.TellWorker) and isinstance(x.message, m.Run) for x in out)


def test_the_client_makes_it_the_manager_pulls_it_keeps_it_and_goes_on() -> None:
    desk = Desk(A, B)
    assert desk.do(UNSEEN) == [c.TellClient(A, ASKED)]
    step = desk.say(A, m.EnvironmentProgress(ENV, "", "pack", 1, 2, "x"))
    news = m.EnvironmentProgress(ENV, "numpy", "pack", 1, 2, "x")
    assert step == [c.TellClient(A, news), c.TellClient(B, news)]
    assert c.GetBlob(A, TARBALL.digest, TARBALL.size) in desk.say(A, MADE)
    assert desk.do(e.BlobStored(TARBALL.digest)) == [KEPT]
    out = desk.do(BUILT)
    assert c.DropBlob(TARBALL.digest) in out and runs(out) == 2
    assert isinstance(desk.state, Built)


def test_one_is_asked_however_many_declare_it() -> None:
    desk = Desk(A)
    assert asked(desk.do(UNSEEN)) == [A]
    desk.join(B)
    assert asked(desk.submit(B)) == []


def test_what_another_says_who_was_not_asked_counts_for_nothing() -> None:
    desk = Desk(A, B)
    desk.do(UNSEEN)
    assert desk.say(B, MADE) == desk.say(B, NOT_MADE) == []
    assert desk.say(B, m.EnvironmentProgress(ENV, "", "pack", 1, 2)) == []
    assert isinstance(desk.state, Away) and desk.state.peer == A


def test_when_the_one_who_makes_it_dies_another_is_asked() -> None:
    desk = Desk(A, B)
    desk.do(UNSEEN)
    assert asked(desk.do(e.PeerLost(A, "silence", sure=True))) == [B]
    desk.say(B, MADE)
    desk.do(e.BlobStored(TARBALL.digest))
    assert runs(desk.do(BUILT)) == 1


def test_when_it_dies_while_it_sends_another_is_asked() -> None:
    desk = Desk(A, B)
    desk.do(UNSEEN)
    desk.say(A, MADE)
    out = desk.do(e.PeerLost(A, "silence"))
    assert asked(out) == [B] and c.DropBlob(TARBALL.digest) in out
    assert desk.do(e.BlobStored(TARBALL.digest)) == [c.DropBlob(TARBALL.digest)]  # it came all the same: too late


def test_who_cannot_is_not_asked_again_and_when_nobody_can_all_calls_are_told_why() -> None:
    desk = Desk(A, B)
    desk.do(UNSEEN)
    assert asked(desk.say(A, NOT_MADE)) == [B]
    assert asked(desk.declare(A)) == []
    out = desk.say(B, NOT_MADE)
    assert asked(out) == [A]  # it declared it anew: what was in its way may be gone
    out = desk.say(A, NOT_MADE)
    assert [x.outcome for x in refused(out)] == [Impossible("environment", "its disk is full")] * 2
    assert isinstance(desk.state, Unbuildable)


def test_the_calls_of_who_cannot_do_not_wait_for_one_who_died() -> None:
    desk = Desk(A, B)
    desk.do(UNSEEN)
    desk.say(A, NOT_MADE)
    out = desk.do(e.PeerLost(B, "silence"))
    assert [x.task for x in refused(out)] == ["s1-1"]


def test_nobody_is_here_so_it_waits_for_the_client_to_come_back() -> None:
    desk = Desk(A)
    desk.do(UNSEEN)
    desk.do(e.PeerLost(A, "silence"))
    assert isinstance(desk.state, Away) and desk.state.peer is None
    desk.now = 5.0
    desk.join(B, session="s1")
    assert asked(desk.submit(B)) == [B]


def test_after_a_restart_the_clients_are_asked_when_they_come_back() -> None:
    saved = e.SavedTask(m.Submit(TaskId("s1-1"), FUNCTION, Inline(b"x"), Request()), 0, "", None)
    function = m.DeclareFunction(FUNCTION, "f", "f", ENV, Inline(b"code"), None, ())
    hello = m.ClientHello("s1", "me", "here", 1)
    recovered = e.Recovered(
        (m.DeclareEnvironment(ENV, PLAN, "numpy"),), (function,), (e.SavedSession("s1", hello, (saved,)),)
    )
    desk = Desk(events=(recovered,))
    assert desk.do(UNSEEN) == []
    desk.join(A, session="s1")
    assert asked(desk.declare(A)) == [A]


def test_a_tarball_that_is_damaged_or_cannot_be_kept_is_an_answer() -> None:
    desk = Desk(A)
    desk.do(UNSEEN)
    desk.say(A, MADE)
    out = desk.do(e.BlobLost(TARBALL.digest, "it was damaged on its way"))
    assert "it was damaged on its way" in refused(out)[0].outcome.reason  # type: ignore[union-attr]
    desk = Desk(A)
    desk.do(UNSEEN)
    desk.say(A, MADE)
    desk.do(e.BlobStored(TARBALL.digest))
    assert isinstance(desk.state, Coming)
    out = desk.do(e.EnvironmentFailed(ENV, "no space left", "", "make room"))
    assert c.DropBlob(TARBALL.digest) in out
    assert refused(out)[0].outcome == Impossible("environment", "no space left (make room)")
