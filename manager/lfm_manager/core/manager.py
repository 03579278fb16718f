"""The manager's core: what happens goes in, what is to be done comes out.  Pure: no clock, socket, file or chance.

Owns the parts and their order: an event changes the books of one of them, then the scheduler places what can
be placed.  The parts: ``clients`` and ``crew`` (who is there and what they say), ``calls`` (what becomes of a
call), ``environments``, ``blobs``, ``spread`` (who pulls a large one from whom), ``sizes``, ``schedule``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

from lfm.protocol import messages as m
from lfm.protocol.ids import PeerId
from lfm.protocol.outcomes import Impossible
from lfm_manager.core import events as e
from lfm_manager.core.blobs import Blobs
from lfm_manager.core.calls import Calls
from lfm_manager.core.clients import Clients
from lfm_manager.core.commands import Command, TellClient
from lfm_manager.core.crew import Crew
from lfm_manager.core.environments import Environments, progress
from lfm_manager.core.functions import Built, Environment, Unbuildable
from lfm_manager.core.policy import Policy
from lfm_manager.core.queues import Queue
from lfm_manager.core.recovery import recover
from lfm_manager.core.schedule import Scheduler
from lfm_manager.core.sizes import Sizes
from lfm_manager.core.spread import Spread
from lfm_manager.core.tasks import Task
from lfm_manager.core.unfit import too_much
from lfm_manager.core.workers import Demand, Worker
from lfm_manager.sizing.sizer import Sizer


class ManagerCore:
    """``handle`` is the only way to change it; the parts are there to be read."""

    def __init__(
        self, sizers: Mapping[str, Sizer], policy: Policy | None = None, chosen: Mapping[str, str] | None = None
    ) -> None:
        """``chosen``: the strategy of some categories, where it is not the one of ``sizers``."""
        policy = policy or Policy()
        self._out: list[Command] = []
        self.policy = policy
        self.workers: dict[PeerId, Worker] = {}
        self.sizes = Sizes(sizers, chosen)
        self.spread = Spread(self.workers, self._out)
        self.blobs = Blobs(self.spread, self._out)
        self.environments = Environments(self.blobs, self._out, policy.idle)
        self.scheduler = Scheduler(self.workers, self._demand, policy)
        self.calls = Calls(
            policy, self.sizes, self.scheduler, self.blobs, self.environments, self.workers, self._out
        )
        self.crew = Crew(
            policy, self.workers, self.calls, self.scheduler, self.sizes, self.blobs, self.spread, self.environments,
            self._out,
        )
        self.clients = Clients(policy, self.calls, self.blobs, self.environments, self._out)

    def handle(self, event: e.Event, now: float) -> list[Command]:
        """What to do about ``event``, in this order.  ``now`` never goes back; seconds."""
        match event:
            case e.WorkerSaid(peer):
                if (worker := self.workers.get(peer)) is not None:  # else it was given up: it will say hello anew
                    self.crew.said(worker, event, now)
            case e.ClientSaid(peer):
                if (session := self.clients.peers.get(peer)) is not None:
                    self.clients.said(session, event, now)
            case e.ClientJoined(peer, hello):
                self.clients.join(peer, hello, self.crew.capacity(), now)
            case e.WorkerJoined(peer, hello):
                self.crew.join(peer, hello, now)
            case e.PeerLost():
                self._peer_lost(event, now)
            case e.EnvironmentAdvanced() | e.EnvironmentBuilt() | e.EnvironmentFailed() | e.EnvironmentOutOfSight():
                self._environment(event, now)
            case e.BlobStored(digest):
                self.calls.blob_came(digest, self.blobs.stored(digest), now)
                self.environments.plan_came(digest, now)
                self.environments.tarball_came(digest)
            case e.BlobLost():
                self._blob_lost(event, now)
            case e.DrainAsked(peer, reason):
                if (worker := self.workers.get(peer)) is not None:
                    self.crew.drain(worker, reason, tell=True)
            case e.CancelAsked(task_id):
                if (task := self.calls.tasks.get(task_id)) is not None:
                    self.calls.cancel(task, "kill", now)
            case e.RetryAsked(task_id):
                self.clients.retry(task_id, now)
            case e.Recovered():
                recover(event, self.clients, self.calls, self.crew, self.environments, self.blobs, self.policy, now)
            case e.Measured(category, input_bytes, usage):
                known = self.calls.category(category)
                self.sizes.succeeded(known, input_bytes, usage)
                known.learned(input_bytes, usage.wall_s)
                self.scheduler.learned(known.queues)
            case e.Ticked():
                self.clients.expire(now)
                self.crew.recover(now)
                self.crew.tick(now)
                self.spread.tick(now)
            case _:
                assert_never(event)
        while self.environments.hopeless:
            self._give_up(self.environments.hopeless.pop(0), now)
        self._schedule(now)
        out = self._out[:]
        self._out.clear()
        return out

    def deadline(self) -> float | None:
        """When a Ticked is due, if nothing happens before."""
        times = (
            self.clients.deadline(), self.crew.recovery_ends, self.crew.deadline(), self.scheduler.deadline(), self.spread.deadline(),
        )
        return min((t for t in times if t is not None), default=None)

    # ------------------------------------------------------------ events that concern several parts

    def _peer_lost(self, lost: e.PeerLost, now: float) -> None:
        if (worker := self.workers.get(lost.peer)) is not None:
            self.crew.lost(worker, lost.reason, not lost.goodbye, now)
        else:
            if (session := self.clients.peers.get(lost.peer)) is not None:
                self.clients.lost(session, lost.sure, now)
            for digest in self.blobs.gone(lost.peer):
                if lost.sure:
                    self._blob_lost(e.BlobLost(digest, lost.reason), now)
                else:
                    self.blobs.put_off(digest)  # it may come back with it

    def _blob_lost(self, lost: e.BlobLost, now: float) -> None:
        waiters = self.blobs.lost(lost.digest)
        if waiters is None:
            return
        self.calls.blob_lost(waiters, lost.reason, now)
        if (environment := self.environments.plan_lost(lost.digest, lost.reason)) is not None:
            self._give_up(environment, now)
        self.environments.tarball_lost(lost.digest, lost.reason, now)

    def _environment(
        self, event: e.EnvironmentAdvanced | e.EnvironmentBuilt | e.EnvironmentFailed | e.EnvironmentOutOfSight, now: float
    ) -> None:
        match event:
            case e.EnvironmentAdvanced(key, stage, done, total, text):
                if (known := self.environments.known.get(key)) is not None:
                    self.clients.tell_all(progress(known, stage, done, total, text))
            case e.EnvironmentBuilt():
                if (made := self.environments.made(event, self.workers)) is not None:
                    self.clients.tell_all(progress(made, "ready", event.size, event.size))
                    self.calls.environment_made(made.waiters, now)
            case e.EnvironmentFailed():
                if (failed := self.environments.failed(event)) is not None:
                    self._give_up(failed, now)
            case e.EnvironmentOutOfSight():
                self.environments.out_of_sight(event, now)

    def _give_up(self, environment: Environment, now: float) -> None:
        assert isinstance(environment.state, Unbuildable)
        text = explain_unbuildable(environment.state)
        self.clients.tell_all(progress(environment, "failed", text=text))
        self.calls.environment_failed(environment.waiters, text, now)

    # ------------------------------------------------------------ scheduling

    def _demand(self, task: Task) -> Demand:
        built = task.function.environment.state
        assert isinstance(built, Built)
        return self.sizes.demand(task, built.tarball.digest)

    def _schedule(self, now: float) -> None:
        if self.scheduler.has_news(now):
            for placement in self.scheduler.placements(now):
                self.calls.place(placement, now)
        while self.scheduler.impossible:
            impossible, self.scheduler.impossible = self.scheduler.impossible, []
            for queue in impossible:
                self._warn(queue, now)
        if self.crew.changed:
            self.crew.changed = False
            self.clients.tell_all(self.crew.capacity())
        while self.crew.alerts:
            self.clients.tell_all(m.Notice("warning", self.crew.alerts.pop(0)))

    def _warn(self, queue: Queue, now: float) -> None:
        """A head is larger than any worker: say so once; if none can use its environment, that is final."""
        demand = self.scheduler.demand(queue)
        reasons = {None if demand.digest in w.again else w.unusable.get(demand.digest) for w in self.workers.values()}
        if None not in reasons:
            text = f"no worker can use its environment: {next(iter(reasons))}"
            for task in list(queue.tasks.values()):
                self.calls.give_up(task, Impossible("environment", text), now)
        elif not queue.warned and queue.session.peer is not None:
            queue.warned = True
            text = f"{queue.category.name} {too_much(demand, self.workers.values(), self.sizes.largest, now)}; it waits for one that can"
            self._out.append(TellClient(queue.session.peer, m.Notice("warning", text, (queue.head.id,))))


def explain_unbuildable(state: Unbuildable) -> str:
    hint = f" ({state.hint})" if state.hint else ""
    return f"{state.reason}{hint}" if not state.module or state.module in state.reason else f"{state.module}: {state.reason}{hint}"
