"""What a worker does next: events in, commands out.  Pure: no clock, socket, file or chance.

Owns the order of things, draining and leaving; what runs here is ``Runs``, what lies here is ``Supply``.  Refuses to
know paths, processes and the wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_never

from lfm.protocol import messages as m
from lfm.protocol.ids import Digest
from lfm.protocol.outcomes import Blob, Lost, payload_of
from lfm.protocol.resources import Resources
from lfm_worker.core import commands as c
from lfm_worker.core import events as e
from lfm_worker.core.calls import Call, Function, Placed, Waiting
from lfm_worker.core.items import Item
from lfm_worker.core.pool import FUTILE, Pool
from lfm_worker.core.runs import Runs
from lfm_worker.core.supply import Supply


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
        self.draining: Draining | None = None
        self.left = False
        self._out: list[c.Command] = []
        self._pool = Pool()
        self._supply = Supply(held or {}, settings.cache, self.calls, self._pool, self._out)
        self._runs = Runs(
            settings.offer, settings.cpus, bool(settings.gpu_devices), self.calls, self._pool, self._supply.stock, self._out
        )
        self.room = self._runs.room
        self._unusable: dict[Digest, str] = {}
        self._idle_since: float | None = None

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
                self._supply.arrived(Item("blob", event.digest), event.size, now)
            case e.FetchFailed():
                self._failed(Item("blob", event.digest), event.reason, event.cause)
            case e.Prepared():
                if event.item.kind == "environment":
                    self._tell(m.EnvironmentReady(event.item.digest, event.seconds))
                self._supply.arrived(event.item, event.size, now)
            case e.PrepareFailed():
                self._failed(event.item, event.reason, event.cause)
            case e.CacheScanned():
                self._supply.scanned(event.held)
            case e.CallBegan():
                self._runs.began(event.call, now)
            case e.CallStopped():
                self._stopped(event, now)
            case e.LimitNeared():
                self._runs.grow(event)
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
        out = self._out[:]
        self._out.clear()
        return out

    def awaited(self) -> set[Digest]:
        """Environments that calls wait for."""
        return {call.environment for call in self.calls.values() if isinstance(call.state, Waiting)}

    def deadline(self) -> float | None:
        """When a Ticked is due at the latest, if nothing happens before."""
        settings = self.settings
        times = [self._runs.deadline(), self._pool.next_idle_end(settings.template_idle)]
        if self.draining is None and settings.end is not None:
            times.append(settings.end - settings.margin)
        if self.draining is not None and self._may_kill():
            times.append(self.draining.until)
        if self._idle_since is not None and settings.idle_timeout is not None and self.draining is None:
            times.append(self._idle_since + settings.idle_timeout)
        return min((at for at in times if at is not None), default=None)

    def running(self) -> tuple[m.Running, ...]:
        """What a hello names: the attempts that this worker still holds."""
        return tuple(call.as_running() for call in self.calls.values())

    def environments(self) -> tuple[Digest, ...]:
        """Unpacked on this node."""
        return self._supply.stock.environments()

    @property
    def ahead(self) -> int:
        """How many calls have all but room: the manager need not hurry."""
        return self._runs.ahead

    # ------------------------------------------------------------ what the manager says

    def _told(
        self, message: m.DefineFunction | m.ForgetFunction | m.Run | m.KillCall | m.Drain | m.ForgetBlob | m.AskOutput, now: float
    ) -> None:
        match message:
            case m.DefineFunction():
                self._runs.functions[message.function] = Function.of(message)
            case m.ForgetFunction():
                self._runs.forget(message.function)
            case m.Run():
                self._run(message, now)
            case m.KillCall(task, attempt):
                if (number := self._runs.number(task, attempt)) is not None:  # else what it became is on its way
                    self._runs.kill(number, now)
            case m.Drain():
                self._drain(message.reason, now)
            case m.ForgetBlob():
                self._supply.forget(message.digest)
            case m.AskOutput():
                self._asked(message)
            case _:
                assert_never(message)

    def _asked(self, asked: m.AskOutput) -> None:
        """Somebody wants to see what a call prints."""
        number = self._runs.number(asked.task, asked.attempt)
        call = self.calls[number] if number is not None else None
        if number is not None and call is not None and isinstance(call.state, Placed):
            self._out.append(c.ReadOutput(number, call.state.template, asked))
        else:  # not begun, or over: its end is on its way
            self._tell(m.OutputSoFar(asked.number, asked.stdout_from, b"", asked.stderr_from, b""))

    def _repeat(self) -> None:
        """The manager has forgotten us; what its hello did not say by itself."""
        self._runs.announce_again()
        for environment, reason in self._unusable.items():
            self._tell(m.EnvironmentUnusable(environment, reason))
        if self.draining is not None:
            self._tell(m.OfferChanged(self.settings.offer, draining=True))

    def _run(self, run: m.Run, now: float) -> None:
        if self._runs.number(run.task, run.attempt) is not None:
            return  # said again after a cut
        function = self._runs.functions.get(run.function)
        refusal = (
            self.draining.reason if self.draining is not None
            else "its function was never defined here" if function is None
            else self._unusable.get(function.environment)
        )
        if refusal is not None or function is None:
            self._tell(m.CallEnded(run.task, run.attempt, Lost(refusal or "", started=False), None))
            return
        self._runs.accept(run, function, now)

    # ------------------------------------------------------------ events that concern both parts

    def _stopped(self, event: e.CallStopped, now: float) -> None:
        outcome = self._runs.stopped(event, now)
        if outcome is not None and isinstance(given := payload_of(outcome), Blob):
            self._supply.returned(given.digest)

    def _failed(self, item: Item, reason: str, cause: e.Cause) -> None:
        """An item could not be had: if it is given up, everything that waits for it cannot run here."""
        if self._supply.failed(item, cause):
            return
        self._supply.give_up(item)
        victims = [n for n, call in self.calls.items() if isinstance(call.state, Waiting) and call.wants(item)]
        if any(self.calls[n].environment == item.digest for n in victims):
            self._condemn(item.digest, reason, passing=cause in ("full", "short"))
        for number in victims:
            if number in self.calls:
                self._runs.end(number, Lost(reason, started=False))

    def _condemn(self, environment: Digest, reason: str, passing: bool = False) -> None:
        """The environment cannot be used here: say so, and hand its calls back.

        If that may pass, the manager knows when to try again.
        """
        if not passing:
            self._unusable[environment] = reason
        self._tell(m.EnvironmentUnusable(environment, reason, passing))
        self._runs.end_waiting(reason, environment=environment)

    def _template_ended(self, event: e.TemplateEnded, now: float) -> None:
        if event.template not in self._pool.templates:
            return
        self._runs.template_ended(event.template, event.reason, now)
        if event.passing:
            self._pool.remove(event.template)
            return
        environment, futile = self._pool.lost(event.template)
        if futile >= FUTILE:
            self._condemn(environment, f"its interpreter does not start here: {event.reason}")

    # ------------------------------------------------------------ draining

    def _drain(self, reason: str, now: float, within: float | None = None) -> None:
        until = None if within is None else now + within
        if self.draining is None:
            self.draining = Draining(reason, until)
            self._tell(m.OfferChanged(self.settings.offer, draining=True))
            self._runs.end_waiting(reason, now)
        elif until is not None and (self.draining.until is None or until < self.draining.until):
            self.draining = Draining(self.draining.reason, until)

    # ------------------------------------------------------------ after every event

    def _advance(self, now: float) -> None:
        """Start what can start, close what is idle, leave when all is over."""
        if self.left:
            return
        self._watch_the_end(now)
        self._runs.announce(now)
        self._runs.start_all(self._supply.provide, now)
        for template in self._pool.superfluous(now, self.settings.template_idle, self.settings.templates_kept):
            self._close_template(template)
        busy = self.calls or self._supply.results
        self._idle_since = None if busy else self._idle_since if self._idle_since is not None else now
        timeout = self.settings.idle_timeout
        if self._idle_since is not None and timeout is not None and now >= self._idle_since + timeout:
            self._drain(f"idle for {timeout:g} s", now)
        if self.draining is not None and not self.calls and (not self._supply.results or self._overdue(now)):
            self._leave(self.draining.reason)

    def _watch_the_end(self, now: float) -> None:
        settings = self.settings
        if settings.end is not None and now >= settings.end - settings.margin and self.draining is None:
            self._drain("its allotment ends", now, within=settings.margin * 0.8)
        if self.draining is not None and self._overdue(now):
            self._runs.kill_all(self.draining.reason)

    def _may_kill(self) -> bool:
        """Whether there is something left to do about the end of its patience: kill what runs, or leave results behind."""
        return not self.calls or any(not call.doomed for call in self.calls.values())

    def _overdue(self, now: float) -> bool:
        return self.draining is not None and self.draining.until is not None and now >= self.draining.until

    def _leave(self, reason: str) -> None:
        for template in list(self._pool.templates):
            self._close_template(template)
        self._tell(m.WorkerLeaving(reason))
        self._out.append(c.Leave(reason))
        self.left = True

    def _close_template(self, template: int) -> None:
        self._pool.remove(template)
        self._out.append(c.CloseTemplate(template))

    def _tell(self, message: c.News) -> None:
        self._out.append(c.Tell(message))
