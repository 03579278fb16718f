"""What a submit costs its caller: the first of a session, the next, one of an edited module.

    python bench/first_submit.py                       with what is installed beside lfm
    FAT/bin/python bench/first_submit.py --rounds 9    in an environment of your own that lfm is installed in too

The first three are CPU of the submitting thread, each round a Python of its own.  "Edited" is wall time from submit to
result in an embedded run, beside calls of the same module unedited, rounds interleaved.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import lfm

STACKS = ("numpy", "pandas", "scipy.stats", "sklearn.linear_model", "matplotlib.pyplot", "rdkit.Chem", "pyarrow", "uproot")
FIRST = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
import lfm, lfm.session, zmq, own_of_a_bench as own  # what a script has imported when it submits
from lfm.function.memory import Memory
from lfm.function.pack import Packer
memory = Memory()
packer, took, packed = Packer(looking=memory), [], None
def timed(what):
    start = time.thread_time()
    found = what()
    took.append((time.thread_time() - start) * 1000)
    return found
packed = timed(lambda: packer.pack(own.many))
timed(lambda: packer.pack(own.other))
timed(lambda: packer.pack(own.many))
timed(memory.look)
print(json.dumps([took, len(packed.plan.distributions), packed.plan.whole["distributions"]]))
"""


def source(stacks: list[str], number: int) -> str:
    lines = [f"import {name}" for name in stacks]
    lines += ["def many():", f"    return {number}, [{', '.join(stacks)}]", "def other():", f"    return {stacks[0]}"]
    return "\n".join([*lines, "def little():", f"    return {number}"]) + "\n"


def first(stacks: list[str], rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="lfm-bench-") as folder:
        Path(folder, "own_of_a_bench.py").write_text(source(stacks, 0))
        found = []
        for _ in range(rounds + 1):  # the first may have to look at everything
            done = subprocess.run([sys.executable, "-c", FIRST, folder], check=True, capture_output=True, text=True)
            found.append(json.loads(done.stdout))
    (cold, *_), kept, whole = found[0][0], *found[0][1:]
    ms = [median(times) for times in zip(*(took for took, _, _ in found[1:]), strict=True)]
    return {
        "stacks": len(stacks), "distributions": kept, "whole_distributions": whole, "never_looked_at_ms": cold,
        "first_ms": ms[0], "next_ms": ms[1], "again_ms": ms[2], "look_ms": ms[3],
    }  # fmt: skip


def edited(rounds: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="lfm-bench-") as folder, lfm.Executor(cores=1) as ex:
        file = Path(folder, "edited_of_a_bench.py")
        file.write_text(source(["json"], 0))
        sys.path.insert(0, folder)
        sys.dont_write_bytecode = True
        own = importlib.import_module("edited_of_a_bench")
        ex.submit(own.little).result()
        times: tuple[list[float], list[float]] = ([], [])
        base = time.time_ns()  # no node has seen these
        file.write_text(source(["json"], base))
        importlib.reload(own)
        ex.submit(own.little).result()
        for number in range(base + 1, base + rounds + 1):
            for anew, kept in enumerate(times):
                if anew:
                    file.write_text(source(["json"], number))
                    importlib.reload(own)
                time.sleep(0.2)  # whatever the last one left to do
                start = time.perf_counter()
                assert ex.submit(own.little).result() == number - 1 + anew
                kept.append((time.perf_counter() - start) * 1000)
    return {"unchanged_ms": median(times[0]), "edited_ms": median(times[1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    stacks = [name for name in STACKS if importlib.util.find_spec(name.partition(".")[0]) is not None]
    it = first(stacks, chosen.rounds) | edited(chosen.rounds)
    if chosen.json:
        print(json.dumps(it, indent=1))
        return
    more = it["edited_ms"] - it["unchanged_ms"]
    print(f"a module of {it['stacks']} stacks: {it['distributions']} of {it['whole_distributions']} distributions")
    for name, value, most in (
        ("a session's first function, CPU", it["first_ms"], 30), ("the next function, CPU", it["next_ms"], 30),
        ("one that is known, CPU", it["again_ms"], None), ("first of all, CPU", it["never_looked_at_ms"], None),
        ("looking at what was presumed, CPU", it["look_ms"], None), ("an edited module, more", more, 50),
    ):  # fmt: skip
        wanted = "" if most is None else f"   at most {most}{'' if value <= most else ': MISSED'}"
        print(f"  {name:<36} {value:9.2f} ms{wanted}")


if __name__ == "__main__":
    main()
