"""What a worker does next: events in, commands out.  Pure: no clock, socket, file or chance.

Owns which call waits for which blobs, environment and overlay; what is free; which template a call is forked
from; what the cache drops; draining and leaving.  Refuses to know paths, processes and the wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import assert_never

from lfm.protocol import messages as m
from lfm.protocol.ids import Digest, FunctionId, TaskId
from lfm.protocol.outcomes import Blob, Crashed, Exhausted, Inline, Killed, Lost, Outcome, payload_of
from lfm.protocol.resources import MAKES_ROOM_BEFORE, Resources, Usage
from lfm_worker.core import commands as c
from lfm_worker.core import events as e
from lfm_worker.core.calls import Call, Placed, Waiting
from lfm_worker.core.items import Item
from lfm_worker.core.pool import FUTILE, Pool
from lfm_worker.core.room import Room
from lfm_worker.core.stock import Stock

QUIET = 0.02  # seconds that a call runs before that is worth a word: many have ended by then
TOO_LONG = 0.5  # that a call which was sent ahead waits for room, before it is handed back
STEP_SHARE, STEP_LEAST = 0.1, 64 << 20  # by how much a limit grows at a time: of itself, and bytes
WORTH_GROWING = 0.02  # of the limit must be free: a full node gives its last bit rather than kill
MAKES_ROOM = "made room for an older call"


@dataclass(frozen=True, slots=True)
class Settings:
    """What a worker is given once.  Times are seconds; ``end`` is on the clock of ``now``."""

    offer: Resources
    cpus: tuple[int, ...] = ()  # that are its own; empty: calls are not pinned
    gpu_devices: tuple[str, ...] = ()
    cache: int = 1 << 62  # bytes of the node's cache
    end: float | None = None  # when the allotment ends
    margin: float = 60.0  # before its end: take no more
    idle_timeout: float | None = None
    template_idle: float = 600.0
    templates_kept: int = 8  # idle ones


@dataclass(frozen=True, slots=True)
class Draining:
    reason: str
    until: float | None = None  # then what is left is killed


class WorkerCore:
    """The state of one worker."""

    def __init__(self, settings: Settings, held: Mapping[Item, tuple[int, float]] | None = None) -> None:
        """``held``: what the node's cache has already (see CacheScanned)."""
        self.settings = settings
        self.calls: dict[int, Call] = {}
        self.room = Room(settings.offer, settings.cpus)
        self.pool = Pool()
        self.draining: Draining | None = None
        self.left = False
        self._functions: dict[FunctionId, m.DefineFunction] = {}
        self._numbers: dict[tuple[TaskId, int], int] = {}
        self.stock = Stock(held or {})
        self._unusable: dict[Digest, str] = {}
        self._results: dict[Digest, int] = {}  # announced, not yet forgotten: how many calls returned it
        self._last = 0
        self._lacking: dict[int, Call] = {}  # those of them that wait for items, or have not been looked at
        self._stalled: dict[int, Call] = {}  # and for room alone
        self._pressed: dict[int, e.LimitNeared] = {}  # those that stand still until another has made room
        self._untold: dict[int, float] = {}  # calls that began, and when to say so
        self._idle_since: float | None = None
        self._out: list[c.Command] = []

    # ------------------------------------------------------------ the way in

    def handle(self, event: e.Event, now: float) -> list[c.Command]:
        """What to do about ``event``."""
        match event:
            case e.Told():
                self._told(event.message, now)
            case e.Welcomed():
                if not event.resumed:
                    self._repeat()
            case e.Fetched():
                self._arrived(Item("blob", event.digest), event.size, now)
            case e.FetchFailed():
                self._failed(Item("blob", event.digest), event.reason, event.cause)
            case e.Prepared():
                if event.item.kind == "environment":
                    self._tell(m.EnvironmentReady(event.item.digest, event.seconds))
                self._arrived(event.item, event.size, now)
            case e.PrepareFailed():
                self._failed(event.item, event.reason, event.cause)
            case e.CacheScanned():
                self._scanned(event.held)
            case e.CallBegan():
                self._began(event.call, now)
            case e.CallStopped():
                self._stopped(event, now)
            case e.LimitNeared():
                self._grow(event)
            case e.TemplateEnded():
                self._template_ended(event, now)
            case e.DrainAsked():
                self._drain(event.reason, now, event.within)
            case e.StopAsked():
                self._drain(event.reason, now, 0.0)
            case e.Ticked():
                pass
            case _:
                assert_never(event)
        self._advance(now)
        out, self._out = self._out, []
        return out

    def awaited(self) -> set[Digest]:
        """Environments that calls wait for."""
        return {call.environment for call in self.calls.values() if isinstance(call.state, Waiting)}

    def deadline(self) -> float | None:
        """When a Ticked is due at the latest, if nothing happens before."""
        settings, times = self.settings, [next(iter(self._untold.values()))] if self._untold else []
        if (ahead := self._first_ahead()) is not None:
            times.append(self._stalled[ahead].since + TOO_LONG)
        if self.draining is None and settings.end is not None:
            times.append(settings.end - settings.margin)
        if self.draining is not None and self.draining.until is not None and self._may_kill():
            times.append(self.draining.until)
        if self._idle_since is not None and settings.idle_timeout is not None and self.draining is None:
            times.append(self._idle_since + settings.idle_timeout)
        if (idle := self.pool.next_idle_end(settings.template_idle)) is not None:
            times.append(idle)
        return min(times, default=None)

    def running(self) -> tuple[m.Running, ...]:
        """What a hello names: the attempts that this worker still holds."""
        return tuple(call.as_running() for call in self.calls.values())

    def environments(self) -> tuple[Digest, ...]:
        """Unpacked on this node."""
        return self.stock.environments()

    # ------------------------------------------------------------ what the manager says

    def _told(
        self, message: m.DefineFunction | m.Run | m.KillCall | m.Drain | m.ForgetBlob | m.AskOutput, now: float
    ) -> None:
        match message:
            case m.DefineFunction():
                self._functions[message.function] = message
            case m.Run():
                self._run(message, now)
            case m.KillCall():
                self._kill((message.task, message.attempt), now)
            case m.Drain():
                self._drain(message.reason, now)
            case m.ForgetBlob():
                self._forget(message.digest)
            case m.AskOutput():
                self._asked(message)
            case _:
                assert_never(message)

    def _asked(self, asked: m.AskOutput) -> None:
        """Somebody wants to see what a call prints."""
        number = self._numbers.get((asked.task, asked.attempt))
        call = self.calls[number] if number is not None else None
        if number is not None and call is not None and isinstance(call.state, Placed):
            self._out.append(c.ReadOutput(number, call.state.template, asked))
        else:  # not begun, or over: its end is on its way
            self._tell(m.OutputSoFar(asked.number, asked.stdout_from, b"", asked.stderr_from, b""))

    def _repeat(self) -> None:
        """The manager has forgotten us; what its hello did not say by itself."""
        self._untold.clear()
        for call in self.calls.values():
            if call.began:
                self._tell(m.CallStarted(call.run.task, call.run.attempt))
        if self.draining is not None:
            self._tell(m.OfferChanged(self.settings.offer, draining=True))

    def _run(self, run: m.Run, now: float) -> None:
        if (run.task, run.attempt) in self._numbers:
            return  # said again after a cut
        function = self._functions.get(run.function)
        refusal = (
            self.draining.reason if self.draining is not None
            else "its function was never defined here" if function is None
            else self._unusable.get(function.environment.digest)
        )
        if refusal is not None or function is None:
            self._tell(m.CallEnded(run.task, run.attempt, Lost(refusal or "", started=False), None))
            return
        self._last += 1
        self._numbers[run.task, run.attempt] = self._last
        self.calls[self._last] = self._lacking[self._last] = Call.of(run, function, now)

    def _kill(self, attempt: tuple[TaskId, int], now: float) -> None:
        number = self._numbers.get(attempt)
        if number is None:
            return  # it has ended; what it became is on its way
        call = self.calls[number]
        if isinstance(call.state, Placed):
            self._out.append(c.StopCall(number, call.state.template))
        else:
            self._end(number, Killed(), now)

    def _forget(self, digest: Digest) -> None:
        if digest in self._results:
            self._results[digest] -= 1
            if not self._results[digest]:
                del self._results[digest]
                self._out.append(c.DropResult(digest))
        elif (item := Item("blob", digest)) in self.stock.ready and item not in self._in_use():
            self._drop(item)

    # ------------------------------------------------------------ items come, fail and go

    def _arrived(self, item: Item, size: int, now: float) -> None:
        self.stock.arrive(item, size, now)
        self._make_room(self.settings.cache)

    def _failed(self, item: Item, reason: str, cause: e.Cause) -> None:
        again = self.stock.fail(item, cause)
        if cause == "full":
            self._make_room(0)
        if cause == "corrupt" and item.kind != "blob":
            self._drop(Item("blob", item.digest))
        if not again:  # else _advance asks for it
            self._give_up(item, reason, passing=cause in ("full", "short"))

    def _give_up(self, item: Item, reason: str, passing: bool) -> None:
        """Everything that waits for the item cannot run here."""
        if item.kind != "blob" and (archive := Item("blob", item.digest)) in self.stock.ready:
            self._drop(archive)  # of no use to anybody
        victims = [n for n, call in self.calls.items() if isinstance(call.state, Waiting) and call.wants(item)]
        broken = {self.calls[n].environment for n in victims} & {item.digest}
        for digest in broken:
            self._condemn(digest, reason, passing)
        for number in victims:
            if number in self.calls:
                self._end(number, Lost(reason, started=False))

    def _condemn(self, environment: Digest, reason: str, passing: bool = False) -> None:
        """The environment cannot be used here: say so, and hand its calls back.

        If that may pass, the manager knows when to try again.
        """
        if not passing:
            self._unusable[environment] = reason
        self._tell(m.EnvironmentUnusable(environment, reason, passing))
        for number, call in list(self.calls.items()):
            if call.environment == environment and isinstance(call.state, Waiting):
                self._end(number, Lost(reason, started=False))

    def _scanned(self, held: Mapping[Item, tuple[int, float]]) -> None:
        self.stock.scan(held)
        self._make_room(self.settings.cache)

    def _make_room(self, limit: int) -> None:
        for item in self.stock.excess(self._in_use(), limit):
            self._drop(item)

    def _drop(self, item: Item) -> None:
        if item.kind == "environment":
            for template in self.pool.of(item.digest):
                self._close_template(template)
        self.stock.drop(item)
        self._out.append(c.Drop(item))

    def _in_use(self) -> set[Item]:
        used = set(self.stock.coming)
        for call in self.calls.values():
            used |= call.needs
        used |= {Item("blob", i.digest) for i in used if i.kind != "blob" and i not in self.stock.ready}
        return used

    # ------------------------------------------------------------ calls begin and end

    def _began(self, number: int, now: float) -> None:
        call = self.calls.get(number)
        if call is not None and isinstance(call.state, Placed) and not call.began:
            call.state = Placed(call.state.template, began=True)
            self.pool.began(call.state.template)
            self._untold[number] = now + QUIET

    def _stopped(self, event: e.CallStopped, now: float) -> None:
        call = self.calls.get(event.call)
        if call is None:
            return
        outcome = event.outcome
        if isinstance(call.state, Placed) and not (isinstance(outcome, Lost) and not outcome.started):
            self.pool.began(call.state.template)  # a short call's beginning is not told
        if call.doomed and isinstance(outcome, Killed | Crashed):
            outcome = _displaced(call, event.usage) if call.doomed == MAKES_ROOM else Lost(call.doomed, started=True)
        if isinstance(given := payload_of(outcome), Blob):
            self._results[given.digest] = self._results.get(given.digest, 0) + 1
        self._end(event.call, outcome, now, event.usage, event.stdout, event.stderr)

    def _end(
        self, number: int, outcome: Outcome, now: float | None = None, usage: Usage | None = None,
        stdout: bytes = b"", stderr: bytes = b"",
    ) -> None:
        call = self.calls.pop(number)
        self._lacking.pop(number, None)
        self._stalled.pop(number, None)
        self._untold.pop(number, None)
        del self._numbers[call.run.task, call.run.attempt]
        self.room.give_back(number)
        if isinstance(call.state, Placed) and now is not None:
            self.pool.leave(call.state.template, number, now)
            self.stock.use(call.needs, now)
        self._pressed.pop(number, None)
        for pressed in list(self._pressed.values()):  # before anybody hears of the room
            del self._pressed[pressed.call]
            self._grow(pressed)
        self._tell(m.CallEnded(call.run.task, call.run.attempt, outcome, usage, stdout, stderr))

    def _grow(self, event: e.LimitNeared) -> None:
        """A running call is near its memory limit: let it grow into what is free, if it may and it is worth it.

        In steps: half of the calls that come near their limit never exceed it.  One that has, stands still until it
        is told a limit, were it the same as before.  Where there is no room the last to come makes some.
        """
        call = self.calls.get(event.call)
        if call is None or event.resource != "memory" or not isinstance(call.state, Placed) or call.doomed:
            return
        limit, free = call.allocation.memory, self.room.memory_free
        step = max(int(limit * STEP_SHARE), STEP_LEAST, int(event.measured * (1 + STEP_SHARE)) - limit)
        more = min(call.run.growth - limit, free, step)
        if more <= 0 or free < limit * WORTH_GROWING:
            if event.measured > limit < call.run.growth and self._displace(event.call):
                self._pressed[event.call] = event
            elif event.measured > limit:
                self._out.append(c.RaiseLimit(event.call, call.state.template, limit))
            return
        self.room.grow(event.call, more)
        call.allocation = replace(call.allocation, memory=limit + more)
        self._out.append(c.RaiseLimit(event.call, call.state.template, limit + more))
        self._tell(m.LimitRaised(call.run.task, call.run.attempt, call.allocation))

    def _displace(self, number: int) -> bool:
        """End the last of those that came after a call, which has least to lose; False if there is none.

        The oldest is never ended, so that something always comes to its end.
        """
        for other in reversed(self.calls):
            call = self.calls[other]
            if other <= number:
                return False
            if isinstance(call.state, Placed) and call.run.growth and call.run.attempt < MAKES_ROOM_BEFORE and not call.doomed:
                call.doomed = MAKES_ROOM
                self._out.append(c.StopCall(other, call.state.template))
                return True
        return False

    def _template_ended(self, event: e.TemplateEnded, now: float) -> None:
        if event.template not in self.pool.templates:
            return
        for number in list(self.pool.templates[event.template].calls):
            call = self.calls[number]
            self._end(number, Lost(call.doomed or event.reason, started=call.began), now)
        if event.passing:
            self.pool.remove(event.template)
            return
        environment, futile = self.pool.lost(event.template)
        if futile >= FUTILE:
            self._condemn(environment, f"its interpreter does not start here: {event.reason}")

    # ------------------------------------------------------------ draining

    def _drain(self, reason: str, now: float, within: float | None = None) -> None:
        until = None if within is None else now + within
        if self.draining is None:
            self.draining = Draining(reason, until)
            self._tell(m.OfferChanged(self.settings.offer, draining=True))
            for number, call in list(self.calls.items()):
                if isinstance(call.state, Waiting):
                    self._end(number, Lost(reason, started=False), now)
        elif until is not None and (self.draining.until is None or until < self.draining.until):
            self.draining = Draining(self.draining.reason, until)

    def _kill_all(self, reason: str) -> None:
        for number, call in self.calls.items():
            if isinstance(call.state, Placed) and not call.doomed:
                call.doomed = reason
                self._out.append(c.StopCall(number, call.state.template))

    # ------------------------------------------------------------ after every event

    def _advance(self, now: float) -> None:
        """Start what can start, close what is idle, leave when all is over."""
        if self.left:
            return
        self._watch_the_end(now)
        self._announce(now)
        self._start_all(now)
        for template in self.pool.superfluous(now, self.settings.template_idle, self.settings.templates_kept):
            self._close_template(template)
        busy = self.calls or self._results
        self._idle_since = None if busy else self._idle_since if self._idle_since is not None else now
        timeout = self.settings.idle_timeout
        if self._idle_since is not None and timeout is not None and now >= self._idle_since + timeout:
            self._drain(f"idle for {timeout:g} s", now)
        if self.draining is not None and not self.calls and (not self._results or self._overdue(now)):
            self._leave(self.draining.reason)

    def _announce(self, now: float) -> None:
        """Say which calls run, of those that have for a while."""
        while self._untold and (number := next(iter(self._untold))) and self._untold[number] <= now:
            del self._untold[number]
            run = self.calls[number].run
            self._tell(m.CallStarted(run.task, run.attempt))

    def _start_all(self, now: float) -> None:
        """Start what can start; hand back what was sent ahead and waits in vain."""
        for number, call in list(self._lacking.items()):
            if call.needs <= self.stock.ready or self._provide(call):
                self._stalled[number] = self._lacking.pop(number)
        if not self.room.is_full:
            for number in list(self._stalled):
                if self._start(number, now) and self.room.is_full:
                    break
        while (ahead := self._first_ahead()) is not None and now >= self._stalled[ahead].since + TOO_LONG:
            self._end(ahead, Lost("there was no room for it", started=False), now)

    @property
    def ahead(self) -> int:
        """How many calls have all but room: the manager need not hurry."""
        return len(self._stalled)

    def _first_ahead(self) -> int | None:
        for number, call in self._stalled.items():
            if call.run.ahead:
                return number
        return None

    def _watch_the_end(self, now: float) -> None:
        settings = self.settings
        if settings.end is not None and now >= settings.end - settings.margin and self.draining is None:
            self._drain("its allotment ends", now, within=settings.margin * 0.8)
        if self.draining is not None and self._overdue(now):
            self._kill_all(self.draining.reason)

    def _may_kill(self) -> bool:
        """Whether there is something left to do about the end of its patience: kill what runs, or leave results behind."""
        return not self.calls or any(not call.doomed for call in self.calls.values())

    def _overdue(self, now: float) -> bool:
        return self.draining is not None and self.draining.until is not None and now >= self.draining.until

    def _leave(self, reason: str) -> None:
        for template in list(self.pool.templates):
            self._close_template(template)
        self._tell(m.WorkerLeaving(reason))
        self._out.append(c.Leave(reason))
        self.left = True

    def _provide(self, call: Call) -> bool:
        """Ask for what the call lacks; whether it lacks nothing."""
        missing = call.needs - self.stock.ready
        for item in sorted(missing - self.stock.coming):
            if item.kind == "blob":
                self._fetch(item, call.size(item))
                continue
            archive, tarball = call.archive(item), Item("blob", item.digest)
            if isinstance(archive, Inline):
                self._prepare(item, archive.data)
            elif self.stock.holds(item) or tarball in self.stock.ready:
                self._prepare(item)
            elif tarball not in self.stock.coming:
                self._fetch(tarball, archive.size)
        return not missing

    def _fetch(self, item: Item, size: int) -> None:
        self.stock.coming.add(item)
        self._out.append(c.Fetch(item.digest, size))

    def _prepare(self, item: Item, data: bytes | None = None) -> None:
        self.stock.coming.add(item)
        self._out.append(c.Prepare(item, data))

    def _start(self, number: int, now: float) -> bool:
        call = self.calls[number]
        grant = self.room.take(number, call.run.allocation)
        if grant is None:
            return False
        template = self.pool.pick(call.environment, call.function.preload)
        if template is None:
            template = self._start_template(call.environment, now)
        call.state = Placed(template)
        del self._stalled[number]
        self.pool.enter(template, number)
        self._out.append(call.start(number, template, grant, gpus=bool(self.settings.gpu_devices)))
        return True

    def _start_template(self, environment: Digest, now: float) -> int:
        wanted = {p for f in self._functions.values() if f.environment.digest == environment for p in f.preload}
        template = self.pool.add(environment, tuple(sorted(wanted)), now)
        self._out.append(c.StartTemplate(template, environment, tuple(sorted(wanted))))
        return template

    def _close_template(self, template: int) -> None:
        self.pool.remove(template)
        self._out.append(c.CloseTemplate(template))

    def _tell(self, message: c.News) -> None:
        self._out.append(c.Tell(message))


def _displaced(call: Call, usage: Usage | None) -> Exhausted:
    """How a call ended that made room: of memory, though it had not used up its own."""
    measured, lived = (usage.memory, usage.wall_s) if usage is not None else (0, 0.0)
    return Exhausted("memory", call.allocation.memory, min(measured, call.allocation.memory - 1), lived)
