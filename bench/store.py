"""What it costs that no call is lost, as ratios measured in one run.

    python bench/store.py            a few minutes
    python bench/store.py --quick    fewer rounds
    python bench/store.py --json     the same as JSON

Durability: the same calls through two clusters of this machine, one whose manager keeps everything in its store and one
that keeps nothing (``--ephemeral``), in turns; medians of the rounds.  Waiting: so many calls of 10 kB lie with a manager
that has no worker: its memory, and how long after ``kill -9`` the next one on that run directory answers.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import processes
import work

from lfm.connection import Dialer
from lfm.protocol import messages as m
from lfm.protocol.ids import Digest, EnvironmentKey, FunctionId, TaskId
from lfm.protocol.outcomes import Blob, Inline
from lfm.protocol.resources import Request
from lfm.run import ConnectionFile
from lfm.testing import LocalCluster


def durability(rounds: int, n: int) -> dict[str, Any]:
    """Calls a second, and the manager's CPU for each, with and without a store."""
    clusters = {
        "kept": LocalCluster(1, cores=2, memory="2GB", name="kept"),
        "not kept": LocalCluster(1, cores=2, memory="2GB", name="lost", manager=("--ephemeral",)),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in clusters}
    try:
        executors = {name: cluster.executor() for name, cluster in clusters.items()}
        for executor in executors.values():
            list(executor.map(work.noop, range(200)))
        for number in range(rounds):
            for name in list(clusters)[:: 1 if number % 2 else -1]:
                manager = clusters[name].manager
                assert manager is not None
                spent, begun = processes.running_ns(manager.pid), time.perf_counter()
                for future in [executors[name].submit(work.noop, i) for i in range(n)]:
                    future.result()
                wall = time.perf_counter() - begun
                found[name].append({"per_s": n / wall, "manager_ms": (sum(processes.running_ns(manager.pid).values()) - sum(spent.values())) / n / 1e6})
        for executor in executors.values():
            executor.shutdown()
    finally:
        for cluster in clusters.values():
            cluster.stop()
    middle = {name: {key: median(r[key] for r in of) for key in of[0]} for name, of in found.items()}
    ratios = [a["per_s"] / b["per_s"] for a, b in zip(found["kept"], found["not kept"], strict=True)]
    return {**middle, "ratio": median(ratios)}


def waiting(calls: int, size: int) -> dict[str, float]:
    """A manager with many calls and no worker; and the next one on its run directory."""
    cluster = LocalCluster(0)
    try:
        assert cluster.manager is not None
        file = ConnectionFile.read(cluster.run / "client.json")
        dialer = Dialer(file, lambda: m.ClientHello("s", "me", "elsewhere", 0, "named"))
        dialer.connect(60)
        environment, function = EnvironmentKey("e" * 64), FunctionId("f")
        dialer.send(m.DeclareEnvironment(environment, Blob(Digest("0" * 64), 100), "a plan that never comes"))
        dialer.send(m.DeclareFunction(function, "mod.f", "mod.f", environment, Inline(b"code"), None, ()))
        begun = time.perf_counter()
        for number in range(calls):
            dialer.send(m.Submit(TaskId(f"s-{number}"), function, Inline(os.urandom(size)), Request()))
            if number % 500 == 0:
                _pump(dialer, 4000)
        _pump(dialer, 0)
        taken = time.perf_counter() - begun
        rss = processes.rss(cluster.manager.pid)
        cluster.manager.send_signal(signal.SIGKILL)
        cluster.manager.wait()
        begun = time.perf_counter()
        cluster.start_manager()
        restart = time.perf_counter() - begun
        status = json.loads(cluster.command("status", "--json").stdout)
        held = sum(status["calls"][name] for name in ("waiting", "ready", "failed"))
        assert held == calls, status["calls"]
        again = processes.rss(cluster.manager.pid)
        dialer.close()
        return {"calls": calls, "accepted_per_s": calls / taken, "rss_mb": rss / 1e6, "restart_s": restart, "rss_again_mb": again / 1e6}
    finally:
        cluster.stop()


def _pump(dialer: Dialer, left: int) -> None:
    while dialer.unacknowledged > left:
        dialer.flush()
        dialer.receive()
        if time.monotonic() >= dialer.deadline():
            dialer.tick()
        time.sleep(0.001)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    found = {
        "durability": durability(5 if chosen.quick else 15, 500 if chosen.quick else 1000),
        "waiting": waiting(20_000 if chosen.quick else 100_000, 10_000),
    }
    if chosen.json:
        print(json.dumps(found, indent=1))
        return
    d, w = found["durability"], found["waiting"]
    for name in ("kept", "not kept"):
        print(f"{name:>9}: {d[name]['per_s']:.0f} calls/s, {d[name]['manager_ms']:.2f} ms of the manager for each")
    print(f"durable calls a second, of what they are without a store: {d['ratio']:.2f}")
    print(
        f"{w['calls']} waiting calls of 10 kB: accepted {w['accepted_per_s']:.0f}/s, manager {w['rss_mb']:.0f} MB; "
        f"after kill -9 there again in {w['restart_s']:.1f} s, {w['rss_again_mb']:.0f} MB"
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    main()
