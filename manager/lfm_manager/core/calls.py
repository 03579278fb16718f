"""What becomes of calls: every state that a task enters, it enters here, with all that has to follow.

Owns the tasks and the order of things when one is placed, starts, ends, is repeated, finished or released.
Refuses to know who said so: clients and workers are the business of ``clients`` and ``crew``.
"""

from __future__ import annotations

from dataclasses import replace

from lfm.protocol import messages as m
from lfm.protocol.ids import Digest, FunctionId, PeerId, TaskId
from lfm.protocol.outcomes import (
    Attempt,
    Blob,
    Cancelled,
    Crashed,
    Exhausted,
    Impossible,
    Killed,
    Lost,
    Outcome,
    Raised,
    Returned,
    outcome_name,
    payload_of,
)
from lfm.protocol.resources import MAKES_ROOM_BEFORE, Resources, Usage
from lfm_manager.core.advice import too_much
from lfm_manager.core.blobs import Blobs
from lfm_manager.core.categories import Category
from lfm_manager.core.commands import (
    Command,
    ForgetDeclared,
    ForgetTask,
    GetBlob,
    RunKept,
    SaveAttempt,
    SaveMeasurement,
    SaveResult,
    SaveTask,
    TellClient,
    TellWorker,
)
from lfm_manager.core.environments import Environments
from lfm_manager.core.events import SavedTask
from lfm_manager.core.functions import Built, Function, Unbuildable
from lfm_manager.core.past import Past
from lfm_manager.core.payloads import SMALL, inline_bytes, inline_size, without_arguments, without_value
from lfm_manager.core.policy import Policy
from lfm_manager.core.schedule import Placement, Scheduler
from lfm_manager.core.sessions import Session
from lfm_manager.core.sizes import UNKNOWN, Sizes, input_size, was_asked
from lfm_manager.core.tasks import Adrift, Collecting, Done, Failed, Placed, Ready, Task, Waiting
from lfm_manager.core.workers import Worker, millicores

NOTHING: frozenset[Digest] = frozenset()
COMING, READY = Waiting(True), Ready()


class Calls:
    def __init__(
        self, policy: Policy, sizes: Sizes, scheduler: Scheduler, blobs: Blobs, environments: Environments,
        workers: dict[PeerId, Worker], out: list[Command],
    ) -> None:
        self.tasks: dict[TaskId, Task] = {}
        self.functions: dict[FunctionId, Function] = {}
        self._idle: dict[FunctionId, Function] = {}  # that nobody uses, the longest unused first
        self.categories: dict[str, Category] = {}
        self.finished = self.placed = 0
        self.held = self.unfetched = 0  # bytes of arguments and of results that are here and not in the store alone
        self.past = Past(blobs)
        self._policy, self._sizes, self._scheduler = policy, sizes, scheduler
        self._blobs, self._environments, self._workers, self._out = blobs, environments, workers, out
        self._orders = 0

    # ------------------------------------------------------------ in

    def submit(
        self, session: Session, submit: m.Submit, now: float, *, save: bool = True, kept_size: int = 0, like: Task | None = None
    ) -> Task | None:
        """Accept a call; None if it is known already, or its function is not.

        Its arguments are in the store already if there are ``kept_size`` bytes of them, or it is ``like`` another one.
        """
        if submit.task in self.tasks:
            return None
        function = self.functions.get(submit.function)
        if function is None:
            return None
        self._orders += 1
        category = self.category(submit.category or function.declared.category)
        task = Task(
            submit.task, self._orders, submit, session, function, category,
            like.input_bytes if like is not None else input_size(submit) + kept_size, COMING, now,
        )
        self.tasks[task.id] = task
        session.tasks[task.id] = None
        self.use(function)
        category.submitted += 1
        if save:
            self._out.append(SaveTask(session.key, submit, like.id if like is not None else None))
        self._make_light(task, in_store=like is not None or kept_size > 0)
        for blob in task.blobs:
            self._blobs.use(blob, session.peer)
        self._await(task, now)
        return task

    def _make_light(self, task: Task, *, in_store: bool) -> None:
        """Leave its arguments to the store, if they are there alone, or are large and there are many."""
        size, most = inline_size(task.submit.arguments), self._policy.in_memory
        task.kept = in_store or (most is not None and size > SMALL and self.held + size > most)
        if not task.kept:
            self.held += size
        elif size:
            task.submit = without_arguments(task.submit)

    def _await(self, task: Task, now: float) -> None:
        """See that all that it needs is on its way; it is ready at once if nothing is missing.

        Also before it runs again: after a restart its environment may not have been found yet.
        """
        environment, missing = task.function.environment, NOTHING
        if blobs := (*task.function.blobs, *task.blobs):
            missing = frozenset(blob.digest for blob in blobs if not self._blobs.known[blob.digest].here)
            for digest in missing:
                self._blobs.known[digest].waiters[task.id] = None
        if isinstance(environment.state, Built):
            self._wait_for(task, False, missing, now)
            return
        task.become(Waiting(True, missing))
        if isinstance(environment.state, Unbuildable):
            self._finish(task, Impossible("environment", environment.state.reason), now)
            return
        environment.waiters[task.id] = None
        self._environments.need(environment, now)

    def _wait_for(self, task: Task, environment: bool, blobs: frozenset[Digest], now: float) -> None:
        if environment or blobs:
            task.become(Waiting(environment, blobs))
        else:
            self._ready(task, now)

    def _ready(self, task: Task, now: float) -> None:
        task.become(READY)
        self._scheduler.add(task, now)

    # ------------------------------------------------------------ functions

    def declare(self, function: Function) -> None:
        """One that is not known yet."""
        self.functions[function.declared.function] = self._idle[function.declared.function] = function
        self._environments.use(function.environment)
        for blob in function.blobs:
            self._blobs.use(blob, None)

    def use(self, function: Function) -> None:
        """One more call or session needs it."""
        function.users += 1
        self._idle.pop(function.declared.function, None)

    def leave(self, function: Function) -> None:
        """One fewer; those that nobody has needed for long are forgotten."""
        function.users -= 1
        if not function.users:
            self._idle[function.declared.function] = function
            self.tidy()

    def tidy(self) -> None:
        while len(self._idle) > self._policy.idle:
            name = next(iter(self._idle))
            function = self._idle.pop(name)
            del self.functions[name]
            for worker in self._workers.values():
                if name in worker.functions:
                    worker.functions.discard(name)
                    self._out.append(TellWorker(worker.peer, m.ForgetFunction(name)))
            for blob in function.blobs:
                self._blobs.leave(blob.digest)
            self._out.append(ForgetDeclared(name))
            self._environments.leave(function.environment)

    def worker_name(self, peer: PeerId) -> str:
        return self._workers[peer].name

    def category(self, name: str) -> Category:
        known = self.categories.get(name)
        if known is None:
            known = self.categories[name] = Category(name)
        return known

    def restore(self, session: Session, saved: SavedTask, until: float, now: float) -> Task | None:
        """A call of before the restart.  It waits, is ready, or adrift with the worker that had it."""
        if saved.submit.function not in self.functions:  # nobody needed it any more: then nobody needs its calls
            self._out.append(ForgetTask(saved.submit.task))
            return None
        if saved.finished is not None:
            return self._restore_finished(session, saved, saved.finished, now)
        task = self.submit(session, saved.submit, now, save=False, kept_size=saved.kept_size)
        if task is None:
            return None
        task.attempt = saved.attempt
        if saved.worker and isinstance(task.state, Waiting | Ready):
            self._stop_waiting(task)
            if isinstance(task.state, Ready):
                self._scheduler.remove(task, now)
            task.become(Adrift(saved.worker, saved.attempt, until))
        return task

    def _restore_finished(self, session: Session, saved: SavedTask, finished: m.Finished, now: float) -> Task:
        submit = saved.submit
        function = self.functions[submit.function]
        self._orders += 1
        category = self.category(submit.category or function.declared.category)
        task = Task(submit.task, self._orders, submit, session, function, category, 0, Waiting(False), now)
        task.attempts = finished.attempts
        if isinstance(finished.outcome, Returned):
            task.submit = without_arguments(submit)
        else:
            self._make_light(task, in_store=saved.kept_size > 0)
        if not saved.kept:
            self.unfetched += inline_bytes(finished)
        self.tasks[task.id] = task
        session.tasks[task.id] = None
        self.use(function)
        if (blob := result_blob(finished.outcome)) is not None:
            self._blobs.use(blob, None)
        task.become((Done if isinstance(finished.outcome, Returned) else Failed)(finished, saved.kept))
        return task

    # ------------------------------------------------------------ what calls wait for

    def environment_made(self, waiters: dict[TaskId, None], now: float) -> None:
        for task_id in list(waiters):
            task = self.tasks[task_id]
            assert isinstance(task.state, Waiting)
            self._wait_for(task, False, task.state.blobs, now)
        waiters.clear()

    def environment_failed(self, waiters: dict[TaskId, None], reason: str, now: float) -> None:
        for task_id in list(waiters):
            self._finish(self.tasks[task_id], Impossible("environment", reason), now)
        waiters.clear()

    def blob_came(self, digest: Digest, waiters: list[TaskId], now: float) -> None:
        for task_id in waiters:
            task = self.tasks[task_id]
            match task.state:
                case Waiting(environment, blobs):
                    self._wait_for(task, environment, blobs - {digest}, now)
                case Collecting():
                    self._collect(task, task.state, now)
                case _:
                    raise AssertionError(f"{task.id} waits for a blob in {task.state}")

    def blob_lost(self, waiters: list[TaskId], reason: str, now: float) -> None:
        for task_id in waiters:
            task = self.tasks[task_id]
            match task.state:
                case Collecting():
                    self.result_lost(task, f"its result could not be had: {reason}", now)
                case _:
                    self._finish(task, Impossible("lost", f"an argument could not be had: {reason}"), now)

    # ------------------------------------------------------------ placing

    def place(self, placement: Placement, now: float) -> None:
        """Carry out what the scheduler decided."""
        task, worker, demand = placement.task, placement.worker, placement.demand
        submit, function = task.submit, task.function
        built = function.environment.state
        assert isinstance(built, Built)
        allocation = Resources(
            demand.millicores / 1000, demand.memory, demand.disk, demand.gpus, submit.request.wall_time
        )
        self._scheduler.remove(task, now)
        task.attempt += 1
        gpus = tuple(worker.free_devices[: demand.gpus])
        task.become(Placed(worker.peer, task.attempt, allocation, gpus, now, None, placement.ahead))
        self._hold(task, worker, allocation, gpus, demand.promise)
        self._out.append(SaveAttempt(task.id, task.attempt, worker.hello.session))
        if submit.function not in worker.functions:
            self._define(worker, function, built.tarball)
        for blob in task.blobs:
            self._blobs.known[blob.digest].told[worker.peer] = None
        run = m.Run(
            task.id, task.attempt, submit.function, submit.arguments, allocation, gpus, submit.request.processes,
            submit.chunk, submit.blobs, self._sizes.growth(task, allocation), placement.ahead,
        )
        self._out.append(RunKept(worker.peer, run) if task.kept else TellWorker(worker.peer, run))

    def _define(self, worker: Worker, function: Function, tarball: Blob) -> None:
        declared = function.declared
        worker.functions.add(declared.function)
        worker.environments.add(tarball.digest)
        for blob in function.blobs:
            self._blobs.known[blob.digest].told[worker.peer] = None
        self._out.append(TellWorker(worker.peer, m.DefineFunction(
            declared.function, declared.name, tarball, declared.code, declared.overlay, declared.preload,
        )))

    def _hold(
        self, task: Task, worker: Worker, amount: Resources, gpus: tuple[str, ...], promise: int
    ) -> None:
        worker.take(task.id, amount, gpus, alone=task.alone, promise=promise)
        self._scheduler.turns.charge(task.session, millicores(amount.cores))
        task.category.in_flight += 1
        self.placed += 1

    def _let_go(self, task: Task, placed: Placed) -> Worker:
        worker = self._workers[placed.worker]
        worker.give_back(task.id, placed.allocation, placed.gpus)
        self._scheduler.turns.charge(task.session, -millicores(placed.allocation.cores))
        task.category.in_flight -= 1
        self.placed -= 1
        self._scheduler.room(worker)
        return worker

    def adopt(self, task: Task, worker: Worker, running: m.Running, now: float) -> None:
        """A worker came back with a call that was given up, or that the manager forgot where it was."""
        amount = running.allocation or Resources(0.0)
        if isinstance(task.state, Ready):
            self._scheduler.remove(task, now)
        task.attempts = tuple(a for a in task.attempts if a.number != running.attempt)  # it was not lost after all
        started = now if running.started else None
        task.become(Placed(worker.peer, running.attempt, amount, running.gpu_devices, now, started))
        task.attempt = max(task.attempt, running.attempt)
        promise = self._sizes.promise(task, amount.memory, amount.memory)
        self._hold(task, worker, amount, running.gpu_devices, promise)
        if task.wanted:
            self._out.append(TellWorker(worker.peer, m.KillCall(task.id, running.attempt)))

    def started(self, task: Task, placed: Placed, now: float) -> None:
        if placed.started is None:
            task.become(replace(placed, started=now, ahead=False))
            worker = self._workers[placed.worker]
            self._tell(task, m.Started(task.id, placed.attempt, worker.name, placed.allocation))

    def raised_limit(self, task: Task, placed: Placed, allocation: Resources) -> None:
        worker = self._workers[placed.worker]
        if not task.grows:
            return  # a limit that its user set; no worker raises it
        promise = self._sizes.promise(task, allocation.memory, allocation.memory)
        worker.regrant(task.id, placed.allocation, allocation, promise)
        self._scheduler.turns.charge(task.session, millicores(allocation.cores) - millicores(placed.allocation.cores))
        task.category.grown += 1
        task.become(replace(placed, allocation=allocation))

    # ------------------------------------------------------------ ends

    def ended(self, task: Task, placed: Placed, ended: m.CallEnded, now: float) -> None:
        """An attempt is over: finish the call, fetch its result first, or run it again."""
        worker = self._let_go(task, placed)
        if placed.ahead and isinstance(ended.outcome, Lost) and not (ended.outcome.started or task.wanted):
            worker.stuck = True  # the call before it is longer than its like
            self._await(task, now)
            return
        worker.stuck = False
        worker.ended += 1
        self._record(task, placed, worker, ended.outcome, ended.usage, now)
        if not task.wanted and self._repeats(task, placed, ended, now):
            if (blob := result_blob(ended.outcome)) is not None:
                self._out.append(TellWorker(worker.peer, m.ForgetBlob(blob.digest)))
            return
        if (blob := result_blob(ended.outcome)) is not None:
            self._ask_for_result(task, placed, ended, blob)
        else:
            self._conclude(task, placed, ended, now)

    def _repeats(self, task: Task, placed: Placed, ended: m.CallEnded, now: float) -> bool:
        """Whether the call runs again after this, and if so, let it."""
        tries, category = task.tries, task.category
        match ended.outcome:
            case Lost(reason, started):
                if started:
                    category.lost += 1
                    self._suspect(task)
                else:
                    tries.refused_at = tries.refused_at or now
                    tries.refused += 1
                self._again_or_lost(task, reason, now)
                return True
            case Raised(stage="call") | Crashed() if tries.raised < task.submit.retries:
                category.raised += 1
                tries.raised += 1
                self._await(task, now)
                return True
            case Exhausted() as spent if not was_asked(task.submit.request, spent):
                category.too_small += 1
                return self._climb(task, placed, spent, now)
            case _:
                return False

    def _climb(self, task: Task, placed: Placed, spent: Exhausted, now: float) -> bool:
        """Try with more of what an automatic allocation gave too little of."""
        tries = task.tries
        if spent.resource == "memory" and spent.measured < spent.limit and placed.attempt < MAKES_ROOM_BEFORE:
            task.least_memory = placed.allocation.memory  # it made room for an older one: enough for all that is known
            self._await(task, now)
            return True
        if spent.resource == "memory":
            tries.memory += 1
            given, failures = placed.allocation.memory, tries.memory
            task.category.most_memory = max(task.category.most_memory, given)
        else:
            tries.disk += 1
            given, failures = placed.allocation.disk, tries.disk
            task.category.most_disk = max(task.category.most_disk, given)
        blamed_s = 0.0 if self._was_full(placed, spent) else spent.at_s
        rung = self._sizes.next_rung(task, spent.resource, given, spent.measured, failures, blamed_s)
        if rung is None:
            return False
        if spent.resource == "memory":
            task.least_memory = rung
        else:
            task.least_disk = rung
        self._await(task, now)
        return True

    def _was_full(self, placed: Placed, spent: Exhausted) -> bool:
        """Whether a call was killed because its node had no room for it to grow, not because it grew at once."""
        given = placed.allocation.memory
        others = self._workers[placed.worker].free_memory - given
        return spent.resource == "memory" and others < given // UNKNOWN

    def _again_or_lost(self, task: Task, reason: str, now: float) -> None:
        tries, policy = task.tries, self._policy
        refused_long = tries.refused > policy.refused_max / 2 and now - tries.refused_at > policy.refused_s
        if tries.lost >= policy.lost_max:
            self._finish(task, Impossible("lost", f"lost {tries.lost} times while it ran, at last: {reason}"), now)
        elif tries.refused >= policy.refused_max or refused_long:
            text = f"workers handed it back {tries.refused} times before it began, at last: {reason}"
            self._finish(task, Impossible("lost", text), now)
        else:
            self._await(task, now)

    def _suspect(self, task: Task) -> None:
        """It was lost while it ran.  When that happens again it runs alone: it is at fault, or its neighbours were."""
        task.tries.lost += 1
        task.alone = task.alone or task.tries.lost >= self._policy.deaths_before_alone

    def take_back(self, task: Task, placed: Placed, reason: str, now: float) -> None:
        """Its worker does not begin it: it is given to another."""
        worker = self._let_go(task, placed)
        self._record(task, placed, worker, Lost(reason, started=False), None, now)
        self._out.append(TellWorker(worker.peer, m.KillCall(task.id, placed.attempt)))
        if task.wanted:
            self._finish(task, Killed() if task.wanted == "kill" else Cancelled(), now)
        else:
            self._await(task, now)

    def worker_died(self, task: Task, placed: Placed, reason: str, charged: bool, now: float) -> None:
        """Its worker is gone: run it elsewhere, unless workers die of it."""
        worker = self._let_go(task, placed)
        self._record(task, placed, worker, Lost(reason, placed.started is not None), None, now)
        if task.wanted:
            self._finish(task, Killed() if task.wanted == "kill" else Cancelled(), now)
            return
        if charged and (placed.started is not None or _may_have_begun(task, placed, worker)):
            task.category.lost += 1
            task.tries.deaths += 1
            if task.alone:
                text = f"{task.tries.deaths} workers died while it ran, the last one while it ran alone ({reason})"
                self._finish(task, Impossible("lost", text), now)
                return
            task.alone = task.alone or task.tries.deaths >= self._policy.deaths_before_alone
        self._await(task, now)

    def drifted(self, task: Task, now: float) -> None:
        """The worker that had it when the manager stopped did not come back with it."""
        if task.wanted:
            self._finish(task, Killed() if task.wanted == "kill" else Cancelled(), now)
        else:
            self._await(task, now)

    def _ask_for_result(self, task: Task, placed: Placed, ended: m.CallEnded, blob: Blob) -> None:
        worker = self._workers[placed.worker]
        worker.collecting[task.id] = None
        task.become(Collecting(worker.peer, blob.digest, ended, placed))
        known = self._blobs.use(blob, worker.peer)
        known.waiters[task.id] = None
        if known.here:
            self._out.append(GetBlob(worker.peer, blob.digest, blob.size))  # answered at once

    def _collect(self, task: Task, state: Collecting, now: float) -> None:
        worker = self._workers[state.worker]
        worker.collecting.pop(task.id, None)
        self._out.append(TellWorker(worker.peer, m.ForgetBlob(state.digest)))
        self._conclude(task, state.placed, state.ended, now)

    def result_lost(self, task: Task, reason: str, now: float) -> None:
        """The worker left before it could give the result."""
        state = task.state
        assert isinstance(state, Collecting)
        self._blobs.known[state.digest].waiters.pop(task.id, None)
        self._blobs.leave(state.digest)
        self._workers[state.worker].collecting.pop(task.id, None)
        task.tries.lost += 1
        self._again_or_lost(task, reason, now)

    def _conclude(self, task: Task, placed: Placed, ended: m.CallEnded, now: float) -> None:
        outcome = ended.outcome
        if isinstance(outcome, Killed | Lost | Exhausted) and task.wanted:
            outcome = Killed() if task.wanted == "kill" else Cancelled()
        if isinstance(outcome, Returned) and ended.usage is not None:
            self._learn(task, placed.allocation, ended.usage)
        self._finish(task, outcome, now, placed.allocation, ended)

    def _learn(self, task: Task, allocation: Resources, usage: Usage) -> None:
        self._sizes.succeeded(task.category, task.input_bytes, usage, task.submit.request.expect)
        before = task.category.generation
        task.category.learned(task.input_bytes, usage.wall_s)
        if task.category.generation != before:
            self._scheduler.learned(task.category.queues)
        self._out.append(SaveMeasurement(task.category.name, task.input_bytes, allocation, usage, "returned"))
        if not task.category.advised and (advice := too_much(task.category, task.submit.request)):
            task.category.advised = True
            self._tell(task, m.Notice("warning", advice))

    def give_up(self, task: Task, why: Impossible, now: float) -> None:
        """It cannot run at all."""
        self._finish(task, why, now)

    def _finish(
        self, task: Task, outcome: Outcome, now: float, allocation: Resources | None = None,
        ended: m.CallEnded | None = None,
    ) -> None:
        """The call's one and only answer."""
        if isinstance(task.state, Ready):
            self._scheduler.remove(task, now)
        finished = m.Finished(
            task.id, outcome, ended.usage if ended else None, allocation, task.attempts,
            ended.stdout if ended else b"", ended.stderr if ended else b"",
        )
        light, kept = self._lighten(finished)
        if isinstance(outcome, Returned):
            task.category.succeeded += 1
            task.become(Done(light, kept))
        else:
            if isinstance(outcome, Cancelled | Killed):
                task.category.cancelled += 1  # its user's wish, not its failure
            else:
                task.category.failed += 1
            self._stop_waiting(task)
            task.become(Failed(light, kept))
        self.finished += 1
        for blob in task.submit.blobs:
            self._blobs.leave(blob.digest)
        if isinstance(task.submit.arguments, Blob) and not self.past.hold(task):
            self._blobs.leave(task.submit.arguments.digest)
        if task.session.over:
            self._forget(task)
            return
        if isinstance(outcome, Returned):
            self._drop_arguments(task)  # nobody runs it again
        self._out.append(SaveResult(finished))
        self._tell(task, finished)

    def _lighten(self, finished: m.Finished) -> tuple[m.Finished, bool]:
        """What is remembered of it here; and whether the rest is left to the store."""
        size, most = inline_bytes(finished), self._policy.in_memory
        if most is not None and size > SMALL and self.unfetched + size > most:
            return without_value(finished), True
        self.unfetched += size
        return finished, False

    def _drop_arguments(self, task: Task) -> None:
        if not task.kept and (size := inline_size(task.submit.arguments)):
            self.held -= size
            task.submit = without_arguments(task.submit)

    def _stop_waiting(self, task: Task) -> None:
        if isinstance(task.state, Waiting):
            task.function.environment.waiters.pop(task.id, None)
            for digest in task.state.blobs:
                self._blobs.known[digest].waiters.pop(task.id, None)

    def _record(
        self, task: Task, placed: Placed, worker: Worker, outcome: Outcome, usage: Usage | None, now: float
    ) -> None:
        started = placed.started
        if started is None:  # a short call's start is not told of
            started = max(placed.since, now - usage.wall_s) if usage is not None else placed.since
        epoch = self._policy.epoch
        attempt = Attempt(
            placed.attempt, worker.name, worker.hello.host, placed.allocation, usage, epoch + started, epoch + now,
            outcome_name(outcome),
        )
        task.attempts = tuple(sorted((*task.attempts, attempt), key=lambda a: a.number)) if task.attempts else (attempt,)
        task.category.count(placed.allocation, usage, isinstance(outcome, Returned))

    # ------------------------------------------------------------ out

    def cancel(self, task: Task, how: str, now: float) -> None:
        """``how`` is "cancel" (take back what has not started) or "kill"."""
        match task.state:
            case Waiting() | Ready():
                self._finish(task, Cancelled(), now)
            case Placed(worker, attempt, started=started):
                if how == "kill" or started is None:
                    task.wanted = how
                    self._out.append(TellWorker(worker, m.KillCall(task.id, attempt)))
            case Adrift():
                task.wanted = how
            case Collecting() | Done() | Failed():
                pass

    def release(self, task: Task) -> None:
        """Its client has the result."""
        if isinstance(task.state, Done | Failed):
            self._forget(task)

    def _forget(self, task: Task) -> None:
        state = task.state
        assert isinstance(state, Done | Failed)
        del self.tasks[task.id], task.session.tasks[task.id]
        self.past.add(task)
        self._drop_arguments(task)
        if not state.kept:
            self.unfetched -= inline_bytes(state.finished)
        if (blob := result_blob(state.finished.outcome)) is not None:
            self._blobs.leave(blob.digest)
        self._out.append(ForgetTask(task.id))
        self.leave(task.function)

    def _tell(self, task: Task, message: m.Started | m.Finished | m.Notice) -> None:
        if task.session.peer is not None:
            self._out.append(TellClient(task.session.peer, message))


def _may_have_begun(task: Task, placed: Placed, worker: Worker) -> bool:
    """Whether a call that killed its worker may not have had the time to say that it began."""
    built = task.function.environment.state
    return not placed.ahead and isinstance(built, Built) and built.tarball.digest in worker.unpacked


def result_blob(outcome: Outcome) -> Blob | None:
    payload = payload_of(outcome)
    return payload if isinstance(payload, Blob) else None
