"""A real manager process on loopback, with a client and a worker that speak the protocol from here."""

from __future__ import annotations

import os
import signal
import time
from hashlib import sha256
from pathlib import Path

import pytest
from managers import (
    DEADLINE,
    FUNCTION,
    TARBALL,
    USAGE,
    Cluster,
    fetch,
    run_one,
    serve,
    submit,
)

from lfm.connection import Dialer
from lfm.errors import ConnectionFailed, ProtocolError
from lfm.protocol import messages as m
from lfm.protocol.ids import Digest, TaskId
from lfm.protocol.outcomes import Blob, Inline, Returned
from lfm.protocol.resources import Request, Resources
from lfm.run import ConnectionFile, RunDirectory
from lfm.testing import wait_until

pytestmark = pytest.mark.process


def test_calls_go_from_a_client_to_a_worker_and_their_values_back(cluster: Cluster) -> None:
    cluster.start()
    client, worker = cluster.client(), cluster.worker()
    client.say(*(submit(n) for n in range(20)))
    define = worker.wait(m.DefineFunction)
    assert fetch(worker, define.environment.digest) == TARBALL
    for _ in range(20):
        run_one(worker)
    for n in range(20):
        finished = client.wait(m.Finished, lambda f, n=n: f.task == f"s-{n}")  # type: ignore[misc]
        assert finished.outcome == Returned(Inline(b"v"))
    client.say(m.Release(tuple(TaskId(f"s-{n}") for n in range(20))))
    status = cluster.viewer().ask("status")
    assert status["schema"] == "lfm.status/1" and status["calls"]["finished"] == 20  # type: ignore[index]
    assert not [path for path in cluster.run.iterdir() if path.stat().st_mode & 0o077]
    assert cluster.stop() == 0
    assert not (cluster.run / "client.json").exists()


def test_large_arguments_and_results_travel_as_blobs(cluster: Cluster) -> None:
    cluster.start()
    client, worker = cluster.client(), cluster.worker()
    argument, result = os.urandom(3 * m.CHUNK + 5), os.urandom(2 * m.CHUNK + 7)
    names = [Digest(sha256(data).hexdigest()) for data in (argument, result)]
    client.say(submit(0, Blob(names[0], len(argument))))
    serve(client, {names[0]: argument}, lambda: bool(cluster.run.joinpath("blobs", names[0]).exists()))
    run = worker.wait(m.Run)
    assert run.arguments == Blob(names[0], len(argument))
    assert fetch(worker, names[0]) == argument[: m.CHUNK]
    worker.say(m.CallEnded(run.task, 1, Returned(Blob(names[1], len(result))), USAGE))
    serve(worker, {names[1]: result}, lambda: any(isinstance(x, m.ForgetBlob) and x.digest == names[1] for x in worker.heard))
    assert client.wait(m.Finished).outcome == Returned(Blob(names[1], len(result)))
    assert fetch(client, names[1]) == result[: m.CHUNK]
    client.say(m.Release((run.task,)))
    assert client.ask("status")["calls"]["done"] == 0  # type: ignore[index]
    assert not list(cluster.run.joinpath("blobs").iterdir())


def test_after_kill_9_nothing_is_lost_and_nothing_runs_twice(cluster: Cluster) -> None:
    cluster.start()
    client, worker = cluster.client(), cluster.worker(cores=2)
    client.say(*(submit(n) for n in range(5)))
    done = run_one(worker)
    client.wait(m.Finished)
    first, second = worker.wait(m.Run), worker.wait(m.Run)
    worker.say(m.CallStarted(first.task, 1))
    client.wait(m.Started, lambda s: s.task == first.task)
    assert cluster.stop(signal.SIGKILL) == -signal.SIGKILL
    cluster.start()
    for peer in (client, worker):
        peer.dialer.close()
    held = Resources(1.0, 10**9)
    running = tuple(m.Running(run.task, run.attempt, held) for run in (first, second))
    again, client = cluster.worker("w", 2, running), cluster.client()
    assert client.wait(m.Finished).task == done.task
    client.say(*(submit(n) for n in range(5)))  # as a client does that is not sure
    for run in (first, second):
        again.say(m.CallEnded(run.task, run.attempt, Returned(Inline(b"v")), USAGE))
    others = {run_one(again).task for _ in range(2)}
    assert others == {f"s-{n}" for n in range(5)} - {done.task, first.task, second.task}
    for task in {first.task, second.task, *others}:
        finished = client.wait(m.Finished, lambda f, task=task: f.task == task)  # type: ignore[misc]
        assert [a.number for a in finished.attempts] == [1]


def test_what_one_run_measured_sizes_the_first_call_of_the_next(cluster: Cluster) -> None:
    given = []
    for name in ("one", "two"):
        cluster.run = cluster.directory / name
        cluster.start()
        client, worker = cluster.client(), cluster.worker(cores=1)
        client.say(m.Submit(TaskId("s-0"), FUNCTION, Inline(b"x"), Request()))
        given.append(run_one(worker).allocation.memory)
        client.wait(m.Finished)
        assert cluster.stop() == 0
    assert given[1] < 2 * USAGE.memory < given[0]
    code, said = cluster.call("history")
    assert code == 0 and "mod.f" in said
    code, said = cluster.call("history", "--forget", "mod.f")
    assert code == 0 and "forgot 2 measurements" in said


def test_a_second_manager_on_the_same_run_directory_is_refused(cluster: Cluster) -> None:
    process = cluster.start()
    code, said = cluster.call("start", "--run-dir", str(cluster.run))
    assert code == 1 and f"already has a manager: process {process.pid}" in said and "Traceback" not in said


def test_a_run_directory_that_others_can_enter_is_refused(cluster: Cluster) -> None:
    cluster.run.mkdir(mode=0o755)
    cluster.run.chmod(0o755)
    code, said = cluster.call("start", "--run-dir", str(cluster.run))
    assert code == 1 and "chmod 700" in said and "Traceback" not in said


def test_in_the_background_it_is_there_when_the_command_returns(cluster: Cluster) -> None:
    code, said = cluster.call("start", "--run-dir", str(cluster.run), "--host", "127.0.0.1", "--background")
    assert code == 0 and "lfm worker start --run" in said
    assert cluster.viewer().ask("info")["run"] == "run"
    code, said = cluster.call("stop", "--run", str(cluster.run))
    assert code == 0 and said.endswith("stopped\n")


def test_an_embedded_manager_ends_with_its_starter_and_leaves_nothing(cluster: Cluster) -> None:
    process = cluster.start("--ephemeral", "--stdin-eof")
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(DEADLINE) == 0 and not cluster.run.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_end_it_cleanly(cluster: Cluster, number: signal.Signals) -> None:
    cluster.start()
    assert cluster.stop(number) == 0
    assert "Traceback" not in (cluster.directory / "said").read_text()


@pytest.mark.parametrize("keep", [False, True])
def test_whoever_stops_the_manager_stops_its_workers_unless_told_otherwise(cluster: Cluster, keep: bool) -> None:
    process = cluster.start()
    worker = cluster.worker()
    cluster.viewer().ask("workers")
    more = ["--keep-workers"] if keep else []
    stopper = cluster.command("stop", "--run", str(cluster.run), *more)
    if not keep:
        assert worker.wait(m.Drain).reason == "the manager was stopped"
        worker.say(m.WorkerLeaving("the manager was stopped"))
    assert process.wait(DEADLINE) == 0 and stopper.wait(DEADLINE) == 0
    assert not any(isinstance(x, m.Drain) for x in worker.heard)
    assert stopper.stdin is not None
    stopper.stdin.close()


def test_viewers_only_look(cluster: Cluster) -> None:
    cluster.start()
    viewer = cluster.viewer()
    assert "may only look" in str(viewer.ask("shutdown")["error"])
    assert "cannot answer" in str(viewer.ask("nonsense")["error"])
    assert "no call is named" in str(viewer.ask("explain", task="x")["error"])
    viewer.say(m.Release((TaskId("a"),)))
    with pytest.raises((ProtocolError, ConnectionFailed)):
        viewer.wait(m.Answer)


def test_every_question_has_its_answer(cluster: Cluster) -> None:
    cluster.start()
    client, worker = cluster.client(), cluster.worker(cores=1)
    client.say(submit(0), submit(1))
    run = worker.wait(m.Run)
    worker.say(m.CallStarted(run.task, 1))
    client.wait(m.Started)
    for what in ("info", "status", "tasks", "workers", "environments", "categories"):
        assert client.ask(what)["schema"] == f"lfm.{what}/1"
    assert "running for" in str(client.ask("explain", task="s-0")["text"])
    assert "it waits its turn" in str(client.ask("explain", task="s-1")["text"])
    assert client.ask("cancel", selection="s-1")["tasks"] == ["s-1"]
    assert client.ask("drain", selection="w")["workers"] == ["w"]
    worker.wait(m.Drain)
    assert client.ask("stop", selection="all")["workers"] == ["w"]
    assert client.ask("workers")["workers"] == []


def test_an_idle_manager_uses_no_cpu(cluster: Cluster) -> None:
    process = cluster.start()
    cluster.worker()

    def spent() -> float:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def at_rest() -> bool:
        before = spent()
        time.sleep(2.0)
        return spent() - before <= 0.05

    wait_until(at_rest, "it to come to rest")


def test_a_port_that_is_taken_is_a_clear_error(cluster: Cluster) -> None:
    cluster.start()
    address = ConnectionFile.read(cluster.run / "client.json").addresses[0]
    port = address.rsplit(":", 1)[1]
    code, said = cluster.call("start", "--run-dir", str(cluster.directory / "other"), "--host", "127.0.0.1", "--port", port)
    assert code == 1 and f"port {port}" in said and "Traceback" not in said


def test_the_key_of_another_run_is_not_admitted(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start()
    other = RunDirectory.create(tmp_path / "other", "other")
    good = ConnectionFile.read(cluster.run / "client.json")
    other.publish(good.addresses)
    wrong = ConnectionFile.read(other.connection_file("client"))
    forged = ConnectionFile(
        good.run, good.server_id, good.addresses, good.server_key, "client", wrong.public_key, wrong.secret_key
    )
    dialer = Dialer(lambda: forged, lambda: m.ClientHello("x", "me", "here", 1))
    with pytest.raises(ConnectionFailed):
        dialer.connect(DEADLINE)
