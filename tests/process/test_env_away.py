"""A client on another machine: its files are where the manager cannot look, so it makes its environments itself.

The other machine is a mount namespace with a host name of its own: the folder with the client's venv has content
there, and is empty for the manager.
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from lfm.function.pack import Packer
from lfm.testing import LocalCluster, wait_until
from lfm_manager.environments import sight
from lfm_manager.environments.problems import OutOfSight
from lfm_manager.environments.store import Built, Store

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]

CLIENT = """
import sys, lfm
def f(x):
    import faraway
    return faraway.twice(x)
if __name__ == "__main__":
    with lfm.Executor(sys.argv[1]) as ex:
        print("submitted", flush=True)
        print(ex.submit(f, 21).result(500), flush=True)
"""
UNSHARE = ["unshare", "--mount", "--uts", "--pid", "--mount-proc", "--fork", "--kill-child"]
if os.geteuid():
    UNSHARE.insert(1, "--map-root-user")


@pytest.fixture(scope="module", autouse=True)
def _namespaces(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("mount")
    try:
        subprocess.run(
            [*UNSHARE, "sh", "-c", f"hostname elsewhere && mount --bind {folder} {folder}"], check=True,
            capture_output=True, timeout=30,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"this machine allows no mount namespaces: {error}")


def distribution(site: Path, name: str, source: str) -> None:
    files = {f"{name}.py": source, f"{name}-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"}
    for path, content in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(content)
    (site / f"{name}-1.0.dist-info/RECORD").write_text(
        "".join(f"{path},,\n" for path in [*files, f"{name}-1.0.dist-info/RECORD"])
    )


@dataclass
class Elsewhere:
    """A machine with a venv in ``home``, where lfm is installed and a distribution of our own."""

    tmp: Path

    def __post_init__(self) -> None:
        self.home, self.seed = self.tmp / "home", self.tmp / "seed"
        self.home.mkdir()
        self.seed.mkdir()
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.seed / "venv"], check=True, timeout=120)
        site = next(self.seed.glob("venv/lib/python3*/site-packages"))
        ours = {str(Path(importlib.import_module(name).__file__ or "").parents[1]) for name in ("lfm", "lfm_manager", "lfm_worker", "zmq")}
        (site / "ours.pth").write_text("".join(f"{path}\n" for path in sorted(ours)))
        distribution(site, "faraway", "def twice(x):\n    return 2 * x\n")
        (self.seed / "client.py").write_text(CLIENT)

    def start(self, run: Path, cache: Path) -> subprocess.Popen[str]:
        """A client, with this cache; killed, it takes along all that it started."""
        words = f"hostname elsewhere && mount --bind {self.seed} {self.home} && exec {self.home}/venv/bin/python {self.home}/client.py {run}"
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return subprocess.Popen(
            [*UNSHARE, "sh", "-c", words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "LFM_CACHE": str(cache), "PATH": path},
        )  # fmt: skip


@pytest.fixture
def elsewhere(tmp_path: Path) -> Elsewhere:
    return Elsewhere(tmp_path)


@pytest.fixture
def clients() -> Iterator[list[subprocess.Popen[str]]]:
    """Those that a test started; ended with it."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for client in started:
        client.send_signal(signal.SIGKILL)
        client.wait()
        for pipe in (client.stdout, client.stderr):
            assert pipe is not None
            pipe.close()


def result(client: subprocess.Popen[str]) -> str:
    said, errors = client.communicate(timeout=500)
    assert client.returncode == 0, errors
    return said.splitlines()[-1]


def of_faraway(cache: Path) -> list[Built]:
    return [b for b in Store(cache / "environments").all() if any(d["name"] == "faraway" for d in b.distributions)]


def test_the_client_builds_uploads_and_later_sessions_need_not(
    elsewhere: Elsewhere, tmp_path: Path, clients: list[subprocess.Popen[str]]
) -> None:
    here, there, bare = tmp_path / "here", tmp_path / "there", tmp_path / "bare"
    with LocalCluster(environ={"LFM_CACHE": str(here)}) as cluster:
        clients += [elsewhere.start(cluster.run, there), elsewhere.start(cluster.run, there)]
        assert [result(client) for client in clients] == ["42", "42"]
        (kept,), (made,) = of_faraway(here), of_faraway(there)
        assert (kept.key, kept.digest, kept.libc, kept.distributions) == (made.key, made.digest, made.libc, made.distributions)
        assert not list((here / "packages").glob("python-*"))  # nothing was made here
        assert (cluster.run / "log").read_text().count("was made by a client") == 1
        assert not (cluster.run / "blobs" / made.digest).exists()
    with LocalCluster(environ={"LFM_CACHE": str(here)}) as cluster:
        clients.append(elsewhere.start(cluster.run, bare))
        assert result(clients[-1]) == "42"
        assert not bare.exists() or not of_faraway(bare)


def test_when_the_client_dies_that_makes_it_another_does(
    elsewhere: Elsewhere, tmp_path: Path, clients: list[subprocess.Popen[str]]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    with LocalCluster(environ={"LFM_CACHE": str(tmp_path / "here")}) as cluster:
        clients.append(elsewhere.start(cluster.run, first))
        wait_until(lambda: list(first.glob("environments/.*.building")), "the first client to build")
        clients.append(elsewhere.start(cluster.run, second))
        wait_until(lambda: clients[1].stdout is not None and clients[1].stdout.readline() == "submitted\n", "the second")
        clients[0].kill()
        assert result(clients[1]) == "42"
        assert of_faraway(second) and not of_faraway(first)


def test_what_nobody_can_build_fails_the_call_and_says_why(
    elsewhere: Elsewhere, tmp_path: Path, clients: list[subprocess.Popen[str]]
) -> None:
    (tmp_path / "full").write_text("")  # a file where the cache should be
    with LocalCluster(environ={"LFM_CACHE": str(tmp_path / "here")}) as cluster:
        clients.append(elsewhere.start(cluster.run, tmp_path / "full"))
        _, errors = clients[0].communicate(timeout=200)
        assert clients[0].returncode == 1
        assert "EnvironmentFailed" in errors and str(tmp_path / "full") in errors


def test_the_same_path_of_another_machine_counts_only_with_the_same_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site-packages"
    distribution(site, "nearby", "x = 1\n")
    monkeypatch.syspath_prepend(str(site))

    def f() -> int:
        return importlib.import_module("nearby").x  # type: ignore[no-any-return]

    plan = replace(Packer().pack(f, imports=["nearby"]).plan, host="another.machine")
    sight.check(plan)
    (site / "nearby.py").write_text("x = 2\n")
    with pytest.raises(OutOfSight, match=r"nearby.* of another\.machine is not the same"):
        sight.check(plan)
    sight.check(replace(plan, host=""))
    (site / "nearby-1.0.dist-info" / "METADATA").unlink()
    (site / "nearby-1.0.dist-info" / "RECORD").unlink()
    (site / "nearby-1.0.dist-info").rmdir()
    with pytest.raises(OutOfSight, match="not in sight"):
        sight.check(replace(plan, host=""))
