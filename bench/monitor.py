"""How well calls are watched: what that costs, how close peaks are, how far a limit is overrun, what leaks.

    python bench/monitor.py                     everything; some minutes
    python bench/monitor.py --only watch peaks limits leak
    python bench/monitor.py --calls 20000       of the leak test
    python bench/monitor.py --no-groups --no-namespace --os-fork      other tiers

Every figure comes from the same host, template and monitors that run calls for real.
"""

from __future__ import annotations

import argparse
import mmap
import os
import select
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle

from lfm.ending import usage_of
from lfm.monitor import host, payload, wire
from lfm.monitor.runtime import install_runtime

cloudpickle.register_pickle_by_value(sys.modules[__name__])
MB = 1_000_000


class Bench:
    def __init__(self, folder: Path, **how: Any) -> None:
        self.folder = folder
        (folder / "sandboxes").mkdir()
        runtime = install_runtime(folder / "runtime")
        (runtime / "lib" / "held_by_the_template.py").write_text("HELD = bytearray(b'x' * 100_000_000)\n")
        preload = ("numpy", "held_by_the_template")
        self.host = host.Host(sys.executable, runtime, preload, sandboxes=folder / "sandboxes", **how)
        self.poll = select.poll()
        self.poll.register(self.host.fileno(), select.POLLIN)
        self.codes: dict[Any, Path] = {}
        self.last = 0

    def start(self, fn: Callable[..., Any], *args: Any, limits: wire.Limits = wire.Limits()) -> int:  # noqa: B008
        self.last += 1
        if fn not in self.codes:
            self.codes[fn] = self.folder / f"code-{len(self.codes)}"
            self.codes[fn].write_bytes(b"".join(payload.pack(fn, cloudpickle.dumps)))
        arguments = b"".join(payload.pack((args, {})))
        number, folder = self.last, self.folder
        self.host.start(wire.Work(number, str(self.codes[fn]), arguments, f"{folder}/r{number}", ""), limits)
        return number

    def end(self, number: int) -> host.Over:
        while True:
            due = self.host.deadline()
            self.poll.poll(None if due is None else max(0.0, due - time.monotonic()) * 1000)
            for news in self.host.receive():
                if isinstance(news, host.Over) and news.id == number:
                    return news
            self.host.tick()

    def run(self, fn: Callable[..., Any], *args: Any, limits: wire.Limits = wire.Limits()) -> host.Over:  # noqa: B008
        return self.end(self.start(fn, *args, limits=limits))

    def pids(self) -> list[int]:
        return _below(self.host.pid)


def _below(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(below for child in children for below in _below(int(child)))]


def _ran(pid: int) -> float:
    """CPU seconds of a process, to the nanosecond."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


# -- what watching costs


def rest(seconds: float, processes: int) -> None:
    pids = []
    for _ in range(processes - 1):
        if not (pid := os.fork()):
            time.sleep(seconds)
            os._exit(0)
        pids.append(pid)
    time.sleep(seconds)
    for pid in pids:
        os.waitpid(pid, 0)


def watch(bench: Bench) -> None:
    print("\nwatching a call: CPU of its monitor and its host, of one core", flush=True)
    print("  (with what starting and ending a call costs them, which is all that is left of 0.01 s)")
    for seconds, processes in ((0.01, 1), (0.01, 8), (1, 1), (1, 8), (3, 1), (3, 8), (10, 8)):
        bench.run(rest, 0.01, processes)
        shares = []
        for _ in range(5 if seconds < 10 else 2):
            monitors = [pid for pid in bench.pids()[1:] if Path(f"/proc/{pid}").exists()]
            slot = next(iter(bench.host._slots.values())).pid
            assert slot in monitors
            before, own = _ran(slot), time.process_time()
            bench.run(rest, seconds, processes, limits=wire.Limits(memory=1 << 33, disk=1 << 40))
            shares.append((_ran(slot) - before + time.process_time() - own) / seconds * 100)
        spent, most = statistics.median(shares), max(shares)
        print(f"  {seconds:4} s, {processes} processes: {spent:.3f} %  (max {most:.3f} %), {spent * seconds * 10:.2f} ms", flush=True)


# -- peaks


def spike(size: int, seconds: float, how: str) -> int:
    """Take so many bytes for so long, in one of many ways."""
    if how == "heap":
        held: Any = bytearray(size)
    elif how == "pieces":
        held = [bytes(4000) for _ in range(size // 4033)]
    elif how == "mmap":
        held = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for at in range(0, size, 4096):
            held[at] = 1
    elif how == "shared":
        held = mmap.mmap(-1, size)
        for at in range(0, size, 4096):
            held[at] = 1
    elif how == "numpy":
        import numpy

        held = numpy.ones(size // 8)
    elif how == "copied":  # pages of the template, written to
        held = sys.modules["held_by_the_template"].HELD
        held[: size : 4096] = bytes(len(range(0, size, 4096)))
    elif how == "child":
        if not (pid := os.fork()):
            held = bytearray(size)
            time.sleep(seconds)
            os._exit(0)
        os.waitpid(pid, 0)
        return 0
    else:
        import subprocess

        code = f"import time; held = bytearray({size}); time.sleep({seconds})"
        subprocess.run([sys.executable, "-S", "-c", code], check=True)
        return 0
    time.sleep(seconds)
    del held
    return 0


def peaks(bench: Bench) -> None:
    print("\npeak memory, MB: truth, [lower bound, figure], error; what a call does besides is taken off", flush=True)
    size = 100 * MB
    for how in ("heap", "pieces", "mmap", "shared", "numpy", "copied", "child", "command"):
        truth = size if how != "command" else size + 5 * MB
        bases = [usage_of(bench.run(spike, 4096, 0.02, how)) for _ in range(3)]
        base = statistics.median(usage.memory for usage in bases if usage) - (5 * MB if how == "command" else 0)
        line = []
        for seconds in (0.005, 0.05, 0.5, 5.0):
            usage = usage_of(over := bench.run(spike, size, seconds, how))
            assert usage is not None
            assert over.result is not None and over.result.kind == wire.RETURNED, over
            low, high = usage.memory_low - base, usage.memory - base
            line.append(f"{seconds:g} s [{low / MB:.1f}, {high / MB:.1f}] {(high / truth - 1) * 100:+.1f} % {usage.memory_by}")
        print(f"  {how:8} {truth / MB:.0f}: " + ";  ".join(line), flush=True)


# -- limits


def grow(rate: float, threads: int) -> None:
    """Touch memory at so many bytes a second in each of so many processes' threads."""
    import threading

    def one() -> None:
        held, piece, at = [], 1_000_000, time.monotonic()
        while True:
            held.append(bytearray(piece))
            at += piece / rate
            if (wait := at - time.monotonic()) > 0:
                time.sleep(wait)

    for _ in range(threads - 1):
        threading.Thread(target=one, daemon=True).start()
    one()


def tree(processes: int) -> None:
    for _ in range(processes - 1):
        if not os.fork():
            time.sleep(600)
    time.sleep(600)


def limits(bench: Bench) -> None:
    print("\nlimits", flush=True)
    for rate in (0.2e9, 1.5e9):
        over = [bench.run(grow, rate, 1, limits=wire.Limits(memory=400 * MB)).report for _ in range(7)]
        beyond = [(report.measured - 400 * MB) / MB for report in over if report]
        print(f"  memory, one thread, {rate / 1e9:g} GB/s: overrun {statistics.median(beyond):.1f} MB (max {max(beyond):.1f})", flush=True)
    for processes in (1, 20):
        took = []
        for _ in range(7):
            over = bench.run(tree, processes, limits=wire.Limits(wall_time=0.5))
            assert over.report is not None
            took.append((over.wall_s - over.report.at_s) * 1000)
        print(f"  wall time, {processes} processes: from breach to all reaped {statistics.median(took):.0f} ms (max {max(took):.0f})", flush=True)


# -- leaks


def leak(bench: Bench, calls: int) -> None:
    print(f"\n{calls} calls: worker, template and monitors before and after", flush=True)

    def held() -> dict[str, tuple[int, int]]:
        found = {"host": os.getpid(), "template": bench.host.pid}
        found |= {f"monitor {slot.number}": slot.pid for slot in bench.host._slots.values()}
        return {
            name: (
                int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4,
                len(list(Path(f"/proc/{pid}/fd").iterdir())),
            )
            for name, pid in found.items()
        }

    for number in range(1000):
        bench.run(max, 1, 2) if number % 100 else bench.run(rest, 0.02, 2)
    before, processes = held(), len(bench.pids())
    began = time.monotonic()
    for number in range(calls):
        bench.run(max, 1, 2) if number % 100 else bench.run(rest, 0.02, 2)
    after = held()
    for name, (memory, files) in before.items():
        print(f"  {name:12} kB {memory} -> {after[name][0]}, descriptors {files} -> {after[name][1]}", flush=True)
    print(f"  processes {processes} -> {len(bench.pids())}; {calls / (time.monotonic() - began):.0f} calls/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=["watch", "peaks", "limits", "leak"])
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--no-groups", action="store_true")
    parser.add_argument("--no-namespace", action="store_true")
    parser.add_argument("--os-fork", action="store_true")
    given = parser.parse_args()
    how = {"groups": not given.no_groups, "namespace": not given.no_namespace, "clone": not given.os_fork}
    with tempfile.TemporaryDirectory(prefix="lfm-bench-") as made:
        folder = Path(made)
        for name, section in {"watch": watch, "peaks": peaks, "limits": limits, "leak": leak}.items():
            if name not in given.only:
                continue
            (folder / name).mkdir()
            bench = Bench(folder / name, **how)
            try:
                bench.run(max, 1, 2)
                print({key: bench.host.told[key] for key in ("fork", "containment", "cgroup")}, flush=True)
                section(bench, given.calls) if name == "leak" else section(bench)
            finally:
                bench.host.close()


if __name__ == "__main__":
    main()
