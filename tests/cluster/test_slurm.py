"""Workers as jobs of a real Slurm, started by the script in deploy/, for a real manager."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lfm_worker.shell.detect import margin

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
SCRIPT = Path(__file__).parents[2] / "deploy" / "slurm" / "worker.sbatch"
MIB = 1 << 20
DEADLINE = 120.0


class Run:
    """A manager of the test's own, and questions to it."""

    def __init__(self, path: Path, environ: dict[str, str]) -> None:
        self.directory, self._environ = path / "run", environ
        self.lfm("manager", "start", "--run-dir", str(self.directory), "--background")

    def lfm(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "lfm", *arguments], env=self._environ, capture_output=True, text=True, timeout=DEADLINE,
            cwd=self.directory.parent, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"lfm {arguments}: {done.stderr}"
        return done.stdout

    def workers(self) -> dict[str, dict[str, Any]]:
        body = json.loads(self.lfm("worker", "list", "--run", str(self.directory), "--json"))
        return {worker["name"]: worker for worker in body["workers"]}

    def wait(self, found: Callable[[], Any], what: str, seconds: float = DEADLINE) -> Any:
        end = time.monotonic() + seconds
        while not (value := found()):
            assert time.monotonic() < end, f"waited in vain for {what}; workers: {list(self.workers())}"
            time.sleep(0.3)
        return value

    def wait_worker(self, job: str) -> dict[str, Any]:
        worker = self.wait(lambda: self.workers().get(f"slurm-{job}"), f"the worker of job {job}")
        assert isinstance(worker, dict)
        return worker


@pytest.fixture
def environ(slurm: Any, tmp_path: Path) -> dict[str, str]:
    for name in ("scratch", "cache", "home"):
        (tmp_path / name).mkdir(mode=0o700)
    python = Path(sys.executable).parent
    return slurm.environ | {
        "LFM_SCRATCH": str(tmp_path / "scratch"), "LFM_CACHE": str(tmp_path / "cache"), "LFM_HOME": str(tmp_path / "home"),
        "LFM": str(python / "lfm"), "LFM_RUN": str(tmp_path / "run" / "worker.json"),
    }  # fmt: skip


@pytest.fixture
def run(environ: dict[str, str], tmp_path: Path) -> Iterator[Run]:
    manager_environ = {name: value for name, value in environ.items() if name != "LFM_RUN"}
    made = Run(tmp_path, manager_environ)
    try:
        yield made
    finally:
        made.lfm("manager", "stop", "--run", str(made.directory))


@pytest.fixture
def submit(slurm: Any, environ: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., str]]:
    jobs: list[str] = []

    def sbatch(*options: str) -> str:
        output = f"--output={tmp_path}/job-%j.log"
        jobs.append(slurm.run("sbatch", "--parsable", output, *options, SCRIPT, **environ))
        return jobs[-1]

    yield sbatch
    for job in jobs:
        subprocess.run(["scancel", job], env=slurm.environ, capture_output=True, check=False)
    for job in jobs:
        slurm.wait_ended(job)


def left_behind(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "scratch" / f"lfm-{os.getuid()}" / "workers").iterdir()]


def test_a_worker_offers_exactly_its_allotment(slurm: Any, run: Run, submit: Callable[..., str], tmp_path: Path) -> None:
    one = submit("--cpus-per-task=1", "--mem=600", "--time=10", "--gpus=1", "--nodelist=node1")
    two = submit("--cpus-per-task=2", "--mem=900", "--time=20", "--nodelist=node2")
    offer = run.wait_worker(one)["offer"]
    assert (offer["cores"], offer["memory"], offer["gpus"]) == (1.0, 600 * MIB - margin(600 * MIB), 1)
    assert 300 < offer["wall_time"] <= 600
    offer = run.wait_worker(two)["offer"]
    assert (offer["cores"], offer["memory"], offer["gpus"]) == (2.0, 900 * MIB - margin(900 * MIB), 0)
    assert 600 < offer["wall_time"] <= 1200


def test_several_workers_of_one_step_do_not_offer_the_same_twice(slurm: Any, run: Run, environ: dict[str, str], tmp_path: Path) -> None:
    detect = ["srun", "--ntasks=2", "--nodes=1", "--cpus-per-task=1", "--mem=800", environ["LFM"], "worker", "detect", "--json"]
    decoder, text = json.JSONDecoder(), slurm.run(*detect, **environ)
    found = []
    while text:
        one, end = decoder.raw_decode(text)
        found.append(one["offer"])
        text = text[end:].lstrip()
    assert [offer["cores"] for offer in found] == [1.0, 1.0]
    assert [offer["memory"] for offer in found] == [400 * MIB - margin(400 * MIB)] * 2


SUBMIT = """
import sys, time, lfm
def where(seconds, n):
    import os, time
    time.sleep(seconds)
    return os.environ["LFM_TASK"], sorted(os.sched_getaffinity(0)), os.environ.get("SLURM_JOB_ID"), n
with lfm.Executor(sys.argv[1]) as ex:
    futures = [ex.submit(where, float(sys.argv[2]), n) for n in range(int(sys.argv[3]))]
    print("submitted", flush=True)
    for future in futures:
        task, cpus, job, n = future.result(300)
        print(n, len(cpus), [attempt.worker for attempt in future.attempts][-1], flush=True)
"""


@pytest.fixture
def script(environ: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """A user's script against the run."""
    started: list[subprocess.Popen[str]] = []
    (tmp_path / "script.py").write_text(SUBMIT)

    def begin(run: Run, seconds: float, calls: int) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [sys.executable, "script.py", str(run.directory), str(seconds), str(calls)], cwd=tmp_path, text=True,
                stdout=subprocess.PIPE, env={n: v for n, v in environ.items() if n != "LFM_RUN"},
            )
        )  # fmt: skip
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_calls_run_in_the_job_and_its_end_leaves_nothing(
    slurm: Any, run: Run, submit: Callable[..., str], script: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    job = submit("--cpus-per-task=2", "--mem=1500", "--time=10")
    run.wait_worker(job)
    said, _ = script(run, 0.1, 4).communicate(timeout=DEADLINE * 2)
    lines = [line.split() for line in said.splitlines()[1:]]
    assert [line[0] for line in lines] == ["0", "1", "2", "3"]
    assert {line[2] for line in lines} == {f"slurm-{job}"}
    run.lfm("worker", "drain", "--run", str(run.directory), f"slurm-{job}")
    slurm.wait_ended(job)
    assert left_behind(tmp_path) == []
    assert "has left" in (tmp_path / f"job-{job}.log").read_text()


def test_a_cancelled_job_hands_its_calls_to_another(
    slurm: Any, run: Run, submit: Callable[..., str], script: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """scancel gives the worker SIGTERM, as it is the job's own process; KillWait later all is killed."""
    first = submit("--cpus-per-task=2", "--mem=1500", "--time=10", "--nodelist=node1")
    run.wait_worker(first)
    calls = script(run, 20.0, 2)
    run.wait(lambda: run.workers()[f"slurm-{first}"]["calls"], "the calls to start", 240)
    second = submit("--cpus-per-task=2", "--mem=1500", "--time=10", "--nodelist=node2")
    run.wait_worker(second)
    slurm.run("scancel", first)
    slurm.wait_ended(first)
    said, _ = calls.communicate(timeout=DEADLINE * 2)
    assert [line.split()[2] for line in said.splitlines()[1:]] == [f"slurm-{second}"] * 2
    run.lfm("worker", "drain", "--run", str(run.directory), "all")
    slurm.wait_ended(second)
    # What the first was killed before it could remove, the next worker on the node sweeps.
    third = submit("--cpus-per-task=1", "--mem=300", "--time=10")
    run.wait_worker(third)
    run.wait(lambda: len(left_behind(tmp_path)) == 1, "the sweep")


def test_a_worker_leaves_before_its_time_is_over(slurm: Any, run: Run, submit: Callable[..., str], tmp_path: Path) -> None:
    job = submit("--cpus-per-task=1", "--mem=300", "--time=1")
    run.wait_worker(job)
    slurm.wait_ended(job)
    log = (tmp_path / f"job-{job}.log").read_text()
    assert "has left: its allotment ends" in log or "has left: told to leave by SIGUSR1" in log
    assert left_behind(tmp_path) == []


def test_a_command_in_a_step_is_measured_and_bounded(slurm: Any, environ: dict[str, str]) -> None:
    def monitor(*words: str) -> Any:
        step = ["srun", "--mem=500", "--time=5", "sh", "-c", '"$@" || true', "sh", environ["LFM"], "monitor", "--json", *words]
        return json.loads(slurm.run(*step, **environ).splitlines()[-1])

    taken = "import time; x = bytearray({size}); time.sleep({seconds})"
    facts = monitor("--", sys.executable, "-S", "-c", taken.format(size=80_000_000, seconds=0.2))
    assert facts["exit_code"] == 0 and 80_000_000 < facts["usage"]["memory"] < 110_000_000
    facts = monitor("--memory", "60MB", "--", sys.executable, "-S", "-c", taken.format(size=80_000_000, seconds=60))
    assert facts["limit"]["resource"] == "memory"
