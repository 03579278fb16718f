"""Why a call fits nowhere, in words that people can act on."""

from __future__ import annotations

from collections.abc import Collection

from lfm.protocol.resources import format_duration, format_size
from lfm_manager.core.census import Largest
from lfm_manager.core.workers import Demand, Worker

FIELDS = {"cores": "millicores", "memory": "memory", "disk": "disk"}  # of a worker


def needs(demand: Demand) -> str:
    """What a call needs."""
    return ", ".join(text for _, text in _amounts(demand.millicores, demand.memory, demand.disk, demand.gpus))


def too_much(demand: Demand, workers: Collection[Worker], largest: Largest, now: float) -> str:
    """What of it does not fit, and what the largest worker has instead."""
    present = [w for w in workers if not w.draining]
    if workers and not present:
        away = next(iter(workers))
        return f"has to wait: {away.name} is {away.draining}"
    if barred := next((w for w in present if demand.digest in w.again), None):
        return f"has to wait: {barred.name} cannot use its environment for now: {barred.unusable[demand.digest]}"
    if demand.labels and not any(w.suits(demand) for w in present):
        return _no_label(demand, workers)
    if over := _over(demand, present, largest):
        return over
    ends = [w.ends for w in present if w.ends is not None]
    if demand.wall_time and ends:
        left = format_duration(max(0.0, max(ends) - now))
        return f"takes {format_duration(demand.wall_time)}; no worker that it fits on lives so long ({left} at most)"
    return f"needs {needs(demand)} at once; {largest_worker(workers)}"


def _no_label(demand: Demand, workers: Collection[Worker]) -> str:
    wanted = dict(demand.labels)
    named = ", ".join(f"{name}={value}" for name, value in demand.labels)
    there = sorted({f"{name}={value}" for w in workers for name, value in w.hello.labels.items() if name in wanted})
    return f"needs a worker with the label{'s' * (len(wanted) > 1)} {named}; there are {', '.join(there) or 'none'}"


def _over(demand: Demand, present: Collection[Worker], largest: Largest) -> str:
    """Of which resources it needs more than any worker has; empty if of none."""
    lacking = {
        "cores": largest.millicores < demand.millicores, "memory": largest.memory < demand.memory,
        "disk": largest.disk < demand.disk, "gpus": largest.gpus < demand.gpus,
    }  # fmt: skip
    over = [name for name, lacks in lacking.items() if lacks]
    if not over:
        return ""
    needed = dict(_amounts(demand.millicores, demand.memory, demand.disk, demand.gpus))
    there = dict(_amounts(largest.millicores, largest.memory, largest.disk, largest.gpus))
    wanted = ", ".join(text for name, text in needed.items() if name in over)
    had = ", ".join(there.get(name, f"no {name}") for name in over)
    if not present:
        return f"needs {wanted}; {largest_worker(present)}"

    def much(worker: Worker) -> int:
        amount: int = len(worker.devices) if over[0] == "gpus" else getattr(worker, FIELDS[over[0]])
        return amount

    best = max(present, key=lambda w: (much(w), -w.peer))
    return f"needs {wanted}; the largest worker, {best.name}, has {had}"


def largest_worker(workers: Collection[Worker]) -> str:
    """The largest worker there is."""
    present = [w for w in workers if not w.draining]
    if not present:
        return "no worker is connected" if not workers else "every worker is leaving"
    best = max(present, key=lambda w: (w.memory, w.millicores, -w.peer))
    has = _amounts(best.millicores, best.memory, best.disk, len(best.devices))
    return f"the largest worker, {best.name}, has {', '.join(text for _, text in has)}"


def _amounts(cores: int, memory: int, disk: int, gpus: int) -> list[tuple[str, str]]:
    """(resource, amount) of what there is any of."""
    parts = [("cores", f"{cores / 1000:g} core{'' if cores == 1000 else 's'}"), ("memory", f"{format_size(memory)} memory")]
    if disk:
        parts.append(("disk", f"{format_size(disk)} disk"))
    if gpus:
        parts.append(("gpus", f"{gpus} GPU{'' if gpus == 1 else 's'}"))
    return parts
