"""What workers say, and what is to be done when they come, change and go.

Owns the register of workers.  News of an attempt that is not the present one is dropped here, in one place.
"""

from __future__ import annotations

import math
from heapq import heappop, heappush
from typing import assert_never

from lfm.protocol import messages as m
from lfm.protocol.ids import PeerId
from lfm.protocol.outcomes import Lost
from lfm.protocol.resources import format_duration
from lfm_manager.core import events as e
from lfm_manager.core.blobs import Blobs
from lfm_manager.core.calls import Calls, result_blob
from lfm_manager.core.census import Census
from lfm_manager.core.commands import Command, TellWorker
from lfm_manager.core.conduct import Conduct
from lfm_manager.core.environments import Environments
from lfm_manager.core.policy import Policy
from lfm_manager.core.schedule import Scheduler
from lfm_manager.core.sizes import Sizes
from lfm_manager.core.spread import Spread
from lfm_manager.core.tasks import Adrift, Collecting, Placed, Ready, Task
from lfm_manager.core.workers import Worker

ASIDE = "set aside"


class Crew:
    def __init__(
        self, policy: Policy, workers: dict[PeerId, Worker], calls: Calls, scheduler: Scheduler, sizes: Sizes,
        blobs: Blobs, spread: Spread, environments: Environments, out: list[Command],
    ) -> None:
        self.workers = workers
        self.present = Census()
        self.adrift: dict[str, dict[str, Task]] = {}  # by worker session: calls that it may come back with
        self.recovery_ends: float | None = None
        self.changed = False  # what the workers offer together, since it was last looked at
        self.alerts: list[str] = []  # for whoever tells people
        self._conduct = Conduct(policy)
        self._due: list[float] = []  # a heap: when some worker, or an environment on one, is to be tried again
        self._look_at = -math.inf  # when to see whether workers begin what they were given
        self._policy = policy
        self._calls, self._scheduler, self._sizes = calls, scheduler, sizes
        self._blobs, self._spread, self._environments, self._out = blobs, spread, environments, out

    # ------------------------------------------------------------ coming and going

    def join(self, peer: PeerId, hello: m.WorkerHello, now: float) -> None:
        worker = self.workers[peer] = Worker(peer, hello, now)
        worker.environments.update(hello.environments)
        worker.unpacked.update(hello.environments)
        worker.record.moved = now
        worker.offer(hello.offer, now)
        self._environments.meet(worker)
        for running in hello.running:
            self._meet_again(worker, running, now)
        for task in self.adrift.pop(hello.session, {}).values():
            if isinstance(task.state, Adrift):
                self._calls.drifted(task, now)
        self._count(worker)
        self._scheduler.room(worker)

    def _meet_again(self, worker: Worker, running: m.Running, now: float) -> None:
        """It still has a call from before: take it up if nobody else has, else have it stopped."""
        task = self._calls.tasks.get(running.task)
        match task.state if task is not None else None:
            case Adrift(attempt=attempt) if attempt == running.attempt:
                assert task is not None
                self._calls.adopt(task, worker, running, now)
            case Ready() if task is not None and running.attempt <= task.attempt:
                self._calls.adopt(task, worker, running, now)
            case _:
                self._out.append(TellWorker(worker.peer, m.KillCall(running.task, running.attempt)))

    def lost(self, worker: Worker, reason: str, charged: bool, now: float) -> None:
        """It is gone, and all that it had."""
        for digest in self._blobs.gone(worker.peer):
            waiters = self._blobs.lost(digest)
            if waiters:
                self._calls.blob_lost(waiters, reason, now)
        for task_id in list(worker.collecting):
            self._calls.result_lost(self._calls.tasks[task_id], reason, now)
        for task_id in list(worker.running):
            task = self._calls.tasks[task_id]
            assert isinstance(task.state, Placed)
            self._calls.worker_died(task, task.state, reason, charged, now)
        self._spread.gone(worker.peer)
        del self.workers[worker.peer]
        for digest in list(worker.coming):
            self._environments.came(digest, worker, self.workers)
        self._scheduler.gone(worker)
        self.present.leave(worker.peer)
        self._counted()

    def drain(self, worker: Worker, reason: str, tell: bool) -> None:
        """It takes no more."""
        if tell:
            self._out.append(TellWorker(worker.peer, m.Drain(reason)))
        present, worker.record.until = not worker.draining, None
        if not worker.draining or worker.draining.startswith(ASIDE):
            worker.draining = reason
        if present:
            self._scheduler.gone(worker)
            self._count(worker)

    def _set_aside(self, worker: Worker, why: str, now: float) -> None:
        """It takes no more for a while."""
        if worker.draining:
            return
        pause = self._conduct.pause(worker.record, now)
        worker.draining = f"{ASIDE} for {format_duration(pause)}: {why}"
        heappush(self._due, now + pause)
        self._scheduler.gone(worker)
        self._count(worker)
        self.alerts.append(f"worker {worker.name} is {worker.draining}")

    def tick(self, now: float) -> None:
        """Try again what was set aside for long enough, and see whether all that was given away is begun."""
        if self._due and self._due[0] <= now:
            while self._due and self._due[0] <= now:
                heappop(self._due)
            self._try_again(now)
        if now >= self._look_at:
            self._look_at = now + self._policy.stall / 4
            for worker in list(self.workers.values()):
                self._look_after(worker, now)

    def _try_again(self, now: float) -> None:
        for worker in list(self.workers.values()):
            if (until := worker.record.until) is not None and until <= now:
                worker.draining, worker.record.until = "", None
                self._count(worker)
                self._scheduler.room(worker)
            for digest in [d for d, at in worker.again.items() if at <= now]:
                del worker.again[digest], worker.unusable[digest]
                self._scheduler.room(worker)

    def deadline(self) -> float | None:
        """When ``tick`` is due: asked after every event."""
        look = max(self._look_at, 0.0) if self._calls.placed else math.inf
        due = min(look, self._due[0]) if self._due else look
        return due if due < math.inf else None

    def _look_after(self, worker: Worker, now: float) -> None:
        """Take back what a worker accepted and does not begin."""
        placed = [(t, t.state) for t in map(self._calls.tasks.__getitem__, worker.running) if isinstance(t.state, Placed)]
        stuck = [(t, s) for t, s in placed if s.started is None and self._conduct.is_stuck(worker.record, s.since, now)]
        if stuck:
            since = format_duration(now - max(worker.record.moved, min(s.since for _, s in stuck)))
            if not any(state.started for _, state in placed):  # else they wait for what runs
                self._set_aside(worker, f"it has not begun any of {len(stuck)} calls for {since}", now)
            for task, state in stuck:
                self._calls.take_back(task, state, f"{worker.name} did not begin it", now)

    def _count(self, worker: Worker) -> None:
        self.present.count(worker)
        self._counted()

    def _counted(self) -> None:
        self.changed = True
        if self._sizes.workers_are(self.present):
            self._scheduler.resized()

    def capacity(self) -> m.Capacity:
        """What the workers offer together."""
        present = self.present
        return m.Capacity(present.workers, present.millicores / 1000, present.memory, present.slots)

    def recover(self, now: float) -> None:
        """Workers have had their time to come back."""
        if self.recovery_ends is None or now < self.recovery_ends:
            return
        self.recovery_ends = None
        for tasks in self.adrift.values():
            for task in tasks.values():
                if isinstance(task.state, Adrift):
                    self._calls.drifted(task, now)
        self.adrift.clear()

    # ------------------------------------------------------------ what they say

    def said(self, worker: Worker, event: e.WorkerSaid, now: float) -> None:
        message = event.message
        match message:
            case m.CallStarted():
                worker.record.moved = now
                if (task := self._present(worker, message)) is not None:
                    self._calls.started(task, _placed(task), now)
            case m.CallEnded():
                if (task := self._present(worker, message)) is not None:
                    handed_back = _placed(task).ahead and isinstance(message.outcome, Lost) and not message.outcome.started
                    self._calls.ended(task, _placed(task), message, now)
                    if not (handed_back or task.wanted or worker.draining):
                        self._judge(worker, task, message, now)
                elif (blob := result_blob(message.outcome)) is not None and not self._collects(worker, message):
                    self._out.append(TellWorker(worker.peer, m.ForgetBlob(blob.digest)))
            case m.LimitRaised():
                if (task := self._present(worker, message)) is not None:
                    self._calls.raised_limit(task, _placed(task), message.allocation)
                    self._scheduler.room(worker)
            case m.EnvironmentReady(digest):
                worker.environments.add(digest)
                worker.unpacked.add(digest)
                worker.failures.pop(digest, None)
                worker.record.moved = now
                self._environments.came(digest, worker, self.workers)
            case m.EnvironmentComing():
                worker.record.moved = now
                self._environments.coming(message, worker, self.workers, now)
            case m.EnvironmentUnusable(digest=digest):
                self._environments.came(digest, worker, self.workers)
                self._cannot_use(worker, message, now)
            case m.OfferChanged(offer, draining):
                worker.offer(offer, now)
                if draining:
                    self.drain(worker, "it says so", tell=False)
                self._count(worker)
                self._scheduler.room(worker)
            case m.SeekBlob(digest, size):
                self._spread.seek(worker.peer, digest, size, now)
            case m.BlobSought(digest, offer):
                self._spread.sought(worker.peer, digest, offer)
            case m.WorkerLeaving(reason):
                self.lost(worker, f"it left: {reason}", False, now)
            case _:
                assert_never(message)

    def _cannot_use(self, worker: Worker, said: m.EnvironmentUnusable, now: float) -> None:
        """Not now, or never: what fails for a reason that may pass is tried again, a few times."""
        digest = said.digest
        if said.passing and digest in worker.again:
            return  # said of every call that was on its way: that is once
        worker.unusable[digest] = said.reason
        worker.environments.discard(digest)
        worker.unpacked.discard(digest)
        worker.again.pop(digest, None)
        times = worker.failures[digest] = worker.failures.get(digest, 0) + 1
        if said.passing and times < self._policy.unusable_times:
            worker.again[digest] = now + self._policy.aside * 2.0 ** (times - 1)
            heappush(self._due, worker.again[digest])
        self._scheduler.refused(digest)

    def _judge(self, worker: Worker, task: Task, ended: m.CallEnded, now: float) -> None:
        if why := self._conduct.ended(worker.record, task.category.name, ended.outcome, now):
            self._set_aside(worker, why, now)

    def _present(self, worker: Worker, news: m.CallStarted | m.CallEnded | m.LimitRaised) -> Task | None:
        """The call of that news, if it is about its present attempt."""
        task = self._calls.tasks.get(news.task)
        if task is None or not isinstance(task.state, Placed):
            return None
        return task if task.state.worker == worker.peer and task.state.attempt == news.attempt else None

    def _collects(self, worker: Worker, ended: m.CallEnded) -> bool:
        """Whether this was said before, and the result is on its way."""
        if ended.task not in worker.collecting:
            return False
        state = self._calls.tasks[ended.task].state
        return isinstance(state, Collecting) and state.placed.attempt == ended.attempt


def _placed(task: Task) -> Placed:
    assert isinstance(task.state, Placed)
    return task.state
