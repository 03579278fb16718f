"""Control groups: what no look at /proc can see is measured, and nothing of the groups stays."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import pytest

import lfm
from lfm.monitor import cgroup, wire
from lfm.monitor.group import SlotGroup
from lfm.protocol.outcomes import Crashed, Exhausted, Returned

sys.path.insert(0, str(Path(__file__).parent))
from test_monitor_calls import Bench

sys.path.pop(0)
cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = pytest.mark.process
MB = 1_000_000


def _place() -> cgroup.Place:
    place, why = cgroup.find()
    if place is None:
        pytest.skip(f"no control groups here: {why}")
    return place


@pytest.fixture(params=["namespace", "os.fork"])
def bench(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    place = _place()
    made = Bench(tmp_path, clone=request.param != "os.fork", namespace=request.param == "namespace")
    made.until(lambda: bool(made.host.told))
    assert made.host.told["cgroup"] == f"v{place.version}"
    yield made
    assert _groups(place, made.host.pid)
    made.host.close()
    assert not _groups(place, made.host.pid)


def _in_memory(folder: Path) -> bool:
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(folder)], check=True, capture_output=True, text=True).stdout
    return kind.strip() in ("tmpfs", "ramfs")


def _groups(place: cgroup.Place, pid: int) -> list[str]:
    return [path.name for path in Path(place.memory).glob(f"{cgroup.PREFIX}{pid}.*")]


def _take(size: int) -> None:
    """In a process of its own that is gone before anybody looks."""
    subprocess.run([sys.executable, "-S", "-c", f"x = bytearray({size})"], check=True)


def test_short_lived_processes_are_measured_exactly(bench: Bench) -> None:
    for size in (150 * MB, 60 * MB):  # what the call before took does not show
        outcome, usage = bench.end(bench.start(_take, size))
        assert isinstance(outcome, Returned) and usage is not None
        assert usage.memory_by == "cgroup" and usage.processes == 2
        assert size < usage.memory_low <= usage.memory < size + 25 * MB
    _, usage = bench.end(bench.start(max, 1, 2))
    assert usage is not None and usage.memory < 20 * MB
    bench.well()


def test_files_that_the_kernel_caches_are_not_the_calls(bench: Bench, tmp_path: Path) -> None:
    def write(folder: str) -> None:
        for name in (f"{folder}/outside", "inside"):
            with open(name, "wb") as file:
                for _ in range(60):
                    file.write(os.urandom(MB))
        subprocess.run(["true"], check=True)
        time.sleep(0.2)

    outcome, usage = bench.end(bench.start(write, str(tmp_path)))
    assert isinstance(outcome, Returned) and usage is not None
    if _in_memory(tmp_path):  # then what is written is memory, and nobody can give it back
        assert 120 * MB < usage.memory < 170 * MB
    else:
        assert usage.memory < 50 * MB
    number = bench.start(_take, 100 * MB)  # in a group without what is cached
    outcome, usage = bench.end(number)
    assert isinstance(outcome, Returned) and usage is not None
    assert 100 * MB < usage.memory_low <= usage.memory < 125 * MB
    bench.well()


def test_what_may_be_cache_counts_against_no_limit_before_it_was_looked_at(tmp_path: Path) -> None:
    if _in_memory(tmp_path):
        pytest.skip("files there are memory")
    ours, its = socket.socketpair()
    group = SlotGroup(_place(), f"{cgroup.PREFIX}{os.getpid()}.cache")
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            group.join()
            for number in range(3):
                with (tmp_path / str(number)).open("wb") as file:
                    for _ in range(20):
                        file.write(bytes(MB))
                its.send(b"written")
                its.recv(1)
        finally:
            os._exit(0)
    its.close()
    try:
        group.begin(0)
        for limit in (0, 0, 1):  # time stands still: the first look was too dear for another, unless it decides
            ours.recv(16)
            assert group.used(0, 1.0, limit) < 10 * MB
            ours.send(b"x")
    finally:
        ours.close()
        os.waitpid(pid, 0)
        for number in range(3):
            (tmp_path / str(number)).unlink(missing_ok=True)
        group.close()


def test_forks_that_share_pages_count_them_once(bench: Bench) -> None:
    def share() -> None:
        held = bytearray(80 * MB)
        pids = []
        for _ in range(3):
            if not (pid := os.fork()):
                time.sleep(0.5)
                os._exit(len(held) % 2)
            pids.append(pid)
        for pid in pids:
            os.waitpid(pid, 0)

    outcome, usage = bench.end(bench.start(share, limits=wire.Limits(memory=150 * MB)))
    assert isinstance(outcome, Returned) and usage is not None
    assert 80 * MB < usage.memory_low < 105 * MB
    bench.well()


def test_copies_of_shared_pages_count_against_the_limit(bench: Bench) -> None:
    def copy() -> None:
        held = bytearray(60 * MB)
        for _ in range(3):
            if os.fork() == 0:
                held[::4096] = bytes(len(held[::4096]))
                time.sleep(60)
        time.sleep(60)

    outcome, _ = bench.end(bench.start(copy, limits=wire.Limits(memory=150 * MB)))
    assert isinstance(outcome, Exhausted) and outcome.resource == "memory"
    bench.well()


def test_cpu_of_children_that_nobody_waited_for(bench: Bench) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        if os.fork() == 0:
            end = time.process_time() + 1.0
            while time.process_time() < end:
                pass
            os._exit(0)
        try:
            os.wait()  # until it has ended; it is nobody's then
        except ChildProcessError:
            pass

    outcome, usage = bench.end(bench.start(ignore))
    assert isinstance(outcome, Returned) and usage is not None
    assert usage.cpu_s > 0.5  # counted from when it is watched, which a loaded machine does late
    bench.well()


def test_the_kernels_kill_is_told_apart_from_any_other(bench: Bench, tmp_path: Path) -> None:
    place = _place()

    def hold(size: int, go: str) -> int:
        while not os.path.exists(go):  # noqa: PTH110
            time.sleep(0.01)
        return len(bytearray(size))

    bench.run(max, 1, 2)
    number = bench.start(hold, 400 * MB, str(tmp_path / "go"))
    bench.until(lambda: number in bench.began)
    neighbour = bench.start(time.sleep, 2.0)
    slot = f"{cgroup.PREFIX}{bench.host.pid}.{bench.host._running[number].number}."
    (name,) = (name for name in _groups(place, bench.host.pid) if name.startswith(slot))
    bound, none = ("memory.limit_in_bytes", "-1") if place.version == 1 else ("memory.max", "max")
    limit = Path(place.memory, name, bound)
    limit.write_text(str(200 * MB))
    (tmp_path / "go").touch()
    try:
        outcome, _ = bench.end(number)
    finally:
        limit.write_text(none)
    assert isinstance(outcome, Crashed) and outcome.signal == signal.SIGKILL and "out of memory" in outcome.hint
    outcome = bench.run(lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert isinstance(outcome, Crashed) and not outcome.hint
    assert isinstance(bench.end(neighbour)[0], Returned)
    bench.well()


def test_the_groups_of_a_killed_monitor_are_removed(bench: Bench) -> None:
    place = _place()
    number = bench.start(time.sleep, 60)
    bench.until(lambda: number in bench.began)
    slot = bench.host._running[number]
    name = f"{cgroup.PREFIX}{bench.host.pid}.{slot.number}."
    os.kill(slot.pid, signal.SIGKILL)
    bench.end(number)
    assert not [one for one in _groups(place, bench.host.pid) if one.startswith(name)]
    bench.well()


# -- a program whose true figures are known

PROGRAM = """
import os, sys, time
held = bytearray(90_000_000)
end = time.process_time() + 0.5
while time.process_time() < end:
    pass
del held
if os.fork() == 0:
    other = bytearray(40_000_000)
    time.sleep(1)
    os._exit(0)
os.wait()
"""


def test_monitored_says_the_truth() -> None:
    """Beside the same program in a group of the test's own, which knows nothing of us."""
    place = _place()

    def program() -> None:
        subprocess.run([sys.executable, "-S", "-c", PROGRAM], check=True)

    group = cgroup.Group(place, f"{cgroup.PREFIX}{os.getpid()}.truth")
    try:
        began = time.monotonic()
        pid = os.fork()
        if pid == 0:
            group.enter()
            os.execv(sys.executable, [sys.executable, "-S", "-c", PROGRAM])
        os.waitpid(pid, 0)
        wall, memory, cpu = time.monotonic() - began, group.peak() - group.cache(), group.cpu()
    finally:
        group.close()
    _, usage = lfm.monitored(program)
    assert usage.memory_by == "cgroup"
    assert usage.memory_low <= memory + 10 * MB
    assert abs(usage.memory - memory) < 10 * MB  # what the function itself took, and the kernel's rounding
    assert 0.8 * cpu <= usage.cpu_s < 2 * cpu + 0.5  # two runs of it, and the start of two interpreters
    assert usage.wall_s > 1.4 and wall > 1.4
    assert usage.processes == 3


