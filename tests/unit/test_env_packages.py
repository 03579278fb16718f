"""The cache of packages: made once, hashed, bounded; and what makes a distribution's files portable."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from lfm_manager.environments.conda import _spec_name
from lfm_manager.environments.distributions import _portable_record, portable_script
from lfm_manager.environments.packages import Package, Packages
from lfm_manager.environments.places import cache_limit, is_locked, locked
from lfm_manager.environments.problems import from_os_error
from lfm_manager.environments.wheels import distribution_name, normalise


def make(packages: Packages, name: str, content: bytes = b"x", used: float | None = None) -> Package:
    with packages.make(name, "1.0", "b") as draft:
        draft.write("lib/a.py", content)
        draft.write("bin/tool", b"#!/bin/sh\n", executable=True)
        draft.link("bin/link", "tool")
        package = draft.finish()
    if used is not None:
        os.utime(package.path, (used, used))
    return package


@pytest.fixture
def packages(tmp_path: Path) -> Packages:
    return Packages(tmp_path)


def test_what_was_made_is_found(packages: Packages) -> None:
    assert packages.find("a", "1.0", "b") is None
    made = make(packages, "a", b"content")
    assert packages.find("a", "1.0", "b") == made
    assert [entry.path for entry in made.entries] == ["bin/link", "bin/tool", "lib/a.py"]
    assert made.entries[2].sha256 == hashlib.sha256(b"content").hexdigest()
    assert made.bytes == len(b"content") + len(b"#!/bin/sh\n")
    assert os.access(made.path / "bin" / "link", os.X_OK)
    paths = json.loads((made.path / "info" / "paths.json").read_text())["paths"]
    assert [path["path_type"] for path in paths] == ["softlink", "hardlink", "hardlink"]


def test_the_first_to_finish_wins(packages: Packages) -> None:
    with packages.make("a", "1.0", "b") as slow:
        slow.write("lib/a.py", b"slow")
        first = make(packages, "a", b"first")
        assert slow.finish() == first
    assert (first.path / "lib" / "a.py").read_bytes() == b"first"


def test_a_draft_that_was_not_finished_leaves_nothing(packages: Packages, tmp_path: Path) -> None:
    with pytest.raises(ValueError), packages.make("a", "1.0", "b") as draft:
        draft.write("../outside", b"")
    assert packages.find("a", "1.0", "b") is None
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_one_that_is_damaged_is_made_anew(packages: Packages) -> None:
    made = make(packages, "a")
    (made.path / "info" / "lfm.json").write_text("{")
    assert packages.find("a", "1.0", "b") is None
    assert make(packages, "a", b"again").entries[2].size == 5


def test_gc_takes_the_least_used_and_spares_the_recent(packages: Packages) -> None:
    for name, used in [("a", 2000.0), ("b", 1000.0), ("c", None)]:
        make(packages, name, b"x" * 90, used)
    assert packages.gc(keep_bytes=250) == (1, 100)
    assert packages.find("b", "1.0", "b") is None and packages.find("a", "1.0", "b") is not None
    assert packages.gc(keep_bytes=0) == (0, 0)  # "a" was just found, "c" just made
    os.utime(make(packages, "a").path, (0, 0))
    assert packages.gc(keep_bytes=0) == (1, 100)


def test_locks_exclude_and_end(tmp_path: Path) -> None:
    path = tmp_path / "l"
    assert not is_locked(path)
    with locked(path):
        assert is_locked(path)
        path.unlink()  # as gc does
        with locked(path):
            assert is_locked(path)
    assert not is_locked(path)


@pytest.mark.parametrize(
    "line",
    [
        b"#!/home/u/venv/bin/python\n", b"#!/usr/bin/python3.11 -s\n", b"#!/a b/bin/python3\n",
        b"#!/bin/sh\n'''exec' /very/long/bin/python \"$0\" \"$@\"\n' '''\n",
    ],
)  # fmt: skip
def test_a_scripts_python_is_the_one_on_path(line: bytes) -> None:
    assert portable_script(line + b"import x\n") == b"#!/usr/bin/env python\nimport x\n"


@pytest.mark.parametrize(
    "text", [b"#!/bin/bash\necho\n", b"\x7fELF\0", b"", b"#!/usr/bin/perl\n#!/bin/python\n"]
)
def test_other_scripts_stay(text: bytes) -> None:
    assert portable_script(text) == text


def test_a_record_keeps_what_is_the_same_everywhere() -> None:
    text = (
        "../../../bin/f,sha256=x,1\na/__pycache__/b.cpython-311.pyc,,\na/b.py,sha256=y,2\n"
        "a-1.dist-info/INSTALLER,sha256=z,4\na-1.dist-info/RECORD,,\na/REQUESTED,sha256=q,1\n"
    )
    assert _portable_record(text).splitlines() == [
        "../../../bin/f,,", "a-1.dist-info/RECORD,,", "a/REQUESTED,sha256=q,1", "a/b.py,sha256=y,2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("numpy", "numpy"), ("numpy >=1.2,<3", "numpy"), ("Numpy=1", "numpy"), ("conda-forge::numpy[build=x]", "numpy"),
        ("python 3.11.*", "python"),
    ],
)  # fmt: skip
def test_names_of_match_specs(spec: str, name: str) -> None:
    assert _spec_name(spec) == name


def test_names_of_requirements() -> None:
    assert distribution_name("zope.interface[x]>=1; python_version > '3'") == "zope.interface"
    assert normalise("Zope.Interface__x") == "zope-interface-x"


def test_system_errors_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    full = from_os_error(OSError(28, "No space left on device", "/x"))
    assert "no space left" in full.reason and "lfm env gc" in full.hint
    denied = from_os_error(PermissionError(13, "Permission denied", "/x"))
    assert denied.reason == "Permission denied (/x)" and denied.hint
    monkeypatch.setenv("LFM_CACHE_LIMIT", "nonsense")
    assert cache_limit() == 20_000_000_000
