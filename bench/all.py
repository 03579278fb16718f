"""Every measurement in one go, and a table of what each came to: ``make bench``, which takes about half an hour.

    python bench/all.py [--quick] [--only NAME ...] [--peers PYTHON] [--traces FOLDER] [--json FILE]

Each is a script beside this one that can be run by itself, and then says more.  What cannot be measured here is left
out and named; so is what failed, and then the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
STRATEGIES = ["auto", "greedy-bucketing", "exhaustive-bucketing", "max-seen"]


@dataclass(frozen=True)
class Row:
    """``most``: what is promised."""

    what: str
    value: float
    unit: str = ""
    most: float | None = None


@dataclass(frozen=True)
class Script:
    name: str
    full: list[str]
    quick: list[str]
    rows: Callable[[Any], Iterator[Row]]
    speaks_json: bool = True


def of_bench(it: Any) -> Iterator[Row]:
    for label, row in it["call_cost"].items():
        yield Row(f"CPU of a call / of a bare fork of its interpreter, {label}", row["ratio"], "x", 1.2)
    speed = it["speed"]
    yield Row("calls a second, two slots", speed["lfm"]["per_s"])
    for peer in ("parsl", "dask", "ray"):
        if peer in speed:
            yield Row(f"latency (p50) / that of {peer}", speed["lfm"]["p50_ms"] / speed[peer]["p50_ms"], "x", 1.0)
    if "parsl" in speed:
        yield Row("calls a second of parsl / ours", speed["parsl"]["per_s"] / speed["lfm"]["per_s"], "x", 1.0)
    yield Row("from the start to the first result", it["first_result"]["result_s"], "s")


def of_environments(it: Any) -> Iterator[Row]:
    yield Row("tarball of a numpy-only function", it["bytes"] / 1e6, "MB", 45)
    yield Row("CPU of packing / of tar | zstd -1", it["pack_s"] / it["tar_zstd_s"], "x", 1.5)
    yield Row("CPU of unpacking / of tar -x", it["unpack_s"] / it["tar_x_s"], "x", 1.3)
    yield Row("CPU of the first import / of a later one", it["first_import_s"] / it["later_import_s"], "x", 1.1)


def of_monitor_floor(it: Any) -> Iterator[Row]:
    for row in it:
        yield Row(f"CPU of a monitored call / of a bare fork, {row['template']}", row["ratio"], "x", 1.0)
        yield Row(f"latency (p50) / that of a bare fork, {row['template']}", row["ours_p50_ms"] / row["floor_p50_ms"], "x", 1.0)


def of_first_submit(it: Any) -> Iterator[Row]:
    yield Row("CPU of submitting a session's first function", it["first_ms"], "ms", 30)
    yield Row("what an edited module adds to that", it["edited_ms"] - it["unchanged_ms"], "ms", 50)


def of_sizing(it: Any) -> Iterator[Row]:
    ratios = {}
    for trace, rows in it["traces"].items():
        waste = {row["strategy"]: row["waste_gb_h"][1] for row in rows}
        ratios[trace] = waste.pop("auto") / (min(waste.values()) or 1.0)
    worst = max(ratios, key=ratios.__getitem__)
    yield Row(f"waste of auto / of the best published, 32 in flight, worst of {len(ratios)} traces ({worst})", ratios[worst], "x")


def of_transfer(it: Any) -> Iterator[Row]:
    yield Row(f"how often the manager sends what {it['workers']} workers need", it["sent_times"], "times", 3)


def of_store(it: Any) -> Iterator[Row]:
    yield Row("durable calls a second / without a store", it["durability"]["ratio"], "x")
    yield Row(f"back after kill -9 with {it['waiting']['calls']:,} calls waiting", it["waiting"]["restart_s"], "s")


def of_core(it: Any) -> Iterator[Row]:
    for count, rate in it["events_per_s"].items():
        yield Row(f"events a second of the manager's core with {int(count):,} calls waiting", rate)
    by_clients = it["events_per_s_by_clients"]
    one, *_, many = by_clients
    yield Row(f"the same with {many} clients / with {one}", by_clients[many] / by_clients[one], "x")
    yield Row("what one more worker costs among many / among few", it["join_us"]["last"] / it["join_us"]["first"], "x")
    if "simulation_s" in it:
        yield Row("CPU of simulating 100,000 calls on 1,000 workers", it["simulation_s"], "s")


SCRIPTS = [
    Script("bench", [], ["--rounds", "1", "--calls", "40", "--idle", "1"], of_bench),
    Script("environments", [], ["--rounds", "1"], of_environments),
    Script("monitor_floor", [], ["--rounds", "3", "--calls", "30"], of_monitor_floor),
    Script("monitor", [], ["--only", "limits", "leak", "--calls", "200"], lambda it: iter(()), speaks_json=False),
    Script("first_submit", [], ["--rounds", "1"], of_first_submit),
    Script("sizing", [], ["--seeds", "0"], of_sizing),
    Script("transfer", [], ["--workers", "3", "--size", "10MB"], of_transfer),
    Script("store", [], ["--quick"], of_store),
    Script("core", ["--simulate"], ["--waiting", "1000", "--clients", "1", "500", "--joining", "1000"], of_core),
]


class LeftOut(Exception):
    """It cannot be measured here, and why."""


def measure(script: Script, options: argparse.Namespace) -> Any:
    """What it found.  LeftOut; RuntimeError if it failed."""
    command = [sys.executable, str(HERE / f"{script.name}.py"), *(script.quick if options.quick else script.full)]
    if script.name == "bench":
        command += ["--peers", options.peers]
    if script.name == "sizing":
        if options.traces is None or not any(options.traces.glob("*.csv*")):
            raise LeftOut("no folder of traces was given")
        command += [str(options.traces), *(word for name in STRATEGIES for word in ("--strategy", name))]
    if script.speaks_json:
        command.append("--json")
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
    if done.returncode == 2:  # its options, or what it needs, are not to be had
        raise LeftOut(last.partition("error: ")[2] or last)
    if done.returncode:
        raise RuntimeError(f"exit status {done.returncode}: {last}")
    return json.loads(done.stdout) if script.speaks_json else done.stdout.splitlines()


def line(row: Row) -> str:
    value = f"{row.value:,.0f}" if row.value >= 1000 else f"{row.value:.3g}"
    promise = "" if row.most is None else f"   at most {row.most:g}{'' if row.value <= row.most else ': MISSED'}"
    return f"  {row.what:<86} {value:>9} {row.unit:<5}{promise}".rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the least of each: whether it runs, not how fast")
    parser.add_argument("--only", nargs="+", choices=[script.name for script in SCRIPTS])
    parser.add_argument("--peers", default=sys.executable, help="an interpreter that has parsl, distributed or ray")
    parser.add_argument("--traces", type=Path, help="a folder of traces for the sizing, *.csv or *.csv.gz")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep all figures there")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    lines, failed = [], False
    for script in SCRIPTS:
        if options.only and script.name not in options.only:
            continue
        print(f"... {script.name}", file=sys.stderr, flush=True)
        began = time.monotonic()
        try:
            found[script.name] = measure(script, options)
        except LeftOut as why:
            lines.append(f"\n{script.name}: left out, {why}")
            continue
        except RuntimeError as why:
            failed = True
            lines.append(f"\n{script.name}: FAILED, {why}")
            continue
        lines.append(f"\n{script.name} ({time.monotonic() - began:.0f} s)")
        lines += map(line, script.rows(found[script.name]))
        if not script.speaks_json:
            lines += [f"  {text}" for text in found[script.name]]
    print("\n".join(lines))
    if options.json is not None:
        options.json.write_text(json.dumps({"schema": "lfm.bench.all/1", "quick": options.quick, **found}, indent=1))
    sys.exit(failed)


if __name__ == "__main__":
    main()
