"""Hostile frames against the codec, the link and a live manager, which serves honest peers meanwhile.

``LFM_FRAMES`` is how many in all (``make soak FRAMES=1000000``): half of them for the codec, half for the manager.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import msgpack
import pytest
import zmq
from managers import ENV, Cluster, Peer, run_one, submit

from lfm.connection.tuning import MAX_FRAME
from lfm.errors import ProtocolError
from lfm.protocol import messages as m
from lfm.protocol.codec import decode, encode
from lfm.protocol.ids import Digest, FunctionId, TaskId
from lfm.protocol.link import HEADER, Link
from lfm.protocol.outcomes import Blob, Inline, Killed, Lost, Returned
from lfm.protocol.resources import Request, Resources
from lfm.run import ConnectionFile

FRAMES = int(os.environ.get("LFM_FRAMES", "100000"))
PATIENCE = 240.0  # seconds for one answer to an honest peer, on whatever machine
BATCH = 100  # frames between two looks at the sockets
pytestmark = [pytest.mark.process, pytest.mark.timeout(600 + FRAMES // 200)]

TASK, DIGEST = TaskId("s-1"), Digest("a" * 64)
TRUE: dict[str, list[m.Message]] = {  # what each role may say, about what is not so; and no client, to whom it is granted: stop
    "client": [
        m.Submit(TASK, FunctionId("unknown"), Inline(b"x" * 100), Request()), m.Release((TASK,)), m.Kill((TASK,)), m.FetchBlob(DIGEST, 0, 1 << 20),
        m.Query(1, "status", {"selection": "x"}), m.BlobChunk(DIGEST, 0, 10, b"0123456789"), m.EnvironmentNotMade(ENV, "no", "", ""),
    ],
    "worker": [
        m.CallEnded(TASK, 1, Returned(Inline(b"a lie")), None), m.CallEnded(TASK, 2, Killed(), None), m.CallEnded(TASK, 1, Lost("so"), None),
        m.CallStarted(TASK, 1), m.LimitRaised(TASK, 1, Resources(1e9, 1 << 60)), m.SeekBlob(DIGEST, 1 << 40), m.BlobSought(DIGEST, None),
        m.CallEnded(TASK, 1, Returned(Blob(DIGEST, 1 << 50)), None), m.OfferChanged(Resources(0.0)), m.FetchBlob(DIGEST, -5, 1 << 20),
    ],
    "viewer": [m.Query(1, "tasks", {"state": "done"}), m.Query(2, "cancel"), m.Query(3, "logs", {"task": "s-1"})],
}  # fmt: skip


def bent(frame: bytes, dice: Random) -> bytes:
    """A frame with something wrong: cut short, with other bytes in it, or anything."""
    how = dice.randrange(4)
    if how == 0:
        return frame[: dice.randrange(len(frame) + 1)]
    if how == 1 and frame:
        changed = bytearray(frame)
        for _ in range(dice.randint(1, 4)):
            changed[dice.randrange(len(changed))] = dice.randrange(256)
        return bytes(changed)
    if how == 2:
        return frame + dice.randbytes(dice.randrange(20))
    return dice.randbytes(dice.randrange(300))


@pytest.mark.parametrize("part", range(2))
def test_the_codec_and_the_link_refuse_what_is_bent(part: int) -> None:
    dice, link = Random(part), Link()
    samples = [encode(message) for said in TRUE.values() for message in said]
    for _ in range(FRAMES // 4):
        frame = bent(dice.choice(samples), dice)
        try:
            decode(frame)
        except ProtocolError:
            pass
        try:
            link.receive([HEADER.pack(dice.choice([b"D", b"S", b"M", b"P", b"A", b"N", b"X"]), dice.randrange(1 << 63), 0), frame])
        except ProtocolError:
            pass
    assert link.received == 0 and link.backlog == 0


class Attacker:
    """Somebody with a key of this run, or none, who says what nobody should."""

    def __init__(self, files: dict[str, ConnectionFile], dice: Random, meanwhile: Callable[[], None]) -> None:
        """``meanwhile`` lets the honest ones live on."""
        self.files, self.dice, self.meanwhile = files, dice, meanwhile
        self.context = zmq.Context()
        self.numbers = iter(range(1 << 60))
        self.sent = 0
        self.doors: dict[str, zmq.Socket[bytes]] = {}

    def socket(self, role: str, key: tuple[bytes, bytes] | None = None) -> zmq.Socket[bytes]:
        file = self.files[role]
        one = self.context.socket(zmq.DEALER)
        one.setsockopt(zmq.LINGER, 0)
        one.setsockopt(zmq.SNDHWM, 1000)
        one.curve_serverkey = file.server_key.encode()
        one.curve_publickey, one.curve_secretkey = key or (file.public_key.encode(), file.secret_key.encode())
        one.connect(file.addresses[0])
        return one

    def say(self, role: str, packets: list[list[bytes]]) -> None:
        """As fast as the manager takes it; a socket that it has shut is opened anew."""
        for packet in packets:
            door = self.doors.get(role)
            if door is None:
                door = self.doors[role] = self.socket(role)
            if not door.poll(200, zmq.POLLOUT):
                door.close()
                del self.doors[role]
                self.meanwhile()
                continue
            door.send_multipart(packet, zmq.NOBLOCK)
            self.sent += len(packet)
            if self.dice.random() < 0.5 and door.poll(0):  # of two answers it reads one, and leaves the manager with the other
                door.recv_multipart(zmq.NOBLOCK)
        self.meanwhile()

    def batch(self) -> None:
        dice = self.dice
        role = dice.choice(list(TRUE))
        kind = dice.choice([self.junk] * 6 + [self.session] * 10 + [self.again] * 3 + [self.hellos])
        self.say(role, kind(role))
        luck = dice.random()
        if luck < 0.002:
            self.wrong_key()
        elif luck < 0.004:
            self.raw()
        elif luck < 0.0045:
            self.say(role, [[b"H", bytes(MAX_FRAME + 1)]])
        elif luck < 0.01 and role in self.doors:
            self.doors.pop(role).close()

    def hello(self, role: str) -> list[bytes]:
        name = f"fuzz-{next(self.numbers)}"
        hello: m.Hello = {
            "client": m.ClientHello(name, "eve", "nowhere", 1), "viewer": m.ViewerHello(name),
            "worker": m.WorkerHello(name, name, "nowhere", 1, Resources(0.0)),
        }[role]  # fmt: skip
        return [b"H", msgpack.packb({"version": m.VERSION, "session": name, "epoch": "", "received": 0}), encode(hello)]

    def junk(self, role: str) -> list[list[bytes]]:
        dice = self.dice
        heads = [b"", b"H", b"W", b"R", b"?", b"D", b"M", HEADER.pack(b"D", 1, 0), HEADER.pack(b"S", 1, 0), HEADER.pack(b"M", 1 << 62, 1 << 62)]
        return [[dice.choice(heads), *(dice.randbytes(dice.randrange(200)) for _ in range(dice.randrange(4)))] for _ in range(BATCH // 3)]

    def session(self, role: str) -> list[list[bytes]]:
        """A true hello, then messages that its role may say, and then one that is bent."""
        dice, link = self.dice, Link()
        for _ in range(BATCH):
            link.push(encode(dice.choice(TRUE[role])))
        said = [frame for packet in link.packets() for frame in packet]
        wrong = encode(dice.choice(TRUE[dice.choice(list(TRUE))]))
        whole = [[HEADER.pack(b"D", 1 + n, 0), encode(dice.choice(TRUE[role]))] for n in range(BATCH // 2)]
        return [self.hello(role), *whole, [HEADER.pack(b"D", 1 + len(whole), 0), bent(wrong, dice)], [bent(said[0], dice), *said[1:]]]

    def again(self, role: str) -> list[list[bytes]]:
        """The same packet, over and over; and acknowledgements of what was never sent."""
        packet = [HEADER.pack(b"D", 1, 0), encode(self.dice.choice(TRUE[role]))]
        return [self.hello(role), *([packet] * (BATCH // 2)), [HEADER.pack(b"A", 0, 1 << 40)]]

    def hellos(self, role: str) -> list[list[bytes]]:
        """Of other protocols, and none."""
        dice, (_, facts, hello) = self.dice, self.hello(role)
        known = msgpack.unpackb(facts)
        odd = [{**known, dice.choice(list(known)): dice.choice([None, -1, 1 << 63, "x" * 500, [[]], 0, b""])} for _ in range(20)]
        return [[b"H", msgpack.packb(one), bent(hello, dice)] for one in odd] + [[b"H", bent(facts, dice), hello] for _ in range(20)]

    def wrong_key(self) -> None:
        one = self.socket("client", zmq.curve_keypair())
        try:
            one.send_multipart([b"H", b"let me in"], zmq.NOBLOCK)
        except zmq.Again:
            pass
        one.poll(20)
        one.close()

    def raw(self) -> None:
        """No ZeroMQ at all."""
        host, port = self.files["client"].addresses[0].removeprefix("tcp://").split(":")
        with socket.create_connection((host, int(port)), 60) as line:
            try:
                line.sendall(self.dice.choice([b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64, self.dice.randbytes(500)]))
            except OSError:
                pass

    def close(self) -> None:
        for door in self.doors.values():
            door.close()
        self.context.term()


def memory(pid: int) -> int:
    """Resident bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def wait_for(cluster: Cluster, peer: Peer, other: Peer, kind: type, which: Callable[..., bool]) -> None:
    """Patiently: the manager may have much to refuse first."""
    end = time.monotonic() + PATIENCE
    while not any(isinstance(said, kind) and which(said) for said in peer.heard):
        assert cluster.process is not None and cluster.process.poll() is None, (cluster.directory / "said").read_text()[-2000:]
        assert time.monotonic() < end, f"no {kind.__name__}"
        peer.pump()
        other.pump(0.0)


def files_of(cluster: Cluster) -> dict[str, ConnectionFile]:
    files = {role: ConnectionFile.read(cluster.run / f"{role}.json") for role in TRUE}
    return {role: dataclasses.replace(file, addresses=file.addresses[:1]) for role, file in files.items()}


def test_who_does_not_read_what_it_is_answered_costs_little(cluster: Cluster) -> None:
    process = cluster.start()
    attacker, sizes = Attacker(files_of(cluster), Random(0), lambda: None), []
    door = attacker.socket("client")
    for _ in range(2):
        for _ in range(40_000):
            end = time.monotonic() + PATIENCE
            while not door.poll(1000, zmq.POLLOUT):
                assert time.monotonic() < end, "it takes no more"
            door.send_multipart([b"H", b"not a hello"], zmq.NOBLOCK)
        assert cluster.viewer().ask("info")  # it goes on
        sizes.append(memory(process.pid))
    door.close()
    attacker.close()
    assert sizes[1] < sizes[0] + (6 << 20), f"it keeps answers that nobody reads: {sizes}"


def test_a_manager_serves_honest_peers_under_a_rain_of_frames(cluster: Cluster) -> None:
    """And does not grow: the second half of the rain leaves it about as large as the first."""
    process = cluster.start("--lease", "20s")
    client, worker = cluster.client(), cluster.worker()

    def meanwhile() -> None:
        client.pump(0.0)
        worker.pump(0.0)

    attacker, sizes = Attacker(files_of(cluster), Random(FRAMES), meanwhile), []
    calls = 0
    for half in (1, 2):
        while attacker.sent < FRAMES // 4 * half:
            for _ in range(5):
                attacker.batch()
            calls += 1
            client.say(submit(calls))
            wait_for(cluster, worker, client, m.Run, lambda run: run.task == f"s-{calls}")  # noqa: B023
            assert run_one(worker).arguments == Inline(b"x")
            wait_for(cluster, client, worker, m.Finished, lambda said: said.task == f"s-{calls}")  # noqa: B023
            finished = client.wait(m.Finished)
            assert finished.outcome == Returned(Inline(b"v"))
            client.say(m.Release((finished.task,)))
            assert process.poll() is None
        sizes.append(memory(process.pid))
    viewer = cluster.viewer()
    refused = viewer.ask("info")["refused_packets"]
    assert isinstance(refused, int) and refused > FRAMES // 500
    print(f"{attacker.sent} frames, {refused} refused, {calls} calls; resident {sizes}")
    assert sizes[1] < 1.25 * sizes[0] + (16 << 20), f"it grows: {sizes}"
    log = cluster.run / "log"
    assert log.stat().st_size < (1 << 20) + 400 * calls, "the log grows with what is refused"
    attacker.close()
