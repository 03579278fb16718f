"""A manager and workers started by command, and clients that come and go."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
import sys
import textwrap
import time
import warnings

import pytest

import lfm
from lfm.testing import LocalCluster, wait_until

pytestmark = pytest.mark.process
PATIENCE = 120.0


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(workers=2) as running:
        yield running


@pytest.fixture
def ex(cluster):
    with cluster.executor() as executor:
        yield executor


def asked(cluster, *arguments):
    return json.loads(cluster.command(*arguments, "--json").stdout)


def test_status_as_scripts_rely_on_it(cluster, ex):
    assert ex.submit(abs, -1).result(PATIENCE) == 1
    status = asked(cluster, "status")
    assert status["schema"] == "lfm.status/1"
    assert {"manager", "workers", "calls", "categories", "alerts"} <= status.keys()
    assert len(status["workers"]) == 2 and all(isinstance(n, int) for n in status["calls"].values())
    assert ex._max_workers >= 2 and repr(ex).startswith("<lfm.Executor of run 'local'")
    for command in (["status"], ["top"], ["categories"]):
        assert "abs" in cluster.command(*command).stdout


def test_one_call_seen_from_outside(cluster, ex):
    def speak():
        import time

        print("heard", flush=True)
        print("déjà", end="", flush=True)
        time.sleep(600)

    future = ex.options(memory="100MB").submit(speak)
    wait_until(future.running, "the call to run", PATIENCE)
    (task,) = asked(cluster, "tasks", "--state", "running")["tasks"]
    assert task["task"] == future.id and task["function"].endswith("speak")
    assert future.id in cluster.command("tasks").stdout
    assert "running" in cluster.command("explain", future.id).stdout
    assert "running" in future.explain()
    wait_until(lambda: cluster.command("logs", future.id).stdout == "heard\ndéjà", "what it prints to be seen", PATIENCE)
    assert cluster.command("logs", future.id, "--stderr").stdout == ""
    follower = subprocess.Popen(
        [sys.executable, "-m", "lfm", "logs", "-f", future.id], env={**cluster.environ, "LFM_RUN": "local"},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert follower.stdout.readline() == "heard\n"
    assert cluster.command("cancel", future.id).stdout == "1 call cancelled\n"
    with pytest.raises(lfm.errors.CallKilled):
        future.result(PATIENCE)
    assert follower.stdout.read() == "déjà" and follower.wait(PATIENCE) == 0
    follower.stdout.close()
    wait_until(lambda: future.id not in cluster.command("tasks").stdout, "the manager to forget it")
    assert cluster.command("logs", future.id).stdout == "heard\ndéjà"
    assert "killed by its user" in cluster.command("explain", future.id).stdout
    assert future.id in {task["task"] for task in asked(cluster, "tasks", "--state", "failed")["tasks"]}


def test_calls_go_where_they_are_asked_to_and_say_what_they_took(cluster, ex, capfd, monkeypatch):
    monkeypatch.setenv("LFM_SUMMARY", "on")
    asked_for = ex.options(labels={"site": "north"}, category="labelled", expect={"memory": "200MB"}, strategy="max-seen")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        future = asked_for.submit(abs, -2)
        try:
            wait_until(lambda: "label site=north" in future.explain() and warned, "the call to find no worker", PATIENCE)
        except BaseException:
            future.cancel()
            raise
    assert "label site=north" in str(warned[0].message)
    cluster.start_worker("--label", "site=north", "--name", "northern")
    assert future.result(PATIENCE) == 2
    (attempt,) = future.attempts
    assert attempt.worker == "northern" and 199 << 20 > attempt.allocation.memory > 190 * 10**6
    assert "site=north" in cluster.command("worker", "list").stdout
    (row,) = [c for c in asked(cluster, "categories")["categories"] if c["category"] == "labelled"]
    assert row["options"].startswith("options(memory='") and row["options"] in cluster.command("categories").stdout
    ex.shutdown()
    assert "labelled" in capfd.readouterr().err
    cluster.command("worker", "drain", "northern")


def test_a_call_that_is_not_there(cluster):
    for command in ("explain", "logs", "cancel"):
        failed = cluster.command(command, "no-such-call", check=False)
        assert failed.returncode == 1 and failed.stderr.startswith("lfm: no call is named 'no-such-call'")
        assert "Traceback" not in failed.stderr


def test_a_users_script_finds_the_run(cluster, tmp_path):
    file = tmp_path / "script.py"
    file.write_text(textwrap.dedent("""
        import lfm

        def cube(x):
            return x ** 3

        if __name__ == "__main__":
            with lfm.Executor() as ex:
                print(list(ex.map(cube, range(4))), ex)
    """))
    done = subprocess.run(
        [sys.executable, str(file)], cwd=tmp_path, env={**cluster.environ, "LFM_RUN": "local"}, capture_output=True,
        text=True, timeout=PATIENCE, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("[0, 1, 8, 27] <lfm.Executor of run 'local'") and done.stderr == ""


def test_what_is_outstanding_ends_with_its_client(cluster):
    executor = cluster.executor()
    future = executor.options(memory="100MB").submit(time.sleep, 600)
    wait_until(future.running, "the call to run", PATIENCE)
    executor._session.close(kill=True)
    assert future.done()
    wait_until(lambda: not asked(cluster, "tasks")["tasks"], "the manager to forget")


def test_every_answer_though_a_worker_dies(tmp_path):
    def slow(x, gate):
        import pathlib
        import time

        while x and not pathlib.Path(gate).exists():
            time.sleep(0.02)
        return x

    with LocalCluster(workers=2) as cluster, cluster.executor() as executor:
        futures = [executor.options(memory="50MB").submit(slow, n, str(tmp_path / "gate")) for n in range(16)]
        futures[0].result(PATIENCE)
        wait_until(lambda: [bool(w["calls"]) for w in asked(cluster, "status")["workers"]] == [True] * 2, "both workers to be busy")
        cluster.workers[0].kill()
        (tmp_path / "gate").touch()
        assert [f.result(PATIENCE) for f in futures] == list(range(16))


def test_a_manager_that_stops_is_told():
    with LocalCluster(workers=1) as cluster, cluster.executor() as executor:
        future = executor.submit(time.sleep, 600)
        wait_until(future.running, "the call to run", PATIENCE)
        cluster.command("manager", "stop")
        with pytest.raises(lfm.ConnectionFailed):
            future.result(PATIENCE)
        failed = cluster.command("status", check=False)
        assert failed.returncode == 3 and "Traceback" not in failed.stderr


def test_a_manager_that_is_killed_and_comes_back(recwarn):
    def slow(x):
        import time

        time.sleep(1.0)
        return x

    with LocalCluster(workers=1) as cluster, cluster.executor() as executor:
        futures = [executor.options(memory="50MB").submit(slow, n) for n in range(4)]
        assert futures[0].result(PATIENCE) == 0
        cluster.manager.kill()
        cluster.manager.wait()
        cluster.start_manager()
        assert [f.result(PATIENCE) for f in futures] == [0, 1, 2, 3]
        assert executor.submit(abs, -1).result(PATIENCE) == 1


def test_keys_that_others_can_read_are_refused(cluster):
    file = cluster.run / "client.json"
    before = file.stat().st_mode
    file.chmod(0o644)
    try:
        with pytest.raises(lfm.ConnectionFailed, match="chmod 600"):
            lfm.Executor(file)
    finally:
        file.chmod(before)


def test_a_key_that_the_manager_does_not_know(cluster, tmp_path):
    import zmq

    content = json.loads((cluster.run / "client.json").read_text())
    content["public_key"], content["secret_key"] = (key.decode() for key in zmq.curve_keypair())
    file = tmp_path / "client.json"
    file.write_text(json.dumps(content))
    file.chmod(0o600)
    with pytest.raises(lfm.ConnectionFailed, match="key"):
        lfm.Executor(file)



def test_on_a_full_node_the_older_call_goes_on_and_the_last_to_come_runs_again(tmp_path):
    def older(flag):
        import pathlib
        import time

        while not pathlib.Path(flag).exists():
            time.sleep(0.02)
        held = []
        for _ in range(24):  # 480 MB in all
            held.append(b"\1" * 20_000_000)
            time.sleep(0.05)
        return len(held)

    def later(flag):
        import os
        import pathlib
        import time

        held = b"\1" * 200_000_000
        pathlib.Path(flag).touch()
        while os.environ["LFM_ATTEMPT"] == "1":
            time.sleep(1)  # until it has to make room
        return len(held)

    flag = str(tmp_path / "flag")
    with LocalCluster(workers=1, cores=2, memory="700MB") as cluster, cluster.executor() as ex:
        halves = ex.options(expect={"memory": "300MB"})
        first = halves.submit(older, flag)
        wait_until(first.running, "the older to run", PATIENCE)
        last = halves.submit(later, flag)
        assert (first.result(PATIENCE), last.result(PATIENCE)) == (24, 200_000_000)
    assert [a.outcome for a in first.attempts] == ["returned"]
    assert [a.outcome for a in last.attempts] == ["memory", "returned"]


def test_a_manager_that_is_told_to_end_and_started_again_finds_its_workers():
    with LocalCluster(1) as own, own.executor() as executor:
        assert executor.submit(abs, -1).result(PATIENCE) == 1
        own.manager.terminate()  # as a person does, or a node's init
        own.manager.wait(PATIENCE)
        own.manager.stdin.close()
        futures = [executor.submit(abs, -n) for n in range(5)]
        own.start_manager()
        assert [f.result(PATIENCE) for f in futures] == list(range(5))
        assert own.workers[0].poll() is None


def test_a_call_that_kills_its_worker_at_once_is_stopped_and_named_and_its_neighbours_are_answered(tmp_path):
    def poison(address):
        import socket
        import time

        with socket.socket(socket.AF_UNIX) as to:
            to.connect(address)  # who listens kills the worker above us, mostly before that can say that we began
            time.sleep(600)

    def innocent(x):
        import time

        time.sleep(0.2)
        return x

    def worker_above(pid):
        mine = {worker.pid: worker for worker in own.workers if worker.poll() is None}
        while pid > 1 and pid not in mine:
            with open(f"/proc/{pid}/stat") as file:
                pid = int(file.read().rpartition(")")[2].split()[1])
        return mine[pid]

    address, kills = str(tmp_path / "s"), 0
    with LocalCluster(2) as own, own.executor() as executor, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        listener.settimeout(0.05)
        small = executor.options(memory="50MB", cores=0.5)
        assert small.submit(abs, -1).result(PATIENCE) == 1  # the environment is there
        first, bad = small.submit(innocent, -1), small.submit(poison, address)
        others = [small.submit(innocent, n) for n in range(12)]
        end = time.monotonic() + PATIENCE
        while not (bad.done() and all(f.done() for f in others)):
            assert time.monotonic() < end and kills < 10, own.log[-3000:]
            with contextlib.suppress(TimeoutError):
                call = listener.accept()[0]
                with call:
                    pid = struct.unpack("3i", call.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
                    worker_above(pid).kill()
                own.start_worker()
                kills += 1
        with pytest.raises(lfm.errors.WorkerLost, match="3 workers died while it ran, the last one while it ran alone"):
            bad.result()
        assert 3 <= kills == len(bad.attempts) and {a.outcome for a in bad.attempts} == {"lost"}
        assert [f.result() for f in (first, *others)] == [-1, *range(12)]
        assert "Traceback" not in own.log
