"""The paper's comparison, simulated: ``python bench/paper.py [-o docs]`` writes a page of tables and pictures.

Four application shapes on 1 to 100 nodes, a fixed number of calls per node, under four ways of sizing them:
**Oracle** knows every call's size, **Auto** learns it, **Guess** takes what a careful user asks, **Unmanaged**
gives every call a node of its own.  The manager core, scheduler and sizers are the shipped ones, in virtual time.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lfm_manager.simulator.chart import Line, chart
from lfm_manager.simulator.ledger import Ledger
from lfm_manager.simulator.loads import LOADS, draw
from lfm_manager.simulator.plan import Plan
from lfm_manager.simulator.world import simulate

CORES, MEMORY = 16, 64 * 10**9
NODES = (1, 5, 10, 25, 50, 100)
CALLS_PER_NODE = 50
MANNERS = {"Oracle": "oracle", "Auto": "auto", "Guess": "fixed", "Unmanaged": "whole-worker"}
SHAPES = {
    "hep": "many short uniform calls",
    "drug-screening": "a mixture of three functions",
    "genomics": "long tails",
    "images": "few heavy calls",
}

Runs = dict[str, dict[int, Ledger]]  # manner -> nodes -> run


def run(load: str, nodes: tuple[int, ...], calls_per_node: int) -> Runs:
    runs: Runs = {manner: {} for manner in MANNERS}
    for count in nodes:
        calls = draw(load, calls_per_node * count)
        for manner, strategy in MANNERS.items():
            runs[manner][count] = simulate(calls, Plan(count, CORES, MEMORY), strategy)
    return runs


def throughput(ledger: Ledger) -> float:
    """Calls per minute."""
    return ledger.calls / ledger.makespan * 60


def table(runs: Runs) -> str:
    nodes = list(runs["Oracle"])
    lines = [
        "| | " + " | ".join(f"{n} node{'s' * (n > 1)}" for n in nodes) + " | memory used / reserved | cores busy |",
        "|---|" + "---:|" * (len(nodes) + 2),
    ]
    for manner, by_nodes in runs.items():
        cells = [f"{by_nodes[n].makespan:.0f} s ({by_nodes[n].makespan / runs['Oracle'][n].makespan:.2f})" for n in nodes]
        largest = by_nodes[nodes[-1]]
        cells += [f"{largest.efficiency:.0%}", f"{largest.core_use:.0%}"]
        lines.append(f"| {manner} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(load: str, runs: Runs) -> str:
    lines = [
        Line(manner, [(0, 0), *((n, throughput(ledger)) for n, ledger in by_nodes.items())], dashed=manner == "Oracle")
        for manner, by_nodes in runs.items()
    ]
    return chart(f"{load}: {SHAPES[load]}", "nodes", "calls / minute", lines)


def page(found: dict[str, Runs], calls_per_node: int) -> str:
    parts = [
        "# The paper's comparison, simulated",
        f"Made by `python bench/paper.py`. Nodes of {CORES} cores and {MEMORY // 10**9} GB; {calls_per_node} calls per"
        " node, submitted at once; makespan, in brackets as a multiple of the oracle's. The last two columns are of"
        " the largest cluster. Auto is told nothing about memory; Guess is what a careful user asks; Unmanaged gives"
        " every call a node. The loads are drawn from seeds (`lfm simulate hep`, ...), not recorded.",
    ]
    for load, runs in found.items():
        parts += [f"## {load}: {SHAPES[load]}", table(runs), f"![{load}](paper-{load}.svg)"]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, help="a folder for paper.md and its pictures")
    parser.add_argument("--load", action="append", choices=list(LOADS), help="may be given again; default: all")
    parser.add_argument("--nodes", type=int, nargs="+", default=list(NODES))
    parser.add_argument("--calls-per-node", type=int, default=CALLS_PER_NODE)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    nodes = tuple(sorted(set(options.nodes)))
    found = {load: run(load, nodes, options.calls_per_node) for load in options.load or LOADS}
    if options.json:
        body = {
            load: {manner: {n: ledger.makespan for n, ledger in by_nodes.items()} for manner, by_nodes in runs.items()}
            for load, runs in found.items()
        }
        print(json.dumps({"schema": "lfm.bench.paper/1", "makespan_s": body}, indent=2))
    else:
        for load, runs in found.items():
            print(f"\n{load}: {SHAPES[load]}\n{table(runs)}")
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "paper.md").write_text(page(found, options.calls_per_node), encoding="utf-8")
        for load, runs in found.items():
            (options.output / f"paper-{load}.svg").write_text(picture(load, runs), encoding="utf-8")


if __name__ == "__main__":
    main()
