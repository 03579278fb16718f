"""The manager's machine: the shipped core in a shell of virtual time, on a store that outlives it."""

from __future__ import annotations

from math import inf

from lfm.protocol import messages as m
from lfm.protocol.hosting import Joined, Left, News, Said
from lfm.protocol.ids import Digest, EnvironmentKey, PeerId
from lfm_manager.core import commands as c
from lfm_manager.core import events as e
from lfm_manager.core.check import check
from lfm_manager.core.manager import ManagerCore
from lfm_manager.core.policy import Policy
from lfm_manager.sizing import make
from worlds.clock import Clock
from worlds.net import Door, Packet, Wire
from worlds.store import Store

UNSEEN = EnvironmentKey("env1")  # made of what only clients see
TARBALL = 1000  # bytes
ROUND = 0.01  # seconds that a round takes, at most


def tarball(key: EnvironmentKey) -> Digest:
    return Digest(f"tar-{key}")


class Manager:
    """One manager process, from its start to its death.  ``fatal``: in its next round it dies, there."""

    def __init__(self, clock: Clock, store: Store, policy: Policy, number: int, delay: float) -> None:
        self.clock, self.store = clock, store
        self.core = ManagerCore({"memory": make("auto", "memory"), "disk": make("auto", "disk")}, policy)
        self.door = Door(clock, f"epoch{number}", delay, self._arrived, self._come_round)
        self.alive = True
        self.fatal = ""  # "before" or "after" the commit
        self._inbox: list[tuple[Wire, Packet]] = []
        self._dropped: set[Digest] = set()
        self._pulls: dict[Digest, PeerId] = {}
        self._round_due = False
        self._timer = inf
        if number > 1:
            self._tell(store.recovered())
            for digest in list(store.blobs):
                if digest not in self.core.blobs.known:
                    del store.blobs[digest]
        self._come_round()

    def die(self) -> None:
        self.alive = False
        self.store.lose()
        self.door.shut()

    # -- rounds

    def _arrived(self, wire: Wire, packet: Packet) -> None:
        self._inbox.append((wire, packet))
        self._come_round()

    def _come_round(self) -> None:
        if not self._round_due:
            self._round_due = True
            self.clock.soon(ROUND, self._round)

    def _round(self) -> None:
        """As the real one: take what has come, let the core decide, commit, then let messages leave."""
        self._round_due = False
        if not self.alive:
            return
        inbox, self._inbox = self._inbox, []
        for wire, packet in inbox:
            self._news(self.door.take(wire, packet))
        if self.clock.now >= self.door.deadline():
            self._news(self.door.tick())
        due = self.core.deadline()
        if due is not None and self.clock.now >= due:
            self._tell(e.Ticked())
        if self.fatal == "before":
            self.die()
            return
        self.store.commit(forget=bool(self._dropped))
        for digest in self._dropped:
            self._pulls.pop(digest, None)
            self.store.blobs.pop(digest, None)
        self._dropped.clear()
        self.door.settle()
        if self.fatal:
            self.die()
            return
        self.door.flush()
        self._arm()

    def _arm(self) -> None:
        due = min(self.door.deadline(), self.core.deadline() or inf)
        if due < self._timer or self._timer <= self.clock.now:
            self._timer = due
            self.clock.at(due, self._come_round)

    def _news(self, news: News) -> None:
        for one in news:
            match one:
                case Said(peer, message):
                    self._said(peer, message)
                case Joined(peer, _, hello):
                    self._tell(e.WorkerJoined(peer, hello) if isinstance(hello, m.WorkerHello) else e.ClientJoined(peer, hello))  # type: ignore[arg-type]
                case Left(peer, reason, sure, goodbye):
                    self._pulls = {digest: owner for digest, owner in self._pulls.items() if owner != peer}
                    self._tell(e.PeerLost(peer, reason, sure, goodbye))

    def _said(self, peer: PeerId, message: m.Message) -> None:
        match message:
            case m.FetchBlob(digest):
                if digest in self.store.blobs or digest.startswith("tar-"):
                    self.door.send(peer, m.BlobChunk(digest, 0, 1, b"x"))
                else:
                    self.door.send(peer, m.BlobMissing(digest, "the manager has it not"))
            case m.BlobChunk(digest):
                if self._pulls.get(digest) == peer:
                    del self._pulls[digest]
                    self.store.blobs[digest] = None
                    self._tell(e.BlobStored(digest))
            case m.BlobMissing(digest, reason):
                if self._pulls.get(digest) == peer:
                    del self._pulls[digest]
                    self._tell(e.BlobLost(digest, reason))
            case _:
                client = peer in self.core.clients.peers
                self._tell(e.ClientSaid(peer, message) if client else e.WorkerSaid(peer, message))  # type: ignore[arg-type]

    # -- the core

    def _tell(self, event: e.Event) -> None:
        waiting = [event]
        while waiting:
            one = waiting.pop(0)
            self.clock.tell(f"manager: {one}"[:400])
            try:
                commands = self.core.handle(one, self.clock.now)
                check(self.core, self.clock.now)
            except AssertionError as error:
                raise AssertionError(self.clock.tale(repr(error))) from error
            for command in commands:
                if (answer := self._do(command)) is not None:
                    waiting.append(answer)

    def _do(self, command: c.Command) -> e.Event | None:
        store = self.store
        match command:
            case c.TellClient(peer, message) | c.TellWorker(peer, message):
                self.door.send(peer, message)
            case c.TellKept(peer, task):
                self.door.send(peer, store.finished(task))
            case c.RunKept(peer, run):
                self.door.send(peer, run.but(arguments=store.arguments(run.task)))
            case c.BuildEnvironment(key):
                seen = key != UNSEEN or key in store.kept
                self._later(_built(key) if seen else e.EnvironmentOutOfSight(key, "it is not in sight"))
            case c.KeepEnvironment(key, made):
                self.clock.need(made.digest in store.blobs, f"{key} is to be kept, and its tarball is not here")
                store.kept.add(key)
                self._later(_built(key))
            case c.GetBlob(peer, digest, size):
                self._dropped.discard(digest)
                if digest in store.blobs:
                    return e.BlobStored(digest)
                self._pulls[digest] = peer
                self.door.send(peer, m.FetchBlob(digest, 0, size))
            case c.DropBlob(digest):
                self._dropped.add(digest)
            case c.SaveMeasurement():
                pass
            case _:
                store.write(command)
        return None

    def _later(self, event: e.Event) -> None:
        """The answer of a child process, which dies with us."""

        def act() -> None:
            if self.alive:
                self._tell(event)
                self._come_round()

        self.clock.soon(2.0, act)


def _built(key: EnvironmentKey) -> e.EnvironmentBuilt:
    return e.EnvironmentBuilt(key, tarball(key), TARBALL, "3.11", "", "")
