"""At the edge of a machine's resources: full disks, no descriptors left, a directory that is gone.

Each on a small file system or under a lowered limit of the test's own: who may not mount skips, visibly.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from managers import Cluster, Peer, run_one, serve, submit

import lfm
from lfm.connection import Dialer
from lfm.errors import ConnectionFailed, ProtocolError
from lfm.protocol import messages as m
from lfm.protocol.ids import Digest
from lfm.protocol.outcomes import Blob, Inline, Returned
from lfm.run import ConnectionFile
from lfm.testing import LocalCluster, wait_until

pytestmark = pytest.mark.process


class Disk:
    """A small file system."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self) -> None:
        with open(self._filler, "wb", buffering=0) as file:
            for size in (1 << 16, 512):
                try:
                    while True:
                        file.write(b"\0" * size)
                except OSError:
                    pass

    def make_room(self) -> None:
        self._filler.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Disk]]:
    mounted: list[Path] = []

    def make(size: str) -> Disk:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir(mode=0o700)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "lfm-test", str(place)], capture_output=True)
        if done.returncode:
            pytest.skip(f"cannot mount a small file system: {done.stderr.decode().strip()}")
        mounted.append(place)
        return Disk(place)

    yield make
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


def alerts(viewer: Peer) -> str:
    return str(viewer.ask("status")["alerts"])


def test_a_full_run_directory_stops_the_manager_until_there_is_room(cluster: Cluster, disk: Callable[[str], Disk]) -> None:
    small = disk("8m")
    cluster.run = small.path / "run"
    cluster.start()
    assert "written in the mode wal on tmpfs" in (cluster.directory / "said").read_text()
    client, worker, viewer = cluster.client(), cluster.worker(cores=1), cluster.viewer()
    client.say(submit(0))
    run_one(worker)
    client.wait(m.Finished)
    small.fill()
    client.say(*(submit(n, Inline(os.urandom(20_000))) for n in range(1, 40)))
    wait_until(lambda: "full" in alerts(viewer), "the alert")
    assert client.dialer.unacknowledged  # what is not written down is not confirmed
    worker.pump()
    assert not [x for x in worker.heard if isinstance(x, m.Run)]  # and nothing rests on it
    assert cluster.stop(signal.SIGKILL) == -signal.SIGKILL
    small.make_room()
    cluster.start()
    for peer in (client, worker):
        peer.dialer.close()
    client, worker, viewer = cluster.client(), cluster.worker(cores=1), cluster.viewer()
    client.say(*(submit(n, Inline(os.urandom(20_000))) for n in range(1, 40)))  # as a client does to whom nothing was confirmed
    run_one(worker)
    client.wait(m.Finished)
    run = worker.wait(m.Run)
    small.fill()
    worker.say(m.CallEnded(run.task, run.attempt, Returned(Inline(b"v")), None))
    wait_until(lambda: "full" in alerts(viewer), "the alert")
    client.pump()
    assert not [x for x in client.heard if isinstance(x, m.Finished) and x.task == run.task]
    small.make_room()  # no restart: it goes on by itself
    client.wait(m.Finished, lambda f: f.task == run.task)
    for _ in range(37):
        run_one(worker)
        client.wait(m.Finished)
    assert "full" not in alerts(viewer)
    assert cluster.stop() == 0
    assert "Traceback" not in (cluster.directory / "said").read_text()


def test_blobs_that_cannot_be_stored_are_asked_for_again(cluster: Cluster, disk: Callable[[str], Disk]) -> None:
    small = disk("16m")
    cluster.run = small.path / "run"
    cluster.start()
    client, viewer, data = cluster.client(), cluster.viewer(), os.urandom(2 * m.CHUNK)
    small.fill()
    client.say(submit(0, Blob(Digest(sha256(data).hexdigest()), len(data))))
    wait_until(lambda: client.pump(0.01) or "full" in alerts(viewer) or "space" in alerts(viewer), "the alert")
    small.make_room()
    worker = cluster.worker()
    serve(client, {Digest(sha256(data).hexdigest()): data}, lambda: worker.pump(0.01) or any(isinstance(x, m.Run) for x in worker.heard))
    run_one(worker)
    client.wait(m.Finished)
    assert alerts(viewer) == "[]"


def test_without_descriptors_nobody_new_is_let_in_and_who_is_there_goes_on(cluster: Cluster) -> None:
    process = cluster.start()
    client, worker, viewer = cluster.client(), cluster.worker(cores=1), cluster.viewer()
    before = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    used = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (used, before[1]))
    with pytest.raises(ConnectionFailed, match="no manager answers"):
        Dialer(ConnectionFile.read(cluster.run / "viewer.json"), lambda: m.ViewerHello("late")).connect(1.5)
    data = os.urandom(2 * m.CHUNK)
    name = Digest(sha256(data).hexdigest())
    client.say(*(submit(n) for n in range(5)), submit(5, Blob(name, len(data))))  # their environment cannot be found now
    wait_until(lambda: client.pump(0.01) or alerts(viewer) != "[]", "the alert")
    assert not [x for x in client.heard if isinstance(x, m.Finished)]
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, before)
    serve(client, {name: data}, lambda: worker.pump(0.01) or cluster.run.joinpath("blobs", name).exists())
    for _ in range(6):
        run_one(worker)
        client.wait(m.Finished)
    assert cluster.viewer().ask("status")["calls"]["finished"] == 6  # type: ignore[index]
    assert cluster.stop() == 0 and "Traceback" not in (cluster.directory / "said").read_text()


@pytest.mark.filterwarnings("ignore::UserWarning")  # they say what is short
@pytest.mark.parametrize("more", [None, 2])
def test_a_worker_without_descriptors_hands_back_and_serves_again_when_it_has_some(tmp_path: Path, more: int | None) -> None:
    """``more``: of those that has nothing yet, so many descriptors; None: it has run something before."""

    def slow(x: int) -> int:
        import time

        time.sleep(0.2)
        return x

    with LocalCluster(1, environ={"LFM_SCRATCH": str(tmp_path)}) as own, own.executor() as executor:
        lame, small = own.workers[0], executor.options(memory="50MB", cores=0.2)
        if more is None:
            assert small.submit(abs, -1).result(120) == 1
        wait_until(lambda: re.search("worker .* joined", own.log), "the worker")
        before = resource.prlimit(lame.pid, resource.RLIMIT_NOFILE)
        used = len(list(Path(f"/proc/{lame.pid}/fd").iterdir()))
        resource.prlimit(lame.pid, resource.RLIMIT_NOFILE, (used + (more or 0), before[1]))
        futures = [small.submit(slow, n) for n in range(4)]
        wait_until(lambda: all(f.done() for f in futures) or "Too many open files" in own.command("status").stdout, "it to be said")
        own.start_worker()
        assert [f.result(120) for f in futures] == list(range(4))  # elsewhere, or in what it has
        if more is not None:
            assert lame.poll() is None and "Traceback" not in own.log
            return  # the rest takes as long, and is the same
        resource.prlimit(lame.pid, resource.RLIMIT_NOFILE, before)
        own.workers[1].terminate()
        assert own.workers[1].wait(60) == 0
        assert [f.result(120) for f in [small.submit(slow, n) for n in range(4)]] == list(range(4))
        assert lame.poll() is None and "Traceback" not in own.log


def test_a_port_that_is_taken_is_said_in_a_line(cluster: Cluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = cluster.call("start", "--run-dir", str(cluster.run), "--host", "127.0.0.1", "--port", str(port))
    assert code == 1 and f"cannot listen on 127.0.0.1, port {port}" in said and "--port" in said and len(said.strip().splitlines()) == 1
    cluster.start("--port", str(port))


def test_a_run_directory_that_is_removed_ends_the_manager_and_everybody_is_told(cluster: Cluster) -> None:
    process = cluster.start()
    client = cluster.client()
    shutil.rmtree(cluster.run)
    with pytest.raises((ProtocolError, ConnectionFailed), match="was removed"):
        wait_until(lambda: client.pump(0.2), "the news")
    assert process.wait(60) == 1
    said = (cluster.directory / "said").read_text()
    assert "was removed" in said.splitlines()[-1] and "Traceback" not in said


CLIENT = """
    import os, resource, sys
    from pathlib import Path
    import lfm

    held = []

    def no_descriptors(most):
        held.append(os.dup(0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), most))
        try:
            while True:
                held.append(os.dup(0))
        except OSError:
            pass

    def little_memory(most):
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + (8 << 20), most))

    shortages = {"descriptors": (resource.RLIMIT_NOFILE, no_descriptors), "memory": (resource.RLIMIT_AS, little_memory)}
    what, shorten = shortages[sys.argv[2]]
    with lfm.Executor(sys.argv[1]) as executor:
        assert executor.submit(abs, -1).result(120) == 1
        limits = resource.getrlimit(what)
        shorten(limits[1])
        future = executor.submit(bytes, 1_000_000)
        print("asked", flush=True)
        sys.stdin.readline()
        assert not future.done()
        resource.setrlimit(what, limits)
        print(len(future.result(120)), flush=True)
"""


def lent(tmp_path: Path, what: str, warning: str) -> None:
    """A client that lacks something, says so, and is given it."""
    script, said = tmp_path / "client.py", tmp_path / "said"
    script.write_text(textwrap.dedent(CLIENT))
    with LocalCluster(1) as own, said.open("wb") as log:
        client = subprocess.Popen(
            [sys.executable, script, own.run, what], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=own.environ, text=True
        )
        assert client.stdin is not None and client.stdout is not None
        assert client.stdout.readline() == "asked\n", said.read_text()
        wait_until(lambda: warning in said.read_text(), "the warning")
        out, _ = client.communicate("\n", 120)
        assert out == "1000000\n" and client.returncode == 0, said.read_text()


def test_a_client_without_descriptors_has_its_large_results_when_it_has_some(tmp_path: Path) -> None:
    lent(tmp_path, "descriptors", "large arguments and results wait")


def size(pid: int) -> int:
    """Bytes of a process's address space."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


@contextlib.contextmanager
def short_of_memory(pid: int, left: int) -> Iterator[None]:
    """What malloc can have of a process of the test's own."""
    before = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (size(pid) + left, before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_AS, before)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_manager_without_memory_takes_nothing_until_it_has_some() -> None:
    with LocalCluster(1) as own, own.executor() as executor:
        small = executor.options(memory="50MB", cores=0.2)
        assert small.submit(len, b"").result(120) == 0
        manager = own.manager
        assert manager is not None
        with short_of_memory(manager.pid, 36 << 20):
            futures = [small.submit(len, os.urandom(50_000)) for _ in range(400)]
            wait_until(lambda: "short of memory" in own.log or manager.poll() is not None, "it to be said")
        if manager.poll() is not None:  # ZeroMQ ends a process that it cannot go on with
            own.start_manager()
        assert [f.result(120) for f in futures] == [50_000] * 400
        assert all(len(f.attempts) == 1 for f in futures)
        assert "Traceback" not in own.log


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_worker_without_memory_hands_back() -> None:
    with LocalCluster(1) as own, own.executor() as executor:
        lame, small = own.workers[0], executor.options(memory="50MB", cores=0.2)
        assert small.submit(abs, -1).result(120) == 1
        with short_of_memory(lame.pid, 8 << 20):
            futures = [small.submit(os.urandom, n) for n in range(10)]
            wait_until(lambda: "not enough memory" in own.command("explain", futures[-1].id).stdout, "it to be explained")
            own.start_worker()
            assert [len(f.result(120)) for f in futures] == list(range(10))
            assert lame.poll() is None and "Traceback" not in own.log


def test_a_client_without_memory_has_its_results_when_it_has_some(tmp_path: Path) -> None:
    lent(tmp_path, "memory", "this process is short of memory")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_worker_whose_disk_was_full_serves_when_there_is_room(disk: Callable[[str], Disk]) -> None:
    def litter() -> None:
        with open("litter", "wb") as file:
            while True:
                file.write(bytes(1 << 20))

    small_disk = disk("300m")
    with LocalCluster(1, environ={"LFM_SCRATCH": str(small_disk.path)}) as own, own.executor() as executor:
        small = executor.options(memory="50MB", cores=0.2)
        wait_until(lambda: re.search("worker .* joined", own.log), "the worker")
        small_disk.fill()  # before it has unpacked anything
        future = small.submit(abs, -1)
        wait_until(lambda: "space" in own.command("explain", future.id).stdout, "it to be explained")
        small_disk.make_room()
        assert future.result(120) == 1
        with pytest.raises((OSError, lfm.ResourceExhausted)):
            small.submit(litter).result(120)  # its own directory is removed with what is in it
        assert small.submit(abs, -2).result(120) == 2
        assert own.workers[0].poll() is None and "Traceback" not in own.log
