"""Peers that are broken or mean no good: refused, counted, named once, and nobody else notices."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator

import msgpack
import pytest
import zmq
from managers import Cluster, Peer, run_one, submit

from lfm.errors import ProtocolError
from lfm.protocol import messages as m
from lfm.protocol.codec import encode
from lfm.protocol.ids import Digest, TaskId
from lfm.protocol.link import DATA, HEADER
from lfm.protocol.outcomes import Inline, Returned
from lfm.protocol.resources import Expected, Request, Resources, Usage
from lfm.run import ConnectionFile
from lfm.testing import wait_until

pytestmark = pytest.mark.process
NAN = float("nan")


@pytest.fixture
def cluster(cluster: Cluster) -> Cluster:
    cluster.start()
    return cluster


class Stranger:
    """A bare socket with a key of our choice."""

    def __init__(self, file: ConnectionFile, public: str = "", secret: str = "") -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.curve_serverkey = file.server_key.encode()
        self.socket.curve_publickey = (public or file.public_key).encode()
        self.socket.curve_secretkey = (secret or file.secret_key).encode()
        self.socket.connect(file.addresses[0])

    def hello(self, hello: m.ClientHello | m.WorkerHello, version: int = m.VERSION, received: object = 0) -> list[bytes]:
        facts = {"version": version, "session": hello.session, "epoch": "", "received": received}
        return [b"H", msgpack.packb(facts), encode(hello)]

    def close(self) -> None:
        self.socket.close(0)
        self.context.term()


@pytest.fixture
def stranger(cluster: Cluster) -> Iterator[Callable[..., Stranger]]:
    file, made = ConnectionFile.read(cluster.run / "client.json"), list[Stranger]()

    def make(*keys: str) -> Stranger:
        made.append(Stranger(file, *keys))
        return made[-1]

    yield make
    for one in made:
        one.close()


def refused(viewer: Peer) -> int:
    return int(viewer.ask("info")["refused_packets"])  # type: ignore[call-overload]


def works(cluster: Cluster, number: int) -> None:
    """A call goes through."""
    client, worker = cluster.client(f"good{number}"), cluster.worker(f"good{number}")
    client.say(submit(number))
    run_one(worker)
    client.wait(m.Finished)
    client.dialer.close(goodbye=True)
    worker.dialer.close(goodbye=True)


def test_strangers_are_counted_and_named_once(cluster: Cluster, stranger: Callable[..., Stranger]) -> None:
    viewer, file = cluster.viewer(), ConnectionFile.read(cluster.run / "client.json")
    where = file.addresses[0].removeprefix("tcp://").rsplit(":", 1)
    for _ in range(3):  # no ZeroMQ at all
        with socket.create_connection((where[0], int(where[1]))) as raw:
            raw.sendall(os.urandom(300))
            raw.settimeout(60)
            with contextlib.suppress(ConnectionResetError):
                while raw.recv(4096):
                    pass
    public, secret = (key.decode() for key in zmq.curve_keypair())
    stranger(public, secret)
    wait_until(lambda: refused(viewer) >= 1, "the refusal of a key")
    hello = m.ClientHello("x", "me", "elsewhere", 1)
    ours = stranger()
    packets = [
        ours.hello(hello, version=1), ours.hello(hello, received=1e400), ours.hello(hello, received=10**12),
        [b"H"], [b"H", b"\xc1"], [b"H", b"\x93\x01\x02", b""], [b"H", msgpack.packb({"version": [], "session": {}}), b""],
        ours.hello(hello)[:2], [*ours.hello(hello)[:2], b"junk"],
        ours.hello(m.WorkerHello("w", "w", "here", 1, Resources())),  # the key of another role
    ]
    before = refused(viewer)
    for packet in packets * 20:
        ours.socket.send_multipart(packet)
    wait_until(lambda: refused(viewer) >= before + 9 * 20, "the refusals")
    works(cluster, 1)
    log = (cluster.run / "log").read_text().splitlines()
    assert len([line for line in log if "refused" in line]) < 40, log
    assert "Traceback" not in "\n".join(log)


def test_after_a_hello_nonsense_ends_that_session_alone(cluster: Cluster, stranger: Callable[..., Stranger]) -> None:
    viewer = cluster.viewer()
    frames = [encode(m.Cancel((TaskId("s-1"),)))]
    packets = [
        [HEADER.pack(DATA, 1, 10**9), *frames], [HEADER.pack(DATA, 1, 0), frames[0][:-1]], [HEADER.pack(DATA, 1, 0), os.urandom(50)],
        [HEADER.pack(b"M", 1, 0) + b"\xff\xff\xff\xff"], [HEADER.pack(b"M", 1, 0), b"\0\0\0\0"], [HEADER.pack(b"S", 1, 0), *frames],
        [HEADER.pack(b"S", 1, 0)], [HEADER.pack(b"Z", 1, 0)], [b"D"], [HEADER.pack(DATA, 1, 0), b"\x91" * 5000],
        [HEADER.pack(DATA, 1, 0), encode(m.CallStarted(TaskId("s-1"), 1))],
    ]
    for number, packet in enumerate(packets):
        before, one = refused(viewer), stranger()
        one.socket.send_multipart(one.hello(m.ClientHello(f"x{number}", "me", "elsewhere", 1)))
        one.socket.send_multipart(packet)
        wait_until(lambda before=before: refused(viewer) > before, f"the refusal of {packet}")
    replayed = stranger()
    replayed.socket.send_multipart(replayed.hello(m.ClientHello("r", "me", "elsewhere", 1)))
    for _ in range(1000):  # taken once, and then known
        replayed.socket.send_multipart([HEADER.pack(DATA, 1, 0), encode(m.Query(1, "status"))])
    for number in range(500):  # one connection has one session, whatever it calls itself
        replayed.socket.send_multipart(replayed.hello(m.ClientHello(f"many{number}", "me", "elsewhere", 1)))
    works(cluster, 2)
    # who just said goodbye is heard on another connection than the question
    wait_until(lambda: sum(c["connected"] for c in viewer.ask("status")["clients"]) == 1, "the only one to be left")  # type: ignore[attr-defined]


@pytest.mark.parametrize("offer", [Resources(NAN), Resources(-1), Resources(1, -5), Resources(1, 1, 1 << 63), Resources(float("inf"))])
def test_a_worker_that_offers_what_cannot_be_is_refused(cluster: Cluster, offer: Resources) -> None:
    with pytest.raises(ProtocolError, match="nobody has"):
        peer = cluster._peer("worker", m.WorkerHello("w", "w", "elsewhere", 1, offer))
        peer.wait(m.Run)
    assert cluster.viewer().ask("workers")["workers"] == []


def test_what_cannot_be_ends_the_session_of_who_says_it(cluster: Cluster) -> None:
    said = [
        m.Submit(TaskId("s-1"), submit(1).function, Inline(b""), Request(cores=NAN)),
        m.Submit(TaskId("s-1"), submit(1).function, Inline(b""), Request(wall_time=float("inf"))),
        m.Submit(TaskId("s-1"), submit(1).function, Inline(b""), Request(expect=Expected(cores=NAN))),
        m.Submit(TaskId("s-1"), submit(1).function, Inline(b""), Request(expect=Expected(wall_time=float("inf")))),
        m.Submit(TaskId("s-1"), submit(1).function, Inline(b""), Request(), priority=NAN),
        m.Submit(TaskId("s-1"), submit(1).function, Inline(b""), Request(), retries=-1),
        m.FetchBlob(Digest("a" * 64), 1 << 63, 10), m.FetchBlob(Digest("a" * 64), 0, -1),
    ]
    for number, message in enumerate(said):
        client = cluster.client(f"s{number}")
        client.say(message)
        with pytest.raises(ProtocolError, match="refused"):
            client.wait(m.Finished)
    asked = cluster.client("asks")
    assert "not understood" in str(asked.ask("tasks", limit=float("inf"))["error"])
    works(cluster, 3)


def test_a_value_counts_though_its_measurement_is_none(cluster: Cluster) -> None:
    client, worker = cluster.client(), cluster.worker()
    client.say(submit(0))
    run = worker.wait(m.Run)
    worker.say(m.CallEnded(run.task, run.attempt, Returned(Inline(b"v")), Usage(wall_s=NAN, memory=-1)))
    finished = client.wait(m.Finished)
    assert finished.outcome == Returned(Inline(b"v")) and finished.usage is None
