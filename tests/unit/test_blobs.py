"""Blobs and payloads: what is put in comes out, and nothing else."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lfm.blobs import CREDITS, BadBlob, BlobStore, Fetch, answer_fetch, digest_of
from lfm.monitor import payload
from lfm.protocol.messages import CHUNK
from lfm.protocol.outcomes import Blob, Inline


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=6))
def test_segments_survive(parts: list[bytes]) -> None:
    data = b"".join(payload.assemble(parts))
    assert [bytes(s) for s in payload.segments(data)] == parts


@given(st.binary(max_size=100))
def test_what_is_no_payload_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="payload"):
        payload.segments(data)


def test_buffers_stay_out_of_the_pickle_and_come_back_writable() -> None:
    import numpy as np

    array = np.arange(1000.0)
    pieces = payload.pack({"a": array})
    assert any(memoryview(p).nbytes == array.nbytes for p in pieces)
    again = payload.unpack(bytearray(b"".join(pieces)))["a"]
    again[0] = 7
    assert (again[1:] == array[1:]).all()


def test_store(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs")
    blob = store.add([b"abc", memoryview(b"def")])
    assert blob == Blob(digest_of([b"abcdef"]), 6)
    assert store.has(blob.digest)
    assert store.read(blob.digest, 2, 3) == b"cde"
    store.drop(blob.digest)
    assert not store.has(blob.digest)
    with pytest.raises(ValueError, match="not a digest"):
        store.path("../../etc/passwd")  # type: ignore[arg-type]


def test_small_payloads_ride_inline(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    assert store.payload([b"a", b"b"]) == Inline(b"ab")
    assert isinstance(store.payload([bytes(100_000)]), Blob)


@pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1, 3 * CHUNK - 5, (CREDITS + 3) * CHUNK])
def test_fetch_whole_with_bounded_credits(tmp_path: Path, size: int) -> None:
    here, there = BlobStore(tmp_path / "here"), BlobStore(tmp_path / "there")
    blob = there.add([b"x" * size])
    fetch = Fetch(here, blob.digest, blob.size)
    asked = fetch.requests()
    while asked:
        assert len(asked) <= CREDITS
        fetch.feed(answer_fetch(there.path(blob.digest), asked.pop(len(asked) // 2)))
        asked += fetch.requests()
    assert fetch.done
    assert here.has(blob.digest)
    assert sorted(p.name for p in here.directory.iterdir()) == [blob.digest]


def test_fetch_goes_on_over_a_new_link(tmp_path: Path) -> None:
    here, there = BlobStore(tmp_path / "here"), BlobStore(tmp_path / "there")
    blob = there.add([b"y" * (5 * CHUNK + 3)])
    fetch = Fetch(here, blob.digest, blob.size)
    lost = fetch.requests()
    fetch.feed(answer_fetch(there.path(blob.digest), lost[3]))
    fetch.restart_requests()
    for ask in fetch.requests():
        fetch.feed(answer_fetch(there.path(blob.digest), ask))
    assert fetch.done


def test_a_damaged_blob_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    here, there = BlobStore(tmp_path / "here"), BlobStore(tmp_path / "there")
    blob = there.add([b"z" * 10])
    there.path(blob.digest).write_bytes(b"Z" * 10)
    fetch = Fetch(here, blob.digest, blob.size)
    [ask] = fetch.requests()
    with pytest.raises(BadBlob):
        fetch.feed(answer_fetch(there.path(blob.digest), ask))
    assert list(here.directory.iterdir()) == []
