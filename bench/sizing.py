"""What each sizing strategy wastes on a folder of traces, and what it costs: ``python bench/sizing.py FOLDER``.

Makespan: the shipped scheduler on 4 workers of 16 cores in virtual time, over an oracle's of sizes; the worst of SEEDS.
GB·h wasted with 1, 32 and 128 results outstanding; workers of 128 GB; a failed attempt costs its allocation for
the call's whole time.  Microseconds are CPU time per call.  Without traces there is nothing to do, and it says so.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

from lfm_manager.simulator.plan import Plan
from lfm_manager.simulator.replay import replay
from lfm_manager.simulator.trace import Call, read_trace
from lfm_manager.simulator.world import ORACLE, simulate
from lfm_manager.sizing import STRATEGIES, Sizer, make

CAP = 128e9
OUTSTANDING = (1, 32, 128)


class Timed:
    """A sizer, and the time spent in it."""

    def __init__(self, sizer: Sizer) -> None:
        self._sizer = sizer
        self.spent = {"predict": 0, "succeeded": 0}
        self.calls = {"predict": 0, "succeeded": 0}

    def predict(self, *args: Any, **options: Any) -> float:
        predicted: float = self._timed("predict", *args, **options)
        return predicted

    def succeeded(self, *args: Any, **options: Any) -> None:
        self._timed("succeeded", *args, **options)

    def exhausted(self, *args: Any, **options: Any) -> float | None:
        return self._sizer.exhausted(*args, **options)

    def microseconds(self, what: str) -> float:
        return self.spent[what] / 1000 / max(1, self.calls[what])

    def _timed(self, what: str, *args: Any, **options: Any) -> Any:
        start = time.thread_time_ns()
        answer = getattr(self._sizer, what)(*args, **options)
        self.spent[what] += time.thread_time_ns() - start
        self.calls[what] += 1
        return answer


def measure(strategy: str, calls: list[Call]) -> dict[str, Any]:
    waste = [replay(calls, make(strategy, "memory"), CAP, k).waste_gb_h for k in OUTSTANDING]
    timed = Timed(make(strategy, "memory"))
    tally = replay(calls, timed, CAP)
    return {
        "strategy": strategy,
        "waste_gb_h": waste,
        "failures": tally.failures,
        "efficiency": tally.efficiency,
        "predict_us": timed.microseconds("predict"),
        "succeeded_us": timed.microseconds("succeeded"),
    }


def makespan(calls: list[Call], seeds: int) -> dict[int, float]:
    """GB of a worker -> what ``auto`` takes, in oracle's times, for the worst seed."""
    found = {}
    for memory in (64, 128):
        plans = [Plan(4, 16, memory * 10**9, seed=seed) for seed in range(1, seeds + 1)]
        oracle = simulate(calls, plans[0], ORACLE).makespan
        found[memory] = max(simulate(calls, plan, "auto").makespan for plan in plans) / oracle
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="of traces, *.csv or *.csv.gz")
    parser.add_argument("--strategy", action="append", choices=list(STRATEGIES), help="may be given again; default: all")
    parser.add_argument("--seeds", type=int, default=1, help="for the makespan; 0: leave it out")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    traces = sorted(options.folder.glob("*.csv*")) if options.folder else []
    if not traces:
        print("sizing: skipped, no folder of traces was given")
        return
    found, times = {}, {}
    for path in traces:
        name = path.name.split(".")[0]
        calls = read_trace(path)
        found[name] = [measure(strategy, calls) for strategy in options.strategy or STRATEGIES]
        times[name] = makespan(calls, options.seeds) if options.seeds else {}
        if not options.json:
            print_table(name, len(calls), found[name])
            print(*(f"  makespan of auto with {gb} GB: {x:.3f} x an oracle's" for gb, x in times[name].items()), sep="\n")
    if options.json:
        print(json.dumps({"schema": "lfm.bench.sizing/1", "traces": found, "makespan": times}, indent=2))


def print_table(name: str, calls: int, rows: list[dict[str, Any]]) -> None:
    print(f"\n{name}: {calls} calls")
    print(f"  {'strategy':28} {'GB·h, 1 /':>11} {'32 /':>9} {'128 out':>9} {'failures':>9} {'used':>6} {'predict':>9} {'succeeded':>10}")
    for row in rows:
        waste = "".join(f" {significant(w):>9}" for w in row["waste_gb_h"])
        print(
            f"  {row['strategy']:28}  {waste} {row['failures']:>9} {row['efficiency']:>6.1%}"
            f" {row['predict_us']:>6.1f} us {row['succeeded_us']:>7.1f} us"
        )  # fmt: skip


def significant(amount: float) -> str:
    """Four digits, never in powers of ten."""
    return f"{amount:.0f}" if amount >= 1000 else f"{amount:.{max(0, 3 - math.floor(math.log10(amount or 1)))}f}"


if __name__ == "__main__":
    main()
