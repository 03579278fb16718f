"""The store of packed environments: found when whole, removed in order of disuse, never while in use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lfm_manager.environments.described import differences, environment_yml, requirements
from lfm_manager.environments.problems import BuildFailed
from lfm_manager.environments.store import Built, Store


def built(key: str, path: Path, size: int = 100, **versions: str) -> Built:
    return Built(
        key=key, digest=key * 2, path=path, bytes=size, python="3.11.7", machine="x86_64", libc="glibc 2.17",
        distributions=tuple({"name": n, "version": v, "why": "asked for"} for n, v in versions.items()), kind="python",
        built=0.0, built_s=1.0, unpacked_bytes=3 * size, files=3, whole={"bytes": 900, "distributions": 9},
    )  # fmt: skip


def put(store: Store, key: str, size: int = 100, used: float | None = None, **versions: str) -> Built:
    with store.building(key):
        work = store.workplace(key)
        (work / "t").write_bytes(bytes(size))
        made = store.publish(work / "t", built(key, work / "t", size, **versions))
        work.rmdir()
    if used is not None:
        os.utime(store.root / f"{key}.json", (used, used))
    return made


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "environments")


def test_what_was_put_is_found(store: Store) -> None:
    assert store.find("aa") is None and store.all() == []
    made = put(store, "aa", numpy="2.0")
    assert store.find("aa") == made
    assert Built.from_dict(made.to_dict()) == made
    assert store.resolve("a") == [made] and store.resolve("b") == []


def test_a_tarball_that_is_gone_or_short_is_not_found(store: Store) -> None:
    made = put(store, "aa")
    made.path.write_bytes(b"short")
    assert store.find("aa") is None
    made.path.unlink()
    assert store.find("aa") is None and store.all() == []


def test_a_description_that_cannot_be_read_is_no_environment(store: Store) -> None:
    put(store, "aa")
    (store.root / "aa.json").write_text("{")
    assert store.find("aa") is None and store.all() == []


def test_the_least_recently_used_goes_first(store: Store) -> None:
    for key, used in [("aa", 300.0), ("bb", 100.0), ("cc", 200.0)]:
        put(store, key, used=used)
    assert [b.key for b in store.all()] == ["aa", "cc", "bb"]
    assert [b.key for b in store.gc(keep_bytes=150)] == ["bb", "cc"]
    assert [b.key for b in store.all()] == ["aa"]
    assert {path.suffix for path in store.root.iterdir() if not path.name.startswith(".")} == {
        ".json",
        ".zst",
    }


def test_finding_is_using(store: Store) -> None:
    put(store, "aa", used=100.0)
    put(store, "bb", used=200.0)
    store.find("aa")
    assert [b.key for b in store.gc(keep_bytes=100)] == ["bb"]


def test_what_is_held_or_young_stays(store: Store) -> None:
    put(store, "aa", used=100.0)
    put(store, "bb")
    hold = store.hold("aa")
    assert store.gc(older_than_s=60) == []
    assert [b.key for b in store.gc()] == ["bb"]
    hold.close()
    assert [b.key for b in store.gc()] == ["aa"]


def test_a_key_cannot_leave_the_store(store: Store, tmp_path: Path) -> None:
    put(store, "../../etc/x")
    assert store.find("../../etc/x") is not None
    assert {path.name for path in tmp_path.iterdir()} == {"environments"}


def test_differences_and_exports(store: Store) -> None:
    a = put(store, "aa", numpy="2.0", scipy="1.0", python="3.11.7")
    b = put(store, "bb", numpy="2.1", rdkit="1", python="3.11.7")
    assert differences(a, b) == [
        {"name": "numpy", "a": "2.0", "b": "2.1"},
        {"name": "rdkit", "a": None, "b": "1"},
        {"name": "scipy", "a": "1.0", "b": None},
    ]
    assert requirements(a).splitlines() == ["# environment aa, Python 3.11.7", "numpy==2.0", "scipy==1.0"]
    assert environment_yml(b).splitlines() == [
        "name: lfm-bb", "dependencies:", "  - python=3.11.7", "  - pip", "  - pip:", "      - numpy==2.1", "      - rdkit==1",
    ]  # fmt: skip


def test_a_store_that_others_can_write_to_is_refused(store: Store) -> None:
    put(store, "aa")
    store.root.chmod(0o777)
    with pytest.raises(BuildFailed, match="not yours alone") as failure, store.building("bb"):
        pass
    assert "LFM_CACHE" in failure.value.hint
