"""Our reader of tars gives what Python's own gives."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfm_worker.shell.tarstream import BadTar, TarStream

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
parts = st.text("abcé.-_", min_size=1, max_size=60).filter(lambda part: part.strip("."))
names = st.lists(parts, min_size=1, max_size=6).map("/".join)
entries = st.lists(st.tuples(names, st.binary(max_size=1500), st.booleans()), max_size=5)


def read(raw: bytes, tmp_path: Path) -> list[tuple[str, str, bool, str, bytes]]:
    found = []
    for number, member in enumerate(tar := TarStream(io.BytesIO(raw))):
        path = tmp_path / str(number)
        content = b""
        if member.kind == "file":
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            tar.copy(descriptor)
            os.close(descriptor)
            content = path.read_bytes()
        found.append((member.name, member.kind, member.executable, member.link, content))
    return found


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=40)
@given(made=entries)
def test_names_contents_and_modes(tmp_path: Path, form: int, made: list[tuple[str, bytes, bool]]) -> None:
    raw = io.BytesIO()
    expected = []
    with tarfile.open(fileobj=raw, mode="w", format=form) as tar:
        for name, content, executable in made:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o755 if executable else 0o600
            try:
                tar.addfile(info, io.BytesIO(content))
            except ValueError:  # too long for this format
                continue
            expected.append((name, "file", executable, "", content))
    assert read(raw.getvalue(), tmp_path) == expected


@pytest.mark.parametrize("form", FORMATS)
def test_links_and_folders(tmp_path: Path, form: int) -> None:
    raw = io.BytesIO()
    long = "x" * 95 + "/" + "y" * 90
    with tarfile.open(fileobj=raw, mode="w", format=form) as tar:
        for name, kind, link in [
            ("d", tarfile.DIRTYPE, ""),
            ("s", tarfile.SYMTYPE, "d"),
            (long, tarfile.LNKTYPE, "s"),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            tar.addfile(info)
    kinds = [(name, kind, link) for name, kind, _, link, _ in read(raw.getvalue(), tmp_path)]
    assert (
        kinds == [("d", "folder", ""), ("s", "symlink", "d"), (long, "hardlink", "s")] or kinds[0][0] == "d/"
    )


def test_a_large_member_and_one_that_is_not_read(tmp_path: Path) -> None:
    raw = io.BytesIO()
    big = os.urandom(9_000_001)
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, content in [("skipped", big), ("big", big), ("last", b"z")]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    found = {}
    for member in (stream := TarStream(io.BytesIO(raw.getvalue()))):
        if member.name != "skipped":
            with open(tmp_path / member.name, "wb", buffering=0) as out:
                stream.copy(out.fileno())
            found[member.name] = (tmp_path / member.name).read_bytes()
    assert found == {"big": big, "last": b"z"}


@settings(max_examples=60)
@given(st.data())
def test_damage_is_an_error_and_never_a_hang(tmp_path: Path, data: st.DataObject) -> None:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a", "é" * 80):
            info = tarfile.TarInfo(name)
            info.size = 700
            tar.addfile(info, io.BytesIO(bytes(700)))
    damaged = bytearray(raw.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        read(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]), tmp_path)
    except BadTar:
        pass
