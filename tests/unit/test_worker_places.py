"""The node's cache and a worker's own directory; above all what is never removed."""

import fcntl
import os
import time
from pathlib import Path

import pytest

from lfm.protocol.ids import Digest
from lfm_worker.core.items import Item, is_digest
from lfm_worker.shell.places import (
    BadPlace,
    Cache,
    Home,
    lock_file,
    private_directory,
    remove_tree,
    scratch,
    sweep,
)

A, B = Digest("a" * 64), Digest("b" * 64)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def make(cache: Cache, item: Item, size: int = 10) -> Path:
    path = cache.path(item)
    path.mkdir()
    (path / "file").write_bytes(bytes(size))
    cache.note_size(item, size)
    return path


class TestWhatIsNeverRemoved:
    def test_only_a_direct_child_of_our_own_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        ours, theirs = tmp_path / "ours", tmp_path / "theirs"
        (ours / "inner" / "deep").mkdir(parents=True)
        theirs.mkdir()
        before = tmp_path.stat().st_mode
        monkeypatch.chdir(ours)
        for path in (ours, tmp_path, theirs, ours / "inner" / "deep", Path("inner"), Path(".."), Path(), ours / ".."):
            with pytest.raises(ValueError, match="not for us"):
                remove_tree(path, within=ours)
        assert theirs.exists() and (ours / "inner" / "deep").exists() and tmp_path.stat().st_mode == before

    def test_not_where_we_stand(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "here" / "below").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "here" / "below")
        with pytest.raises(ValueError, match="where this process stands"):
            remove_tree(tmp_path / "here", within=tmp_path)

    def test_not_through_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "target").mkdir()
        (tmp_path / "ours").mkdir()
        (tmp_path / "ours" / "link").symlink_to(tmp_path / "target")
        with pytest.raises(ValueError, match="not for us"):
            remove_tree(tmp_path / "ours" / "link", within=tmp_path / "ours")
        assert (tmp_path / "target").exists()

    def test_a_link_inside_is_removed_and_its_target_is_not_touched(self, tmp_path: Path) -> None:
        target = tmp_path / "target"
        target.mkdir(mode=0o500)
        doomed = tmp_path / "ours" / "doomed"
        (doomed / "shut").mkdir(parents=True)
        (doomed / "link").symlink_to(target)
        (doomed / "shut" / "file").touch()
        (doomed / "shut").chmod(0)
        remove_tree(doomed, within=tmp_path / "ours")
        assert not doomed.exists() and target.stat().st_mode & 0o777 == 0o500

    @pytest.mark.parametrize("digest", ["", ".", "..", "../../x", "/etc", "A" * 64, "a" * 63, "a" * 65, "../" + "a" * 61])
    def test_what_is_no_digest_is_no_path(self, cache: Cache, digest: str) -> None:
        assert not is_digest(digest)
        for kind in ("blob", "environment", "overlay"):
            with pytest.raises(ValueError, match="not a digest"):
                cache.drop(Item(kind, Digest(digest)))  # type: ignore[arg-type]
        assert (cache.root / "environments").is_dir()

    @pytest.mark.parametrize("name", ["../../evil", "/abs", "..", "", "a b\n"])
    def test_a_workers_name_is_no_path(self, cache: Cache, name: str) -> None:
        home = Home(cache, name)
        assert home.path.parent == cache.workers
        home.remove()
        assert cache.workers.is_dir()


class TestPlaces:
    def test_a_place_of_others_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "open").mkdir(mode=0o755)
        (tmp_path / "open").chmod(0o755)
        with pytest.raises(BadPlace, match="chmod 700"):
            private_directory(tmp_path / "open")
        (tmp_path / "link").symlink_to(tmp_path / "open")
        with pytest.raises(BadPlace, match="not a directory of yours"):
            private_directory(tmp_path / "link")
        with pytest.raises(BadPlace, match="not an absolute path"):
            private_directory(Path("relative"))

    def test_scratch_takes_the_first_that_is_writable_and_absolute(self, tmp_path: Path) -> None:
        assert scratch({"TMPDIR": str(tmp_path), "SLURM_TMPDIR": "/does/not/exist"}) == (tmp_path, "$TMPDIR")
        assert scratch({"LFM_SCRATCH": ".", "TMPDIR": str(tmp_path)}) == (tmp_path, "$TMPDIR")


class TestCache:
    def test_what_another_worker_uses_stays(self, cache: Cache) -> None:
        item = Item("environment", A)
        path = make(cache, item)
        other = Cache(cache.root)
        other.use(item)
        assert not cache.drop(item) and path.exists()
        other.close()
        assert cache.drop(item) and not path.exists()
        assert list((cache.root / "environments").iterdir()) == []

    def test_scan(self, cache: Cache) -> None:
        make(cache, Item("environment", A), 100)
        (cache.blobs / B).write_bytes(bytes(7))
        (cache.blobs / ".part-x").touch()
        os.utime(cache.blobs / B, (time.time() - 50, time.time() - 50))
        held = cache.scan(1000.0)
        assert {item: size for item, (size, _) in held.items()} == {Item("environment", A): 100, Item("blob", B): 7}
        assert held[Item("blob", B)][1] == pytest.approx(950.0, abs=5)
        assert held[Item("environment", A)][1] == pytest.approx(1000.0, abs=5)


class TestHome:
    def test_it_lives_while_its_owner_does(self, cache: Cache) -> None:
        first = Home(cache, "w")
        second = Home(cache, "w")
        assert first.path.exists() and sweep(cache.workers) == []
        first.remove()
        assert not first.path.exists() and second.path.exists()
        second.remove()

    def test_what_a_dead_owner_left_is_swept(self, cache: Cache) -> None:
        left = cache.workers / "dead-1"
        (left / "sandboxes" / "1").mkdir(parents=True)
        (left / "owner").write_text("1\n")
        assert sweep(cache.workers) == ["dead-1"]
        assert list(cache.workers.iterdir()) == []

    def test_one_that_is_just_being_made_is_left_alone(self, cache: Cache) -> None:
        (cache.workers / "new").mkdir()
        assert sweep(cache.workers) == [] and (cache.workers / "new").exists()


def test_only_one_worker_of_a_node_gives_out_its_cpus(cache: Cache) -> None:
    assert cache.claim_cpus((0, 1)) == (0, 1)
    other = Cache(cache.root)
    assert other.claim_cpus((0, 1)) == ()
    cache.close()
    assert other.claim_cpus((0, 1)) == (0, 1)
    other.close()


def test_drafts_of_killed_processes_are_swept_and_living_ones_are_not(cache: Cache) -> None:
    place = cache.root / "environments"
    for name in (f".unpacking-{A[:12]}-1", f".unpacking-{B[:12]}-2", f".dropped-{A}-999999999", f".dropped-{B}-{os.getpid()}", ".new-x"):
        (place / name / "inner").mkdir(parents=True)
    lock = lock_file(place / f".{B}.lock", fcntl.LOCK_EX)  # somebody unpacks it
    (place / f".{A}.lock").touch()
    Cache(cache.root)
    os.close(lock)
    left = {path.name for path in place.iterdir() if path.is_dir()}
    assert left == {f".unpacking-{B[:12]}-2", f".dropped-{B}-{os.getpid()}", ".new-x"}
