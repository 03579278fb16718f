"""Dialer and Listener over real sockets: keys, roles, cuts, restarts, dead processes."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import pytest
import zmq

from lfm.connection import Dialer, Joined, Left, Listener, Said
from lfm.errors import ConnectionFailed, ProtocolError
from lfm.protocol import messages as m
from lfm.protocol.codec import encode
from lfm.protocol.ids import PeerId
from lfm.protocol.link import Link
from lfm.run import ConnectionFile, RunDirectory, find_run

pytestmark = pytest.mark.process
DEADLINE = 60.0


class Pair:
    """A listener and its dialers, driven by the test's own thread."""

    def __init__(self, run: RunDirectory, port: int = 0, lease: float = 60.0) -> None:
        self.run = run
        self.listener = Listener(run, ["127.0.0.1"], [port], lease=lease)
        run.publish([f"tcp://127.0.0.1:{self.listener.port}"])
        self.news: list[Joined | Said | Left] = []
        self.heard: list[m.Message] = []

    @property
    def peer(self) -> PeerId:
        return next(n.peer for n in self.news if isinstance(n, Joined))

    def spin(self, *dialers: Dialer, until: Callable[[], bool]) -> list[m.Message]:
        self.heard = []
        poller = zmq.Poller()
        self.listener.register(poller)
        for dialer in dialers:
            dialer.register(poller)
        end = time.monotonic() + DEADLINE
        while not until():
            assert time.monotonic() < end, f"waited in vain; {self.news[-5:]} {self.heard[-5:]}"
            poller.poll(20)
            self.news += self.listener.receive()
            self.news += self.listener.tick()
            self.listener.flush()
            for dialer in dialers:
                self.heard += dialer.receive()
                dialer.tick()
        return self.heard

    def connect(self, file: ConnectionFile, hello: m.Hello, timeout: float = DEADLINE) -> Dialer:
        """Answer in a thread while the dialer blocks in connect()."""
        dialer = Dialer(file, lambda: hello)
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                self.news += self.listener.receive()
                self.listener.flush()
                stop.wait(0.005)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            dialer.connect(timeout)
        finally:
            stop.set()
            thread.join()
        return dialer


class Relay:
    """A TCP relay between dialer and listener that can cut."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.open: list[socket.socket] = []
        self.threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, work: Callable[..., None], *args: socket.socket) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self.threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.server.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self.target))
            self.open += [near, far]
            self._start(self._copy, near, far)
            self._start(self._copy, far, near)

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass

    def cut(self) -> None:
        reset_when_closed = b"\x01\0\0\0\0\0\0\0"
        for one in self.open:
            try:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset_when_closed)
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            one.close()
        self.open.clear()

    def close(self) -> None:
        self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        self.cut()
        for thread in self.threads:
            thread.join(DEADLINE)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(RunDirectory.create(tmp_path / "run", "test"))
    yield made
    made.listener.close()


def client_hello(session: str = "s") -> m.ClientHello:
    return m.ClientHello(session, "user", "elsewhere", 0)


def test_both_ways_and_goodbye(pair: Pair) -> None:
    dialer = pair.connect(find_run(pair.run.path, "client"), client_hello())
    assert pair.news == [Joined(pair.peer, "client", client_hello())]
    for number in range(1000):
        dialer.send(m.Query(number, "status"))
        pair.listener.send(pair.peer, m.Answer(number, {"a": number}))
    dialer.flush()
    heard = pair.spin(dialer, until=lambda: len(pair.heard) >= 1000 and len(pair.news) >= 1001)
    assert heard == [m.Answer(n, {"a": n}) for n in range(1000)]
    assert pair.news[1:] == [Said(pair.peer, m.Query(n, "status")) for n in range(1000)]
    dialer.close(goodbye=True)
    pair.spin(until=lambda: isinstance(pair.news[-1], Left))


def test_unknown_key(pair: Pair) -> None:
    public, secret = (key.decode() for key in zmq.curve_keypair())
    file = dataclasses.replace(find_run(pair.run.path, "client"), public_key=public, secret_key=secret)
    with pytest.raises(ConnectionFailed, match="does not know this key"):
        pair.connect(file, client_hello())
    assert pair.news == []
    assert pair.listener.refusals.total > 0


@pytest.mark.parametrize("which", ["server_key", "secret_key"])
def test_keys_that_do_not_fit(pair: Pair, which: str) -> None:
    wrong = zmq.curve_keypair()[which == "secret_key"].decode()
    file = dataclasses.replace(find_run(pair.run.path, "client"), **{which: wrong})
    with pytest.raises(ConnectionFailed, match="has not the keys of this connection file"):
        pair.connect(file, client_hello())
    assert pair.news == []


def test_a_worker_key_cannot_submit(pair: Pair) -> None:
    with pytest.raises(ProtocolError, match="key is for a worker"):
        pair.connect(find_run(pair.run.path, "worker"), client_hello())


def test_a_viewer_can_only_look(pair: Pair) -> None:
    dialer = pair.connect(find_run(pair.run.path, "viewer"), m.ViewerHello("v"))
    dialer.send(m.Kill((m.TaskId("s-1"),)))
    dialer.flush()
    with pytest.raises(ProtocolError, match="viewer may not say Kill"):
        pair.spin(dialer, until=lambda: False)
    dialer.close()
    assert [type(n) for n in pair.news] == [Joined, Left]


def test_another_version_is_told(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    import msgpack

    real = msgpack.packb
    monkeypatch.setattr(
        "lfm.protocol.dialing.msgpack.packb",
        lambda value, **kw: real({**value, "version": 99} if isinstance(value, dict) else value, **kw),
    )
    with pytest.raises(ProtocolError, match="install the same version"):
        pair.connect(find_run(pair.run.path, "client"), client_hello())


def test_no_manager(pair: Pair) -> None:
    file = dataclasses.replace(find_run(pair.run.path, "client"), addresses=("tcp://127.0.0.1:1",))
    with pytest.raises(ConnectionFailed, match="no manager answers at"):
        pair.connect(file, client_hello(), timeout=0.5)


def test_the_address_that_answers_is_taken(pair: Pair) -> None:
    file = find_run(pair.run.path, "client")
    file = dataclasses.replace(file, addresses=("tcp://127.0.0.1:1", *file.addresses))
    pair.connect(file, client_hello()).close()


def test_nothing_is_lost_or_doubled_over_cuts(pair: Pair) -> None:
    relay = Relay(pair.listener.port)
    file = dataclasses.replace(find_run(pair.run.path, "client"), addresses=(f"tcp://127.0.0.1:{relay.port}",))
    dialer = pair.connect(file, client_hello())
    for number in range(900):
        dialer.send(m.Query(number, "x" * 300))
        pair.listener.send(pair.peer, m.Answer(number, "y" * 300))
        if number % 300 == 150:
            dialer.flush()
            relay.cut()
    dialer.flush()
    pair.spin(dialer, until=lambda: len(pair.heard) >= 900 and len(pair.news) >= 901)
    assert [a.number for a in pair.heard if isinstance(a, m.Answer)] == list(range(900))
    assert [n.message.number for n in pair.news if isinstance(n, Said)] == list(range(900))  # type: ignore[union-attr]
    assert sum(isinstance(n, Joined) for n in pair.news) == 1
    dialer.close()
    relay.close()


def test_a_restarted_manager_says_that_it_forgot(pair: Pair) -> None:
    dialer = pair.connect(find_run(pair.run.path, "client"), client_hello())
    port = pair.listener.port
    pair.listener.close()
    end = time.monotonic() + DEADLINE
    while dialer.lost_since is None:  # noticed when the connection closes, not after a silence
        assert time.monotonic() < end
        assert dialer.receive() == []
    dialer.send(m.Query(1, "lost with the old manager"))
    again = Pair(pair.run, port)
    pair.listener = again.listener
    pair.news.clear()
    heard = pair.spin(dialer, until=lambda: any(isinstance(h, m.Welcome) for h in pair.heard))
    assert [h.resumed for h in heard if isinstance(h, m.Welcome)] == [False]
    dialer.send(m.Query(2, "said again"))
    dialer.flush()
    pair.spin(dialer, until=lambda: len(pair.news) >= 2)
    assert [n.message.number for n in pair.news if isinstance(n, Said)] == [2]  # type: ignore[union-attr]
    dialer.close()


def test_a_dead_process_is_noticed_at_once_though_nobody_has_waited_for_it(pair: Pair) -> None:
    code = (
        "import os, socket, sys, time; from lfm.connection import Dialer; from lfm.protocol import messages as m\n"
        "from lfm.run import find_run\n"
        "hello = m.ClientHello('c', 'u', socket.gethostname(), os.getpid())\n"
        "d = Dialer(find_run(sys.argv[1], 'client'), lambda: hello)\n"
        "d.connect(60); print('up', flush=True); time.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(pair.run.path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    try:
        pair.spin(until=lambda: any(isinstance(n, Joined) for n in pair.news))
        assert child.stdout.readline() == b"up\n"
        os.kill(child.pid, signal.SIGKILL)  # and nobody waits for it
        pair.spin(until=lambda: isinstance(pair.news[-1], Left))
        assert pair.news[-1] == Left(pair.peer, "its process ended", sure=True)
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_who_is_dismissed_hears_why_before_the_connection_is_closed(pair: Pair) -> None:
    dialer = pair.connect(find_run(pair.run.path, "client"), client_hello())
    parting = threading.Thread(target=pair.listener.dismiss, args=("the house burns", 60.0))
    parting.start()
    try:
        end = time.monotonic() + 60
        with pytest.raises(ProtocolError, match="the house burns"):
            while time.monotonic() < end:
                dialer.receive()
                time.sleep(0.01)
        assert parting.is_alive()  # until the last one has gone
    finally:
        dialer.close()
        parting.join(100)
    assert time.monotonic() < end and not parting.is_alive()


def test_the_end_of_a_lease_is_seen_when_it_comes(tmp_path: Path) -> None:
    lease = 3.1
    pair = Pair(RunDirectory.create(tmp_path / "run", "test"), lease=lease)
    dialer = pair.connect(find_run(pair.run.path, "client"), client_hello())  # says nothing from now on
    joined = time.monotonic()
    listener = pair.listener
    ends: list[Left] = []
    while not ends:
        due = listener.deadline()
        assert due < joined + lease, "it looks only after the lease has ended"
        while time.monotonic() < due:
            time.sleep(max(0.0, due - time.monotonic()))
        news = [*listener.receive(), *listener.tick()]
        ends = [n for n in news if isinstance(n, Left)]
        if time.monotonic() - due > 0.9:
            break  # the machine was away, which is forgiven
    assert all(end == Left(pair.peer, "silent for 3 s") for end in ends)
    dialer.close()
    listener.close()


def test_who_is_silent_is_asked_though_others_come_and_go(tmp_path: Path) -> None:
    """After each connection that closes every peer is probed; that is no question, and must not stand for one."""
    run = RunDirectory.create(tmp_path / "run", "r")
    pair = Pair(run, lease=4.0)
    quiet = pair.connect(ConnectionFile.read(run.path / "client.json"), m.ClientHello("s", "me", "elsewhere", 1))
    began = time.monotonic()
    while time.monotonic() - began < 6.0:
        look = Dialer(ConnectionFile.read(run.path / "viewer.json"), lambda: m.ViewerHello(f"v{time.monotonic()}"))
        look._dial()
        pair.spin(look, quiet, until=lambda look=look: look._session.welcomed)  # type: ignore[misc]
        look.close(goodbye=True)
        until = time.monotonic() + 0.2
        pair.spin(quiet, until=lambda until=until: time.monotonic() > until)  # type: ignore[misc]
    assert not [n for n in pair.news if isinstance(n, Left) and "goodbye" not in n.reason]
    quiet.close()
    pair.listener.close()


def test_a_listener_that_was_away_itself_blames_nobody(tmp_path: Path) -> None:
    pair = Pair(RunDirectory.create(tmp_path / "run", "test"), lease=2.0)
    dialer = pair.connect(find_run(pair.run.path, "client"), client_hello())
    time.sleep(4.0)  # as if it had been stopped
    assert pair.listener.tick() == []
    dialer.send(m.Query(1, "still here"))
    dialer.flush()
    pair.spin(dialer, until=lambda: isinstance(pair.news[-1], Said))
    assert [type(n) for n in pair.news] == [Joined, Said]
    dialer.close()
    pair.listener.close()


def test_who_is_asked_twice_who_it_is_joins_once(pair: Pair) -> None:
    """Each packet that comes before the hello is answered by "say hello"; what follows the first welcome must not be lost by the second."""
    file = find_run(pair.run.path, "client")
    context = zmq.Context()
    hasty = context.socket(zmq.DEALER)
    hasty.curve_serverkey = file.server_key.encode()
    hasty.curve_publickey, hasty.curve_secretkey = file.public_key.encode(), file.secret_key.encode()
    hasty.connect(file.addresses[0])
    facts = {"version": m.VERSION, "session": "s", "epoch": "", "received": 0}
    hello = [b"H", msgpack.packb(facts), encode(client_hello())]
    hasty.send_multipart(hello)
    hasty.send_multipart(hello)
    link = Link()
    link.push(encode(m.Query(1, "after both")))
    for packet in link.packets():
        hasty.send_multipart(packet)
    pair.spin(until=lambda: any(isinstance(n, Said) for n in pair.news))
    assert [type(n) for n in pair.news] == [Joined, Said]
    assert hasty.recv_multipart()[0] == b"W"
    hasty.close(0)
    context.term()


def test_random_packets_harm_nobody(pair: Pair) -> None:
    dialer = pair.connect(find_run(pair.run.path, "client"), client_hello())
    file = find_run(pair.run.path, "client")
    context = zmq.Context()
    stranger = context.socket(zmq.DEALER)
    stranger.curve_serverkey = file.server_key.encode()
    stranger.curve_publickey, stranger.curve_secretkey = file.public_key.encode(), file.secret_key.encode()
    stranger.connect(file.addresses[0])
    broken = ([b""], [b"H"], [b"H", b"\xc1"], [b"H", b"\x80", b""], [bytes(17), b"x"], [b"D" + bytes(16), b"junk"], [b"B"])
    for packet in broken:
        stranger.send_multipart(packet)
    dialer.send(m.Query(1, "still here"))
    dialer.flush()
    pair.spin(dialer, until=lambda: any(isinstance(n, Said) for n in pair.news) and pair.listener.refusals.total >= 2)
    assert [type(n) for n in pair.news] == [Joined, Said]
    stranger.close(0)
    context.term()
    dialer.close()
