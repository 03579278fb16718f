"""Blobs between a worker, its manager and the other workers of its node.  Two Transfers share one directory."""

import hashlib
import tempfile
from pathlib import Path

import pytest

from lfm.blobs import BlobStore, answer_fetch
from lfm.protocol import messages as m
from lfm.protocol.ids import Digest
from lfm_worker.core import events as e
from lfm_worker.shell.transfers import SHARED_FROM, Transfers


def data_of(size: int) -> tuple[Digest, bytes]:
    data = hashlib.sha256(str(size).encode()).digest() * (size // 32)
    return Digest(hashlib.sha256(data).hexdigest()), data


class Node:
    """Two workers of one node, and the blobs of their manager."""

    def __init__(self, path: Path) -> None:
        self.manager = BlobStore(path / "manager")
        self.shared = path / "shared"
        self.shared.mkdir()
        self.one, self.two = (
            Transfers(BlobStore(path / f"own-{n}"), BlobStore(path / f"results-{n}"), self.shared) for n in (1, 2)
        )
        self.served = 0

    def answer(self, worker: Transfers, asks: list[m.FetchBlob]) -> list[e.Event]:
        """Serve until nothing is asked any more."""
        events: list[e.Event] = []
        while asks:
            chunk = answer_fetch(self.manager.path(asks[0].digest), asks[0])
            self.served += 1
            more, news = worker.came(chunk)
            asks = [*asks[1:], *more]
            events += news
        return events


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.mark.parametrize("size", [0, 32, 3 * SHARED_FROM])
def test_a_blob_comes_whole(node: Node, size: int) -> None:
    digest, data = data_of(size)
    node.manager.add([data])
    asks, events = node.one.fetch(digest, size)
    events += node.answer(node.one, asks)
    assert events == [e.Fetched(digest, size)]
    assert node.one.own.path(digest).read_bytes() == data
    assert node.one.fetch(digest, size) == ([], [e.Fetched(digest, size)])


def test_a_large_one_is_pulled_once_per_node(node: Node) -> None:
    digest, data = data_of(3 * SHARED_FROM)
    node.manager.add([data])
    asks, _ = node.one.fetch(digest, len(data))
    assert node.two.fetch(digest, len(data)) == ([], []) and node.two.elsewhere
    assert node.two.look() == ([], [])
    node.answer(node.one, asks)
    assert node.two.look() == ([], [e.Fetched(digest, len(data))]) and not node.two.elsewhere
    assert node.served == 3
    assert [path.name for path in node.shared.iterdir()] == [digest]
    (node.shared / digest).unlink()  # evicted by the first: the second has a link of its own
    assert node.two.own.path(digest).read_bytes() == data


@pytest.mark.parametrize("elsewhere", [None, "/dev/shm"])
def test_a_tarball_of_a_manager_on_this_machine_is_linked(tmp_path: Path, elsewhere: str | None) -> None:
    digest, data = data_of(3 * SHARED_FROM)
    (shelf := tmp_path / "shelf").mkdir()
    (shared := tmp_path / "shared").mkdir()
    if elsewhere is not None and (not Path(elsewhere).is_dir() or Path(elsewhere).stat().st_dev == tmp_path.stat().st_dev):
        pytest.skip("there is no second file system")
    with tempfile.TemporaryDirectory(dir=elsewhere or tmp_path) as store:
        tarball = Path(store, "tarball")
        tarball.write_bytes(data)
        (shelf / digest).symlink_to(tarball)
        worker = Transfers(BlobStore(tmp_path / "own"), BlobStore(tmp_path / "results"), shared, shelf=shelf)
        assert worker.fetch(digest, len(data)) == ([], [e.Fetched(digest, len(data))])
        assert worker.own.path(digest).samefile(tarball)
        worker.drop(digest)
        assert tarball.exists() and not worker.own.has(digest)

        tarball.write_bytes(data[:-1])  # damaged
        assert worker.fetch(digest, len(data))[0]  # it is asked for
    other, size = data_of(SHARED_FROM)[0], SHARED_FROM
    (shelf / other).symlink_to(tmp_path / "absent")
    assert worker.fetch(other, size)[0]
    worker.close()


def test_who_waits_takes_over_when_the_other_ends(node: Node) -> None:
    digest, data = data_of(2 * SHARED_FROM)
    node.manager.add([data])
    node.one.fetch(digest, len(data))
    node.two.fetch(digest, len(data))
    node.one.close()
    asks, events = node.two.look()
    assert asks and events == []
    assert node.answer(node.two, asks) == [e.Fetched(digest, len(data))]


def test_a_small_one_is_nobody_elses_business(node: Node) -> None:
    digest, data = data_of(320)
    node.manager.add([data])
    node.answer(node.one, node.one.fetch(digest, 320)[0])
    assert list(node.shared.iterdir()) == []


def test_damage_and_absence_are_told_and_free_the_lock(node: Node) -> None:
    digest, data = data_of(SHARED_FROM)
    asks, _ = node.one.fetch(digest, len(data))
    _, [event] = node.one.came(m.BlobChunk(digest, 0, len(data), bytes(len(data))))
    assert isinstance(event, e.FetchFailed) and event.cause == "corrupt"
    asks, _ = node.two.fetch(digest, len(data))
    assert asks
    _, [event] = node.two.missing(m.BlobMissing(digest, "unknown"))
    assert event == e.FetchFailed(digest, "unknown")
    assert list(node.shared.iterdir()) == []


def test_what_is_said_to_be_empty_and_is_not_ends_nobody(node: Node) -> None:
    digest, _ = data_of(32)
    assert node.one.fetch(digest, 0) == ([], [e.FetchFailed(digest, f"blob {digest[:12]} was damaged on its way", "corrupt")])
    assert not list(node.one.own.directory.iterdir())


def test_after_a_cut_what_is_outstanding_is_asked_again(node: Node) -> None:
    digest, data = data_of(3 * SHARED_FROM)
    node.manager.add([data])
    node.one.fetch(digest, len(data))
    assert node.answer(node.one, node.one.again()) == [e.Fetched(digest, len(data))]


def test_what_is_served_and_what_is_not(node: Node, tmp_path: Path) -> None:
    blob = node.one.results.add([b"result"])
    assert node.one.serve(m.FetchBlob(blob.digest, 0, 100)) == m.BlobChunk(blob.digest, 0, 6, b"result")
    (tmp_path / "secret").write_text("x")
    for name in ("0" * 64, "../secret", str(tmp_path / "secret"), ""):
        assert isinstance(node.one.serve(m.FetchBlob(Digest(name), 0, 100)), m.BlobMissing)
