"""A person with calls, and the client process that they have at the time: the shipped books of a session
(``lfm.calls``) and futures in a shell of virtual time.  A named session outlives its process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from lfm.calls import Calls
from lfm.future import Future
from lfm.protocol import messages as m
from lfm.protocol.ids import Digest, EnvironmentKey, FunctionId, TaskId
from lfm.protocol.outcomes import Blob, Inline, Outcome, Payload, Returned
from lfm.protocol.resources import Request
from worlds.clock import Clock
from worlds.host import TARBALL
from worlds.net import Dial, Door

RELEASE_AFTER = 0.1


@dataclass(slots=True)
class Nature:
    """What a call does wherever it runs."""

    kind: str  # "fine" | "raises" | "crashes" | "poison" | "endless"
    memory: int  # bytes that it needs
    seconds: float  # on average
    luck: bool = False  # it raises only now and then
    result: Digest | None = None  # a large one
    size: int = 10**6
    bulk: int = 1  # its arguments and its value are its name, so often
    arguments: Payload | None = None
    begun: int = 0
    taken: bool = False  # somebody has asked for it
    outcomes: list[Outcome] = field(default_factory=list)  # that its person was told: the same one, whenever it is said


def environment(number: int) -> m.DeclareEnvironment:
    key = EnvironmentKey(f"env{number}")
    plan: Payload = Blob(Digest(f"plan{number}"), 100_000) if number == 2 else Inline(b"{}")
    return m.DeclareEnvironment(key, plan, key)


def function(number: int) -> m.DeclareFunction:
    code: Payload = Blob(Digest(f"code{number}"), 9 << 20) if number == 2 else Inline(b"")
    return m.DeclareFunction(FunctionId(f"f{number}"), f"f{number}", f"f{number}", EnvironmentKey(f"env{number}"), code, None, ())


class Shelf:
    """What a session's functions are made of, and its blobs; stands for Outgoing and its Spool."""

    def __init__(self) -> None:
        self.spool = self
        self.described: dict[FunctionId, Any] = {
            FunctionId(f"f{n}"): SimpleNamespace(environment=environment(n), function=function(n)) for n in range(3)
        }

    def best(self, which: FunctionId) -> Any:
        return self.described[which]

    def homes(self, submit: m.Submit | None) -> dict[str, str]:
        return {}

    def lend(self, blob: Blob) -> None:
        """No manager's store is here."""

    def over(self, submit: m.Submit) -> None:
        """Its blobs may go."""


class Pulled:
    """Large results on their way here; stands for Incoming."""

    def __init__(self, say: Callable[[m.Message], None]) -> None:
        self._say = say
        self._takers: dict[Digest, list[Callable[[Any], None]]] = {}
        self._sizes: dict[Digest, int] = {}

    def fetch(self, blob: Blob, take: Callable[[Any], None]) -> None:
        takers = self._takers.setdefault(blob.digest, [])
        takers.append(take)
        if len(takers) == 1:
            self._sizes[blob.digest] = blob.size
            self._say(m.FetchBlob(blob.digest, 0, blob.size))

    def came(self, digest: Digest, data: bytes | None) -> None:
        for take in self._takers.pop(digest, ()):
            take(data)

    def restart(self) -> None:
        for digest in self._takers:
            self._say(m.FetchBlob(digest, 0, self._sizes[digest]))


class Person:
    """Somebody with ``wanted`` calls to make."""

    def __init__(
        self, clock: Clock, name: str, named: bool, calls: int, door: Callable[[], Door | None], natures: dict[TaskId, Nature],
        nature: Callable[[], Nature], mishaps: float,
    ) -> None:
        self.clock, self.name, self.named, self.left = clock, name, named, calls
        self.door, self.natures, self.nature, self.mishaps = door, natures, nature, mishaps
        self._processes = 0
        self.client = self._start()

    @property
    def key(self) -> str:
        return f"{self.name}/thesis" if self.named else self.client.session

    def _start(self) -> Client:
        self._processes += 1
        return Client(self, f"{self.name}p{self._processes}")

    def restart(self) -> None:
        """Its process is killed; another one comes.  Calls that were still to be made are made there."""
        self.client.die()
        self.client = self._start()


class Client:
    """One process."""

    def __init__(self, person: Person, session: str) -> None:
        self.person, self.clock, self.session = person, person.clock, session
        self.alive = True
        self.futures: dict[TaskId, Future[Any]] = {}
        self.greeted = False
        self.taken: set[TaskId] = set()
        self._release_due = False
        self._numbers = 0
        self.dial = Dial(self.clock, person.door, self._hello, self._hear, near=person.named)
        self.pulled = Pulled(self.say)
        self.calls = Calls(
            self.say, Shelf(), self.pulled, new_id=self._new_id, repaired=lambda repair: None, keep=person.named,  # type: ignore[arg-type]
        )
        if "p1" not in session[-2:]:  # a script that is started again calls its functions again: their environments may be needed
            self.clock.soon(3.0, lambda: [self.submit(person.nature(), which) for which in (1, 2)] if self.alive else None)
        self.clock.soon(3.0, self._submit_next)

    def die(self) -> None:
        self.alive = False
        self.clock.tell(f"{self.session}: dies")
        self.dial.vanish()

    def say(self, message: m.Message) -> None:
        self.dial.send(message)

    def _hello(self) -> m.ClientHello:
        return m.ClientHello(self.session, self.person.name, "near", 1, "thesis" if self.person.named else None)

    def _new_id(self) -> TaskId:
        self._numbers += 1
        return TaskId(f"{self.session}-{self._numbers}")

    # -- submitting

    def _submit_next(self) -> None:
        person, dice = self.person, self.clock.dice
        if not self.alive or not person.left:
            return
        for _ in range(min(person.left, dice.choice([1, 3, 10]))):
            person.left -= 1
            self.submit(person.nature(), self.clock.dice.choice([0, 0, 0, 1, 2]))
        self.clock.soon(5.0, self._submit_next)

    def submit(self, nature: Nature, which: int) -> None:
        dice, task = self.clock.dice, self._new_id()
        asked = Request(
            cores=dice.choice([None, None, 0.5, 1, 2]), memory=None if dice.random() < 0.7 else 2 * nature.memory,
            disk=dice.choice([None, 0]), gpus=1 if dice.random() < 0.05 else None,
        )
        arguments: Payload = Inline(task.encode() * nature.bulk)
        if dice.random() < 0.15:
            number = dice.randrange(5)
            arguments = Blob(Digest(f"arg{number}"), (9 << 20) if number == 4 else 10**5)
        nature.arguments = arguments
        blobs = (Blob(Digest("put"), 10**5),) if dice.random() < 0.1 else ()
        future: Future[Any] = Future()
        future._id = task
        retries = 3 if nature.luck else 0
        future._submit = m.Submit(task, FunctionId(f"f{which}"), arguments, asked, None, retries, dice.choice([0.0, 0.0, 1.0]), 0, blobs)
        self.person.natures[task] = nature
        self.futures[task] = future
        self.calls.send(future)
        if nature.kind == "endless":
            self.clock.after(1.0 + dice.random() * 60, lambda: self.kill(future))

    def kill(self, future: Future[Any]) -> None:
        if self.alive and not future.done():
            self.clock.tell(f"{self.session}: kills {future._id}")
            self.calls.stop(future)

    def cancel(self, future: Future[Any]) -> None:
        """As Future.cancel does, whose word its session's thread takes."""
        if not future.done() and future.cancel():
            self.clock.tell(f"{self.session}: cancels {future._id}")
            self.calls.withdraw(future)
            self._release_soon()

    # -- hearing

    def _hear(self, message: m.Message) -> None:
        if not self.alive:
            return
        match message:
            case m.Finished():
                self._finished(message)
            case m.Started():
                self.calls.started(message)
            case m.FetchBlob(digest):
                self.say(m.BlobChunk(digest, 0, 1, b"x"))
            case m.BlobChunk(digest, data=data):
                self.pulled.came(digest, data)
            case m.BlobMissing(digest):
                self.pulled.came(digest, None)
            case m.Yours(task):
                self._adopt(task)
            case m.MakeEnvironment(key):
                self._make(key)
            case m.Welcome():
                if not message.resumed:
                    self.calls.say_all_again()
            case m.Capacity():
                self.greeted = True  # what follows in the same breath is all that its session has
            case m.EnvironmentProgress() | m.Notice():
                pass
            case _:
                raise AssertionError(self.clock.tale(f"the manager says {message} to a client"))
        for future in self.calls.kept():
            if future._id not in self.taken:
                self.taken.add(future._id)
                self.clock.soon(20.0, lambda f=future: self._take(f))  # type: ignore[misc]
        self._release_soon()

    def _finished(self, message: m.Finished) -> None:
        nature, need = self.person.natures[message.task], self.clock.need
        self.clock.tell(f"{self.session}: hears that {message.task} {message.outcome}"[:200])
        need(message.outcome in nature.outcomes or not nature.outcomes, f"{message.task} was answered twice: {nature.outcomes} and {message.outcome}")
        nature.outcomes = [message.outcome]
        numbers = [attempt.number for attempt in message.attempts]
        need(numbers == sorted(set(numbers)), f"{message.task}: attempts {numbers}")
        need(nature.result or sum(a.outcome == "returned" and a.usage is not None for a in message.attempts) <= 1, f"{message.task} returned twice: {message.attempts}")
        value = message.outcome.value if isinstance(message.outcome, Returned) else None
        if isinstance(value, Inline) and value.data != b"a lie":
            need(value.data == message.task.encode() * nature.bulk, f"{message.task} has another value: {value}")
        self.calls.finished(message)

    def _take(self, future: Future[Any]) -> None:
        """Somebody asks for the result."""
        if self.alive:
            self.person.natures[future._id].taken = True
            self.calls.taken(future._id)
            self._release_soon()

    def _adopt(self, task: TaskId) -> None:
        future: Future[Any] = Future()
        future._id = task
        self.calls.yours(future)
        if self.futures.setdefault(task, future) is future and self.person.natures[task].kind == "endless":
            self.clock.soon(60.0, lambda: self.kill(future))

    def _make(self, key: EnvironmentKey) -> None:
        def made() -> None:
            if self.alive:
                self.say(m.EnvironmentMade(key, Blob(Digest(f"made-{key}"), TARBALL), b"{}"))

        self.clock.soon(10.0, made)

    def _release_soon(self) -> None:
        if self.calls.unreleased and not self._release_due:
            self._release_due = True
            self.clock.after(RELEASE_AFTER, self._release)

    def _release(self) -> None:
        self._release_due = False
        if self.alive:
            self.calls.release()
