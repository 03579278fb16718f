"""Large blobs between workers: the real door, lines and sockets; sources that die, lie, stall or are not there."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import zmq

import lfm
from lfm.blobs import BlobStore, answer_fetch
from lfm.protocol import messages as m
from lfm.protocol.codec import encode
from lfm.protocol.ids import Digest
from lfm.run import ConnectionFile, RunDirectory
from lfm.testing import LocalCluster, wait_until
from lfm_worker.core import events as e
from lfm_worker.shell import peers as peers_module
from lfm_worker.shell.peers import Broken, Line, Peers, own_address
from lfm_worker.shell.transfers import LARGE, Transfers

pytestmark = pytest.mark.process
DEADLINE = 60.0
SIZE = LARGE + 12_345
DATA = hashlib.sha256(b"blob").digest() * (SIZE // 32)
BLOB = Digest(hashlib.sha256(DATA).hexdigest())


class Worker:
    """A worker's transfers with real sockets; its manager is ``Run``."""

    def __init__(self, run: Run, name: str) -> None:
        self.run, self.poller = run, zmq.Poller()
        self.peers = Peers(lambda: run.file, lambda: run.file.addresses[0], self.poller)
        (run.path / name).mkdir()
        self.transfers = Transfers(
            BlobStore(run.path / name / "own"), BlobStore(run.path / name / "results"), run.path / name, self.peers
        )
        self.events: list[e.Event] = []
        self.said: list[m.Message] = []  # to the manager, but for ranges asked of it

    def do(self, moves: tuple[list[m.FetchBlob | m.SeekBlob | m.BlobSought], list[e.Event]]) -> None:
        asks, events = moves
        self.events += events
        for ask in asks:
            if isinstance(ask, m.FetchBlob):
                self.run.asked += 1
                self.do(self.transfers.came(answer_fetch(self.run.store.path(ask.digest), ask)))
            else:
                self.said.append(ask)

    def seek(self) -> None:
        self.do(self.transfers.fetch(BLOB, len(DATA)))
        assert self.said.pop() == m.SeekBlob(BLOB, len(DATA))

    def pull(self, source: m.Source | None) -> None:
        self.do(self.transfers.named(m.BlobSource(BLOB, source)))

    def offer(self) -> m.Source:
        """Have the blob from the manager, and say where others may have it."""
        self.seek()
        self.pull(None)
        sought = self.said.pop()
        assert isinstance(sought, m.BlobSought) and sought.offer is not None
        return sought.offer

    def close(self) -> None:
        self.transfers.close()
        self.peers.close()


class Run:
    """Workers of one run, turned by the test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        directory = RunDirectory.create(path / "run", "test")
        directory.publish(["tcp://127.0.0.1:9"])
        self.file = ConnectionFile.read(directory.connection_file("worker"))
        self.client = ConnectionFile.read(directory.connection_file("client"))
        self.store = BlobStore(path / "manager")
        self.store.add([DATA])
        self.asked = 0  # ranges asked of the manager
        self.workers: list[Worker] = []

    def worker(self) -> Worker:
        worker = Worker(self, f"w{len(self.workers)}")
        self.workers.append(worker)
        return worker

    def wait(self, found: Callable[[], object]) -> None:
        end = time.monotonic() + DEADLINE
        while not found():
            assert time.monotonic() < end
            for worker in self.workers:
                worker.poller.poll(5)
                worker.do(worker.transfers.turn())


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = Run(tmp_path)
    yield made
    for worker in made.workers:
        worker.close()


def came_right(worker: Worker) -> bool:
    return worker.events == [e.Fetched(BLOB, len(DATA))] and worker.transfers.own.path(BLOB).read_bytes() == DATA


def test_a_blob_comes_from_another_worker(run: Run) -> None:
    one, two, three = run.worker(), run.worker(), run.worker()
    source, asked = one.offer(), run.asked
    for other in (two, three):
        other.seek()
        other.pull(source)
    run.wait(lambda: two.events and three.events)
    assert came_right(two) and came_right(three) and run.asked == asked
    sought = two.said.pop()
    assert isinstance(sought, m.BlobSought) and sought.offer not in (None, source)


def test_what_is_not_offered_is_not_given(run: Run) -> None:
    one, two = run.worker(), run.worker()
    source = one.offer()
    secret = one.transfers.results.add([bytes(LARGE)])
    two.do(two.transfers.fetch(secret.digest, secret.size))
    two.said.clear()
    two.do(two.transfers.named(m.BlobSource(secret.digest, source)))
    run.wait(lambda: two.said)
    assert two.said == [m.SeekBlob(secret.digest, secret.size)]
    one.do((one.transfers.drop(BLOB), []))
    assert one.said == [m.BlobSought(BLOB, None)]
    two.do(two.transfers.fetch(BLOB, len(DATA)))
    two.said.clear()
    two.do(two.transfers.named(m.BlobSource(BLOB, source)))
    run.wait(lambda: two.said)
    assert two.said == [m.SeekBlob(BLOB, len(DATA))]


def other_keys(run: Run) -> ConnectionFile:
    public, secret = zmq.curve_keypair()
    return replace(run.file, public_key=public.decode(), secret_key=secret.decode())


@pytest.mark.parametrize("who", ["a client", "a stranger"])
def test_only_the_runs_workers_are_let_in(run: Run, who: str) -> None:
    one = run.worker()
    source = one.offer()
    context, poller = zmq.Context(), zmq.Poller()
    line = Line(context, source, run.client if who == "a client" else other_keys(run), poller)
    line.ask([m.FetchBlob(BLOB, 0, m.CHUNK)])
    heard: list[m.BlobChunk] = []
    try:
        with pytest.raises(Broken, match="key"):
            run.wait(lambda: heard.extend(line.receive()))
    finally:
        line.close()
        context.term()
    assert heard == []


def test_nonsense_at_the_door_is_not_answered(run: Run) -> None:
    one, two = run.worker(), run.worker()
    source = one.offer()
    line = two.peers.dial(source)
    line._socket.send(b"\xc1nonsense")
    line._socket.send(encode(m.Drain("you")))
    line.ask([m.FetchBlob(Digest("../../etc/passwd"), 0, 10)])
    with pytest.raises(Broken, match="no more"):
        run.wait(line.receive)
    line.close()
    two.seek()
    two.pull(source)
    run.wait(lambda: two.events)
    assert came_right(two)


@pytest.mark.parametrize("how", ["nobody listens", "no address", "no such protocol", "another key"])
def test_a_source_that_cannot_be_dialled(run: Run, how: str) -> None:
    one, two = run.worker(), run.worker()
    source = one.offer()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    other = zmq.curve_keypair()[0].decode()
    named = {
        "nobody listens": source.but(address=f"tcp://127.0.0.1:{port}"),
        "no address": source.but(address="tcp://nowhere"),
        "no such protocol": source.but(address=f"ipc://{run.path}/x"),
        "another key": source.but(key=other),
    }[how]
    two.seek()
    two.pull(named)
    run.wait(lambda: two.said)
    assert two.said == [m.SeekBlob(BLOB, len(DATA))] and not two.events
    two.pull(None)
    assert came_right(two)


def test_a_source_whose_packets_are_lost(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_module, "DIAL", 0.2)
    two = run.worker()
    two.seek()
    with ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):  # whoever comes now gets no answer at all
            other = stack.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(full.getsockname())
        two.pull(m.Source(f"tcp://127.0.0.1:{full.getsockname()[1]}", run.file.public_key))
        run.wait(lambda: two.said)
    assert two.said == [m.SeekBlob(BLOB, len(DATA))]


def test_a_source_that_takes_the_connection_and_stays_silent(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_module, "DIAL", 0.2)
    monkeypatch.setattr(peers_module, "STALL", 0.2)
    two = run.worker()
    two.seek()
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        two.pull(m.Source(f"tcp://127.0.0.1:{deaf.getsockname()[1]}", run.file.public_key))
        assert two.transfers.deadline() is not None
        run.wait(lambda: two.said)
    assert two.said == [m.SeekBlob(BLOB, len(DATA))] and two.transfers.deadline() is None


def test_a_source_that_goes_away_and_the_rest_comes_from_another(run: Run) -> None:
    one, two, three = run.worker(), run.worker(), run.worker()
    first, second = one.offer(), three.offer()
    two.seek()
    two.pull(first)
    pull = two.transfers._active[BLOB]
    run.wait(lambda: pull.fetch.received > 0)
    come = pull.fetch.received
    run.workers.remove(one)
    one.close()
    run.wait(lambda: two.said or two.events)
    if not two.events:  # it may have been fast
        assert two.said == [m.SeekBlob(BLOB, len(DATA))] and pull.fetch.received >= come
        asked = run.asked
        two.pull(second)
        run.wait(lambda: two.events)
        assert run.asked == asked
    assert came_right(two)


def test_bad_bytes_are_thrown_away_and_the_blob_is_sought_again(run: Run) -> None:
    liar, two = run.worker(), run.worker()
    source = liar.offer()
    with liar.transfers.own.path(BLOB).open("r+b") as file:
        file.seek(5_000_000)
        file.write(b"not what it was")
    two.seek()
    two.pull(source)
    run.wait(lambda: two.said)
    assert two.said == [m.SeekBlob(BLOB, len(DATA))] and not two.events and not two.transfers.own.has(BLOB)
    two.pull(None)
    assert came_right(two)


def test_bytes_that_only_the_manager_gave_and_are_bad_are_a_failure(run: Run) -> None:
    two = run.worker()
    run.store.path(BLOB).write_bytes(bytes(len(DATA)))
    two.seek()
    two.pull(None)
    (event,) = two.events
    assert isinstance(event, e.FetchFailed) and event.cause == "corrupt"
    assert two.said == [m.BlobSought(BLOB, None)]


def test_a_manager_that_forgot_is_told_again(run: Run) -> None:
    one, two, three = run.worker(), run.worker(), run.worker()
    source = one.offer()
    assert one.transfers.again() == [m.BlobSought(BLOB, source)]
    two.seek()
    assert two.transfers.again() == [m.SeekBlob(BLOB, len(DATA))]
    three.seek()
    three.pull(source)
    assert three.transfers.again() == []  # it is on its way
    run.wait(lambda: three.events)
    assert came_right(three)


def test_an_answer_that_is_not_wanted_any_more(run: Run) -> None:
    one, two = run.worker(), run.worker()
    source = one.offer()
    one.pull(source)
    two.pull(source)
    assert one.said == [m.BlobSought(BLOB, source)] and two.said == [m.BlobSought(BLOB, None)]


def test_where_others_reach_us() -> None:
    assert own_address(("tcp://127.0.0.1:5",)) == "127.0.0.1"
    with pytest.raises(OSError, match="no way"):
        own_address(("", "tcp://"))


# ---------------------------------------------------------------- whole workers


def fingerprint(data: bytes) -> tuple[str, str]:
    import hashlib
    import os
    import time

    time.sleep(0.5)  # so that each worker has a call
    return hashlib.sha256(data).hexdigest(), os.getcwd()  # noqa: PTH109


def linger(go: Path, data: bytes) -> int:
    import time

    while not go.exists():
        time.sleep(0.05)
    return len(data)


class Workers:
    """A cluster whose workers have a cache each, and 30 MB for all of them."""

    def __init__(self, cluster: LocalCluster, path: Path) -> None:
        self.cluster, self.path = cluster, path
        self.processes: list[subprocess.Popen[bytes]] = []
        self.executor = cluster.executor()
        self.data = os.urandom(30_000_000)
        self.digest = hashlib.sha256(self.data).hexdigest()
        self.handle = self.executor.put(self.data)

    def start(self, count: int, *options: str) -> None:
        for _ in range(count):
            place = self.path / f"w{len(self.processes)}"
            self.processes.append(self.cluster.start_worker("--work-dir", str(place), *options))
        wait_until(lambda: len(self.ask("worker", "list")["workers"]) == len(self.processes), "the workers")

    def ask(self, *command: str) -> dict[str, object]:
        import json

        body = json.loads(self.cluster.command(*command, "--json").stdout)
        assert isinstance(body, dict)
        return body

    def sent(self) -> int:
        sent = self.ask("manager", "info")["blob_bytes_sent"]
        assert isinstance(sent, int)
        return sent

    def call(self, count: int) -> list[lfm.Future]:
        view = self.executor.options(memory="150MB", disk="100MB", cores=1)
        return [view.submit(fingerprint, self.handle) for _ in range(count)]

    def everywhere(self) -> None:
        """Calls until every worker has had one; each saw the right bytes."""
        places: set[str] = set()
        end = time.monotonic() + DEADLINE
        while len(places) < len(self.processes):
            assert time.monotonic() < end, places
            for future in self.call(2 * len(self.processes)):
                found, where = future.result(DEADLINE)
                assert found == self.digest
                places.add(str(Path(where).relative_to(self.path).parts[0]))


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    with LocalCluster(workers=0, memory="500MB") as cluster:
        made = Workers(cluster, tmp_path)
        with made.executor:
            yield made


def test_the_manager_sends_to_a_few_and_all_have_it(workers: Workers) -> None:
    workers.start(5)
    workers.everywhere()
    environments = workers.ask("status")["environments"]
    assert isinstance(environments, list)
    assert workers.sent() <= 3 * (len(workers.data) + 1_000_000 + sum(e["bytes"] for e in environments))


def test_a_worker_without_peers_has_it_from_the_manager(workers: Workers) -> None:
    workers.start(2, "--no-peers")
    workers.everywhere()
    assert workers.sent() >= 2 * 30_000_000
    listening = [c for w in workers.processes for c in psutil.Process(w.pid).net_connections() if c.status == psutil.CONN_LISTEN]
    assert listening == []


def test_a_source_that_is_stopped_costs_time_and_nothing_else(workers: Workers) -> None:
    """The second worker's only source takes connections and says nothing."""
    workers.start(1)
    view = workers.executor.options(memory="150MB", disk="100MB", cores=1)
    go = workers.path / "go"
    busy = view.submit(linger, go, workers.handle)  # so that the next call goes elsewhere
    wait_until(busy.running, "the first call", DEADLINE)
    first = workers.processes[0]
    first.send_signal(signal.SIGSTOP)
    try:
        sent = workers.sent()
        workers.start(1)
        assert view.submit(fingerprint, workers.handle).result(DEADLINE)[0] == workers.digest
        assert workers.sent() - sent > len(workers.data)
    finally:
        go.touch()
        first.kill()
        first.wait()
    assert busy.result(DEADLINE) == len(workers.data)
