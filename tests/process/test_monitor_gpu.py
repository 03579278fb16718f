"""GPU memory of calls, as a stand-in for NVIDIA's library tells it; a real GPU has not been at hand."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import pytest

from lfm.monitor import wire
from lfm.monitor.gpu import Gpus

sys.path.insert(0, str(Path(__file__).parent))
from test_monitor_calls import Bench, _children

sys.path.pop(0)
cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = pytest.mark.process
MB = 1_000_000


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """The stand-in, where the dynamic linker finds it by its name."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    made = tmp_path / "library" / "libnvidia-ml.so.1"
    made.parent.mkdir()
    source = Path(__file__).parent / "nvml_stand_in.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(made), str(source)], check=True)
    return made


@pytest.fixture(params=["clone", "os.fork"])
def bench(tmp_path: Path, library: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    environ = {"LD_LIBRARY_PATH": str(library.parent), "FAKE_NVML": str(tmp_path / "held")}
    made = Bench(tmp_path, clone=request.param == "clone", namespace=False, environ=environ)
    yield made
    made.host.close()


def test_what_the_library_says_is_read(tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = tmp_path / "held"
    monkeypatch.setenv("FAKE_NVML", str(held))
    gpus = Gpus(str(library))
    assert gpus.used([7]) == 0
    lines = [f"{n % 2} {n} 10\n" for n in range(1000)]  # more than are first made room for
    held.write_text("".join(lines) + f"0 7 5\n1 7 6\n0 8 {2**64 - 1}\n")
    assert gpus.used([7]) == 10 + 5 + 6
    assert gpus.used([8, 9]) == 20
    with pytest.raises(OSError, match="absent"):
        Gpus(str(tmp_path / "absent.so"))


def test_the_peak_of_a_calls_whole_tree(bench: Bench, tmp_path: Path) -> None:
    def hold(file: str, go: str) -> None:
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        Path(file).write_text(f"0 {os.getpid()} {300 * MB}\n1 {child} {200 * MB}\n1 1 {900 * MB}\n")
        while not Path(go).exists():
            time.sleep(0.01)
        Path(file).write_text("")

    go = tmp_path / "go"
    number = bench.start(hold, str(tmp_path / "held"), str(go), limits=wire.Limits(gpus=True))
    held = tmp_path / "held"
    bench.until(lambda: held.exists() and held.read_text().count("\n") == 3)
    for _ in range(6):  # questions, one for each of two GPUs: two whole looks at least began with all of it written
        (tmp_path / "held.asked").unlink(missing_ok=True)
        bench.until(lambda: (tmp_path / "held.asked").exists())
    go.touch()
    _, usage = bench.end(number)
    assert usage is not None and usage.gpu_memory == 500 * MB
    monitor = bench.host._slots[1].pid
    bench.until(lambda: bool(_children(monitor)))  # the next process
    bench.well()


def test_nobody_is_asked_for_a_call_without_a_gpu(bench: Bench, tmp_path: Path) -> None:
    def hold(file: str) -> None:
        Path(file).write_text(f"0 {os.getpid()} {300 * MB}\n")
        time.sleep(0.1)

    _, usage = bench.end(bench.start(hold, str(tmp_path / "held")))
    assert usage is not None and usage.gpu_memory == 0
    maps = Path(f"/proc/{bench.host._slots[1].pid}/maps").read_text()
    assert "libnvidia-ml" not in maps
