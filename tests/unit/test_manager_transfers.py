"""What the manager gives and takes where it lacks descriptors: later, and nobody is told that it is not there."""

import contextlib
import math
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import zmq

from lfm.blobs import BlobStore
from lfm.protocol import messages as m
from lfm.protocol.ids import Digest, EnvironmentKey, PeerId
from lfm_manager.environments.store import Store
from lfm_manager.shell.builds import Builds
from lfm_manager.shell.transfers import Transfers


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_what_cannot_be_read_for_want_of_descriptors_is_given_later(tmp_path: Path) -> None:
    said: list[tuple[PeerId, m.Message]] = []
    transfers = Transfers(BlobStore(tmp_path), {}, lambda peer, message: said.append((peer, message)))
    blob = transfers.store.add([b"tarball"])
    wanted = m.FetchBlob(blob.digest, 0, m.CHUNK)
    with no_descriptors():
        transfers.serve(PeerId(1), wanted)
        transfers.serve(PeerId(2), wanted)
        assert said == [] and transfers.retry() == [] and said == []
    assert transfers.trouble == "blobs cannot be read: Too many open files" and transfers.deadline() < math.inf
    transfers.gone(PeerId(2))
    assert transfers.retry() == []
    assert said == [(PeerId(1), m.BlobChunk(blob.digest, 0, blob.size, b"tarball"))]
    assert transfers.trouble == "" and transfers.deadline() == math.inf
    transfers.serve(PeerId(1), m.FetchBlob(Digest("0" * 64), 0, m.CHUNK))
    assert isinstance(said[-1][1], m.BlobMissing)


def test_a_plan_that_cannot_be_read_for_want_of_descriptors_is_read_later(tmp_path: Path) -> None:
    plan = tmp_path / "plan"
    plan.write_bytes(b"{}")
    builds = Builds(zmq.Poller(), store=Store(tmp_path / "store"))
    with no_descriptors():
        assert builds.want(EnvironmentKey("a" * 64), plan) is None
    assert "Too many open files" in builds.trouble and builds.deadline() < math.inf
    assert builds.retry() == [] and builds.trouble == "" and builds.begun == 1
    builds.close()
