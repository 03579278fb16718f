"""Nodes of another kind than an environment: they are never given its calls, and people are told why."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import lfm
from lfm.testing import LocalCluster, wait_until
from lfm_manager.environments.store import Store

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]


def wait_for(path: str) -> str:
    while not Path(path).exists():
        time.sleep(0.02)
    return platform.machine()


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(workers=0) as running:
        yield running


@pytest.fixture
def stranger(cluster: LocalCluster) -> Iterator[None]:
    """A worker on a node that says that it is another machine: the kernel tells it so."""
    if shutil.which("setarch") is None or platform.machine() != "x86_64":
        pytest.skip("needs setarch on x86_64")
    worker = subprocess.Popen(
        ["setarch", "i686", sys.executable, "-P", "-m", "lfm", "worker", "start", "--run", str(cluster.run), "--stdin-eof",
         "--cores", "8", "--memory", "8GB", "--name", "stranger"],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=cluster.environ,
    )  # fmt: skip
    try:
        wait_until(lambda: "stranger" in cluster.command("worker", "list").stdout, "the strange worker")
        yield
    finally:
        assert worker.stdin is not None
        worker.stdin.close()
        worker.wait(60)


@pytest.mark.usefixtures("stranger")
def test_calls_pass_by_a_node_of_another_machine(cluster: LocalCluster, tmp_path: Path) -> None:
    cluster.start_worker("--name", "fitting")
    wait_until(lambda: "fitting" in cluster.command("worker", "list").stdout, "the other worker")
    gate = str(tmp_path / "gate")
    with cluster.executor() as ex:
        one_core = ex.options(cores=1, memory="100MB")
        first, second = one_core.submit(wait_for, gate), one_core.submit(wait_for, gate)
        wait_until(first.running, "the first call to run", 200)
        said = second.explain()
        assert "1 of 2 workers could take it; 1 cannot use its environment" in said
        assert "stranger: built for x86_64, the node is i686" in said
        Path(gate).write_text("")
        assert [first.result(200), second.result(200)] == ["x86_64"] * 2
        assert {attempt.worker for f in (first, second) for attempt in f.attempts} == {"fitting"}


@pytest.mark.usefixtures("stranger")
def test_a_call_that_no_node_can_run_is_told_so(cluster: LocalCluster) -> None:
    with cluster.executor() as ex:
        failed = ex.submit(platform.machine)
        with pytest.raises(lfm.EnvironmentFailed, match="built for x86_64, the node is i686"):
            failed.result(200)


def test_a_node_with_an_older_glibc_is_left_out(tmp_path: Path) -> None:
    with LocalCluster(environ={"LFM_CACHE": str(tmp_path)}) as cluster, cluster.executor() as ex:
        assert ex.submit(platform.machine).result(300) == platform.machine()
    (built,) = Store(tmp_path / "environments").all()
    description = built.path.with_name(f"{built.key}.json")
    description.write_text(json.dumps({**json.loads(description.read_text()), "libc": "glibc 2.99"}))
    with LocalCluster(environ={"LFM_CACHE": str(tmp_path)}) as cluster, cluster.executor() as ex:
        failed = ex.submit(platform.machine)
        with pytest.raises(lfm.EnvironmentFailed, match=r"needs glibc 2\.99, the node has glibc 2\."):
            failed.result(200)
