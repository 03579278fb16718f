"""At the edge of a machine's resources: full disks, no descriptors left, a directory that is gone.

Each on a small file system or under a lowered limit of the test's own: who may not mount skips, visibly.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from managers import Cluster, Peer, provide_environment, run_one, submit

from lfm.errors import ConnectionFailed, ProtocolError
from lfm.protocol import messages as m
from lfm.protocol.outcomes import Inline
from lfm.testing import wait_until

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


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    provide_environment(tmp_path / "cache" / "environments")
    made = Cluster(tmp_path)
    yield made
    made.close()


def alerts(viewer: Peer) -> str:
    return str(viewer.ask("status")["alerts"])


def test_a_full_run_directory_stops_the_manager_until_there_is_room(cluster: Cluster, disk: Callable[[str], Disk]) -> None:
    small = disk("8m")
    cluster.run = small.path / "run"
    cluster.start()
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
    client, worker, viewer = cluster.client(), cluster.worker("w2", cores=1), cluster.viewer()
    client.say(*(submit(n, Inline(os.urandom(20_000))) for n in range(1, 40)))  # as a client does to whom nothing was confirmed
    run_one(worker)
    client.wait(m.Finished)
    small.fill()
    run = run_one(worker)
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


def test_a_run_directory_that_is_removed_ends_the_manager_and_everybody_is_told(cluster: Cluster) -> None:
    process = cluster.start()
    client = cluster.client()
    shutil.rmtree(cluster.run)
    with pytest.raises((ProtocolError, ConnectionFailed), match="was removed"):
        wait_until(lambda: client.pump(0.2), "the news")
    assert process.wait(60) == 1
    said = (cluster.directory / "said").read_text()
    assert "was removed" in said.splitlines()[-1] and "Traceback" not in said
