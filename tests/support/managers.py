"""A real manager process on loopback, and peers that speak the protocol from the test's own thread."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import zmq

from lfm.connection import Dialer
from lfm.errors import ConnectionFailed
from lfm.protocol import messages as m
from lfm.protocol.ids import Digest, EnvironmentKey, FunctionId, TaskId
from lfm.protocol.outcomes import Inline, Returned
from lfm.protocol.resources import Request, Resources, Usage
from lfm.run import ConnectionFile

T = TypeVar("T")
DEADLINE = 60.0  # seconds: generous, for a loaded machine
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
