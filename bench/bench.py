"""What lfm costs on this machine, as ratios measured in one run.

    python bench/bench.py            everything, a table; a few minutes
    python bench/bench.py --quick    fewer rounds
    python bench/bench.py --json     the same as JSON
    python bench/bench.py --peers /path/to/python    the interpreter that has parsl, distributed or ray installed

Every contender is a process of its own with two slots.  Rounds of all contenders are interleaved, the others stopped
meanwhile (SIGSTOP), so that what a contender does when idle costs no other; medians of the rounds are reported.  CPU is user and system time of all processes of a contender: client, manager, worker, monitors,
calls.  The floor is an ``os.fork`` for every call (floor.py) out of the interpreter that lfm's calls run in, with the
same modules loaded; it neither measures nor limits nor cleans up after anything.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import processes

HERE = Path(__file__).resolve().parent
SETTLE = 0.5  # seconds after a contender was stopped or may go on
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
FUNCTIONS = {
    "bare": ("noop", "interpreter"),
    "numpy": ("noop_numpy", "interpreter_numpy"),
    "pandas": ("noop_pandas", "interpreter_pandas"),
}


class Absent(Exception):
    """A contender that is not installed."""


class Contender:
    """A contender's process, and what it has cost so far."""

    def __init__(self, name: str, python: str) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process
        found = {"PATH": os.pathsep.join([str(Path(python).parent), os.environ["PATH"]]), "PYTHONPATH": str(HERE)}
        self.process = subprocess.Popen(
            [python, "contender.py", name], cwd=HERE, env={**os.environ, **ONE_THREAD, **found}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip
        if not self._line():
            self.process.wait()
            raise Absent(f"{name}: {self._last_words()}")

    def _line(self) -> str:
        assert self.process.stdout
        # Libraries print to stdout too: ours are the lines that are JSON.
        for line in self.process.stdout:
            try:
                json.loads(line)
            except ValueError:
                continue
            return line
        return ""

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "it said nothing")

    def ask(self, do: str, **request: Any) -> Any:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
        self.process.stdin.flush()
        if not (line := self._line()):
            raise RuntimeError(f"{self.name} died of {do} {request}: {self._last_words()}")
        return json.loads(line)

    def calls(self, function: str, n: int) -> dict[str, float]:
        """Milliseconds of CPU a call, by role and together; calls a second."""
        before = processes.cpu(self.process.pid)
        wall = self.ask("calls", function=function, n=n)
        after = processes.cpu(self.process.pid)
        spent = {f"{role}_ms": (after[role] - before.get(role, 0)) / n * 1e3 for role in after}
        return {"cpu_ms": sum(spent.values()), "per_s": n / wall, **spent}

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """None of its processes runs meanwhile."""
        pids = list(processes.tree(self.process.pid))
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._errors.close()


def middle(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {key: median(r.get(key, 0.0) for r in rounds) for key in rounds[0]}


# ------------------------------------------------------------------ what is measured


def call_cost(lfm: Contender, rounds: int, n: int) -> dict[str, Any]:
    """CPU of an isolated, measured call against a raw fork, for a bare interpreter and for one with numpy."""
    found = {}
    for label, (function, where) in FUNCTIONS.items():
        python, modules = lfm.ask("ask", function=where)
        floor = Contender("floor", python)
        loaded = floor.ask("modules", names=modules)
        for contender in (floor, lfm):
            contender.calls(function, 50)
        ours, theirs = [], []
        for _ in range(rounds):
            theirs.append(floor.calls(function, n))
            ours.append(lfm.calls(function, n))
        ratio = median(a["cpu_ms"] / b["cpu_ms"] for a, b in zip(ours, theirs, strict=True))
        found[label] = {"lfm": middle(ours), "floor": middle(theirs), "ratio": ratio, "floor_modules": loaded}
        floor.close()
    return found


class Speeds:
    """Calls a second and latency, one at a time.  A contender may be measured more than once: the machine's own speed
    moves, and what is compared has to be measured side by side."""

    def __init__(self, rounds: int, n: int) -> None:
        self._rounds, self._n = rounds, n
        self._many: dict[str, list[dict[str, float]]] = {}
        self._single: dict[str, list[float]] = {}

    def measure(self, *contenders: Contender) -> None:
        for contender in contenders:
            contender.calls("noop", 20)
        for contender in self._alone(contenders):
            self._many.setdefault(contender.name, []).append(contender.calls("noop", self._n))
            waits = contender.ask("latency", function="noop", n=max(self._n // 5, 40))
            self._single.setdefault(contender.name, []).extend(waits)

    def _alone(self, contenders: Sequence[Contender]) -> Iterator[Contender]:
        """Each in its turn, and nothing of the others runs."""
        for _ in range(self._rounds):
            for contender in contenders:
                with contextlib.ExitStack() as others:
                    for other in contenders:
                        if other is not contender:
                            others.enter_context(other.stopped())
                    time.sleep(SETTLE)
                    yield contender

    def table(self) -> dict[str, dict[str, float]]:
        return {
            name: middle(self._many[name]) | {"p50_ms": median(values) * 1e3, "p99_ms": quantiles(values, n=100)[98] * 1e3}
            for name, values in self._single.items()
        }


def timed_run(code: str) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=HERE, check=True)
    return time.perf_counter() - begun


def import_time(rounds: int) -> dict[str, float]:
    """Milliseconds of a whole interpreter: bare, with ``import lfm``, with its executor loaded."""
    codes = {"bare_ms": "pass", "lfm_ms": "import lfm", "executor_ms": "import lfm; lfm.Executor"}
    taken: dict[str, list[float]] = {name: [] for name in codes}
    for _ in range(rounds):
        for name, code in codes.items():
            taken[name].append(timed_run(code) * 1e3)
    return {name: median(values) for name, values in taken.items()}


def first_result(rounds: int) -> dict[str, float]:
    """Seconds from nothing running to the first value, its environment being packed already."""
    code = (
        "import time; t = time.perf_counter()\n"
        "import lfm; from work import noop\n"
        "with lfm.Executor() as ex:\n"
        "    ex.submit(noop, 1).result(); print(time.perf_counter() - t)\n"
        "print(time.perf_counter() - t)"
    )
    taken = []
    for _ in range(rounds):
        taken.append([float(line) for line in output([sys.executable, "-c", code]).split()])
    return {"result_s": median(t[0] for t in taken), "closed_s": median(t[1] for t in taken)}


def idle(lfm: Contender, seconds: float) -> dict[str, float]:
    """Percent of one core that each role takes while it has nothing to do."""
    time.sleep(1)
    before = processes.running_ns(lfm.process.pid)
    time.sleep(seconds)
    after = processes.running_ns(lfm.process.pid)
    return {f"{role}_percent": (after[role] - before.get(role, 0)) / seconds / 1e7 for role in after}


def environment() -> dict[str, Any]:
    """What a function that needs only numpy is sent, against all that is installed here."""
    packed = json.loads(output([sys.executable, "-m", "lfm", "env", "pack", "work.py:noop_numpy", "--json"]))
    names = {d["name"] for d in packed["distributions"]}
    everything = {d.name: installed_bytes(d) for d in metadata.distributions()}
    return {
        "distributions": len(names),
        "all_distributions": len(everything),
        "installed_bytes": sum(everything.get(name, 0) for name in names),
        "all_installed_bytes": sum(everything.values()),
        "packed_bytes": packed["bytes"],
    }


def output(command: list[str]) -> str:
    return subprocess.run(command, cwd=HERE, check=True, stdout=subprocess.PIPE, text=True).stdout


def installed_bytes(distribution: metadata.Distribution) -> int:
    paths = (Path(str(file.locate())) for file in distribution.files or ())
    return sum(path.stat().st_size for path in paths if path.is_file())


# ------------------------------------------------------------------ the run and its table


def measure(options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    rounds, n = (3, 100) if options.quick else (options.rounds, options.calls)
    say("import and first result")
    results: dict[str, Any] = {"machine": machine()}
    results["import"] = import_time(5 if options.quick else 15)
    first_result(1)  # packs the environment, if nobody has yet
    results["first_result"] = first_result(rounds)
    speeds = Speeds(rounds, n)
    lfm = Contender("lfm", sys.executable)
    try:
        say("CPU per call against the floor")
        results["call_cost"] = call_cost(lfm, rounds, n)
        say("idle")
        results["idle"] = idle(lfm, options.idle)
        say("speed beside the floor and the standard library's pool")
        python, modules = lfm.ask("ask", function="interpreter")
        floor, pool = Contender("floor", python), Contender("pool", sys.executable)
        floor.ask("modules", names=modules)
        speeds.measure(lfm, floor, pool)
        floor.close()
        pool.close()
        for name in ("parsl", "dask", "ray"):
            try:
                peer = Contender(name, str(Path.cwd() / (shutil.which(options.peers) or options.peers)))  # it starts elsewhere
            except Absent as reason:
                say(f"left out: {reason}")
                continue
            say(f"speed beside {name}")
            try:
                speeds.measure(peer, lfm)
            finally:
                peer.close()
        results["speed"] = speeds.table()
    finally:
        lfm.close()
    say("environment")
    results["environment"] = environment()
    results["machine"]["load_after"] = os.getloadavg()[0]
    return results


def machine() -> dict[str, Any]:
    return {
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "load_before": os.getloadavg()[0],
    }


def report(results: dict[str, Any]) -> str:
    """The table that people read."""
    here = results["machine"]
    lines = [
        "",
        f"{here['cores']} cores, Python {here['python']}, Linux {here['kernel']}; "
        f"load {here['load_before']:.1f} before, {here['load_after']:.1f} after",
        "",
        "CPU of one isolated, measured no-op call, all processes (ms)",
        f"  {'':12}{'lfm':>8}{'floor':>8}{'ratio':>8}   {'client':>8}{'manager':>9}{'worker, call':>14}",
    ]
    for label, row in results["call_cost"].items():
        client, manager, worker = (row["lfm"].get(f"{role}_ms", 0.0) for role in ("client", "manager", "worker"))
        lines.append(
            f"  {label:12}{row['lfm']['cpu_ms']:8.2f}{row['floor']['cpu_ms']:8.2f}{row['ratio']:7.2f}x   "
            f"{client:8.2f}{manager:9.2f}{worker:14.2f}"
        )
    lines += [
        "",
        "Speed of no-op calls, two slots",
        f"  {'':24}{'calls/s':>9}{'of lfm':>9}{'p50 ms':>9}{'p99 ms':>9}{'CPU ms':>9}",
    ]
    names = {"lfm": "lfm", "floor": "os.fork for each", "pool": "ProcessPoolExecutor *", "parsl": "Parsl HTEX *", "dask": "Dask *", "ray": "Ray *"}
    for name, row in results["speed"].items():
        lines.append(
            f"  {names[name]:24}{row['per_s']:9.0f}{row['per_s'] / results['speed']['lfm']['per_s']:8.2f}x"
            f"{row['p50_ms']:9.2f}{row['p99_ms']:9.2f}{row['cpu_ms']:9.2f}"
        )
    took, start, size = results["import"], results["first_result"], results["environment"]
    idling = (f"{role.removesuffix('_percent')} {value:.3f} %" for role, value in sorted(results["idle"].items()))
    lines += [
        "  * a process serves many calls: no isolation, no limits, nothing measured",
        "",
        f"import lfm             {took['lfm_ms'] - took['bare_ms']:+.0f} ms on {took['bare_ms']:.0f} ms of bare Python; "
        f"with its executor {took['executor_ms'] - took['bare_ms']:+.0f} ms",
        f"start to first result  {start['result_s']:.2f} s; closed again at {start['closed_s']:.2f} s",
        f"idle                   {', '.join(idling)} of a core",
        f"numpy-only environment {size['installed_bytes'] / 1e6:.0f} MB of {size['all_installed_bytes'] / 1e6:.0f} MB "
        f"installed, {size['distributions']} of {size['all_distributions']} packages; "
        f"{size['packed_bytes'] / 1e6:.0f} MB packed, with the interpreter",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--quick", action="store_true", help="3 rounds of 100 calls")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=400, help="in a round")
    parser.add_argument("--idle", type=float, default=5.0, help="seconds to watch the idle processes")
    parser.add_argument("--peers", default=sys.executable, help="an interpreter that has parsl, distributed or ray")
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # users' interpreters keep what they compiled
    results = measure(options, lambda text: print(f"... {text}", file=sys.stderr, flush=True))
    print(json.dumps(results, indent=1) if options.json else report(results))


if __name__ == "__main__":
    main()
