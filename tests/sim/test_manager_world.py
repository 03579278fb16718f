"""Random clusters in virtual time around the shipped core: whoever dies, whenever, every call is answered once.

The world plays everybody else: clients that come back, workers that die, leave, are cut off and return with what
they hold, a store that outlives the manager, and the manager itself, killed and started anew.  Messages of one
peer arrive in order or not at all, as ``lfm.connection`` promises.  The books are checked after every event.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

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
    Payload,
    Raised,
    Returned,
)
from lfm.protocol.resources import Request, Resources, Usage
from lfm_manager.core import commands as c
from lfm_manager.core import events as e
from lfm_manager.core.check import check
from lfm_manager.core.manager import ManagerCore
from lfm_manager.core.payloads import SMALL, inline_bytes, inline_size, without_value
from lfm_manager.core.policy import Policy
from lfm_manager.sizing import make

WORLDS = int(os.environ.get("LFM_WORLDS", "100"))  # more of them for a soak
MB, GB = 10**6, 10**9
POLICY = Policy(lost_max=1000, refused_max=1000, deaths_before_alone=1000, failures_before_aside=1000, patience=5.0, recovery=20.0)

UNSEEN = EnvironmentKey("env1")  # whose files only clients see


def _built(key: EnvironmentKey) -> e.EnvironmentBuilt:
    return e.EnvironmentBuilt(key, Digest(f"tar-{key}"), 1000, "3.11", "", "")


@dataclass
class Held:
    """A call on a worker."""

    run: m.Run
    allocation: Resources
    started: bool = False
    ended: m.CallEnded | None = None  # said, and not known to have arrived


@dataclass
class Node:
    session: str
    offer: Resources
    peer: PeerId | None = None
    alive: bool = True
    calls: dict[tuple[TaskId, int], Held] = field(default_factory=dict)
    defined: set[FunctionId] = field(default_factory=set)
    results: set[Digest] = field(default_factory=set)


@dataclass
class Person:
    """A client: what it submitted, and what it was answered."""

    session: str
    peer: PeerId | None = None
    calls: dict[TaskId, m.Submit] = field(default_factory=dict)
    answers: dict[TaskId, Outcome] = field(default_factory=dict)


class World:
    def __init__(self, seed: int, calls: int, nodes: int, people: int, trouble: float) -> None:
        self.dice = Random(seed)
        self.trouble = trouble  # mean troubles per virtual minute
        self.now = 0.0
        self.calls = calls
        self.agenda: list[tuple[float, int, Callable[[], None]]] = []
        self.order = count()
        self.peers = count(1)
        self.people = [Person(f"p{n}") for n in range(people)]
        self.nodes = [self.node(n) for n in range(nodes)]
        self.born = count(nodes)
        self.needs: dict[TaskId, int] = {}
        self.lanes: dict[tuple[PeerId, str], float] = {}  # when the last message of a direction arrives
        self.story: list[str] = []
        self.kept: set[EnvironmentKey] = set()  # made by clients, in the store of environments
        self.reset_store()
        self.ahead_s = self.dice.choice([0.05, 30.0])  # calls here take seconds
        self.in_memory = self.dice.choice([0, 5000, None])  # bytes, of calls and results
        self.core = self.manager()
        self.blobs: set[Digest] = set()  # in the manager's store
        self.epoch = 0

    def node(self, number: int, offer: Resources | None = None) -> Node:
        """The first one, and whoever replaces it, is large enough for everything."""
        if number == 0 or offer is not None:
            return Node(f"w{number}", offer or Resources(8, 32 * GB, 10 * GB, 2))
        cores = self.dice.choice([1, 2, 4, 8])
        return Node(f"w{number}", Resources(cores, cores * self.dice.choice([1, 2, 4]) * GB, 10 * GB, self.dice.choice([0, 0, 2])))

    def manager(self) -> ManagerCore:
        policy = replace(POLICY, ahead_s=self.ahead_s, in_memory=self.in_memory)
        return ManagerCore({"memory": make("auto", "memory"), "disk": make("auto", "disk")}, policy)

    # ------------------------------------------------------------ time

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        self.at(self.now + seconds, act)

    def at(self, moment: float, act: Callable[[], None]) -> None:
        heapq.heappush(self.agenda, (moment, next(self.order), act))

    def run(self) -> None:
        for person in self.people:
            self.after(self.dice.random(), lambda p=person: self.connect_person(p))  # type: ignore[misc]
        for node in self.nodes:
            self.after(self.dice.random() * 3, lambda n=node: self.connect_node(n))  # type: ignore[misc]
        if self.trouble:
            self.after(self.dice.expovariate(self.trouble / 60), self.make_trouble)
        while not self.over():
            due = self.core.deadline()
            if due is not None and (not self.agenda or due < self.agenda[0][0]):
                self.now = max(self.now, due)
                self.handle(e.Ticked())
                continue
            assert self.agenda, self.tale("nothing can happen any more")
            at, _, act = heapq.heappop(self.agenda)
            assert at < 1e4, self.tale("it never ends")
            self.now = max(self.now, at)
            act()

    def over(self) -> bool:
        return all(p.calls and len(p.answers) == len(p.calls) for p in self.people)

    def tale(self, text: str) -> str:
        return "\n".join([text, *self.story[-60:]])

    # ------------------------------------------------------------ the manager

    def handle(self, event: e.Event) -> None:
        self.story.append(f"{self.now:.2f} {event}"[:300])
        try:
            commands = self.core.handle(event, self.now)
            check(self.core, self.now)
        except AssertionError as error:
            raise AssertionError(self.tale(repr(error))) from error
        for command in commands:
            self.do(command)

    def do(self, command: c.Command) -> None:
        match command:
            case c.TellClient(peer, message):
                self.travel(peer, "down", lambda: self.person_hears(peer, message))
            case c.TellWorker(peer, message):
                self.travel(peer, "down", lambda: self.node_hears(peer, message))
            case c.TellKept(peer, task):
                told = self.saved[task][4]
                self.travel(peer, "down", lambda: self.person_hears(peer, told))
            case c.RunKept(peer, run):
                whole = run.but(arguments=self.saved[run.task][1].arguments)
                self.travel(peer, "down", lambda: self.node_hears(peer, whole))
            case c.BuildEnvironment(key):
                seen = key != UNSEEN or key in self.kept
                self.soon(lambda: self.handle(_built(key) if seen else e.EnvironmentOutOfSight(key, "not in sight")))
            case c.KeepEnvironment(key, tarball):
                assert tarball.digest in self.blobs, self.tale("a tarball is to be kept that is not here")
                self.kept.add(key)
                self.soon(lambda: self.handle(_built(key)))
            case c.GetBlob(peer, digest):
                self.travel(peer, "down", lambda: self.give_blob(peer, digest))
            case c.DropBlob(digest):
                self.blobs.discard(digest)
            case c.SaveSession(key, hello):
                self.saved_sessions[key] = hello
            case c.ForgetSession(key):
                self.saved_sessions.pop(key, None)
            case c.SaveDeclared(declared):
                self.declared.append(declared)
            case c.SaveTask(session, submit, copy_of):
                if copy_of is not None:
                    submit = submit.but(arguments=self.saved[copy_of][1].arguments)
                self.saved[submit.task] = [session, submit, 0, "", None]
            case c.SaveAttempt(task, attempt, worker):
                self.saved[task][2:4] = [attempt, worker]
            case c.SaveResult(finished):
                self.saved[finished.task][4] = finished
            case c.ForgetTask(task):
                self.saved.pop(task, None)
            case c.SaveMeasurement():
                pass

    def reset_store(self) -> None:
        self.saved_sessions: dict[str, m.ClientHello] = {}
        self.saved: dict[TaskId, list] = {}  # type: ignore[type-arg]
        self.declared: list[m.DeclareEnvironment | m.DeclareFunction] = []

    def read(self, submit: m.Submit, attempt: int, worker: str, finished: m.Finished | None) -> e.SavedTask:
        """A row as the store gives it: what is large stays there."""
        size = inline_size(submit.arguments)
        kept = finished is not None and inline_bytes(finished) > SMALL
        if size > SMALL:
            submit = submit.but(arguments=Inline(b""))
        if kept and finished is not None:
            finished = without_value(finished)
        return e.SavedTask(submit, attempt, worker, finished, size if size > SMALL else 0, kept)

    def soon(self, act: Callable[[], None]) -> None:
        """Something of the manager's own shell, which a crash ends."""
        epoch = self.epoch
        self.after(self.dice.random(), lambda: act() if self.epoch == epoch else None)

    def crash(self) -> None:
        """kill -9, and a new manager on the same run directory."""
        self.epoch += 1
        self.story.append(f"{self.now:.2f} --- the manager is killed")
        self.core = self.manager()
        tasks: dict[str, list[e.SavedTask]] = {key: [] for key in self.saved_sessions}
        for session, submit, attempt, worker, finished in self.saved.values():
            if session in tasks:
                tasks[session].append(self.read(submit, attempt, worker, finished))
        self.handle(e.Recovered(
            tuple(d for d in self.declared if isinstance(d, m.DeclareEnvironment)),
            tuple(d for d in self.declared if isinstance(d, m.DeclareFunction)),
            tuple(e.SavedSession(k, h, tuple(tasks[k])) for k, h in self.saved_sessions.items()),
            tuple(self.blobs),
        ))
        self.blobs &= set(self.core.blobs.known)
        for person in self.people:
            person.peer = None
            self.after(self.dice.random() * 5, lambda p=person: self.connect_person(p))  # type: ignore[misc]
        for node in self.nodes:
            if node.alive:
                node.peer = None
                self.after(self.dice.random() * 30, lambda n=node: self.connect_node(n))  # type: ignore[misc]

    # ------------------------------------------------------------ the wire

    def travel(self, peer: PeerId, direction: str, act: Callable[[], None]) -> None:
        """A message arrives later, in order, unless its session ends first."""
        epoch = self.epoch
        at = max(self.now + self.dice.random() * 0.2, self.lanes.get((peer, direction), 0.0))
        self.lanes[peer, direction] = at
        self.at(at, lambda: act() if self.epoch == epoch else None)

    def say(self, peer: PeerId, message: m.Message, client: bool) -> None:
        made = e.ClientSaid(peer, message) if client else e.WorkerSaid(peer, message)  # type: ignore[arg-type]
        self.travel(peer, "up", lambda: self.arrive(peer, made))

    def arrive(self, peer: PeerId, event: e.ClientSaid | e.WorkerSaid) -> None:
        if isinstance(event, e.WorkerSaid) and isinstance(event.message, m.CallEnded):
            for node in self.nodes:
                if node.peer == peer:
                    node.calls.pop((event.message.task, event.message.attempt), None)
        self.handle(event)

    # ------------------------------------------------------------ people

    def connect_person(self, person: Person) -> None:
        if person.peer is not None:
            return
        peer = person.peer = PeerId(next(self.peers))
        self.handle(e.ClientJoined(peer, m.ClientHello(person.session, "me", "here", 1)))
        for number in range(2):
            key = EnvironmentKey(f"env{number}")
            self.say(peer, m.DeclareEnvironment(key, Inline(b"{}"), key), True)
            function = m.DeclareFunction(FunctionId(f"f{number}"), f"f{number}", f"f{number}", key, Inline(b""), None, ())
            self.say(peer, function, True)
        share = self.calls // len(self.people) + 1
        while len(person.calls) < share:
            self.new_call(person)
        for task, submit in person.calls.items():
            if task not in person.answers:
                self.say(peer, submit, True)

    def new_call(self, person: Person) -> None:
        dice, task = self.dice, TaskId(f"{person.session}-{len(person.calls)}")
        asked = Request(
            cores=dice.choice([None, None, 0.5, 1, 2]), memory=dice.choice([None, None, 100 * MB, GB]),
            disk=dice.choice([None, 0]), gpus=1 if dice.random() < 0.05 else None,
        )
        arguments: Payload = Inline(task.encode() * dice.choice([1, 500]))
        if dice.random() < 0.1:
            arguments = Blob(Digest(f"arg{dice.randrange(5)}"), 10**6)
        self.needs[task] = int(dice.lognormvariate(19, 1))
        person.calls[task] = m.Submit(
            task, FunctionId(f"f{dice.randrange(2)}"), arguments, asked, retries=dice.choice([0, 0, 2]),
            priority=dice.choice([0.0, 0.0, 1.0]),
        )

    def person_hears(self, peer: PeerId, message: object) -> None:
        person = next((p for p in self.people if p.peer == peer), None)
        if person is not None and isinstance(message, m.MakeEnvironment):
            made = m.EnvironmentMade(message.key, Blob(Digest(f"made-{message.key}"), 1000), b"{}")
            self.after(self.dice.random() * 10, lambda: self.say(peer, made, True) if person.peer == peer else None)
        if person is None or not isinstance(message, m.Finished):
            return
        if isinstance(message.outcome, Returned) and isinstance(message.outcome.value, Inline):
            assert message.outcome.value.data.startswith(message.task.encode()), self.tale(f"{message.task} has no value")
        before = person.answers.get(message.task)
        assert before is None or before == message.outcome, self.tale(f"{message.task} was answered twice, differently")
        numbers = [a.number for a in message.attempts]
        assert numbers == sorted(set(numbers)), self.tale(f"{message.task}: attempts {numbers}")
        person.answers[message.task] = message.outcome
        self.say(peer, m.Release((message.task,)), True)

    # ------------------------------------------------------------ nodes

    def connect_node(self, node: Node) -> None:
        if node.peer is not None or not node.alive:
            return
        peer = node.peer = PeerId(next(self.peers))
        node.defined.clear()
        running = tuple(
            m.Running(h.run.task, h.run.attempt, h.allocation, h.run.gpu_devices, h.started) for h in node.calls.values()
        )
        devices = tuple(f"g{n}" for n in range(node.offer.gpus))
        self.handle(e.WorkerJoined(peer, m.WorkerHello(node.session, node.session, "n", 1, node.offer, devices, {}, (), running)))
        for held in node.calls.values():
            if held.ended is not None:
                self.say(peer, held.ended, False)

    def node_hears(self, peer: PeerId, message: object) -> None:
        node = next((n for n in self.nodes if n.peer == peer), None)
        if node is None:
            return
        match message:
            case m.DefineFunction(function):
                assert function not in node.defined, self.tale(f"{function} was defined twice")
                node.defined.add(function)
            case m.Run():
                self.start_call(node, message)
            case m.KillCall(task, attempt):
                held = node.calls.get((task, attempt))
                if held is not None and held.ended is None:
                    self.end_call(node, held, Killed())
            case m.Drain():
                self.leave(node, 10.0)
            case m.ForgetBlob(digest):
                node.results.discard(digest)

    def start_call(self, node: Node, run: m.Run) -> None:
        assert run.function in node.defined, self.tale("a function was not defined before its Run")
        given = [p.calls[run.task].arguments for p in self.people if run.task in p.calls]
        assert given == [run.arguments], self.tale(f"{run.task} runs with other arguments than it was given")
        answered = {t for p in self.people for t in p.answers}
        assert run.task not in answered, self.tale(f"{run.task} runs again after it was answered")
        held = node.calls[run.task, run.attempt] = Held(run, run.allocation)
        if self.dice.random() < (0.3 if run.ahead else 0.03):
            self.end_call(node, held, Lost("refused", started=False))
            return
        held.started = True
        assert node.peer is not None
        self.say(node.peer, m.CallStarted(run.task, run.attempt), False)
        self.after(self.dice.expovariate(0.3), lambda: self.finish_call(node, held))

    def finish_call(self, node: Node, held: Held) -> None:
        if not node.alive or held.ended is not None or node.calls.get((held.run.task, held.run.attempt)) is not held:
            return
        need, dice = self.needs[held.run.task], self.dice
        if held.allocation.memory and need > held.allocation.memory:
            more = min(held.run.growth, need)
            if more > held.allocation.memory and node.peer is not None and dice.random() < 0.5:
                held.allocation = Resources(held.allocation.cores, more, held.allocation.disk, held.allocation.gpus)
                self.say(node.peer, m.LimitRaised(held.run.task, held.run.attempt, held.allocation), False)
                self.after(1.0, lambda: self.finish_call(node, held))
                return
            limit = held.allocation.memory
            self.end_call(node, held, Exhausted("memory", limit, limit, 0.5))
            return
        outcome: Outcome = Returned(Inline(held.run.task.encode() * (500 if self.needs[held.run.task] % 2 else 1)))
        luck = dice.random()
        if luck < 0.15:
            digest = Digest(f"res-{held.run.task}")
            node.results.add(digest)
            outcome = Returned(Blob(digest, 10**6))
        elif luck < 0.2:
            outcome = Raised(None, "ValueError", "no", "")
        elif luck < 0.22:
            outcome = Crashed(11, None)
        elif luck < 0.25:
            outcome = Lost("its template died")
        self.end_call(node, held, outcome)

    def end_call(self, node: Node, held: Held, outcome: Outcome) -> None:
        usage = Usage(wall_s=1.0, memory=self.needs[held.run.task], disk=1, memory_by="self")
        held.ended = m.CallEnded(held.run.task, held.run.attempt, outcome, usage)
        if node.peer is not None:
            self.say(node.peer, held.ended, False)

    def give_blob(self, peer: PeerId, digest: Digest) -> None:
        node = next((n for n in self.nodes if n.peer == peer), None)
        person = next((p for p in self.people if p.peer == peer), None)
        has = digest in node.results if node is not None else person is not None
        if node is None and person is None:
            return  # gone: the core is told that
        news: e.BlobStored | e.BlobLost = e.BlobStored(digest) if has else e.BlobLost(digest, "not here")
        if has:
            self.travel(peer, "up", lambda: self.blob_arrives(peer, digest, news))
        else:
            self.travel(peer, "up", lambda: self.handle(news))

    def blob_arrives(self, peer: PeerId, digest: Digest, news: e.BlobStored | e.BlobLost) -> None:
        if any(x.peer == peer for x in (*self.nodes, *self.people)):
            self.blobs.add(digest)
            self.handle(news)

    # ------------------------------------------------------------ trouble

    def make_trouble(self) -> None:
        dice = self.dice
        kind = dice.choice(["die", "die", "cut", "leave", "crash", "blink", "join", "shrink", "cancel"])
        nodes = [n for n in self.nodes if n.alive and n.peer is not None]
        if kind == "crash":
            self.crash()
        elif kind == "join" or not nodes:
            node = self.node(next(self.born))
            self.nodes.append(node)
            self.connect_node(node)
        elif kind == "blink":
            self.blink(dice.choice(self.people))
        elif kind == "cancel":
            self.cancel(dice.choice(self.people))
        else:
            node = dice.choice(nodes)
            {"die": self.die, "cut": self.cut, "leave": self.leave, "shrink": self.shrink}[kind](node)
        self.after(dice.expovariate(self.trouble / 60), self.make_trouble)

    def die(self, node: Node) -> None:
        node.alive = False
        self.lose(node)
        fresh = self.node(next(self.born), node.offer)
        self.nodes.append(fresh)
        self.after(self.dice.random() * 10, lambda: self.connect_node(fresh))

    def cut(self, node: Node) -> None:
        """Silent for longer than its lease; it goes on computing and comes back."""
        self.lose(node)
        self.after(self.dice.random() * 20, lambda: self.connect_node(node))

    def lose(self, node: Node) -> None:
        peer, node.peer = node.peer, None
        if peer is not None:
            self.soon(lambda: self.handle(e.PeerLost(peer, "lost")))

    def leave(self, node: Node, within: float = 0.0) -> None:
        if node.peer is None:
            return
        node.alive = False
        self.say(node.peer, m.WorkerLeaving("its job ends"), False)
        fresh = self.node(next(self.born), node.offer)
        self.nodes.append(fresh)
        self.after(self.dice.random() * 10, lambda: self.connect_node(fresh))

    def shrink(self, node: Node) -> None:
        if node.peer is not None and node.offer.gpus == 0:
            node.offer = Resources(node.offer.cores, max(GB, node.offer.memory // 2), node.offer.disk, node.offer.gpus)
            self.say(node.peer, m.OfferChanged(node.offer), False)

    def blink(self, person: Person) -> None:
        peer, person.peer = person.peer, None
        if peer is not None:
            self.handle(e.PeerLost(peer, "silent"))
            self.after(self.dice.random() * 30, lambda: self.connect_person(person))

    def cancel(self, person: Person) -> None:
        waiting = [t for t in person.calls if t not in person.answers]
        if waiting and person.peer is not None:
            kind = self.dice.choice([m.Cancel, m.Kill])
            self.say(person.peer, kind((self.dice.choice(waiting),)), True)


FINE = (Returned, Raised, Crashed, Exhausted, Killed, Cancelled)


def live(world: World) -> World:
    world.run()
    for person in world.people:
        assert person.answers.keys() == person.calls.keys()
        for task, outcome in person.answers.items():
            assert isinstance(outcome, (FINE, Impossible)), world.tale(f"{task}: {outcome}")
    return world


@settings(max_examples=WORLDS, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 5), st.integers(1, 3), st.sampled_from([0.0, 3.0, 12.0, 40.0]))
def test_every_call_is_answered_exactly_once_whoever_dies_whenever(
    seed: int, calls: int, nodes: int, people: int, trouble: float
) -> None:
    live(World(seed, calls, nodes, people, trouble))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 5))
def test_nothing_leaks(seed: int, calls: int, nodes: int) -> None:
    world = live(World(seed, calls, nodes, 2, 12.0))
    world.trouble = 0.0
    world.agenda = [entry for entry in world.agenda if entry[2] != world.make_trouble]
    heapq.heapify(world.agenda)
    for _ in range(2):
        for person in world.people:
            if person.peer is None:
                world.connect_person(person)
        while world.agenda:
            at, _, act = heapq.heappop(world.agenda)
            world.now = max(world.now, at)
            act()
    core = world.core
    core.handle(e.Ticked(), world.now + 1e6)
    assert not core.scheduler.queues and not any(w.running or w.collecting for w in core.workers.values())
    for person in world.people:
        if person.peer in core.clients.peers:
            core.handle(e.ClientSaid(person.peer, m.Goodbye()), world.now + 1e6)  # type: ignore[arg-type]
    assert not core.calls.tasks and not core.blobs.known and not core.clients.sessions


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32))
def test_the_same_events_give_the_same_commands(seed: int) -> None:
    first, second = (live(World(seed, 30, 3, 2, 12.0)) for _ in range(2))
    assert first.story == second.story
