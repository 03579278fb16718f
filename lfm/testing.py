"""What lfm's tests use, and users' may: a cluster on this machine, and a manager that is none.

``LocalCluster`` starts the real commands on loopback.  ``FakeManager`` speaks the protocol from a thread of
this process and runs calls in threads, unmeasured: for tests of what talks to a manager.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfm.connection import Joined, Left, Listener, Said
from lfm.monitor import payload
from lfm.protocol import messages as m
from lfm.protocol import outcomes as o
from lfm.protocol.ids import Digest, FunctionId, PeerId, TaskId
from lfm.protocol.resources import Resources, Usage
from lfm.run import ConnectionFile, RunDirectory

if TYPE_CHECKING:
    from lfm.executor import Executor

DEADLINE = 60.0  # seconds within which what is waited for happens, or the test has failed


def wait_until(condition: Callable[[], Any], what: str = "", deadline: float = DEADLINE) -> Any:
    """The condition's first true value.  TimeoutError after ``deadline`` seconds."""
    end = time.monotonic() + deadline
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {deadline:.0f} s in vain for {what or condition}")
        time.sleep(0.01)
    return value


class LocalCluster:
    """A manager and workers as processes of this machine, with a home of their own.  A context manager.

    They end with ``stop``, or when this process does.  ``environ`` is added to theirs.
    """

    def __init__(
        self, workers: int = 1, *, cores: float = 1, memory: str | int = "1GB", name: str = "local",
        manager: tuple[str, ...] = (), environ: Mapping[str, str] | None = None,
    ) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="lfm-cluster-"))
        self.environ = {**os.environ, "LFM_HOME": str(self.home), **(environ or {})}
        self.environ.pop("LFM_RUN", None)
        self.run = self.home / "runs" / name
        self._offer = ("--cores", f"{cores:g}", "--memory", str(memory))
        self._manager_arguments = ("--name", name, *manager)
        self.manager: subprocess.Popen[bytes] | None = None
        self.workers: list[subprocess.Popen[bytes]] = []
        try:
            self.start_manager()
            for _ in range(workers):
                self.start_worker()
        except BaseException:
            self.stop()
            raise

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.home / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "lfm", *arguments], env=self.environ, stdin=subprocess.PIPE,
                stdout=log, stderr=log, start_new_session=True, bufsize=0,
            )  # fmt: skip

    @property
    def log(self) -> str:
        """What manager and workers have written."""
        return (self.home / "log").read_text(errors="replace")

    def start_manager(self) -> ConnectionFile:
        """The manager, or it again, on the same run directory; waits until it can be reached."""
        manager = self.manager = self._start("manager", "start", *self._manager_arguments, "--stdin-eof")
        file = self.run / "client.json"

        def published() -> bool:
            if manager.poll() is not None:
                raise RuntimeError(f"the manager ended with {manager.returncode}:\n{self.log}")
            return file.exists() and ConnectionFile.read(file).pid == manager.pid

        wait_until(published, "the manager's address")
        return ConnectionFile.read(file)

    def start_worker(self, *arguments: str) -> subprocess.Popen[bytes]:
        """One worker more; what is said here comes after, and over, the cluster's offer."""
        worker = self._start("worker", "start", "--run", str(self.run), "--stdin-eof", *self._offer, *arguments)
        self.workers.append(worker)
        return worker

    def command(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """``lfm ARGUMENTS`` with this cluster as its run."""
        return subprocess.run(
            [sys.executable, "-m", "lfm", *arguments], env={**self.environ, "LFM_RUN": str(self.run)},
            capture_output=True, text=True, check=check, timeout=DEADLINE,
        )  # fmt: skip

    def executor(self) -> Executor:
        """A client of this cluster."""
        from lfm.executor import Executor

        return Executor(self.run)

    def stop(self) -> None:
        """End everything and remove the home."""
        processes = [*self.workers, *([self.manager] if self.manager else [])]
        for process in processes:
            if process.stdin is not None:
                with contextlib.suppress(OSError):
                    process.stdin.close()
        end = time.monotonic() + 15.0
        for process in processes:
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.home, ignore_errors=True)

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


class FakeManager:
    """Accepts clients and runs their calls in ``slots`` threads of this process.  A context manager.

    ``hold()`` keeps calls waiting until ``let_go()``; ``submitted`` are the tasks that wait; ``end`` ends a call
    as a test says.  ``heard`` is all that clients said.  ``answers`` are its answers to questions.
    """

    def __init__(self, slots: int = 4) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="lfm-fake-"))
        self._run = RunDirectory.create(self.directory / "run", "fake")
        self._listener = Listener(self._run, ["127.0.0.1"])
        self._run.publish([f"tcp://127.0.0.1:{self._listener.port}"])
        self.run = self._run.path
        self.slots = slots
        self.heard: list[m.Message] = []
        self.answers: dict[str, Any] = {}
        self.submitted: dict[TaskId, m.Submit] = {}
        self._peers: dict[TaskId, PeerId] = {}
        self._client: PeerId | None = None
        self._functions: dict[FunctionId, m.DeclareFunction] = {}
        self._holding = False
        self._words: deque[Callable[[], None]] = deque()
        self._wake_out, self._wake_in = os.pipe()
        self._blobs = _Blobs(self)
        self._pool = ThreadPoolExecutor(slots, thread_name_prefix="fake-call")
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name="fake-manager")
        self._thread.start()

    # -- for the test

    def hold(self) -> None:
        self._holding = True

    def let_go(self) -> None:
        self._holding = False

        def run_all() -> None:
            for task in list(self.submitted):
                self._run_call(task)

        self.later(run_all)

    def wait_submitted(self, count: int) -> list[TaskId]:
        """The ids of the calls that wait, once they are ``count``."""
        wait_until(lambda: len(self.submitted) >= count, f"{count} calls")
        return list(self.submitted)

    def start(self, task: TaskId) -> None:
        """Say that a call runs."""
        self.later(lambda: self.say(m.Started(task, 1, "fake-worker", Resources(memory=10**6)), self._peers[task]))

    def end(self, task: TaskId, outcome: o.Outcome, stderr: bytes = b"") -> None:
        """Say how a call ended."""
        self.submitted.pop(task, None)
        self.later(lambda: self.say(_finished(task, outcome, 0.0, stderr), self._peers[task]))

    def tell(self, message: m.Message) -> None:
        """Say something to the client that came last."""
        self.later(lambda: self.say(message))

    def say(self, message: m.Message, peer: PeerId | None = None) -> None:
        """From the manager's thread only: see ``later``."""
        to = peer if peer is not None else self._client
        assert to is not None, "no client has come yet"
        self._listener.send(to, message)

    def later(self, word: Callable[[], None]) -> None:
        """Do something in the manager's thread."""
        self._words.append(word)
        os.write(self._wake_in, b"\0")

    def stop(self, withdraw: bool = True) -> None:
        """End it, without a word to its clients."""
        if not self._stopping:
            self._stopping = True
            os.write(self._wake_in, b"\0")
            self._thread.join()
            self._pool.shutdown(wait=True, cancel_futures=True)
            os.close(self._wake_in)
            os.close(self._wake_out)
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> FakeManager:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    # -- its thread

    def _loop(self) -> None:
        import zmq

        poller = zmq.Poller()
        self._listener.register(poller)
        poller.register(self._wake_out, zmq.POLLIN)
        while not self._stopping:
            if any(one == self._wake_out for one, _ in poller.poll(100)):
                os.read(self._wake_out, 4096)
            while self._words:
                self._words.popleft()()
            for news in [*self._listener.receive(), *self._listener.tick()]:
                match news:
                    case Joined(peer, "client"):
                        self._client = peer
                        self.say(m.Capacity(1, self.slots, 10**9, self.slots))
                    case Said(peer, message):
                        self.heard.append(message)
                        self._hear(peer, message)
                    case Joined() | Left():
                        pass
            self._listener.flush()
        self._listener.close()

    def _hear(self, peer: PeerId, message: m.Message) -> None:
        match message:
            case m.DeclareFunction():
                self._functions[message.function] = message
            case m.Submit():
                self._peers[message.task] = peer
                self.submitted[message.task] = message
                if not self._holding:
                    self._run_call(message.task)
            case m.Kill(tasks):
                for task in tasks:
                    if self.submitted.pop(task, None) is not None:
                        self.say(_finished(task, o.Killed(), 0.0), peer)
            case m.Query(number, what):
                self.say(m.Answer(number, self.answers.get(what, {"error": f"no answer to {what!r}"})), peer)
            case m.FetchBlob() | m.BlobChunk() | m.BlobMissing():
                self._blobs.hear(peer, message)
            case _:
                pass

    def _run_call(self, task: TaskId) -> None:
        submit, peer = self.submitted.pop(task), self._peers[task]
        code = self._functions[submit.function].code

        def ready() -> None:
            self.say(m.Started(task, 1, "fake-worker", Resources()), peer)
            self._pool.submit(call)

        def call() -> None:
            begun = time.monotonic()
            outcome = self._blobs.perform(code, submit)
            finished = _finished(task, outcome, time.monotonic() - begun)
            self.later(lambda: self.say(finished, peer))

        wanted = [b for b in (code, submit.arguments, *submit.blobs) if isinstance(b, o.Blob)]
        self._blobs.pull(peer, wanted, ready)


class _Blobs:
    """The fake's transfers, both ways, in memory; and calls, which need them."""

    def __init__(self, fake: FakeManager) -> None:
        self._fake = fake
        self._content: dict[Digest, bytes] = {}
        self._coming: dict[Digest, bytearray] = {}
        self._waiting: list[tuple[set[Digest], Callable[[], None]]] = []

    def pull(self, peer: PeerId, blobs: list[o.Blob], ready: Callable[[], None]) -> None:
        missing = {b.digest for b in blobs if b.digest not in self._content}
        for blob in blobs:
            if blob.digest in missing and blob.digest not in self._coming:
                self._coming[blob.digest] = bytearray()
                for at in range(0, blob.size, m.CHUNK):
                    self._fake.say(m.FetchBlob(blob.digest, at, min(m.CHUNK, blob.size - at)), peer)
        if missing:
            self._waiting.append((missing, ready))
        else:
            ready()

    def hear(self, peer: PeerId, message: m.FetchBlob | m.BlobChunk | m.BlobMissing) -> None:
        match message:
            case m.FetchBlob(digest, offset, length):
                data = self._content[digest]
                self._fake.say(m.BlobChunk(digest, offset, len(data), data[offset : offset + length]), peer)
            case m.BlobChunk(digest, _, size, data):
                self._coming[digest] += data
                if len(self._coming[digest]) == size:
                    self._content[digest] = bytes(self._coming.pop(digest))
                    self._tell(digest)
            case m.BlobMissing(digest, reason):
                raise AssertionError(f"the client does not have {digest}: {reason}")

    def _tell(self, digest: Digest) -> None:
        for missing, ready in [*self._waiting]:
            missing.discard(digest)
            if not missing:
                self._waiting.remove((missing, ready))
                ready()

    def _open(self, data: o.Payload) -> Any:
        content = data.data if isinstance(data, o.Inline) else self._content[data.digest]
        return payload.unpack(bytearray(content), lambda name: payload.unpack(bytearray(self._content[Digest(name[1])])))

    def perform(self, code: o.Payload, submit: m.Submit) -> o.Outcome:
        """Run a call right here."""
        import cloudpickle

        from lfm.blobs import digest_of

        stage = "load"
        try:
            function, arguments = self._open(code), self._open(submit.arguments)
            stage = "call"
            if submit.chunk:
                value: Any = [function(*args, **kwargs) for args, kwargs in arguments]
            else:
                value = function(*arguments[0], **arguments[1])
            del arguments
            stage = "dump"
            data = b"".join(payload.pack(value, cloudpickle.dumps))
        except BaseException as error:
            text = "".join(traceback.format_exception(error))
            try:
                pickled: o.Payload | None = o.Inline(b"".join(payload.pack(error, cloudpickle.dumps)))
            except Exception:
                pickled = None
            return o.Raised(pickled, type(error).__qualname__, str(error), text, stage)
        if len(data) <= o.INLINE_LIMIT:
            return o.Returned(o.Inline(data))
        digest = digest_of([data])
        self._content[digest] = data
        return o.Returned(o.Blob(digest, len(data)))


def _finished(task: TaskId, outcome: o.Outcome, wall_s: float, stderr: bytes = b"") -> m.Finished:
    usage, allocation = Usage(wall_s=wall_s), Resources()
    now = time.time()
    attempt = o.Attempt(1, "fake-worker", "fakehost", allocation, usage, now - wall_s, now, o.outcome_name(outcome))
    return m.Finished(task, outcome, usage, allocation, (attempt,), b"", stderr)
