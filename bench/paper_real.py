"""The paper's comparison with real calls on this machine: ``python bench/paper_real.py [-o docs]``.

Two workers, each offering 8 cores and 1 GB: nodes of 16 GB, scaled down sixteen times.  The calls allocate and
touch what they say and compute for a part of their time.  Four ways of sizing them, as in ``paper.py``; the time
runs from the first submit to the last result, environment and workers being ready.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

from lfm.executor import Executor
from lfm.future import Future
from lfm.testing import LocalCluster

WORKERS, CORES, MEMORY = 2, 8, 10**9
MB = 10**6
OWN = 40 * MB  # what a call needs before it allocates anything, generously
KINDS = {  # megabytes from, to; seconds from, to; share of the calls; what a careful user asks
    "small": (20, 60, 0.5, 1.0, 0.5, 200 * MB),
    "medium": (80, 160, 0.8, 1.6, 0.3, 400 * MB),
    "large": (240, 340, 1.0, 2.0, 0.2, 500 * MB),
}
MANNERS = ("Oracle", "Auto", "Guess", "Unmanaged")


@dataclass(frozen=True)
class Call:
    kind: str
    megabytes: int
    seconds: float
    asked: int


def work(megabytes: int, seconds: float) -> int:
    """Allocate step by step, touch every page, compute for a twentieth of the time."""
    import time

    end = time.monotonic() + seconds
    held = []
    for _ in range(10):
        held.append(b"\1" * (megabytes * 100_000))
        until = time.monotonic() + seconds / 200
        while time.monotonic() < until:
            sum(range(1000))
        time.sleep(seconds / 25)
    time.sleep(max(0.0, end - time.monotonic()))
    return sum(len(part) for part in held)


def draw(count: int) -> list[Call]:
    dice = random.Random(1)
    chosen = dice.choices(list(KINDS), [kind[4] for kind in KINDS.values()], k=count)
    calls = []
    for name in chosen:
        low, high, shortest, longest, _, asked = KINDS[name]
        calls.append(Call(name, dice.randint(low, high), dice.uniform(shortest, longest), asked))
    return calls


def run(manner: str, calls: list[Call]) -> dict[str, float]:
    strategy = "whole-worker" if manner == "Unmanaged" else "auto"
    cluster = LocalCluster(WORKERS, cores=CORES, memory=MEMORY, manager=("--strategy", strategy))
    with cluster, cluster.executor() as executor:
        warm = executor.options(category="warm", cores=CORES)
        for future in [warm.submit(work, 1, 0.1) for _ in range(WORKERS * 2)]:
            future.result(timeout=300)
        start = time.monotonic()
        futures = [submit(executor, manner, call) for call in calls]
        for future in futures:
            future.result(timeout=600)
        makespan = time.monotonic() - start
        attempts = [attempt for future in futures for attempt in future.attempts]
    reserved = sum(a.allocation.memory * (a.ended - a.started) for a in attempts)
    used = sum(f.usage.memory * f.usage.wall_s for f in futures)
    return {"makespan_s": makespan, "killed": len(attempts) - len(calls), "efficiency": used / reserved}


def submit(executor: Executor, manner: str, call: Call) -> Future[int]:
    options: dict[str, object] = {"category": call.kind, "cores": 1}
    if manner == "Oracle":
        options["memory"] = call.megabytes * MB + OWN
    elif manner == "Guess":
        options["memory"] = call.asked
    return executor.options(**options).submit(work, call.megabytes, call.seconds)


def table(found: dict[str, dict[str, float]]) -> str:
    oracle = found["Oracle"]["makespan_s"]
    lines = ["| | makespan | x oracle | killed | memory used / reserved |", "|---|---:|---:|---:|---:|"]
    for manner, row in found.items():
        seconds = row["makespan_s"]
        lines.append(
            f"| {manner} | {seconds:.1f} s | {seconds / oracle:.2f} | {row['killed']:.0f} | {row['efficiency']:.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=120)
    parser.add_argument("-o", "--output", type=Path, help="a folder for paper-real.md")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    calls = draw(options.calls)
    found = {manner: run(manner, calls) for manner in MANNERS}
    print(json.dumps({"schema": "lfm.bench.paper-real/1", "runs": found}, indent=2) if options.json else table(found))
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        text = f"# The paper's comparison, for real\n\nMade by `python bench/paper_real.py`: {options.calls} calls on one machine.\n"
        what = " ".join(__doc__.split("\n\n", 1)[1].split())
        (options.output / "paper-real.md").write_text(f"{text}\n{what}\n\n{table(found)}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
