"""A real manager process on loopback, with a client and a worker that speak the protocol from here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import pytest
import zmq

from lfm.connection import Dialer
from lfm.errors import ConnectionFailed, ProtocolError
from lfm.protocol import messages as m
from lfm.protocol.ids import Digest, EnvironmentKey, FunctionId, TaskId
from lfm.protocol.outcomes import Blob, Inline, Returned
from lfm.protocol.resources import Request, Resources, Usage
from lfm.run import ConnectionFile, RunDirectory

pytestmark = pytest.mark.process

T = TypeVar("T")
DEADLINE = 30.0  # seconds: generous, for a loaded machine
ENV, FUNCTION = EnvironmentKey("e" * 64), FunctionId("f")
TARBALL = b"not really a tarball"
USAGE = Usage(wall_s=1.0, memory=10**8, memory_by="self")


class Peer:
    """One end of a connection, driven from the test."""

    def __init__(self, directory: Path, role: str, hello: m.Hello) -> None:
        self.dialer = Dialer(lambda: ConnectionFile.read(directory / f"{role}.json"), lambda: hello)
        self.poller = zmq.Poller()
        self.dialer.register(self.poller)
        self.heard: list[m.Message | m.Welcome] = []
        self.dialer.connect(DEADLINE)

    def say(self, *messages: m.Message) -> None:
        for message in messages:
            self.dialer.send(message)
        self.dialer.flush()

    def pump(self, seconds: float = 0.05) -> None:
        self.poller.poll(int(max(0.0, min(seconds, self.dialer.deadline() - time.monotonic())) * 1000))
        self.heard += self.dialer.receive()
        if time.monotonic() >= self.dialer.deadline():
            self.dialer.tick()

    def wait(self, kind: type[T], which: Callable[[T], bool] = lambda message: True) -> T:
        """The next message of that kind, taken out of what was heard."""
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            for message in self.heard:
                if isinstance(message, kind) and which(message):
                    self.heard.remove(message)
                    return message
            self.pump()
        raise AssertionError(f"no {kind.__name__}; heard {self.heard}")

    def ask(self, what: str, **arguments: object) -> dict[str, object]:
        self.say(m.Query(1, what, arguments))
        body = self.wait(m.Answer).body
        assert isinstance(body, dict)
        return body


class Cluster:
    """A manager's process and the peers that a test opens."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.run = directory / "run"
        self.peers: list[Peer] = []
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        self.process = self.command("start", "--run-dir", str(self.run), "--host", "127.0.0.1", *arguments)
        end = time.monotonic() + DEADLINE
        while not self.published():
            assert self.process.poll() is None, (self.directory / "said").read_text()
            assert time.monotonic() < end
            time.sleep(0.01)
        return self.process

    def published(self) -> bool:
        try:
            return self.process is not None and ConnectionFile.read(self.run / "viewer.json").pid == self.process.pid
        except ConnectionFailed:
            return False

    def command(self, *arguments: str) -> subprocess.Popen[bytes]:
        environ = {**os.environ, "LFM_CACHE": str(self.directory / "cache"), "LFM_HOME": str(self.directory / "home")}
        with (self.directory / "said").open("ab") as said:
            return subprocess.Popen(
                [sys.executable, "-m", "lfm", "manager", *arguments], stdin=subprocess.PIPE, stdout=said, stderr=said,
                env=environ, cwd=self.directory,
            )

    def call(self, *arguments: str) -> tuple[int, str]:
        process = self.command(*arguments)
        code = process.wait(DEADLINE)
        assert process.stdin is not None
        process.stdin.close()
        return code, (self.directory / "said").read_text()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End the manager's process and nothing else."""
        assert self.process is not None and self.process.stdin is not None
        self.process.send_signal(number)
        code = self.process.wait(DEADLINE)
        self.process.stdin.close()
        self.process = None
        return code

    def client(self, session: str = "s", name: str | None = None) -> Peer:
        peer = self._peer("client", m.ClientHello(session, "me", "elsewhere", 1, name))
        peer.say(
            m.DeclareEnvironment(ENV, Inline(b"{}"), "nothing"),
            m.DeclareFunction(FUNCTION, "mod.f", "mod.f", ENV, Inline(b"code"), None, ()),
        )
        return peer

    def worker(self, session: str = "w", cores: float = 2, running: tuple[m.Running, ...] = ()) -> Peer:
        offer = Resources(cores, 8 * 10**9, 10**10)
        return self._peer("worker", m.WorkerHello(session, session, "elsewhere", 2, offer, (), {}, (), running))

    def viewer(self) -> Peer:
        return self._peer("viewer", m.ViewerHello("v"))

    def _peer(self, role: str, hello: m.Hello) -> Peer:
        peer = Peer(self.run, role, hello)
        self.peers.append(peer)
        return peer

    def close(self) -> None:
        for peer in self.peers:
            peer.dialer.close()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            assert self.process.stdin is not None
            self.process.stdin.close()


def provide_environment(root: Path) -> None:
    """What a build would have left: the manager finds it and builds nothing."""
    root.mkdir(parents=True)
    tarball = root / f"{ENV}.tar.zst"
    tarball.write_bytes(TARBALL)
    (root / f"{ENV}.json").write_text(json.dumps({
        "key": ENV, "digest": sha256(TARBALL).hexdigest(), "path": str(tarball), "bytes": len(TARBALL), "python": "3.11.7",
        "machine": "", "libc": "", "distributions": [], "kind": "python", "built": 0.0, "built_s": 1.0,
        "unpacked_bytes": 1, "files": 1, "whole": {}, "warnings": [],
    }))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    provide_environment(tmp_path / "cache" / "environments")
    made = Cluster(tmp_path)
    yield made
    made.close()


def submit(n: int, arguments: m.Payload | None = None) -> m.Submit:
    return m.Submit(TaskId(f"s-{n}"), FUNCTION, arguments or Inline(b"x"), Request(cores=1, memory=10**9, disk=0))


def run_one(worker: Peer) -> m.Run:
    run = worker.wait(m.Run)
    worker.say(m.CallStarted(run.task, run.attempt), m.CallEnded(run.task, run.attempt, Returned(Inline(b"v")), USAGE))
    return run


def serve(peer: Peer, content: dict[str, bytes], until: Callable[[], bool]) -> None:
    """Answer FetchBlob until something is true."""
    end = time.monotonic() + DEADLINE
    while not until():
        assert time.monotonic() < end
        peer.pump()
        for ask in [x for x in peer.heard if isinstance(x, m.FetchBlob)]:
            peer.heard.remove(ask)
            data = content[ask.digest]
            peer.say(m.BlobChunk(ask.digest, ask.offset, len(data), data[ask.offset : ask.offset + ask.length]))


def fetch(peer: Peer, digest: Digest) -> bytes:
    peer.say(m.FetchBlob(digest, 0, m.CHUNK))
    return peer.wait(m.BlobChunk).data


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

    time.sleep(0.5)
    before = spent()
    time.sleep(2.0)
    assert spent() - before <= 0.05


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
