"""Why a call is where it is, in words: what ``lfm explain`` says."""

from __future__ import annotations

from lfm.protocol.ids import PeerId
from lfm.protocol.outcomes import (
    Cancelled,
    Crashed,
    EnvironmentBroken,
    Exhausted,
    Impossible,
    Killed,
    Lost,
    Outcome,
    Raised,
    Returned,
)
from lfm.protocol.resources import Resources, format_duration, format_size
from lfm_manager.core import unfit
from lfm_manager.core.functions import Away, Building, Built, Coming, Environment
from lfm_manager.core.manager import ManagerCore
from lfm_manager.core.past import Ended
from lfm_manager.core.tasks import Adrift, Collecting, Done, Failed, Placed, Ready, Task, Waiting


def state_name(task: Task) -> str:
    """One word for a table."""
    match task.state:
        case Placed(started=started):
            return "running" if started is not None else "placed"
        case Adrift():
            return "waiting"
        case state:
            return type(state).__name__.lower()


def explain(core: ManagerCore, task: Task | Ended, now: float) -> str:
    """A sentence on its state, and a line for each attempt."""
    state = f"it ended: {_ended(task.outcome, fetched=True)}" if isinstance(task, Ended) else _state(core, task, now)
    return state + "".join(
        f"\nattempt {a.number} on {a.worker}: {a.outcome} after {format_duration(max(0.0, a.ended - a.started))}, "
        f"given {_given(a.allocation)}"
        for a in task.attempts
    )


def _given(allocation: Resources) -> str:
    return f"{allocation.cores:g} core{'s' * (allocation.cores != 1)} and {format_size(allocation.memory)}"


def _state(core: ManagerCore, task: Task, now: float) -> str:
    match task.state:
        case Waiting(environment, blobs):
            lacks = core.clients.lacks(task)
            away = f"; {lacks} is with the client that submitted it, which is not here" if lacks else ""
            return _waiting(task, environment, len(blobs), now) + away
        case Ready():
            return _ready(core, task, now)
        case Placed(worker, attempt, allocation, since=since, started=started):
            what = f"attempt {attempt} on {core.workers[worker].name} with {_given(allocation)}"
            if started is not None:
                return f"running for {format_duration(now - started)}: {what}"
            ago = format_duration(now - since)
            return f"sent to its worker {ago} ago and not begun ({_on_its_way(core, task, worker)}): {what}"
        case Collecting(worker):
            return f"it ended; its result is on its way from {core.workers[worker].name}"
        case Adrift(until=until):
            left = format_duration(max(0.0, until - now))
            return f"it ran when the manager stopped; its worker has {left} left to come back with it"
        case Done(finished) | Failed(finished):
            return f"it ended: {_ended(finished.outcome)}"


def _on_its_way(core: ManagerCore, task: Task, worker: PeerId) -> str:
    """What the worker may be waiting for."""
    built = task.function.environment.state
    news = core.workers[worker].coming.get(built.tarball.digest) if isinstance(built, Built) else None
    if news is None:
        return "the worker may be fetching its environment"
    doing = "sent there" if news.stage == "send" else "unpacked there"
    return f"its environment is being {doing}: {format_size(news.done)} of {format_size(news.total)}"


def _waiting(task: Task, environment: bool, blobs: int, now: float) -> str:
    parts = []
    if environment:
        known = task.function.environment
        parts.append(f"its environment ({known.declared.name}) {_environment(known, now)}")
    if blobs:
        parts.append(f"{blobs} of its blobs {'is' if blobs == 1 else 'are'} on the way from the client")
    return "waiting: " + " and ".join(parts)


def _environment(known: Environment, now: float) -> str:
    match known.state:
        case Building(since):
            return f"is being built for {format_duration(now - since)}"
        case Away(since, peer) if peer is not None:
            return f"is being built by a client for {format_duration(now - since)}"
        case Away(why=why):
            return f"can only be built by its client, which is not here: {why.reason}"
        case Coming():
            return "comes from the client that built it"
        case _:
            return "is being built"


def _ready(core: ManagerCore, task: Task, now: float) -> str:
    queue, scheduler = task.queue, core.scheduler
    assert queue is not None
    if not core.workers:
        return "ready, and no worker is connected; start one with: lfm worker start"
    demand = scheduler.demand(queue)
    needs = unfit.needs(demand)
    able = [w for w in core.workers.values() if not w.draining and w.could(demand, now)]
    barred = [f"{w.name}: {w.unusable[demand.digest]}" for w in core.workers.values() if demand.digest in w.unusable]
    why = f"; {len(barred)} cannot use its environment: {barred[0]}" if barred else ""
    if not able:
        return f"ready, and no worker can take it: it {unfit.too_much(demand, core.workers.values(), core.sizes.largest, now)}{why}"
    if task.alone:
        return f"ready; workers died while it ran ({task.tries.deaths}), so it waits for one to itself"
    if scheduler.reserved is not None and scheduler.reserved[0] is queue:
        return f"ready; {scheduler.reserved[1].name} is kept free for it until it has {needs}"
    ahead = list(queue.tasks).index(task.id)
    others = sum(len(q.tasks) for q in scheduler.queues.values()) - len(queue.tasks)
    unseen = not task.category.seen and task.category.in_flight >= core.policy.probes
    held = f" (held back: {task.category.in_flight} of its category run, and none has ended yet)" if unseen else ""
    return (
        f"ready; it waits its turn{held}: it needs {needs}; {ahead} of its kind are before it, {others} others wait; "
        f"{len(able)} of {len(core.workers)} workers could take it{why}"
    )


def _ended(outcome: Outcome, *, fetched: bool = False) -> str:
    match outcome:
        case Returned():
            return f"it returned a value, which its client has {'' if fetched else 'not '}fetched{'' if fetched else ' yet'}"
        case Raised(type_name=name, text=text):
            return f"it raised {name}: {text}"
        case Crashed(signal, exit_code, hint=hint):
            how = f"signal {signal}" if signal is not None else f"exit code {exit_code}"
            return f"it crashed ({how}){': ' + hint if hint else ''}"
        case Exhausted(resource, limit, measured):
            sizes = [format_size(x) if resource in ("memory", "disk") else f"{x:g}" for x in (limit, measured)]
            return f"it exceeded its limit of {resource}: {sizes[1]} of {sizes[0]}"
        case EnvironmentBroken(module, file, line, reason):
            return f"its environment lacks {module} ({file}:{line}): {reason}"
        case Impossible(reason=reason) | Lost(reason=reason):
            return reason
        case Killed():
            return "it was killed by its user"
        case Cancelled():
            return "it was cancelled before it began"
