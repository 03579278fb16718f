"""A simulated run for people and scripts: JSON, a table, a page, a picture."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from lfm.protocol.resources import format_duration, format_size
from lfm_manager.simulator.chart import Line, chart
from lfm_manager.simulator.ledger import Ledger
from lfm_manager.simulator.plan import Plan

COLUMNS = ("strategy", ">makespan", ">x oracle", ">killed", ">grown", ">lost", ">waste GB·h", ">memory used", ">cores used")


class NoPicture(Exception):
    """The picture cannot be made; says what is missing."""


def body(strategy: str, plan: Plan, run: Ledger, oracle: Ledger) -> dict[str, Any]:
    """What ``lfm simulate --json`` prints."""
    return {
        "schema": "lfm.simulate/1",
        "strategy": strategy,
        "calls": run.calls,
        "workers": plan.workers,
        "cores": plan.cores,
        "memory": plan.memory,
        "seed": plan.seed,
        "waste_gb_h": run.waste_gb_h,
        "failures": run.failures,
        "growths": run.growths,
        "lost": run.lost,
        "hopeless": run.hopeless,
        "efficiency": run.efficiency,
        "makespan_s": run.makespan,
        "oracle_makespan_s": oracle.makespan,
        "utilisation": {
            "cores": run.core_use,
            "memory": run.memory_use,
            "series": [moment._asdict() for moment in run.series()],
        },
    }


def row(name: str, run: Ledger, oracle: Ledger) -> list[str]:
    """One line of the table."""
    times = f"{run.makespan / oracle.makespan:.3f}" if oracle.makespan else "-"
    return [
        name, format_duration(run.makespan), times, str(run.failures), str(run.growths), str(run.lost), gb_h(run.waste_gb_h),
        f"{run.efficiency:.1%}", f"{run.core_use:.1%}",
    ]  # fmt: skip


def gb_h(amount: float) -> str:
    """Four digits, where there are any."""
    return f"{amount:.0f}" if amount >= 1e4 or amount < 5e-5 else f"{amount:.4g}"


def saved(strategy: str, waste: float, others: Mapping[str, float]) -> str:
    """For people: how much less a strategy wastes than what is usual.  GB·h."""
    parts = [
        f"{gb_h(abs(theirs - waste))} GB·h {'less' if theirs >= waste else 'more'} than {what}"
        + (f" ({1 - waste / theirs:.0%})" if theirs > waste else "")
        for what, theirs in others.items()
    ]
    return f"{strategy} wastes {gb_h(waste)} GB·h: {', '.join(parts)}"


def faster(strategy: str, run: Ledger, others: Mapping[str, Ledger]) -> str:
    """For people: how much sooner all calls are done."""
    parts = [
        f"{what} takes {other.makespan / run.makespan:.1f} times as long" for what, other in others.items() if run.makespan
    ]
    return f"{strategy} is done after {format_duration(run.makespan)}: {', '.join(parts)}"


def write(path: Path, title: str, runs: Mapping[str, Ledger], plan: Plan) -> None:
    """A page or a picture, by the name's ending.  Raises NoPicture."""
    if path.suffix in (".html", ".htm"):
        path.write_text(page(title, runs, plan), encoding="utf-8")
    elif path.suffix == ".png":
        picture(path, title, runs)
    else:
        raise NoPicture(f"{path}: the name must end in .html or .png")


def page(title: str, runs: Mapping[str, Ledger], plan: Plan) -> str:
    """A page that needs nothing but itself.  The last run is the oracle's."""
    oracle = list(runs.values())[-1]
    head = "".join(f"<th>{escape(name.lstrip('>'))}</th>" for name in COLUMNS)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row(name, run, oracle)) + "</tr>"
        for name, run in runs.items()
    )
    where = f"{plan.workers} workers of {plan.cores:g} cores and {format_size(plan.memory)}"
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>
<style>body{{font:14px sans-serif;margin:2em;max-width:60em}} table{{border-collapse:collapse;margin:1em 0}}
td,th{{padding:.2em .8em;text-align:right;border-bottom:1px solid #ddd}} td:first-child,th:first-child{{text-align:left}}
svg{{display:block;margin:1em 0;max-width:100%;height:auto}}</style>
<h1>{escape(title)}</h1><p>{oracle.calls} calls on {escape(where)}; seed {plan.seed}.</p>
<table><tr>{head}</tr>{rows}</table>
{_cores(runs)}
{_memory(runs)}
</html>
"""


def _cores(runs: Mapping[str, Ledger]) -> str:
    lines = [Line(n, [(p.at / 3600, p.busy) for p in r.series()], steps=True) for n, r in runs.items()]
    return chart("Cores busy", "hours", "cores", lines)


def _memory(runs: Mapping[str, Ledger]) -> str:
    lines = [Line(n, [(p.at / 3600, p.reserved / 1e9) for p in r.series()], steps=True) for n, r in runs.items()]
    return chart("Memory reserved", "hours", "GB", lines)


def picture(path: Path, title: str, runs: Mapping[str, Ledger]) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise NoPicture(f"{path}: a .png needs matplotlib; .html does not") from None
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    cores, memory = figure.subplots(2, 1, sharex=True)
    for name, run in runs.items():
        hours = [p.at / 3600 for p in run.series()]
        cores.step(hours, [p.busy for p in run.series()], where="post", label=name)
        memory.step(hours, [p.reserved / 1e9 for p in run.series()], where="post", label=name)
    cores.set(title=title, ylabel="cores busy")
    memory.set(xlabel="hours", ylabel="GB reserved")
    cores.legend()
    figure.savefig(path, dpi=120)
