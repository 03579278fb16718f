"""``lfm simulate``: what would lfm have made of these calls?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lfm.cli.common import fail, json_option, print_json, print_table
from lfm.protocol.resources import parse_size
from lfm_manager.simulator.replay import Tally, replay
from lfm_manager.simulator.trace import BadTrace, Call, read_trace
from lfm_manager.sizing import STRATEGIES, make

CAP = "128GB"
COMPARED = {"fixed": "as asked", "whole-worker": "unmanaged"}


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    try:
        return None if value is None else parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("--strategy", type=click.Choice(list(STRATEGIES)), default="auto", show_default=True)
@click.option("--in-flight", type=click.IntRange(1), default=1, show_default=True, metavar="K",
              help="How many results are outstanding when a call is sized.")  # fmt: skip
@click.option("--cap", callback=_size, metavar="SIZE", default=CAP, show_default=True, help="Memory of the largest worker.")
@json_option
def simulate(trace: Path, strategy: str, in_flight: int, cap: int, as_json: bool) -> None:
    """Replay TRACE, a (gzipped) CSV of calls and what each took, and say what would have been wasted.

    Columns: category, wall_s, memory_mb; if known input_size_bytes, cores, disk_mb, preset_memory_mb.
    """
    calls = _read(trace)
    result = replay(calls, make(strategy, "memory"), cap, in_flight)
    if as_json:
        print_json(_body(strategy, in_flight, cap, result))
        return
    rows = [_row(strategy, result)]
    rows += [
        _row(f"{other} ({what})", replay(calls, make(other, "memory"), cap, in_flight))
        for other, what in COMPARED.items()
        if other != strategy
    ]
    print_table(["strategy", ">calls", ">failures", ">waste GB·h", ">used / allocated"], rows)
    if result.hopeless:
        click.echo(f"{result.hopeless} calls need more than {cap / 1e9:g} GB and never end")


def _read(trace: Path) -> list[Call]:
    try:
        calls = read_trace(trace)
    except BadTrace as error:
        fail(str(error), "columns needed: category, wall_s, memory_mb")
    if not calls:
        fail(f"{trace}: no calls in it")
    return calls


def _body(strategy: str, in_flight: int, cap: float, result: Tally) -> dict[str, Any]:
    return {
        "schema": "lfm.simulate/1",
        "strategy": strategy,
        "calls": result.calls,
        "in_flight": in_flight,
        "cap": cap,
        "waste_gb_h": result.waste_gb_h,
        "failures": result.failures,
        "hopeless": result.hopeless,
        "efficiency": result.efficiency,
        "makespan_s": None,
        "oracle_makespan_s": None,
    }


def _row(name: str, result: Tally) -> list[str]:
    return [
        name,
        str(result.calls),
        str(result.failures),
        f"{result.waste_gb_h:.4g}" if result.waste_gb_h < 1e4 else f"{result.waste_gb_h:.0f}",
        f"{result.efficiency:.1%}",
    ]
