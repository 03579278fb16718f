"""A client on one Python and a manager and worker on another: the call runs in the client's, both ways round."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lfm.testing import LocalCluster

pytestmark = [pytest.mark.process, pytest.mark.timeout(900)]

OTHERS = ("3.12", "3.13")
ROOT = Path(__file__).resolve().parents[2]

CLIENT = r"""
import dataclasses, functools, sys, traceback
import lfm
import numpy as np

class Odd(Exception):
    def __init__(self, number):
        super().__init__(f"{number} is odd")
        self.number = number

@dataclasses.dataclass
class Point:
    x: int
    def moved(self, by):
        return Point(self.x + by)

class Base:
    factor = 2
    def of(self, x):
        return self.factor * x

class Third(Base):
    factor = 3
    def of(self, x):
        return super().of(x) + 1

def adder(n):
    def add(x):
        return x + n
    return add

def move(point, by):
    assert type(point) is Point
    return point.moved(by)

def half(x):
    match x % 2:
        case 0:
            return x // 2
        case _:
            raise Odd(x)

def version():
    return sys.version_info[:2]

def walk(n):
    yield from range(n)

def total(n):
    return sum(x for x in walk(n))

def singular(a):
    return np.linalg.inv(a)

with lfm.Executor(sys.argv[1]) as ex:
    assert ex.submit(version).result(600) == sys.version_info[:2]
    assert ex.submit(adder(3), 4).result(100) == 7
    assert ex.submit(functools.partial(adder(1), 1)).result(100) == 2
    assert ex.submit(lambda *a, **k: (a, k), 1, b=2).result(100) == ((1,), {"b": 2})
    moved = ex.submit(move, Point(1), by=2).result(100)
    assert type(moved) is Point and moved == Point(3)
    assert ex.submit(Third().of, 5).result(100) == 16
    assert type(ex.submit(Third).result(100)) is Third
    assert ex.submit(total, 5).result(100) == 10
    try:
        ex.submit(half, 7).result(100)
    except Odd as error:
        assert error.number == 7 and "raise Odd(x)" in "".join(traceback.format_exception(error))
    else:
        raise AssertionError("nothing was raised")
    big = np.arange(1_000_000)
    doubled = ex.submit(lambda a: a * 2, big).result(600)
    assert np.array_equal(doubled, big * 2)
    try:
        ex.submit(singular, np.zeros((2, 2))).result(100)
    except np.linalg.LinAlgError:
        pass
    else:
        raise AssertionError("nothing was raised")
    assert list(ex.map(half, range(0, 20, 2), chunksize=3)) == list(range(10))
print("all is well in", sys.version.split()[0])
"""
CLUSTER = """
import sys
from lfm.testing import LocalCluster
if __name__ == "__main__":
    with LocalCluster() as cluster:
        print(cluster.run, flush=True)
        sys.stdin.read()
"""


def find(minor: str) -> Path | None:
    """An interpreter of this version, on PATH or of pyenv."""
    roots = sorted(Path.home().glob(f".pyenv/versions/{minor}.*/bin/python{minor}"))
    for candidate in [*([Path(found)] if (found := shutil.which(f"python{minor}")) else []), *roots]:
        done = subprocess.run([candidate, "-c", "import venv, ensurepip"], capture_output=True, check=False)
        if done.returncode == 0:
            return candidate
    return None


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """lfm as it would be installed: built of a copy of the tree."""
    source, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in ("lfm", "manager", "worker"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    installed(sys.executable, "wheel", "--no-deps", "-w", str(out), str(source))
    return next(out.glob("lfm-*.whl"))


def installed(python: str | Path, *arguments: str) -> None:
    done = subprocess.run(
        [python, "-m", "pip", *arguments], capture_output=True, text=True, check=False, timeout=600
    )
    if done.returncode:
        pytest.skip(f"pip {arguments[0]} does not work here: {done.stderr.strip()[-300:]}")


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Callable[[str], Path]:
    """The Python of a venv with lfm and numpy."""
    made: dict[str, Path] = {}

    def make(minor: str) -> Path:
        if minor not in made:
            base = find(minor)
            if base is None:
                pytest.skip(f"there is no Python {minor} here")
            root = tmp_path_factory.mktemp(f"venv-{minor}")
            subprocess.run([base, "-m", "venv", root], check=True, timeout=300)
            installed(root / "bin" / "python", "install", "-q", str(wheel), "numpy")
            made[minor] = root / "bin" / "python"
        return made[minor]

    return make


def environ(python: Path | str, cache: Path) -> dict[str, str]:
    path = f"{Path(python).parent}:{os.environ['PATH']}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LFM_", "VIRTUAL"))}
    return {**kept, "LFM_CACHE": str(cache), "PATH": path}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def client(python: Path | str, run: str, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "script.py").write_text(CLIENT)
    done = subprocess.run(
        [python, "script.py", run], capture_output=True, text=True, check=False, timeout=800, cwd=tmp_path,
        env=environ(python, cache),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "all is well" in done.stdout


@pytest.mark.parametrize("minor", OTHERS)
def test_a_client_of_another_python(minor: str, venv: Callable[[str], Path], tmp_path: Path, cache: Path) -> None:
    python = venv(minor)
    with LocalCluster(environ={"LFM_CACHE": str(cache)}) as cluster:
        client(python, str(cluster.run), tmp_path, cache)


@pytest.mark.parametrize("minor", OTHERS)
def test_a_manager_and_a_worker_of_another_python(minor: str, venv: Callable[[str], Path], tmp_path: Path, cache: Path) -> None:
    pytest.importorskip("numpy")
    python = venv(minor)
    (tmp_path / "cluster.py").write_text(CLUSTER)
    cluster = subprocess.Popen(
        [python, "cluster.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path,
        env=environ(python, cache),
    )  # fmt: skip
    try:
        assert cluster.stdout is not None
        client(sys.executable, cluster.stdout.readline().strip(), tmp_path, cache)
    finally:
        cluster.communicate(timeout=60)
