"""What an environment's tarball may do to the node that unpacks it: nothing outside of its folder."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from lfm_worker.shell import unpack
from lfm_worker.shell.unpack import UnpackFailed, extract

Member = tuple[tarfile.TarInfo, bytes]


def file(name: str, content: bytes = b"x", mode: int = 0o644) -> Member:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), mode
    return info, content


def special(name: str, kind: bytes, to: str = "") -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info, b""


def tarball(path: Path, *members: Member) -> Path:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    path.write_bytes(zstandard.compress(raw.getvalue()))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def test_files_folders_and_links_come_out_as_they_went_in(tmp_path: Path, root: Path) -> None:
    made = tarball(
        tmp_path / "t", file("bin/python3", b"#!", 0o755), file("lib/a.py", b"a = 1"), special("empty", tarfile.DIRTYPE),
        special("bin/python", tarfile.SYMTYPE, "python3"), special("lib/b.py", tarfile.LNKTYPE, "lib/a.py"),
        special("lib/bin", tarfile.SYMTYPE, "../bin"),
    )  # fmt: skip
    assert extract(made, root, 1000) == 7
    assert (root / "bin" / "python").read_bytes() == b"#!"
    assert (root / "bin" / "python3").stat().st_mode & 0o777 == 0o755
    assert (root / "lib" / "b.py").read_text() == "a = 1"
    assert (root / "lib" / "bin" / "python").exists()
    assert (root / "empty").is_dir()


@pytest.mark.parametrize(
    "members",
    [
        [file("../out")],
        [file("/tmp/out")],
        [file("a/../../out")],
        [special("a", tarfile.SYMTYPE, "/etc/passwd")],
        [special("a", tarfile.SYMTYPE, "../out")],
        [special("a", tarfile.SYMTYPE, "b"), special("b", tarfile.SYMTYPE, "a/../../out")],
        [
            special("d", tarfile.DIRTYPE),
            special("s", tarfile.SYMTYPE, "d"),
            special("o", tarfile.SYMTYPE, "s/../../out"),
        ],
        [special("a", tarfile.SYMTYPE, "."), special("up", tarfile.SYMTYPE, "a/..")],
        [special("a", tarfile.SYMTYPE, "b"), special("b", tarfile.DIRTYPE), file("a/c")],
        [special("a", tarfile.LNKTYPE, "../out")],
        [special("a", tarfile.LNKTYPE, "not-there")],
        [special("pipe", tarfile.FIFOTYPE)],
        [special("null", tarfile.CHRTYPE)],
        [file("a"), file("a")],
        [file("a"), file("a/b")],
        [file("a"), special("a", tarfile.SYMTYPE, "b")],
    ],
    ids=lambda members: " ".join(f"{m.name}>{m.linkname}" for m, _ in members),
)
def test_what_leads_out_or_is_no_file_is_refused(tmp_path: Path, root: Path, members: list[Member]) -> None:
    outside = tmp_path / "out"
    with pytest.raises(UnpackFailed) as failure:
        extract(tarball(tmp_path / "t", *members), root, 1000)
    assert failure.value.code == UnpackFailed.UNUSABLE
    assert not outside.exists()


def test_setuid_and_write_for_all_are_not_kept(tmp_path: Path, root: Path) -> None:
    extract(tarball(tmp_path / "t", file("a", mode=0o6777), file("b", mode=0o666)), root, 1000)
    assert (root / "a").stat().st_mode & 0o7022 == 0
    assert (root / "b").stat().st_mode & 0o7133 == 0


def test_there_is_a_limit(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnpackFailed, match="more than"):
        extract(tarball(tmp_path / "t", file("a", b"x" * 600), file("b", b"x" * 600)), root, 1000)
    monkeypatch.setattr(unpack, "MOST_FILES", 2)
    with pytest.raises(UnpackFailed, match="more than"):
        extract(tarball(tmp_path / "u", file("c"), file("d"), file("e")), root, 1000)


names = st.lists(st.sampled_from(["a", "b", "..", ".", "", "/", "c"]), min_size=1, max_size=4).map("/".join)
members = st.one_of(
    names.map(file),
    st.builds(
        special,
        names,
        st.sampled_from([tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE]),
        names,
    ),
)


@settings(max_examples=60)
@given(st.lists(members, min_size=1, max_size=6))
def test_whatever_is_in_it_nothing_lands_or_leads_outside(
    tmp_path_factory: pytest.TempPathFactory, made: list[Member]
) -> None:
    place = tmp_path_factory.mktemp("any")
    root = place / "deep" / "in"
    root.mkdir(parents=True)
    try:
        extract(tarball(place / "t", *made), root, 1000)
    except (UnpackFailed, OSError):
        whole = False
    else:
        whole = True
    assert {path.name for path in place.iterdir()} == {"t", "deep"}
    assert {path.name for path in (place / "deep").iterdir()} == {"in"}
    if whole:
        for path in root.rglob("*"):
            assert path.resolve().is_relative_to(root.resolve())


Damage = Callable[[bytes], bytes]


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[: len(b) // 2], lambda b: b[:-1], lambda b: b"", lambda b: b"not a tarball at all" * 9],
    ids=["half", "one byte short", "empty", "text"],
)
def test_a_damaged_tarball_is_to_be_fetched_again(tmp_path: Path, damage: Damage) -> None:
    good = tarball(
        tmp_path / "t", file("bin/python", b"#!/bin/sh\n" + bytes(range(256)) * 40, 0o755)
    ).read_bytes()
    bad = tmp_path / "bad"
    bad.write_bytes(damage(good))
    digest = hashlib.sha256(good).hexdigest()
    with pytest.raises(UnpackFailed) as failure:
        unpack.unpack(bad, digest, tmp_path / "node")
    assert failure.value.code == UnpackFailed.CORRUPT
    assert not unpack.is_ready(digest, tmp_path / "node")
    # even one whose digest is right, because it was made so
    with pytest.raises(UnpackFailed) as failure:
        unpack.unpack(bad, hashlib.sha256(bad.read_bytes()).hexdigest(), tmp_path / "node")
    assert failure.value.code == UnpackFailed.CORRUPT
    assert [path.name for path in (tmp_path / "node").iterdir() if not path.name.endswith(".lock")] == []


def test_it_says_how_far_it_is(tmp_path: Path, root: Path) -> None:
    tarball = tmp_path / "some.tar"
    with tarfile.open(tarball, "w") as tar:
        for number in range(3):
            member = tarfile.TarInfo(f"file-{number}")
            member.size = 9 << 20  # more than is read at once
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    said: list[tuple[int, int]] = []
    extract(tarball, root, 1 << 30, lambda done, total: said.append((done, total)))
    assert len(said) == 3 and sorted(said) == said and {total for _, total in said} == {tarball.stat().st_size}
    assert 0 < said[0][0] < said[-1][0] <= said[-1][1]


@pytest.mark.parametrize("name", ["", "..", ".", "a", "../" + "0" * 61, "0" * 63 + "/"])
def test_only_a_digest_names_a_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnpackFailed, match="not a sha-256"):
        unpack.unpack(tmp_path / "t", name, tmp_path)
    with pytest.raises(UnpackFailed, match="not a sha-256"):
        unpack.remove(name, tmp_path)
    assert tmp_path.is_dir()
