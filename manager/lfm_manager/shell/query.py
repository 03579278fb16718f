"""Answers to people: what ``lfm status``, ``tasks``, ``explain`` and the like print.  Reads the core, changes nothing.

Every answer is a plain dict with a ``schema``; scripts rely on its keys, so they are only added to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from lfm.protocol.ids import TaskId
from lfm.protocol.resources import format_duration
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
from lfm_manager.core.tasks import Collecting, Done, Failed, Placed, Task
from lfm_manager.core.workers import Worker
from lfm_manager.shell.explain import explain, state_name

LIMIT = 1000  # tasks in one answer, unless more are asked for
STATES = ("waiting", "ready", "placed", "running", "collecting", "done", "failed")


class NoAnswer(Exception):
    """The question cannot be answered: one line, and a hint."""

    def __init__(self, text: str, hint: str = "") -> None:
        super().__init__(text)
        self.hint = hint


def answer(
    core: ManagerCore, facts: dict[str, Any], what: str, arguments: dict[str, Any], now: float
) -> dict[str, Any]:
    """The body of the answer.  NoAnswer if there is none; ``facts`` are the shell's own, about this manager."""
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
            rows = [environment_row(e, now) for e in core.environments.known.values()]
            return {"schema": "lfm.environments/1", "environments": rows}
        case "categories":
            rows = [category_row(core, c) for c in core.calls.categories.values()]
            return {"schema": "lfm.categories/1", "categories": rows}
        case "explain":
            task = find_task(core, str(arguments.get("task", "")))
            return {
                "schema": "lfm.explain/1", **task_row(core, task, now), "text": explain(core, task, now),
                "attempts": [asdict(a) for a in task.attempts],
            }
        case "logs":
            return logs(find_task(core, str(arguments.get("task", ""))))
        case _:
            raise NoAnswer(f"this manager cannot answer {what!r}")


def find_task(core: ManagerCore, wanted: str) -> Task:
    """By its id, or by a beginning or an end of it that only one has."""
    if (task := core.calls.tasks.get(TaskId(wanted))) is not None:
        return task
    found = [t for t in core.calls.tasks.values() if wanted and (t.id.endswith(wanted) or t.id.startswith(wanted))]
    if len(found) != 1:
        which = "no call is" if not found else f"{len(found)} calls are"
        raise NoAnswer(f"{which} named {wanted!r}", "see: lfm tasks; a call whose result was fetched is forgotten")
    return found[0]


def select(core: ManagerCore, selection: str) -> list[Task]:
    """Tasks by "all", a category, a state, a client's session, or ids separated by commas."""
    if selection == "all":
        return list(core.calls.tasks.values())
    chosen = [t for t in core.calls.tasks.values() if selection in (t.category.name, state_name(t), t.session.key)]
    return chosen or [find_task(core, part.strip()) for part in selection.split(",")]


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
        "environments": [environment_row(e, now) for e in core.environments.known.values()],
        "clients": [
            {
                "session": s.key, "user": s.hello.user, "host": s.hello.host, "pid": s.hello.pid,
                "connected": s.peer is not None, "calls": len(s.tasks), "cores": s.millicores / 1000,
            }
            for s in core.clients.sessions.values()
        ],
        "alerts": alerts(core),
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
            found.append(f"{who} are larger than any worker: {core.largest_worker()}")
    for environment in core.environments.known.values():
        if isinstance(environment.state, Unbuildable):
            found.append(f"environment {environment.declared.name} cannot be built: {environment.state.reason}")
    return found


def tasks(core: ManagerCore, arguments: dict[str, Any], now: float) -> dict[str, Any]:
    limit = int(arguments.get("limit") or LIMIT)
    state, category, selection = (arguments.get(name) for name in ("state", "category", "selection"))
    chosen: Iterable[Task] = select(core, str(selection)) if selection else core.calls.tasks.values()
    rows: list[dict[str, Any]] = []
    more = 0
    for task in chosen:
        if (state and state_name(task) != state) or (category and task.category.name != category):
            continue
        if len(rows) < limit:
            rows.append(task_row(core, task, now))
        else:
            more += 1
    return {"schema": "lfm.tasks/1", "tasks": rows, "left_out": more}


def task_row(core: ManagerCore, task: Task, now: float) -> dict[str, Any]:
    row: dict[str, Any] = {
        "task": task.id, "state": state_name(task), "function": task.function.declared.name,
        "category": task.category.name, "environment": task.function.environment.key, "attempt": task.attempt,
        "age_s": round(now - task.submitted, 3), "worker": None, "allocation": None, "usage": None, "outcome": None,
        "running_s": None,
    }
    match task.state:
        case Placed(worker, allocation=allocation, started=started):
            row |= {"worker": core.workers[worker].name, "allocation": asdict(allocation)}
            row["running_s"] = round(now - started, 3) if started is not None else None
        case Collecting(worker, placed=placed):
            row |= {"worker": core.workers[worker].name, "allocation": asdict(placed.allocation)}
        case Done(finished) | Failed(finished):
            row |= {
                "worker": task.attempts[-1].worker if task.attempts else None,
                "outcome": type(finished.outcome).__name__.lower(),
                "allocation": asdict(finished.allocation) if finished.allocation else None,
                "usage": asdict(finished.usage) if finished.usage else None,
            }
        case _:
            pass
    return row


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


def environment_row(environment: Environment, now: float) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": environment.key, "name": environment.declared.name, "state": type(environment.state).__name__.lower(),
        "waiting": len(environment.waiters), "digest": None, "bytes": None, "python": None, "reason": None,
    }
    match environment.state:
        case Built(tarball, python):
            row |= {"digest": tarball.digest, "bytes": tarball.size, "python": python}
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
        "next": asdict(upcoming) if upcoming is not None else None,
    }


def spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    ordered = sorted(values)
    last = len(ordered) - 1
    return {"p50": ordered[last // 2], "p95": ordered[int(last * 0.95)], "max": ordered[last]}


def logs(task: Task) -> dict[str, Any]:
    body: dict[str, Any] = {
        "schema": "lfm.logs/1", "task": task.id, "state": state_name(task), "stdout": "", "stderr": "",
    }
    if isinstance(task.state, Done | Failed):
        finished = task.state.finished
        body["stdout"] = finished.stdout.decode(errors="replace")
        body["stderr"] = finished.stderr.decode(errors="replace")
    return body


def is_unfinished(task: Task) -> bool:
    """Whether its answer is still to come."""
    return not isinstance(task.state, Done | Failed)
