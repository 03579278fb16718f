"""Workers over a real ssh, started and stopped by the script in deploy/."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
SCRIPT = Path(__file__).parents[2] / "deploy" / "ssh" / "workers.sh"
LFM = Path(sys.executable).with_name("lfm")
DEADLINE = 60.0


@pytest.fixture
def environ(ssh: str, tmp_path: Path) -> dict[str, str]:
    """The far side has a home of its own, so that nothing of the user's is touched."""
    (tmp_path / "far").mkdir(mode=0o700)
    (tmp_path / "scratch").mkdir(mode=0o700)
    wrapper = tmp_path / "ssh-far"
    wrapper.write_text(f'#!/bin/sh\nhost=$1; shift\nexec {ssh} "$host" "HOME={tmp_path}/far; export HOME; $*"\n')
    wrapper.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LFM_")}
    return kept | {
        "SSH": str(wrapper), "LFM": str(LFM), "LFM_HOME": str(tmp_path / "home"), "LFM_CACHE": str(tmp_path / "cache"),
        "LFM_WORKER_OPTIONS": f"--cores 1 --memory 500MB --grace 5s --work-dir {tmp_path}/scratch/w",
    }  # fmt: skip


@pytest.fixture
def lfm(environ: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., str]]:
    def command(*arguments: str) -> str:
        return subprocess.run(
            [LFM, *arguments], env=environ, capture_output=True, text=True, check=True, timeout=DEADLINE, cwd=tmp_path
        ).stdout  # fmt: skip

    command("manager", "start", "--name", "ssh-test", "--background")
    try:
        yield command
    finally:
        command("manager", "stop", "--run", "ssh-test")


def workers_sh(environ: dict[str, str], what: str, *hosts: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, what, *hosts], env=environ, capture_output=True, text=True, timeout=DEADLINE, check=False)


def test_start_status_stop(environ: dict[str, str], lfm: Callable[..., str], tmp_path: Path) -> None:
    started = workers_sh(environ, "start", "here")
    assert started.returncode == 0 and started.stdout.startswith("here: started"), started
    pid = int((tmp_path / "far" / ".lfm" / "ssh" / "pid").read_text())
    try:
        end = time.monotonic() + DEADLINE
        while not (workers := json.loads(lfm("worker", "list", "--run", "ssh-test", "--json"))["workers"]):
            assert time.monotonic() < end, (tmp_path / "far" / ".lfm" / "ssh" / "log").read_text()
            time.sleep(0.2)
        assert [(w["offer"]["cores"], w["pid"]) for w in workers] == [(1.0, pid)]
        assert (tmp_path / "far" / ".lfm" / "ssh" / "worker.json").stat().st_mode & 0o777 == 0o600
        assert workers_sh(environ, "start", "here").stdout.startswith("here: already running")
        assert workers_sh(environ, "status", "here").stdout.startswith("here: running")
    finally:
        stopped = workers_sh(environ, "stop", "here")
    assert stopped.stdout == "here: stopped\n", stopped
    assert not Path(f"/proc/{pid}").exists()
    assert workers_sh(environ, "status", "here").stdout == "here: not running\n"
    assert [p.name for p in (tmp_path / "far" / ".lfm" / "ssh").iterdir()] == ["log"]
    assert list((tmp_path / "scratch" / "w" / "workers").iterdir()) == []


def test_no_manager_and_no_host(environ: dict[str, str]) -> None:
    refused = workers_sh(environ, "start", "here")
    assert refused.returncode == 3 and "lfm manager start" in refused.stderr
    assert workers_sh(environ, "status", "nowhere.invalid").returncode == 1
    assert workers_sh(environ, "start").returncode == 2
