"""One large environment to many workers: how often the manager sends it, and how long it takes.

    python bench/transfer.py [--workers 10] [--size 200MB] [--what environment|put] [--no-peers] [--json]

Every worker is a process with a cache of its own; one call runs on each.  The environment is Python's own with a
file of random bytes beside it.  ``--no-peers``: as it is where workers cannot dial each other.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

import lfm
from lfm.protocol.resources import format_size, parse_size
from lfm.testing import LocalCluster, wait_until

PATIENCE = 900.0


def where(folder: Path, workers: int, _: object = None) -> str:
    """Here; as soon as as many calls are running, so that each worker has one."""
    import os
    import time

    (folder / f"here-{os.urandom(8).hex()}").touch()  # process ids may be the same: each call may have its own space of them
    while len(list(folder.glob("here-*"))) < workers:
        time.sleep(0.05)
    return os.getcwd()  # noqa: PTH109


def environment(size: int, folder: Path, cluster: LocalCluster) -> Path:
    """A packed environment of about ``size`` bytes."""
    import zstandard

    script, packed, padded = folder / "script.py", folder / "packed.tar.zst", folder / "environment.tar.zst"
    script.write_text("def where():\n    return 1\n")
    cluster.command("env", "pack", f"{script}:where", "-o", str(packed))
    with packed.open("rb") as raw, zstandard.open(padded, "wb") as out:
        plain = io.BytesIO(zstandard.ZstdDecompressor().stream_reader(raw).read())
        with tarfile.open(fileobj=plain) as old, tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as new:
            for member in old:
                new.addfile(member, old.extractfile(member) if member.isreg() else None)
            padding = tarfile.TarInfo("share/padding")
            padding.size = max(0, size - packed.stat().st_size)
            new.addfile(padding, _Random(padding.size))
    return padded


class _Random(io.RawIOBase):
    def __init__(self, size: int) -> None:
        self._left = size

    def read(self, size: int = -1) -> bytes:
        size = self._left if size < 0 else min(size, self._left)
        self._left -= size
        return os.urandom(size)


def measure(workers: int, size: int, what: str, peers: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name, LocalCluster(workers=0, memory=300_000_000 + 3 * size) as cluster:
        folder = Path(name)
        with cluster.executor() as ex:
            call, total = _call(ex, what, size, workers, folder, cluster)
            _acquaint(ex, folder, cluster)
            cpu = _Cpu()
            started = time.monotonic()
            for number in range(workers):
                options = ["--connect", str(_far(cluster, folder)), *([] if peers else ["--no-peers"])]
                cpu.add("workers", cluster.start_worker("--work-dir", str(folder / f"w{number}"), *options))
            assert cluster.manager is not None
            cpu.add("manager", cluster.manager)
            wait_until(lambda: len(_ask(cluster, "worker", "list")["workers"]) == workers, "the workers", PATIENCE)
            joined = time.monotonic() - started
            before = _ask(cluster, "manager", "info")["blob_bytes_sent"]
            cpu.start()
            started = time.monotonic()
            places = {Path(f.result(PATIENCE)).relative_to(folder).parts[0] for f in [call() for _ in range(workers)]}
            seconds = time.monotonic() - started
            if what == "put":  # and Python's own environment for each
                total += max(e["bytes"] for e in _ask(cluster, "status")["environments"])
            sent = _ask(cluster, "manager", "info")["blob_bytes_sent"] - before
            used = cpu.used()
    assert len(places) == workers, f"only {len(places)} workers had a call"
    return {
        "workers": workers, "bytes": total, "what": what, "peers": peers, "joined_s": round(joined, 1),
        "seconds": round(seconds, 1), "sent_bytes": sent, "sent_times": round(sent / total, 2),
        **{f"{who}_cpu_s": round(cpu, 1) for who, cpu in used.items()},
    }


def _far(cluster: LocalCluster, folder: Path) -> Path:
    """A connection file of a worker that does not see the manager's files, as on another machine."""
    return Path(shutil.copy2(cluster.run / "worker.json", folder))


def _call(
    ex: Any, what: str, size: int, workers: int, folder: Path, cluster: LocalCluster
) -> tuple[Callable[[], Any], int]:
    """What submits a call, and how many bytes each worker has to fetch for it."""
    memory = 200_000_000 + (3 * size if what == "put" else 0)
    asked: dict[str, Any] = {"category": "bench", "memory": memory, "disk": "100MB", "cores": 1}
    if what == "put":
        handle = ex.put(os.urandom(size))
        return lambda: ex.options(**asked).submit(where, folder, workers, handle), size
    tarball = environment(size, folder, cluster)
    asked["environment"] = str(tarball)
    return lambda: ex.options(**asked).submit(where, folder, workers), tarball.stat().st_size


def _acquaint(ex: Any, folder: Path, cluster: LocalCluster) -> None:
    """Let the manager know the category: of an unknown one it runs but two calls at first."""
    (folder / "first").mkdir()
    cluster.start_worker("--work-dir", str(folder / "w-first"))
    ex.options(category="bench", memory="200MB", cores=1).submit(where, folder / "first", 1).result(PATIENCE)
    cluster.command("worker", "stop", "all")
    wait_until(lambda: not _ask(cluster, "worker", "list")["workers"], "the first worker's end")


def _ask(cluster: LocalCluster, *command: str) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(cluster.command(*command, "--json").stdout)
    return body


class _Cpu:
    """CPU seconds of processes with their children, by who they are."""

    def __init__(self) -> None:
        self._processes: list[tuple[str, psutil.Process]] = []
        self._before: dict[str, float] = {}

    def add(self, who: str, process: subprocess.Popen[bytes]) -> None:
        self._processes.append((who, psutil.Process(process.pid)))

    def start(self) -> None:
        self._before = self._now()

    def used(self) -> dict[str, float]:
        return {who: seconds - self._before[who] for who, seconds in self._now().items()}

    def _now(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for who, process in self._processes:
            times = process.cpu_times()
            found[who] = found.get(who, 0.0) + sum(times[:4])
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, default=10)
    parser.add_argument("--size", type=parse_size, default=parse_size("200MB"))
    parser.add_argument("--what", choices=["environment", "put"], default="environment")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = measure(asked.workers, asked.size, asked.what, not asked.no_peers)
    if asked.json:
        print(json.dumps(found))
        return
    print(f"{found['workers']} workers, {format_size(found['bytes'])} each ({found['what']}), lfm {lfm.__version__}, "
          f"{os.cpu_count()} cores, Python {sys.version.split()[0]}")
    missed = "" if found["sent_times"] <= 3 or asked.no_peers else ": MISSED"
    print(f"  the manager sent it {found['sent_times']:g} times ({format_size(found['sent_bytes'])})   at most 3{missed}")
    print(f"  all calls were over after {found['seconds']:g} s; "
          f"CPU: manager {found['manager_cpu_s']:g} s, workers {found['workers_cpu_s']:g} s")


if __name__ == "__main__":
    main()
