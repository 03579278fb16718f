"""One screen of a run, from the manager's answer to "status": shared by ``lfm status`` and ``lfm top``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lfm.cli.common import duration, size, table

if TYPE_CHECKING:
    from rich.console import RenderableType

WORKERS_SHOWN = 20


def screen(status: dict[str, Any], height: int | None = None) -> RenderableType:
    """All of it; with ``height``, as many workers and categories as fit."""
    from rich.console import Group
    from rich.text import Text

    workers, categories = status.get("workers", []), status.get("categories", [])
    fit = WORKERS_SHOWN if height is None else max(3, height - 12 - min(len(categories), 8))
    parts: list[RenderableType] = [Text(line) for line in _head(status)]
    if workers:
        parts += [Text(), _workers(workers[:fit])]
        if len(workers) > fit:
            parts.append(Text(f"... and {len(workers) - fit} more: lfm worker list", style="dim"))
    if categories:
        parts += [Text(), category_table(categories if height is None else categories[: max(3, height - fit - 10)])]
    parts += [Text(f"! {alert}", style="bold yellow") for alert in status.get("alerts", [])]
    return Group(*parts)


def _head(status: dict[str, Any]) -> Iterator[str]:
    manager, workers, calls = status.get("manager", {}), status.get("workers", []), status.get("calls", {})
    where = ", ".join(manager.get("addresses", ()))
    yield f"run {manager.get('run')}: manager {manager.get('pid')} on {manager.get('host')}, up {duration(manager.get('up_s'))}, {where}"
    cores, free = (sum(w[of]["cores"] for w in workers) for of in ("offer", "free"))
    memory, unused = (sum(w[of]["memory"] for w in workers) for of in ("offer", "free"))
    yield (
        f"workers {len(workers)}: {cores - free:g} of {cores:g} cores and {size(memory - unused)} of {size(memory)} allotted"
        if workers
        else "workers none"
    )
    said = [f"{count:,} {state}" for state, count in calls.items() if count and state != "finished"]
    yield f"calls   {', '.join(said) or 'none'}; {calls.get('finished', 0):,} finished so far"


def _workers(workers: list[dict[str, Any]]) -> RenderableType:
    return table(
        ["WORKER", "HOST", "STATE", ">CALLS", ">CORES", ">MEMORY", ">GPUS", ">ENDED", ">UP", ">LEFT"],
        [
            (
                w["name"], w["host"], w["state"], w["calls"], f"{w['offer']['cores'] - w['free']['cores']:g}/{w['offer']['cores']:g}",
                f"{size(w['offer']['memory'] - w['free']['memory'])}/{size(w['offer']['memory'])}", w["offer"]["gpus"] or "-",
                w["ended"], duration(w["connected_s"]), duration(w["offer"]["wall_time"]),
            )
            for w in workers
        ],
    )  # fmt: skip


def category_table(categories: list[dict[str, Any]], waste: bool = False) -> RenderableType:
    """Per function: how many, what they were given, what they took."""
    return table(
        ["FUNCTION", ">CALLS", ">OK", ">FAILED", ">RETRIES", ">ALLOTTED p50", ">MEMORY p50", ">p95", ">MAX", ">CORES", ">TIME", ">USED", ">NEXT"]
        + [">WASTE GB·h"] * waste,
        [(*_category(c), *[f"{c['waste_gb_h']:.3g}"] * waste) for c in categories],
    )


def _category(c: dict[str, Any]) -> tuple[object, ...]:
    given, memory, cores = c["allocated"]["memory"] or {}, c["measured"]["memory"] or {}, c["measured"]["cores"] or {}
    used = c.get("efficiency")
    return (
        c["category"], c["submitted"], c["succeeded"], c["failed"], sum(c["retries"].values()), size(given.get("p50")),
        size(memory.get("p50")), size(memory.get("p95")), size(memory.get("max")),
        f"{cores['p50']:.1f}" if cores else "-", duration(c.get("mean_wall_s") if c["succeeded"] else None),
        "-" if used is None else f"{used:.0%}", size(c["next"]["memory"]) if c.get("next") else "-",
    )  # fmt: skip
