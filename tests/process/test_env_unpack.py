"""Unpacking an environment on a node: once, whole or not at all, and in words when it cannot be."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zstandard

from lfm_worker.shell.unpack import UnpackFailed, is_ready, remove, unpack

pytestmark = pytest.mark.process

MENDS = b'#!/bin/sh\necho mended >> "$(dirname "$0")/../mended"\n'


def tarball(path: Path, python: bytes = MENDS, padding: int = 0, files: int = 0) -> tuple[Path, str]:
    """A tarball with a "Python" that notes each time it is run."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        contents = {"bin/python": python, "padding": os.urandom(padding)}
        contents |= {f"many/{number}": b"x" for number in range(files)}
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o755
            tar.addfile(info, io.BytesIO(content))
    path.write_bytes(zstandard.compress(raw.getvalue(), 1))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def command(made: Path, digest: str, into: Path) -> list[str]:
    return [sys.executable, "-m", "lfm_worker.shell.unpack", str(made), digest, str(into)]


def rest(into: Path) -> list[str]:
    return sorted(path.name for path in into.iterdir() if not path.name.endswith(".lock"))


def test_it_is_unpacked_once_however_many_ask(tmp_path: Path) -> None:
    made, digest = tarball(tmp_path / "t", files=300)
    into = tmp_path / "node"
    with ThreadPoolExecutor(4) as pool:
        done = list(
            pool.map(
                lambda _: subprocess.run(
                    command(made, digest, into), capture_output=True, text=True, check=True
                ),
                range(4),
            )
        )
    assert {run.stdout.strip() for run in done} == {str(into / digest)}
    assert (into / digest / "mended").read_text() == "mended\n"
    assert rest(into) == sorted([digest, f"{digest}.ready"])
    made.unlink()  # it is not needed any more
    assert unpack(made, digest, into) == into / digest
    remove(digest, into)
    assert not is_ready(digest, into) and rest(into) == []


def test_one_that_was_killed_is_never_mistaken_for_a_whole(tmp_path: Path) -> None:
    made, digest = tarball(tmp_path / "t", files=20_000)
    into = tmp_path / "node"
    child = subprocess.Popen(command(made, digest, into))
    end = time.monotonic() + 60
    while not list(into.glob(".unpacking-*/many/1*")):
        assert time.monotonic() < end and child.poll() is None
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not is_ready(digest, into)
    assert len(list((unpack(made, digest, into) / "many").iterdir())) == 20_000
    assert rest(into) == sorted([digest, f"{digest}.ready"])


def test_one_that_was_renamed_but_not_mended_is_made_anew(tmp_path: Path) -> None:
    made, digest = tarball(tmp_path / "t")
    into = tmp_path / "node"
    (into / digest / "bin").mkdir(parents=True)
    (into / digest / "bin" / "half").write_text("")
    prefix = unpack(made, digest, into)
    assert not (prefix / "bin" / "half").exists() and (prefix / "mended").exists()


@pytest.mark.parametrize(
    ("python", "words"),
    [
        (b"#!/bin/sh\necho \"libm.so.6: version 'GLIBC_2.99' not found\" >&2\nexit 1\n", "GLIBC_2.99"),
        (b"\x7fELF\x02\x01\x01" + bytes(60), "cannot run on this node"),
        (b"#!/no/such/loader\n", "cannot run on this node"),
    ],
    ids=["older glibc", "another machine", "no loader"],
)
def test_what_cannot_run_here_says_why_and_stays_away(tmp_path: Path, python: bytes, words: str) -> None:
    made, digest = tarball(tmp_path / "t", python)
    with pytest.raises(UnpackFailed, match=words) as failure:
        unpack(made, digest, tmp_path / "node")
    assert failure.value.code == UnpackFailed.UNUSABLE
    assert rest(tmp_path / "node") == []


def test_the_program_ends_with_one_line_and_a_code(tmp_path: Path) -> None:
    made, digest = tarball(tmp_path / "t")
    done = subprocess.run(
        command(made, "0" * 64, tmp_path / "node"), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (UnpackFailed.CORRUPT, "")
    assert len(done.stderr.splitlines()) == 1 and "sha-256" in done.stderr
    away = subprocess.run(
        command(tmp_path / "absent", digest, tmp_path / "node"), capture_output=True, text=True, check=False
    )
    assert away.returncode == UnpackFailed.FAILED and len(away.stderr.splitlines()) == 1


def can_mount() -> bool:
    """Whether this machine lets us have a small disk of our own."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    done = subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
    )
    return done.returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs to mount a small disk")
def test_a_full_disk(tmp_path: Path) -> None:
    made, digest = tarball(tmp_path / "t", padding=9_000_000)
    node = tmp_path / "node"
    node.mkdir()
    script = (
        'mount -t tmpfs -o size=4m none "$1" && shift && "$@"; code=$?; ls -A "$0" | grep -v lock; exit $code'
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, str(node), str(node), *command(made, digest, node)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (UnpackFailed.FULL, "")
    assert done.stderr.startswith("no space left")


def test_a_want_of_descriptors_passes(tmp_path: Path) -> None:
    made, digest = tarball(tmp_path / "t")
    script = """
import resource
from lfm_worker.shell import prepare

resource.setrlimit(resource.RLIMIT_NOFILE, (5, 5))  # the lock and the tarball, but no file out of it
prepare.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script, "environment", str(made), digest, str(tmp_path / "node")],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["cause"] == "short" and "Too many open files" in said["reason"]
