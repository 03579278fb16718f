"""A worker: the shipped core and outbox in a shell of virtual time, and the processes that it would start.

Also those that are no help: ``slow``; ``mute`` takes calls and never begins them; ``failing`` loses every one;
``lying`` says what is not so, about its own calls and about others'.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, assert_never

from lfm.protocol import messages as m
from lfm.protocol.ids import Digest, TaskId
from lfm.protocol.outcomes import Blob, Crashed, Exhausted, Inline, Killed, Lost, Outcome, Raised, Returned
from lfm.protocol.resources import Resources, Usage
from lfm_worker.core import commands as c
from lfm_worker.core import events as e
from lfm_worker.core.outbox import Outbox
from lfm_worker.core.worker import Settings, WorkerCore
from worlds.clock import Clock
from worlds.net import Dial, Door

if TYPE_CHECKING:
    from worlds.client import Nature

LARGE = 8 << 20  # bytes from which on a blob may come from another worker
FAREWELL = 10.0  # seconds that the last words may take


@dataclass(slots=True)
class Running:
    """A call's process."""

    command: c.StartCall
    nature: Nature
    limit: int
    over: bool = False
    grown: bool = field(default=False)


class Node:
    """One worker process, from hello to its end."""

    def __init__(
        self, clock: Clock, number: int, offer: Resources, door: Callable[[], Door | None], natures: dict[TaskId, Nature],
        *, kind: str, near: bool, mishaps: float, ended: Callable[[Node], None],
    ) -> None:
        """``mishaps``: how likely something goes wrong that may.  ``ended`` is called when it has gone, or died."""
        self.clock, self.offer, self.kind, self.session = clock, offer, kind, f"w{number}"
        self.natures, self._mishaps, self._ended = natures, mishaps, ended
        self._devices = tuple(f"g{n}" for n in range(offer.gpus))
        self.core = WorkerCore(Settings(offer, gpu_devices=self._devices))
        self._outbox = Outbox()
        self.running: dict[int, Running] = {}
        self.templates: dict[int, None] = {}
        self.results: dict[Digest, None] = {}  # on its disk
        self.blobs: dict[Digest, int] = {}
        self._coming: dict[Digest, int] = {}
        self.alive, self.leaving = True, False
        self._timer = inf
        self._begun: list[TaskId] = []
        self.dial = Dial(clock, door, self._hello, self._hear, near=near)

    def die(self) -> None:
        """kill -9."""
        if self.alive:
            self.alive = False
            self.clock.tell(f"{self.session}: dies")
            self.dial.vanish()
            self._ended(self)

    # -- the manager

    def _hello(self) -> m.WorkerHello:
        return m.WorkerHello(
            self.session, self.session, "near" if self.dial.near else self.session, 1, self.offer, self._devices, {},
            self.core.environments(), (*self.core.running(), *self._outbox.running()),
        )

    def _say(self, message: m.Message) -> None:
        self._outbox.confirmed(self.dial.unacknowledged, self.clock.now)
        self.dial.send(message)
        self._outbox.said(message)

    def _hear(self, message: m.Message) -> None:
        if not self.alive:
            return
        if not isinstance(message, m.Welcome):
            self._outbox.confirmed(self.dial.unacknowledged, self.clock.now)
        match message:
            case m.Welcome(resumed=True):
                self._outbox.welcomed()
            case m.Welcome():
                ends, self._outbox = self._outbox.again(), Outbox()
                for ended in ends:
                    self._say(ended)
                for digest, size in self._coming.items():
                    self._seek(digest, size)
                self._handle(e.Welcomed(resumed=False))
            case m.BlobChunk(digest):
                self._came(digest)
            case m.BlobMissing(digest, reason):
                if self._coming.pop(digest, None) is not None:
                    self._handle(e.FetchFailed(digest, reason))
            case m.BlobSource(digest, source):
                self._sourced(digest, source)
            case m.FetchBlob(digest):
                if (digest in self.results or digest in self.blobs) and self.kind != "failing":
                    self._say(m.BlobChunk(digest, 0, 1, b"x"))
                else:
                    self._say(m.BlobMissing(digest, "it is not here"))
            case m.DefineFunction() | m.ForgetFunction() | m.Run() | m.KillCall() | m.Drain() | m.ForgetBlob() | m.AskOutput():
                if self.kind == "lying":
                    self._lie(message)
                if isinstance(message, m.Run):
                    given = message.arguments
                    self.clock.need(given == self.natures[message.task].arguments, f"{message.task} runs with other arguments than it was given")
                self._handle(e.Told(message))
            case _:
                raise AssertionError(self.clock.tale(f"the manager says {message} to a worker"))

    # -- the core

    def _handle(self, event: e.Event) -> None:
        if not self.alive or self.leaving:
            return
        for command in self.core.handle(event, self.clock.now):
            self._do(command)
        due = self.core.deadline()
        if due is not None and (due < self._timer or self._timer <= self.clock.now):
            self._timer = due
            self.clock.at(due, self._tick)

    def _tick(self) -> None:
        due = self.core.deadline()
        self._timer = inf
        if due is not None:
            self._handle(e.Ticked())

    def _later(self, most: float, event: e.Event) -> None:
        self.clock.soon(most, lambda: self._handle(event))

    def _do(self, command: c.Command) -> None:
        match command:
            case c.Tell(message):
                self._say(message)
            case c.Fetch(digest, size):
                self._coming[digest] = size
                self._seek(digest, size)
            case c.Prepare(item, data):
                failed = data is None and self._unlucky(0.02)
                self._later(2.0, e.PrepareFailed(item, "damaged", "corrupt") if failed else e.Prepared(item, 10, 0.1))
            case c.StartTemplate(template):
                self.templates[template] = None
                if self._unlucky(0.05):
                    self.clock.soon(1.0, lambda: self._template_dies(template))
            case c.CloseTemplate(template):
                self.templates.pop(template, None)
            case c.StartCall():
                self._start(command)
            case c.StopCall(call):
                self._stop(call)
            case c.RaiseLimit(call, _, memory):
                if call in self.running:
                    self.running[call].limit = memory
            case c.ReadOutput():
                raise AssertionError("nobody asks for output here")
            case c.Drop(item):
                if item.kind == "blob" and self.blobs.pop(item.digest, 0) >= LARGE:
                    self._say(m.BlobSought(item.digest, None))
            case c.DropCode():
                pass  # it is in no file here
            case c.DropResult(digest):
                self.clock.need(digest in self.results, f"{self.session}: {digest} is to go, and is not there")
                del self.results[digest]
            case c.Leave(reason):
                self._leave(reason)
            case _:
                assert_never(command)

    def _unlucky(self, share: float) -> bool:
        return bool(self._mishaps) and self.clock.dice.random() < share * self._mishaps

    def _leave(self, reason: str) -> None:
        """The last words, and the end."""
        self.clock.tell(f"{self.session}: leaves: {reason}")
        self.leaving = True
        until = self.clock.now + FAREWELL

        def look() -> None:
            if self.alive and self.dial.unacknowledged and self.clock.now < until:
                self.clock.after(0.5, look)
            elif self.alive:
                self.alive = False
                self.dial.close(goodbye=True)
                self._ended(self)

        look()

    # -- blobs

    def _seek(self, digest: Digest, size: int) -> None:
        self._say(m.SeekBlob(digest, size) if size >= LARGE else m.FetchBlob(digest, 0, size))

    def _sourced(self, digest: Digest, source: m.Source | None) -> None:
        if digest not in self._coming:
            self._say(m.BlobSought(digest, None))
        elif source is None:
            self._say(m.FetchBlob(digest, 0, self._coming[digest]))
        elif self.clock.dice.random() < 0.2:  # it cannot be dialled
            self._say(m.SeekBlob(digest, self._coming[digest]))
        else:
            self.clock.soon(2.0, lambda: self._came(digest))

    def _came(self, digest: Digest) -> None:
        size = self._coming.pop(digest, None)
        if size is None or not self.alive:
            return
        self.blobs[digest] = size
        if size >= LARGE:
            self._say(m.BlobSought(digest, m.Source(f"tcp://{self.session}", "key")))
        self._handle(e.Fetched(digest, size))

    # -- calls

    def _start(self, command: c.StartCall) -> None:
        task = TaskId(command.environ["LFM_TASK"])
        self.clock.need(command.template in self.templates, f"{task} starts in no template")
        run = self.running[command.call] = Running(command, self.natures[task], command.memory or 0)
        if self.kind == "mute":
            return
        if self.kind == "failing":
            self._over(run, Lost("this node breaks", started=self.clock.dice.random() < 0.5))
            return
        self.clock.soon(0.2, lambda: self._began(run))

    def _began(self, run: Running) -> None:
        if run.over or not self.alive:
            return
        nature, dice = run.nature, self.clock.dice
        nature.begun += 1
        self.clock.tell(f"{self.session}: {run.command.environ['LFM_TASK']} begins, attempt {run.command.environ['LFM_ATTEMPT']}")
        self._handle(e.CallBegan(run.command.call))
        seconds = dice.expovariate(1 / nature.seconds) * (20 if self.kind == "slow" else 1)
        if nature.kind == "poison":
            self.clock.after(min(seconds, 1.0), lambda: None if run.over else self.die())
        elif nature.kind == "endless":
            pass
        elif self._unlucky(0.05):
            self.clock.after(seconds, lambda: None if run.over else self._template_dies(run.command.template))
        else:
            self.clock.after(seconds, lambda: self._finish(run))

    def _template_dies(self, template: int) -> None:
        if not self.alive or template not in self.templates:
            return
        self.clock.tell(f"{self.session}: template {template} dies")
        for call, other in list(self.running.items()):
            if other.command.template == template:
                other.over = True
                del self.running[call]
        del self.templates[template]
        self._handle(e.TemplateEnded(template, "killed"))

    def _finish(self, run: Running) -> None:
        nature, dice = run.nature, self.clock.dice
        if run.over or not self.alive:
            return
        if run.limit and nature.memory > run.limit:
            if run.command.grow and not run.grown:
                run.grown = True
                before = run.limit
                self._handle(e.LimitNeared(run.command.call, "memory", run.limit, run.limit))
                run.grown = run.limit == before
                self.clock.after(0.5, lambda: self._finish(run))
                return
            self._over(run, Exhausted("memory", run.limit, run.limit, 0.5))
        elif nature.kind == "raises" and (not nature.luck or dice.random() < 0.5):
            self._over(run, Raised(None, "ValueError", "no", ""))
        elif nature.kind == "crashes":
            self._over(run, Crashed(11, None))
        elif nature.result:
            self.results[nature.result] = None
            self._over(run, Returned(Blob(nature.result, nature.size)))
        else:
            self._over(run, Returned(Inline(run.command.environ["LFM_TASK"].encode() * nature.bulk)))

    def _stop(self, call: int) -> None:
        run = self.running.get(call)
        if run is not None:
            self.clock.soon(0.2, lambda: self._over(run, Killed()))

    def _over(self, run: Running, outcome: Outcome) -> None:
        if run.over or not self.alive:
            return
        run.over = True
        del self.running[run.command.call]
        usage = Usage(wall_s=1.0, memory=min(run.nature.memory, run.limit or run.nature.memory), disk=1, memory_by="self")
        self._handle(e.CallStopped(run.command.call, outcome, usage))

    # -- lies

    def _lie(self, heard: m.Message) -> None:
        dice = self.clock.dice
        if dice.random() < 0.7:
            return
        mine = isinstance(heard, m.Run) and dice.random() < 0.5
        task = heard.task if mine else dice.choice(list(self.natures))  # type: ignore[union-attr]
        attempt = heard.attempt if mine else dice.randrange(4)  # type: ignore[union-attr]
        digest = Digest(f"res{dice.randrange(5)}")
        huge = Resources(dice.randrange(100), dice.randrange(1 << 50), dice.randrange(1 << 50), dice.randrange(9))
        self._say(dice.choice([
            m.CallStarted(task, attempt), m.CallEnded(task, attempt, Returned(Inline(b"a lie")), None),
            m.CallEnded(task, attempt, Returned(Blob(digest, 10**6)), None), m.CallEnded(task, attempt, Lost("so it says"), None),
            m.CallEnded(task, attempt, Killed(), None), m.LimitRaised(task, attempt, huge), m.OfferChanged(huge),
            m.EnvironmentUnusable(Digest("tar-env0"), "so it says"), m.EnvironmentReady(digest, 0.1), m.SeekBlob(digest, LARGE),
            m.BlobSought(digest, m.Source("tcp://nowhere", "key")), m.BlobSought(digest, None), m.BlobChunk(digest, 0, 1, b"y"),
        ]))  # fmt: skip
