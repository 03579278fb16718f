"""CPU per isolated, measured no-op call, against a raw ``os.fork`` per call from an interpreter with the same modules.

    python bench/monitor_floor.py [--modules bare numpy pandas] [--rounds 15] [--calls 100] [--json]

The floor forks, pickles a result through a pipe and waits.  Ours is everything: the daemon's loop, the monitor,
the forker and the call's process; sandbox given and found empty, output captured, usage measured, limits set,
emptiness proved.  Rounds of both alternate in one run; the ratio is the median over rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lfm.monitor import host, payload, wire
from lfm.monitor.runtime import install_runtime

LIKELY = {"LFM_TASK": "", "LFM_ATTEMPT": "1", "LFM_CORES": "1", "LFM_MEMORY": "0"}  # as the worker has it
IMPORTS: dict[str, tuple[str, ...]] = {"bare": (), "numpy": ("numpy",), "pandas": ("pandas",)}
TICK = os.sysconf("SC_CLK_TCK")
_FLOOR = """
import sys; sys.path.insert(0, sys.argv[1])
from lfm.monitor import template
import importlib, os, pickle, resource, time
for name in ("cloudpickle", *sys.argv[2:]):
    try: importlib.import_module(name)
    except ImportError: pass
function, arguments = max, (1, 2)
def one():
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(w, pickle.dumps(function(*arguments), 5))
        os._exit(0)
    os.close(w)
    value = pickle.loads(os.read(r, 65536))
    os.close(r)
    os.waitpid(pid, 0)
    return value
def cpu():
    a, b = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return a.ru_utime + a.ru_stime + b.ru_utime + b.ru_stime
for _ in range(20): one()
for line in sys.stdin:
    before, walls = cpu(), []
    for _ in range(int(line)):
        at = time.perf_counter(); one(); walls.append(time.perf_counter() - at)
    print(repr((cpu() - before, walls)), flush=True)
"""


class Floor:
    def __init__(self, python: str, runtime: Path, modules: tuple[str, ...]) -> None:
        self._process = subprocess.Popen(
            [python, "-I", "-B", "-u", "-c", _FLOOR, str(runtime), *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def round(self, calls: int) -> tuple[float, list[float]]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{calls}\n")
        self._process.stdin.flush()
        cpu, walls = eval(self._process.stdout.readline())
        return cpu, walls

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


class Ours:
    def __init__(self, python: str, folder: Path, runtime: Path, modules: tuple[str, ...], **how: Any) -> None:
        self._folder = folder
        sandboxes = folder / "sandboxes"
        sandboxes.mkdir()
        self._host = host.Host(python, runtime, modules, sandboxes=sandboxes, environ=LIKELY, **how)
        self._code = folder / "code"
        self._code.write_bytes(b"".join(payload.pack(max)))
        self._arguments = b"".join(payload.pack(((1, 2), {})))
        self._poll = select.poll()
        self._poll.register(self._host.fileno(), select.POLLIN)
        self._next = 0
        self.last: host.Over | None = None
        self.round(50)

    def one(self) -> None:
        self._next += 1
        environ = {b"LFM_TASK": b"%d" % self._next, b"LFM_ATTEMPT": b"1", b"LFM_CORES": b"1", b"LFM_MEMORY": b"1073741824"}
        work = wire.Work(
            self._next, str(self._code), self._arguments, f"{self._folder}/r{self._next}", environ=environ
        )
        running = self._host
        running.start(work, wire.Limits(memory=1 << 30, wall_time=60.0))
        while True:
            due = running.deadline()
            self._poll.poll(None if due is None else max(0.0, due - time.monotonic()) * 1000)
            for news in running.receive():
                if isinstance(news, host.Over):
                    self.last = news
                    assert news.result is not None and payload.unpack(news.result.data) == 2, news
                    return
            running.tick()

    def round(self, calls: int) -> tuple[float, list[float]]:
        before, walls = self._cpu(), []
        for _ in range(calls):
            at = time.perf_counter()
            self.one()
            walls.append(time.perf_counter() - at)
        return self._cpu() - before, walls

    def _cpu(self) -> float:
        """All of it: this process, and every process of the template with those it has reaped."""
        own = time.process_time()
        return own + sum(_spent(pid) for pid in _below(self._host.pid))

    def detail(self) -> dict[str, Any]:
        return self._host.told

    def close(self) -> None:
        self._host.close()


def _below(pid: int) -> list[int]:
    """A process and all below it; the one of a call whose value has been told may end meanwhile."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [pid, *(below for child in file.read().split() for below in _below(int(child)))]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _spent(pid: int) -> float:
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):  # it has been reaped: its parent's, or one call of a hundred
        return 0.0
    return sum(map(int, fields[11:15])) / TICK


def measure(python: str, name: str, rounds: int, calls: int, **how: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="lfm-bench-") as folder:
        runtime = install_runtime(Path(folder) / "runtime")
        floor = Floor(python, runtime, IMPORTS[name])
        ours = Ours(python, Path(folder), runtime, IMPORTS[name], **how)
        pairs = [(floor.round(calls), ours.round(calls)) for _ in range(rounds)]
        told = ours.detail()
        floor.close()
        ours.close()
    return {
        "template": name,
        "floor_us": statistics.median(f[0] / calls for f, _ in pairs) * 1e6,
        "ours_us": statistics.median(o[0] / calls for _, o in pairs) * 1e6,
        "ratio": statistics.median(o[0] / f[0] for f, o in pairs),
        "floor_p50_ms": statistics.median(w for f, _ in pairs for w in f[1]) * 1e3,
        "ours_p50_ms": statistics.median(w for _, o in pairs for w in o[1]) * 1e3,
        "fork": told.get("fork"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", nargs="*", default=list(IMPORTS), choices=list(IMPORTS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--os-fork", action="store_true", help="our fallback: the monitor forks with os.fork")
    parser.add_argument("--no-groups", action="store_true", help="without control groups")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    how = {"clone": not given.os_fork, "groups": not given.no_groups}
    rows = [measure(given.python, name, given.rounds, given.calls, **how) for name in given.modules]
    if given.json:
        print(json.dumps(rows))
        return
    print(f"{'template':10} {'floor us':>9} {'ours us':>9} {'ratio':>6} {'floor p50 ms':>13} {'ours p50 ms':>12}  fork")
    for row in rows:
        print(
            f"{row['template']:10} {row['floor_us']:9.0f} {row['ours_us']:9.0f} {row['ratio']:6.2f} "
            f"{row['floor_p50_ms']:13.2f} {row['ours_p50_ms']:12.2f}  {row['fork']}"
        )


if __name__ == "__main__":
    main()
    sys.stdout.flush()

