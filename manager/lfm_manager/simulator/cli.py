"""``lfm simulate``: what would lfm have made of these calls?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lfm.cli.common import USAGE, fail, json_option, print_json, print_table
from lfm.protocol.resources import parse_duration, parse_size
from lfm_manager.simulator.loads import LOADS, draw
from lfm_manager.simulator.plan import Plan
from lfm_manager.simulator.replay import Tally, replay
from lfm_manager.simulator.trace import BadTrace, Call, read_trace
from lfm_manager.sizing import STRATEGIES, make

COMPARED = {"fixed": "as asked", "whole-worker": "unmanaged"}
SAID = {"fixed": "what was asked", "whole-worker": "a worker for each call"}
DEFAULT_MEMORY = "128GB"


def _size(ctx: click.Context, param: click.Parameter, value: str) -> int:
    try:
        return parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _duration(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    try:
        return None if value is None else parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.argument("trace")
@click.option("--strategy", type=click.Choice(list(STRATEGIES)), default="auto", show_default=True)
@click.option("--in-flight", type=click.IntRange(1), metavar="K",
              help="No machines: size each call with K-1 results outstanding.  [default: 1]")
@click.option("--workers", type=click.IntRange(1), metavar="N",
              help="Run on N workers, with the real scheduler in virtual time.")
@click.option("--cores", type=click.FloatRange(0, min_open=True), default=16, show_default=True, help="Of each worker.")
@click.option("--memory", callback=_size, metavar="SIZE", default=DEFAULT_MEMORY, show_default=True,
              help="Of each worker.")
@click.option("--join-over", callback=_duration, metavar="D", help="Workers come one after the other, over so long.")
@click.option("--lifetime", callback=_duration, metavar="D",
              help="Workers live so long on average; then they leave or die, and are replaced.")
@click.option("--calls", type=click.IntRange(1), default=1000, show_default=True, help="Of a generated load.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write a page (.html) or a picture (.png).")
@json_option
def simulate(
    trace: str, strategy: str, in_flight: int | None, workers: int | None, cores: float, memory: int,
    join_over: float | None, lifetime: float | None, calls: int, seed: int, output: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Put TRACE through the real sizer, and with --workers through the real scheduler.

    TRACE is a CSV file, gzipped or not, with one line per call: category, wall_s, memory_mb, and if known
    input_size_bytes, cores, preset_memory_mb; or the name of a generated load: hep, drug-screening, genomics,
    images.
    """
    if workers is not None and in_flight is not None:
        fail("--in-flight and --workers exclude each other", code=USAGE)
    if workers is None and output is not None:
        fail("-o shows a run over time: it needs --workers", code=USAGE)
    found = draw(trace, calls, seed) if trace in LOADS else _read(Path(trace))
    if workers is None:
        _replay(found, strategy, in_flight or 1, memory, as_json)
    else:
        plan = Plan(workers, cores, memory, join_over or 0.0, lifetime or None, seed=seed)
        _run(found, strategy, plan, Path(trace).name, output, as_json)


def _read(trace: Path) -> list[Call]:
    try:
        calls = read_trace(trace)
    except BadTrace as error:
        fail(str(error), f"needed: columns category, wall_s, memory_mb; or a load: {', '.join(LOADS)}")
    if not calls:
        fail(f"{trace}: no calls in it")
    return calls


def _run(calls: list[Call], strategy: str, plan: Plan, name: str, output: Path | None, as_json: bool) -> None:
    from lfm_manager.simulator import report
    from lfm_manager.simulator.world import ORACLE, simulate

    runs = {strategy: simulate(calls, plan, strategy)}
    if not as_json:
        for other in COMPARED:
            if other not in runs:
                runs[other] = simulate(calls, plan, other)
    oracle = runs[ORACLE] = simulate(calls, plan, ORACLE)
    if as_json:
        print_json(report.body(strategy, plan, runs[strategy], oracle))
    else:
        names = {other: f"{other} ({what})" for other, what in COMPARED.items()} | {ORACLE: "oracle (every size known)"}
        print_table(report.COLUMNS, [report.row(names.get(n, n), run, oracle) for n, run in runs.items()])
        others = {SAID[n]: runs[n] for n in COMPARED if n != strategy}
        click.echo(report.faster(strategy, runs[strategy], others))
        click.echo(report.saved(strategy, runs[strategy].waste_gb_h, {n: r.waste_gb_h for n, r in others.items()}))
        if hopeless := runs[strategy].hopeless:
            click.echo(f"{hopeless} calls never gave a value: they need more than a worker has")
    if output is not None:
        try:
            report.write(output, f"{name}: {strategy}", runs, plan)
        except (report.NoPicture, OSError) as error:
            fail(str(error))


def _replay(calls: list[Call], strategy: str, in_flight: int, cap: int, as_json: bool) -> None:
    result = replay(calls, make(strategy, "memory"), cap, in_flight)
    if as_json:
        print_json(_body(strategy, in_flight, cap, result))
        return
    from lfm_manager.simulator.report import saved

    others = {other: replay(calls, make(other, "memory"), cap, in_flight) for other in COMPARED if other != strategy}
    rows = [_row(strategy, result), *(_row(f"{other} ({COMPARED[other]})", tally) for other, tally in others.items())]
    print_table(["strategy", ">calls", ">failures", ">waste GB·h", ">used / allocated"], rows)
    click.echo(saved(strategy, result.waste_gb_h, {SAID[other]: tally.waste_gb_h for other, tally in others.items()}))
    if result.hopeless:
        click.echo(f"{result.hopeless} calls need more than {cap / 1e9:g} GB and never end")


def _body(strategy: str, in_flight: int, cap: int, result: Tally) -> dict[str, Any]:
    return {
        "schema": "lfm.simulate/1",
        "strategy": strategy,
        "calls": result.calls,
        "in_flight": in_flight,
        "memory": cap,
        "waste_gb_h": result.waste_gb_h,
        "failures": result.failures,
        "hopeless": result.hopeless,
        "efficiency": result.efficiency,
        "makespan_s": None,
        "oracle_makespan_s": None,
    }


def _row(name: str, result: Tally) -> list[str]:
    from lfm_manager.simulator.report import gb_h

    return [name, str(result.calls), str(result.failures), gb_h(result.waste_gb_h), f"{result.efficiency:.1%}"]
