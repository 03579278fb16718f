"""Answers to people: what ``lfm status``, ``tasks``, ``explain`` and the like print.  Reads the core, changes nothing.

Every answer is a plain dict with a ``schema``; scripts rely on its keys, so they are only added to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from lfm.protocol.ids import TaskId
from lfm.protocol.messages import Finished
from lfm.protocol.outcomes import Attempt, Cancelled, Killed, Returned
from lfm.protocol.resources import Resources, Usage, format_duration
from lfm_manager.core.advice import options_line
from lfm_manager.core.categories import Category
from lfm_manager.core.functions import (
    Away,
    Building,
    Built,
    Coming,
    Environment,
    Fetching,
    Unbuildable,
)
from lfm_manager.core.manager import ManagerCore
from lfm_manager.core.past import Ended
from lfm_manager.core.tasks import Collecting, Done, Failed, Placed, Task, placement
from lfm_manager.core.unfit import largest_worker
from lfm_manager.core.workers import Worker
from lfm_manager.shell import outputs
from lfm_manager.shell.explain import explain, state_name
from lfm_manager.shell.select import STATES, choose, find, state
from lfm_manager.shell.select import NoAnswer as NoAnswer

LIMIT = 1000  # tasks in one answer, unless more are asked for


def answer(
    core: ManagerCore, facts: dict[str, Any], what: str, arguments: dict[str, Any], now: float,
    whole: Callable[[TaskId], Finished | None] = lambda task: None,
) -> dict[str, Any]:
    """The body of the answer.  NoAnswer if there is none; ``facts`` are the shell's own, about this manager.

    ``whole`` finds how a call ended where the core does not keep all of that.
    """
    match what:
        case "info":
            return {"schema": "lfm.info/1", **facts}
        case "status":
            return status(core, facts, now)
        case "tasks":
            return tasks(core, arguments, now)
        case "workers":
            return {"schema": "lfm.workers/1", "workers": [worker_row(w, now) for w in core.workers.values()]}
        case "environments":
            rows = [environment_row(core, e, now) for e in core.environments.known.values()]
            return {"schema": "lfm.environments/1", "environments": rows}
        case "categories":
            rows = [category_row(core, c) for c in core.calls.categories.values()]
            return {"schema": "lfm.categories/1", "categories": rows}
        case "explain":
            call = find(core, str(arguments.get("task", "")))
            return {
                "schema": "lfm.explain/1", **task_row(core, call, now), "text": explain(core, call, now),
                "attempts": [attempt_row(a) for a in call.attempts],
            }
        case "logs":
            return logs(core, find(core, str(arguments.get("task", ""))), arguments, whole)
        case _:
            raise NoAnswer(f"this manager cannot answer {what!r}")


def select_workers(core: ManagerCore, selection: str) -> list[Worker]:
    """Workers by "all", or names separated by commas."""
    names = {name.strip() for name in selection.split(",")}
    return [w for w in core.workers.values() if selection == "all" or w.name in names]


def status(core: ManagerCore, facts: dict[str, Any], now: float) -> dict[str, Any]:
    found = Counter(state_name(t) for t in core.calls.tasks.values())
    return {
        "schema": "lfm.status/1",
        "manager": facts,
        "workers": [worker_row(w, now) for w in core.workers.values()],
        "calls": {**{name: found.get(name, 0) for name in STATES}, "finished": core.calls.finished},
        "categories": [category_row(core, c) for c in core.calls.categories.values() if c.submitted],
        "environments": [environment_row(core, e, now) for e in core.environments.known.values()],
        "clients": [
            {
                "session": s.key, "user": s.hello.user, "host": s.hello.host, "pid": s.hello.pid,
                "connected": s.peer is not None, "calls": len(s.tasks), "cores": s.millicores / 1000,
            }
            for s in core.clients.sessions.values()
        ],
        "alerts": [*([facts["trouble"]] if facts.get("trouble") else []), *alerts(core)],
    }


def alerts(core: ManagerCore) -> list[str]:
    """What a person should know: that something does not run, or cannot."""
    found = []
    if not core.workers and (core.scheduler.queues or any(e.waiters for e in core.environments.known.values())):
        found.append("calls wait and no worker is connected; start one with: lfm worker start")
    found += [f"worker {w.name} is {w.draining}" for w in core.workers.values() if w.draining.startswith("set aside")]
    for queue in core.scheduler.queues.values():
        if queue.warned:
            who = f"{len(queue.tasks)} calls of {queue.category.name}"
            found.append(f"{who} are larger than any worker: {largest_worker(core.workers.values())}")
    for environment in core.environments.known.values():
        if isinstance(environment.state, Unbuildable):
            found.append(f"environment {environment.declared.name} cannot be built: {environment.state.reason}")
    return found


def tasks(core: ManagerCore, arguments: dict[str, Any], now: float) -> dict[str, Any]:
    """The calls that the manager holds; also those that it only remembers, where ids or a state of the past are asked for."""
    limit = int(arguments.get("limit") or LIMIT)
    past = {arguments.get("state"), arguments.get("selection")} & {"done", "failed"}
    rows: list[dict[str, Any]] = []
    more = 0
    for call in choose(core, arguments, past=bool(past)).calls:
        if len(rows) < limit:
            rows.append(task_row(core, call, now))
        else:
            more += 1
    return {"schema": "lfm.tasks/1", "tasks": rows, "left_out": more}


def task_row(core: ManagerCore, task: Task | Ended, now: float) -> dict[str, Any]:
    if isinstance(task, Ended):
        return _ended_row(task, now)
    row: dict[str, Any] = {
        "task": task.id, "state": state_name(task), "function": task.function.declared.name,
        "category": task.category.name, "environment": task.function.environment.key, "attempt": task.attempt,
        "age_s": round(now - task.submitted, 3), "worker": None, "allocation": None, "usage": None, "outcome": None,
        "running_s": None, "fetched": False,
    }
    match task.state:
        case Placed(worker, allocation=allocation, started=started):
            row |= {"worker": core.workers[worker].name, "allocation": _fields(allocation)}
            row["running_s"] = round(now - started, 3) if started is not None else None
        case Collecting(worker, placed=placed):
            row |= {"worker": core.workers[worker].name, "allocation": _fields(placed.allocation)}
        case Done(finished) | Failed(finished):
            row |= _over(finished)
        case _:
            pass
    return row


def _ended_row(ended: Ended, now: float) -> dict[str, Any]:
    return {
        "task": ended.id, "state": ended.state, "function": ended.name, "category": ended.category,
        "environment": ended.environment, "attempt": ended.attempts[-1].number if ended.attempts else 0,
        "age_s": round(now - ended.submitted, 3), "running_s": None, "fetched": True, **_over(ended),
    }  # fmt: skip


def _fields(value: Resources | Usage) -> dict[str, Any]:
    """As dataclasses.asdict, for flat ones, at a tenth of its price: there may be a row for each of many calls."""
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def attempt_row(attempt: Attempt) -> dict[str, Any]:
    usage = _fields(attempt.usage) if attempt.usage else None
    return {**attempt.fields(), "allocation": _fields(attempt.allocation), "usage": usage}


def _over(finished: Finished | Ended) -> dict[str, Any]:
    return {
        "worker": finished.attempts[-1].worker if finished.attempts else None,
        "outcome": type(finished.outcome).__name__.lower(),
        "allocation": _fields(finished.allocation) if finished.allocation else None,
        "usage": _fields(finished.usage) if finished.usage else None,
    }


def worker_row(worker: Worker, now: float) -> dict[str, Any]:
    hello = worker.hello
    return {
        "name": worker.name, "host": hello.host, "pid": hello.pid, "labels": dict(hello.labels),
        "state": worker.draining or ("busy" if worker.running else "idle"), "calls": len(worker.running),
        "ended": worker.ended, "connected_s": round(now - worker.joined, 1), "environments": len(worker.environments),
        "offer": {
            "cores": worker.millicores / 1000, "memory": worker.memory, "disk": worker.disk,
            "gpus": len(worker.devices), "wall_time": None if worker.ends is None else round(worker.ends - now, 1),
        },
        "free": {
            "cores": worker.free_millicores / 1000, "memory": worker.free_memory, "disk": worker.free_disk,
            "gpus": len(worker.free_devices),
        },
        "unusable": dict(worker.unusable),
    }


def environment_row(core: ManagerCore, environment: Environment, now: float) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": environment.key, "name": environment.declared.name, "state": type(environment.state).__name__.lower(),
        "waiting": len(environment.waiters), "digest": None, "bytes": None, "python": None, "reason": None,
        "coming": [],
    }
    match environment.state:
        case Built(tarball, python):
            row |= {"digest": tarball.digest, "bytes": tarball.size, "python": python}
            row["coming"] = [
                {"worker": w.name, "stage": news.stage, "done": news.done, "total": news.total}
                for w in core.workers.values() if (news := w.coming.get(tarball.digest)) is not None
            ]
        case Building(since):
            row["reason"] = f"since {format_duration(now - since)}"
        case Unbuildable(reason):
            row["reason"] = reason
        case Fetching():
            row["reason"] = "its description is on its way"
        case Away(since, peer, why):
            row["reason"] = away(peer is not None, why, now - since)
        case Coming(since):
            row["reason"] = f"a client made it; on its way since {format_duration(now - since)}"
        case _:
            pass
    return row


def away(making: bool, why: Unbuildable, since: float) -> str:
    """For people: how far an environment is that only clients can make."""
    if making:
        return f"a client makes it since {format_duration(since)}: {why.reason}"
    return f"no client is here that can make it: {why.reason}"


def category_row(core: ManagerCore, category: Category) -> dict[str, Any]:
    samples = category.samples
    upcoming = core.sizes.forecast(category)
    allotted = category.allotted_memory_s
    return {
        "category": category.name, "submitted": category.submitted, "in_flight": category.in_flight,
        "succeeded": category.succeeded, "failed": category.failed, "cancelled": category.cancelled, "grown": category.grown,
        "retries": {"too_small": category.too_small, "lost": category.lost, "raised": category.raised},
        "mean_wall_s": category.mean_wall,
        "allocated": {n: spread([getattr(s.allocation, n) for s in samples]) for n in ("cores", "memory", "disk")},
        "measured": {
            n: spread([getattr(s.usage, n) for s in samples]) for n in ("cores", "memory", "disk", "wall_s", "cpu_s")
        },
        "waste_gb_h": category.wasted_memory_s / 3.6e12,
        "efficiency": 1 - category.wasted_memory_s / allotted if allotted else None,
        "next": _fields(upcoming) if upcoming is not None else None,
        "options": options_line(category, upcoming.cores if upcoming is not None else 1.0),
    }


def spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    ordered = sorted(values)
    last = len(ordered) - 1
    return {"p50": ordered[last // 2], "p95": ordered[int(last * 0.95)], "max": ordered[last]}


def logs(
    core: ManagerCore, call: Task | Ended, arguments: dict[str, Any], whole: Callable[[TaskId], Finished | None]
) -> dict[str, Any]:
    """What a call printed that is over; of one that runs its worker knows (``asked_of``)."""
    since = since_when(call, arguments)
    printed = (b"", b"")
    if isinstance(call, Ended):
        attempt, found = call.attempts[-1].number if call.attempts else 0, core.calls.past.printed(call.id)
        printed = found or printed
    else:
        attempt = call.attempt
        if isinstance(call.state, Done | Failed):
            finished = (whole(call.id) if call.state.kept else None) or call.state.finished
            printed = finished.stdout, finished.stderr
    return outputs.body(call.id, state(call), attempt, since, *map(outputs.since, printed, since))


def asked_of(call: Task | Ended) -> Placed | None:
    """Where a call runs, whose worker knows what it has printed."""
    here = placement(call) if isinstance(call, Task) else None
    return here if here is not None and here.started is not None else None


def since_when(call: Task | Ended, arguments: dict[str, Any]) -> tuple[int, int]:
    """From which positions on; from the beginning, if it is not the attempt that was seen before."""
    attempt = call.attempt if isinstance(call, Task) else call.attempts[-1].number if call.attempts else 0
    if arguments.get("attempt") not in (None, attempt):
        return 0, 0
    return max(0, int(arguments.get("stdout_from") or 0)), max(0, int(arguments.get("stderr_from") or 0))


def is_unfinished(task: Task) -> bool:
    """Whether its answer is still to come."""
    return not isinstance(task.state, Done | Failed)


def is_failure(call: Task | Ended) -> bool:
    """Whether it failed, and not by its user's wish."""
    if isinstance(call, Ended):
        outcome = call.outcome
    elif isinstance(call.state, Failed):
        outcome = call.state.finished.outcome
    else:
        return False
    return not isinstance(outcome, Returned | Cancelled | Killed)
