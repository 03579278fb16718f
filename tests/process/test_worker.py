"""The worker daemon as a process, against a manager that is this test: the real wire, templates and sandboxes.

The environments are tarballs whose ``bin/python`` runs this test's own interpreter.  Every directory that a
worker may remove lies below ``tmp_path``.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import cloudpickle
import pytest
import zmq

from lfm.blobs import BlobStore, answer_fetch
from lfm.connection import Joined, Left, Listener, Said
from lfm.monitor.payload import pack, unpack
from lfm.protocol import messages as m
from lfm.protocol.ids import Digest, FunctionId, PeerId, TaskId
from lfm.protocol.outcomes import Blob, Crashed, Exhausted, Inline, Killed, Lost, Payload, Raised, Returned
from lfm.protocol.resources import Resources
from lfm.run import RunDirectory

pytestmark = pytest.mark.process
DEADLINE = 60.0
MB = 10**6
T = TypeVar("T")


class Manager:
    """One worker's manager: says what the test wants, serves blobs, keeps all that is said."""

    def __init__(self, path: Path, port: int = 0) -> None:
        self.run = RunDirectory.create(path / "run", "test")
        self.blobs = BlobStore(path / "manager-blobs")
        self.listener = Listener(self.run, ["127.0.0.1"], [port])
        self.run.publish([f"tcp://127.0.0.1:{self.listener.port}"])
        self.poller = zmq.Poller()
        self.listener.register(self.poller)
        self.joined: list[Joined] = []
        self.heard: list[Any] = []
        self.fetched: list[Digest] = []  # by the worker, first ranges
        self.received: dict[Digest, bytes] = {}  # chunks of results
        self.lie = 0  # so many chunks are sent damaged
        self.closed = False

    def turn(self) -> None:
        self.poller.poll(20)
        for news in [*self.listener.receive(), *self.listener.tick()]:
            match news:
                case Joined():
                    self.joined.append(news)
                case Left():
                    pass
                case Said(peer, m.FetchBlob() as fetch):
                    self._serve(peer, fetch)
                case Said(peer, m.SeekBlob(digest)):
                    self.listener.send(peer, m.BlobSource(digest, None))
                case Said(_, m.BlobChunk() as chunk):
                    self.received[chunk.digest] = self.received.get(chunk.digest, b"") + chunk.data
                case Said(_, message):
                    self.heard.append(message)
        self.listener.flush()

    def _serve(self, peer: PeerId, fetch: m.FetchBlob) -> None:
        if fetch.offset == 0:
            self.fetched.append(fetch.digest)
        if not self.blobs.has(fetch.digest):
            self.listener.send(peer, m.BlobMissing(fetch.digest, "unknown"))
            return
        chunk = answer_fetch(self.blobs.path(fetch.digest), fetch)
        if self.lie:
            self.lie -= 1
            chunk = m.BlobChunk(chunk.digest, chunk.offset, chunk.size, bytes(len(chunk.data)))
        self.listener.send(peer, chunk)

    def wait(self, found: Callable[[], T | None], what: str) -> T:
        """Turn until ``found`` gives something."""
        end = time.monotonic() + DEADLINE
        while (value := found()) is None or value is False:
            assert time.monotonic() < end, f"waited in vain for {what}; heard {self.heard[-5:]}"
            self.turn()
        return value

    def wait_joined(self, count: int = 1) -> m.WorkerHello:
        self.wait(lambda: len(self.joined) >= count, "a worker")
        hello = self.joined[count - 1].hello
        assert isinstance(hello, m.WorkerHello)
        return hello

    def tell(self, message: m.Message) -> None:
        self.listener.send(self.joined[-1].peer, message)
        self.listener.flush()

    def wait_said(self, kind: type[T], task: str | None = None) -> T:
        def look() -> T | None:
            wanted = (said for said in self.heard if isinstance(said, kind) and task in (None, getattr(said, "task", None)))
            return next(wanted, None)

        return self.wait(look, f"{kind.__name__} {task or ''}")

    def define(self, function: Callable[..., Any], environment: Blob, **more: Any) -> m.DefineFunction:
        cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the test's module is not on the worker
        code = b"".join(pack(function, cloudpickle.dumps))
        name = FunctionId(hashlib.sha256(code + environment.digest.encode()).hexdigest())
        facts = {"overlay": None, "preload": ()} | more
        definition = m.DefineFunction(name, function.__name__, environment, self.payload(code), **facts)
        self.tell(definition)
        return definition

    def payload(self, data: bytes) -> Payload:
        return self.blobs.payload([data])

    def submit(self, task: str, function: m.DefineFunction, *args: Any, **more: Any) -> None:
        arguments = self.payload(b"".join(pack((args, {}), cloudpickle.dumps)))
        facts = {"allocation": Resources(1.0, 500 * MB)} | more
        self.tell(m.Run(TaskId(task), 1, function.function, arguments, **facts))

    def result(self, task: str) -> Any:
        end = self.wait_said(m.CallEnded, task)
        assert isinstance(end.outcome, Returned), end
        if isinstance(end.outcome.value, Inline):
            return unpack(end.outcome.value.data)
        blob = end.outcome.value
        for at in range(0, blob.size, m.CHUNK):
            self.tell(m.FetchBlob(blob.digest, at, m.CHUNK))
        self.wait(lambda: len(self.received.get(blob.digest, b"")) >= blob.size, "the result")
        data = self.received[blob.digest]
        assert hashlib.sha256(data).hexdigest() == blob.digest
        self.tell(m.ForgetBlob(blob.digest))
        return unpack(data)

    def environment(self, text: str = "", **files: bytes) -> Blob:
        """A small environment; another for every text."""
        script = f'#!/bin/sh\n# {text}\nexec {sys.executable} "$@"\n'.encode()
        return self.tarball({"bin/python": script} | files)

    def tarball(self, files: dict[str, bytes]) -> Blob:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as tar:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(data), 0o755
                tar.addfile(member, io.BytesIO(data))
        return self.blobs.add([packed.getvalue()])

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.listener.close()


class Daemon:
    """``lfm worker start`` as a child of the test."""

    def __init__(self, manager: Manager, work: Path, *options: str, stdin: int = subprocess.DEVNULL) -> None:
        connection = manager.run.connection_file("worker")
        command = [sys.executable, "-m", "lfm", "worker", "start", "--connect", connection]
        limits = ["--cores", "2", "--memory", "2GB", "--work-dir", work]
        with work.with_name(f"{work.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *limits, *options], stdin=stdin, stdout=log, stderr=log, cwd=work.parent
            )
        self.pid = self.process.pid

    def wait_gone(self, manager: Manager) -> int:
        """Its exit code, once it has ended."""
        manager.wait(lambda: self.process.poll() is not None, "the worker's end")
        return int(self.process.returncode)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()


Start = Callable[..., Daemon]


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path)
    yield made
    made.close()


@pytest.fixture
def start(manager: Manager, tmp_path: Path) -> Iterator[Start]:
    daemons: list[Daemon] = []

    def begin(*options: str, **more: Any) -> Daemon:
        daemons.append(Daemon(manager, tmp_path / "work", *options, **more))
        return daemons[-1]

    yield begin
    for daemon in daemons:
        daemon.end()


def left_behind(tmp_path: Path) -> list[str]:
    """What a worker that has gone should not have left."""
    return [path.name for path in (tmp_path / "work" / "workers").iterdir()]


def parent_of(pid: int) -> int | None:
    """None: there is no such process, or it is dead and nobody has waited for it yet."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[1])


def descendants(pid: int) -> set[int]:
    """Pids of all processes below one."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (parent := parent_of(int(entry.name))) is not None:
            parents.setdefault(parent, []).append(int(entry.name))
    found: set[int] = set()
    new = [pid]
    while new:
        new = [child for parent in new for child in parents.get(parent, ())]
        found |= set(new)
    return found


def cpu_seconds(pid: int) -> float:
    """Of a process and all below it."""
    ticks = 0
    for one in {pid} | descendants(pid):
        try:
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def add(a: int, b: int) -> int:
    return a + b


def whoami() -> tuple[dict[str, str], str, list[str], list[int]]:
    return dict(os.environ), str(Path.cwd()), [p.name for p in Path.cwd().iterdir()], sorted(os.sched_getaffinity(0))


def mark_and_wait(mark: str, until: str) -> str:
    Path("mine").touch()
    Path(mark).write_text(str(Path.cwd()))
    while not Path(until).exists():
        time.sleep(0.01)
    return "done"


def swell(size: int) -> int:
    return len(bytearray(os.urandom(1024)) * (size // 1024))


def fail() -> None:
    raise KeyError("no such thing")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class TestCalls:
    def test_a_call_from_nothing_to_its_value(self, manager: Manager, start: Start, tmp_path: Path) -> None:
        daemon = start()
        hello = manager.wait_joined()
        assert (hello.offer.cores, hello.offer.memory, hello.pid) == (2.0, 2000 * MB, daemon.pid)
        environment = manager.environment()
        function = manager.define(add, environment)
        manager.submit("a", function, 20, 22)
        assert manager.result("a") == 42
        assert manager.wait_said(m.EnvironmentReady).digest == environment.digest
        end = manager.wait_said(m.CallEnded, "a")
        assert end.usage is not None and end.usage.wall_s > 0
        manager.submit("b", function, 1, 2)
        assert manager.result("b") == 3
        assert manager.fetched == [environment.digest]
        daemon.process.terminate()
        assert daemon.wait_gone(manager) == 0
        assert left_behind(tmp_path) == []

    def test_what_a_call_sees(self, manager: Manager, start: Start, tmp_path: Path) -> None:
        start()
        manager.wait_joined()
        manager.submit("a", manager.define(whoami, manager.environment()))
        environ, folder, files, cpus = manager.result("a")
        assert (environ["LFM_TASK"], environ["LFM_CORES"], environ["LFM_MEMORY"]) == ("a", "1", str(500 * MB))
        assert environ["OMP_NUM_THREADS"] == "1"
        assert folder.startswith(str(tmp_path / "work" / "workers")) and files == []
        assert list(Path(folder).iterdir()) == []
        if len(os.sched_getaffinity(0)) == 2:
            assert len(cpus) == 1

    def test_large_arguments_and_results_travel_as_blobs(self, manager: Manager, start: Start, tmp_path: Path) -> None:
        start()
        manager.wait_joined()

        def twice(data: bytes) -> bytes:
            return data * 2

        data = os.urandom(3 * MB)
        manager.submit("a", manager.define(twice, manager.environment()), data)
        assert manager.result("a") == data * 2
        [worker] = (tmp_path / "work" / "workers").iterdir()
        manager.wait(lambda: not list((worker / "results").iterdir()), "the result to be dropped")

    def test_an_overlay_is_importable(self, manager: Manager, start: Start) -> None:
        start()
        manager.wait_joined()

        def use() -> int:
            import mine_of_the_test  # type: ignore[import-not-found]

            return int(mine_of_the_test.VALUE)

        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            member = tarfile.TarInfo("src/mine_of_the_test.py")
            member.size = len(b"VALUE = 7\n")
            tar.addfile(member, io.BytesIO(b"VALUE = 7\n"))
        function = manager.define(use, manager.environment(), overlay=Inline(packed.getvalue()))
        manager.submit("a", function)
        assert manager.result("a") == 7

    def test_each_ending_is_told(self, manager: Manager, start: Start, tmp_path: Path) -> None:
        start()
        manager.wait_joined()
        environment = manager.environment()
        manager.submit("raise", manager.define(fail, environment))
        manager.submit("die", manager.define(die, environment))
        manager.submit("swell", manager.define(swell, environment), 600 * MB, allocation=Resources(1.0, 200 * MB))
        short = Resources(1.0, 200 * MB, wall_time=0.5)
        manager.submit("late", manager.define(mark_and_wait, environment), str(tmp_path / "m"), "/never", allocation=short)
        raised = manager.wait_said(m.CallEnded, "raise").outcome
        assert isinstance(raised, Raised) and raised.type_name.endswith("KeyError")
        assert isinstance(manager.wait_said(m.CallEnded, "die").outcome, Crashed)
        exhausted = manager.wait_said(m.CallEnded, "swell").outcome
        assert isinstance(exhausted, Exhausted) and exhausted.resource == "memory"
        late = manager.wait_said(m.CallEnded, "late").outcome
        assert isinstance(late, Exhausted) and late.resource == "wall_time"

    def test_kill(self, manager: Manager, start: Start, tmp_path: Path) -> None:
        start()
        manager.wait_joined()
        manager.submit("a", manager.define(mark_and_wait, manager.environment()), str(tmp_path / "m"), "/never")
        manager.wait((tmp_path / "m").exists, "the call")
        manager.tell(m.KillCall(TaskId("a"), 1))
        assert manager.wait_said(m.CallEnded, "a").outcome == Killed()


class TestEnvironments:
    def test_the_second_worker_of_a_node_neither_fetches_nor_unpacks(self, manager: Manager, start: Start) -> None:
        environment = manager.environment()
        for count in (1, 2):
            start()
            assert manager.wait_joined(count).environments == (() if count == 1 else (environment.digest,))
            manager.submit(f"t{count}", manager.define(add, environment), count, 1)
            assert manager.result(f"t{count}") == count + 1
        assert manager.fetched == [environment.digest]

    def test_a_damaged_transfer_is_fetched_again(self, manager: Manager, start: Start) -> None:
        start()
        manager.wait_joined()
        environment = manager.environment()
        function = manager.define(add, environment)
        manager.lie = 1
        manager.submit("a", function, 1, 1)
        assert manager.result("a") == 2
        assert manager.fetched == [environment.digest] * 2

    def test_one_that_does_not_run_here_is_said_to_be_unusable(self, manager: Manager, start: Start) -> None:
        start()
        manager.wait_joined()
        environment = manager.tarball({"bin/python": b"#!/bin/sh\necho 'GLIBC_2.99 not found' >&2\nexit 1\n"})
        manager.submit("a", manager.define(add, environment), 1, 1)
        unusable = manager.wait_said(m.EnvironmentUnusable)
        assert unusable.digest == environment.digest and "GLIBC_2.99" in unusable.reason
        lost = manager.wait_said(m.CallEnded, "a").outcome
        assert isinstance(lost, Lost) and not lost.started

    def test_one_that_the_manager_lacks(self, manager: Manager, start: Start) -> None:
        start()
        manager.wait_joined()
        manager.submit("a", manager.define(add, Blob(Digest("0" * 64), 100)), 1, 1)
        assert manager.wait_said(m.EnvironmentUnusable).reason == "unknown"

    def test_names_that_are_paths_are_refused(self, manager: Manager, start: Start, tmp_path: Path) -> None:
        (tmp_path / "precious").mkdir()
        start()
        manager.wait_joined()
        for n, digest in enumerate(("", "..", "../../precious", str(tmp_path / "precious"))):
            manager.submit(f"t{n}", manager.define(add, Blob(Digest(digest), 100)), 1, 1)
            lost = manager.wait_said(m.CallEnded, f"t{n}").outcome
            assert isinstance(lost, Lost) and not lost.started
        assert (tmp_path / "precious").is_dir() and (tmp_path / "work" / "environments").is_dir()

    def test_the_cache_stays_within_its_bound(self, manager: Manager, start: Start, tmp_path: Path) -> None:
        start("--cache-size", "3MB")
        manager.wait_joined()
        for n in range(4):
            environment = manager.environment(str(n), data=os.urandom(MB))
            manager.submit(f"t{n}", manager.define(add, environment), n, 1)
            assert manager.result(f"t{n}") == n + 1
        held = [path.stem for path in (tmp_path / "work" / "environments").glob("*.ready")]
        assert environment.digest in held and len(held) <= 2


class TestLeaving:
    def test_sigterm_finishes_what_runs_and_takes_no_more(self, manager: Manager, start: Start, tmp_path: Path) -> None:
        daemon = start()
        manager.wait_joined()
        function = manager.define(mark_and_wait, manager.environment())
        manager.submit("a", function, str(tmp_path / "m"), str(tmp_path / "go"))
        manager.wait((tmp_path / "m").exists, "the call")
        daemon.process.terminate()
        assert manager.wait_said(m.OfferChanged).draining
        manager.submit("b", function, "x", "y")
        lost = manager.wait_said(m.CallEnded, "b").outcome
        assert isinstance(lost, Lost) and not lost.started
        (tmp_path / "go").touch()
        assert manager.result("a") == "done"
        assert manager.wait_said(m.WorkerLeaving).reason == "told to leave by SIGTERM"
        assert daemon.wait_gone(manager) == 0
        assert left_behind(tmp_path) == []

    def test_sigint_kills_and_hands_back(self, manager: Manager, start: Start, tmp_path: Path) -> None:
        daemon = start()
        manager.wait_joined()
        manager.submit("a", manager.define(mark_and_wait, manager.environment()), str(tmp_path / "m"), "/never")
        manager.wait((tmp_path / "m").exists, "the call")
        below = descendants(daemon.pid)
        assert below
        daemon.process.send_signal(signal.SIGINT)
        lost = manager.wait_said(m.CallEnded, "a").outcome
        assert isinstance(lost, Lost) and lost.started
        assert daemon.wait_gone(manager) == 0
        assert left_behind(tmp_path) == []
        assert not any(parent_of(pid) for pid in below)

    def test_stdin_eof(self, manager: Manager, start: Start, tmp_path: Path) -> None:
        daemon = start("--stdin-eof", stdin=subprocess.PIPE)
        manager.wait_joined()
        assert daemon.process.stdin is not None
        daemon.process.stdin.close()
        assert daemon.wait_gone(manager) == 0
        assert left_behind(tmp_path) == []

    def test_idle_timeout(self, manager: Manager, start: Start) -> None:
        daemon = start("--idle-timeout", "0.2")
        manager.wait_joined()
        assert daemon.wait_gone(manager) == 0
        assert manager.wait_said(m.WorkerLeaving).reason == "idle for 0.2 s"

    def test_time_limit(self, manager: Manager, start: Start) -> None:
        daemon = start("--time-limit", "8s")  # within which it has started, on whatever machine
        hello = manager.wait_joined()
        assert hello.offer.wall_time is not None and hello.offer.wall_time <= 8.0
        assert daemon.wait_gone(manager) == 0
        assert manager.wait_said(m.WorkerLeaving).reason == "its allotment ends"

    def test_what_a_killed_worker_left_the_next_one_sweeps(self, manager: Manager, start: Start, tmp_path: Path) -> None:
        first = start()
        manager.wait_joined()
        manager.submit("a", manager.define(mark_and_wait, manager.environment()), str(tmp_path / "m"), "/never")
        manager.wait((tmp_path / "m").exists, "the call")
        below = descendants(first.pid)
        first.process.kill()
        first.process.wait()
        manager.wait(lambda: not any(parent_of(pid) for pid in below), "its processes to die")
        [dead] = left_behind(tmp_path)
        start()
        manager.wait_joined(2)
        manager.wait(lambda: dead not in left_behind(tmp_path), "the sweep")


def test_a_killed_template_costs_only_its_calls(manager: Manager, start: Start, tmp_path: Path) -> None:
    daemon = start()
    manager.wait_joined()
    one, two = manager.environment("one"), manager.environment("two")
    manager.submit("a", manager.define(mark_and_wait, one), str(tmp_path / "a"), "/never")
    manager.wait((tmp_path / "a").exists, "the first call")
    [template] = [pid for pid in descendants(daemon.pid) if parent_of(pid) == daemon.pid]
    manager.submit("b", manager.define(mark_and_wait, two), str(tmp_path / "b"), str(tmp_path / "go"))
    manager.wait((tmp_path / "b").exists, "the second call")
    os.kill(template, signal.SIGKILL)
    lost = manager.wait_said(m.CallEnded, "a").outcome
    assert isinstance(lost, Lost) and lost.started
    (tmp_path / "go").touch()
    assert manager.result("b") == "done"
    manager.submit("c", manager.define(add, one), 1, 2)
    assert manager.result("c") == 3


def test_a_worker_whose_directory_is_removed_ends_and_says_so(manager: Manager, start: Start, tmp_path: Path) -> None:
    daemon = start()
    manager.wait_joined()
    function = manager.define(mark_and_wait, manager.environment())
    manager.submit("a", function, str(tmp_path / "a"), "/never")
    manager.wait((tmp_path / "a").exists, "the call")
    [home] = (tmp_path / "work" / "workers").iterdir()
    shutil.rmtree(home)
    lost = manager.wait_said(m.CallEnded, "a").outcome
    assert isinstance(lost, Lost) and "was removed" in lost.reason
    daemon.wait_gone(manager)
    said = (tmp_path / "work.log").read_text()
    assert f"its work directory {home} was removed" in said and "Traceback" not in said


class TestTheManagerGoes:
    def test_a_restarted_one_hears_what_runs_and_what_ended(self, manager: Manager, start: Start, tmp_path: Path) -> None:
        start()
        manager.wait_joined()
        function = manager.define(mark_and_wait, manager.environment())
        for name in "ab":
            manager.submit(name, function, str(tmp_path / name), str(tmp_path / f"go-{name}"))
        manager.wait(lambda: (tmp_path / "a").exists() and (tmp_path / "b").exists(), "the calls")
        sandbox = Path((tmp_path / "a").read_text())
        port = manager.listener.port
        manager.close()
        (tmp_path / "go-a").touch()
        end = time.monotonic() + DEADLINE
        while (sandbox / "mine").exists():  # the first ends while nobody listens
            assert time.monotonic() < end
            time.sleep(0.01)
        again = Manager(tmp_path, port)
        try:
            assert {(r.task, r.attempt) for r in again.wait_joined().running} == {("a", 1), ("b", 1)}
            assert again.result("a") == "done"
            (tmp_path / "go-b").touch()
            assert again.result("b") == "done"
        finally:
            again.close()


class TestAtTheStart:
    def refused(self, tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "lfm", "worker", "start", *options], capture_output=True, text=True, cwd=tmp_path,
            timeout=DEADLINE, env={**os.environ, "LFM_HOME": str(tmp_path / "home")}, check=False,
        )  # fmt: skip

    def test_no_manager(self, tmp_path: Path) -> None:
        done = self.refused(tmp_path)
        assert done.returncode == 3 and "Traceback" not in done.stderr and "lfm manager start" in done.stderr

    def test_a_wrong_key(self, manager: Manager, tmp_path: Path) -> None:
        public, secret = (key.decode() for key in zmq.curve_keypair())
        file = json.loads(manager.run.connection_file("worker").read_text())
        path = tmp_path / "forged.json"
        path.touch(0o600)
        path.write_text(json.dumps(file | {"public_key": public, "secret_key": secret}))
        process = subprocess.Popen(
            [sys.executable, "-m", "lfm", "worker", "start", "--connect", path, "--work-dir", tmp_path / "work"],
            stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        )  # fmt: skip
        manager.wait(lambda: process.poll() is not None, "the refusal")
        _, said = process.communicate()
        assert process.returncode == 3 and "does not know this key" in said and "Traceback" not in said
        assert left_behind(tmp_path) == []

    def test_a_place_that_others_can_read(self, manager: Manager, tmp_path: Path) -> None:
        place = tmp_path / "open"
        place.mkdir()
        place.chmod(0o755)
        done = self.refused(tmp_path, "--connect", str(manager.run.connection_file("worker")), "--work-dir", str(place))
        assert done.returncode == 1 and f"chmod 700 {place}" in done.stderr
        assert place.stat().st_mode & 0o777 == 0o755

    def test_detect_says_how(self, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "lfm", "worker", "detect", "--json"]
        said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout)
        assert said["schema"] == "lfm.detect/1"
        assert said["offer"]["cores"] <= len(os.sched_getaffinity(0))
        assert {f["source"] for f in said["found"]["cores"]} >= {"affinity", "CPUs of the node"}


def test_an_idle_worker_uses_no_cpu(manager: Manager, start: Start) -> None:
    daemon = start()
    manager.wait_joined()
    manager.submit("a", manager.define(add, manager.environment()), 1, 1)
    manager.result("a")

    def spent(seconds: float) -> float:
        before, end = cpu_seconds(daemon.pid), time.monotonic() + seconds
        manager.wait(lambda: time.monotonic() > end, "the clock")
        return cpu_seconds(daemon.pid) - before

    manager.wait(lambda: spent(3.0) <= 0.1, "it to come to rest")
