"""Large blobs between the workers of one run: the door at which this one gives, the lines on which it pulls.

CURVE as everywhere: the door proves a key made for this worker's life, which the manager passes on, and admits
the run's workers alone (they share a key).  It gives ranges of what this worker offers, by digest, and nothing
else.  Nothing is opened before the first large blob; then all is in the worker's poller, and idle costs nothing.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import zmq
from zmq.utils import z85

from lfm.connection.tuning import need_descriptors, readable, tune
from lfm.errors import ConnectionFailed, LfmError, ProtocolError
from lfm.protocol import messages as m
from lfm.protocol.codec import decode, encode
from lfm.run import ConnectionFile

DIAL = 2.0  # seconds until a source must have taken the connection
STALL = 8.0  # seconds without a range after which a source is given up
AT_A_TURN = 32  # ranges given in one turn of the loop: the rest of its work is not kept waiting
KEPT = 16  # messages kept for one that does not take them; more are not asked for at a time
ZAP = "inproc://zeromq.zap.01"
WELL = zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED
BROKEN = {
    zmq.EVENT_CLOSED: "it cannot be dialled",
    zmq.EVENT_DISCONNECTED: "it closed the connection",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "it does not know our key",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "it is another one",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "it is another one",
}

Give = Callable[[m.FetchBlob], m.BlobChunk | m.BlobMissing]
Wire = zmq.Socket[bytes]


class Broken(LfmError):
    """This source gives nothing, or nothing more."""


class Peers:
    """Owns the door and what the lines share.  ``manager`` gives the address at which it was reached."""

    def __init__(self, file: Callable[[], ConnectionFile], manager: Callable[[], str], poller: zmq.Poller) -> None:
        self._file, self._manager, self._poller = file, manager, poller
        self._context: zmq.Context[Wire] | None = None
        self._door: Door | None = None
        self._barred = False  # the door cannot be opened, or not any more

    def offer(self) -> m.Source | None:
        """Where others may have what we offer; None if nowhere."""
        if self._door is None and not self._barred:
            try:
                context, file = self._shared(), self._file()
                host = own_address((self._manager(), *file.addresses))
                self._door = Door(context, host, file.public_key.encode(), self._poller)
            except ConnectionFailed:  # for now
                return None
            except (OSError, zmq.ZMQError):
                self._barred = True
        return self._door.source if self._door is not None else None

    def dial(self, source: m.Source) -> Line:
        """Broken if that is no address, or there is no key to show any more."""
        try:
            return Line(self._shared(), source, self._file(), self._poller)
        except (ConnectionFailed, ValueError, zmq.ZMQError) as error:
            raise Broken(f"it cannot be dialled: {error}") from None

    def serve(self, give: Give) -> None:
        """Answer who stands at the door."""
        if self._door is not None:
            self._door.serve(give)

    def shut(self) -> None:
        """No more is given: who is being fed hears it at once and goes elsewhere."""
        self._barred = True
        if self._door is not None:
            self._door.close()
            self._door = None

    def close(self) -> None:
        """Lines are closed by their owners, before."""
        self.shut()
        if self._context is not None:
            self._context.term()

    def _shared(self) -> zmq.Context[Wire]:
        """ConnectionFailed if too few descriptors are left for more of its sockets."""
        need_descriptors()
        self._context = self._context or zmq.Context()
        return self._context


class Door:
    def __init__(self, context: zmq.Context[Wire], host: str, admitted: bytes, poller: zmq.Poller) -> None:
        self._admitted, self._poller = admitted, poller
        public, secret = zmq.curve_keypair()
        self._zap, self._router = context.socket(zmq.REP), context.socket(zmq.ROUTER)
        try:
            self._zap.bind(ZAP)
            tune(self._router)
            self._router.setsockopt(zmq.SNDHWM, KEPT)
            self._router.setsockopt(zmq.RCVHWM, KEPT)
            self._router.setsockopt(zmq.MAXMSGSIZE, 1024)
            self._router.setsockopt(zmq.ZAP_DOMAIN, b"lfm")
            self._router.curve_server = True
            self._router.curve_publickey, self._router.curve_secretkey = public, secret
            self._router.bind(f"tcp://{host}:*")
        except BaseException:
            self._zap.close(0)
            self._router.close(0)
            raise
        for one in (self._zap, self._router):
            poller.register(one, zmq.POLLIN)
        self.source = m.Source(self._router.getsockopt_string(zmq.LAST_ENDPOINT), public.decode())

    def serve(self, give: Give) -> None:
        while readable(self._zap):
            self._admit(self._zap.recv_multipart())
        for _ in range(AT_A_TURN):
            if not readable(self._router):
                return
            who, *frames = self._router.recv_multipart()
            with suppress(ProtocolError, ValueError):  # nonsense is not answered
                (frame,) = frames
                wanted = decode(frame)
                if isinstance(wanted, m.FetchBlob):
                    self._router.send_multipart([who, encode(give(wanted))], zmq.NOBLOCK)  # dropped if it takes none

    def _admit(self, request: list[bytes]) -> None:
        """ZAP (RFC 27): the run's workers, and nobody else."""
        key = request[6] if len(request) == 7 and request[5] == b"CURVE" else b""
        known = len(key) == 32 and z85.encode(key) == self._admitted
        answer = [b"200", b"", b"worker", b""] if known else [b"400", b"unknown key", b"", b""]
        self._zap.send_multipart([*request[:2], *answer])

    def close(self) -> None:
        for one in (self._zap, self._router):
            self._poller.unregister(one)
            one.close(0)


class Line:
    """One blob's way from one other worker."""

    def __init__(self, context: zmq.Context[Wire], source: m.Source, file: ConnectionFile, poller: zmq.Poller) -> None:
        if not source.address.startswith("tcp://"):
            raise ValueError(f"{source.address!r} is no address")
        self.source, self._poller = source, poller
        self._socket = context.socket(zmq.DEALER)
        self._monitor = self._socket.get_monitor_socket(WELL | sum(BROKEN))
        for one in (self._socket, self._monitor):
            poller.register(one, zmq.POLLIN)
        self.deadline = time.monotonic() + DIAL
        try:
            tune(self._socket)
            self._socket.setsockopt(zmq.RCVHWM, KEPT)
            self._socket.setsockopt(zmq.RECONNECT_IVL, -1)
            self._socket.setsockopt(zmq.CONNECT_TIMEOUT, int(DIAL * 1000))
            self._socket.curve_serverkey = source.key.encode()
            self._socket.curve_publickey = file.public_key.encode()
            self._socket.curve_secretkey = file.secret_key.encode()
            self._socket.connect(source.address)
        except BaseException:
            self.close()
            raise

    def ask(self, requests: list[m.FetchBlob]) -> None:
        for request in requests:
            with suppress(zmq.Again):  # cannot be, at an unbounded queue; if it is, the line stalls
                self._socket.send(encode(request), zmq.NOBLOCK)

    def receive(self) -> list[m.BlobChunk]:
        """What has come.  Broken if no more will, or does not in time."""
        chunks = []
        while readable(self._socket):
            chunks.append(_chunk(self._socket.recv_multipart()))
        now = time.monotonic()
        if chunks:
            self.deadline = now + STALL
            return chunks
        while readable(self._monitor):
            event = int.from_bytes(self._monitor.recv_multipart()[0][:2], sys.byteorder)
            if not event & WELL:
                raise Broken(BROKEN.get(zmq.Event(event), "it is lost"))
            self.deadline = now + STALL
        if now >= self.deadline:
            raise Broken("it is silent")
        return []

    def close(self) -> None:
        for one in (self._socket, self._monitor):
            self._poller.unregister(one)
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(0)


def _chunk(frames: list[bytes]) -> m.BlobChunk:
    try:
        (frame,) = frames
        said = decode(frame)
    except (ProtocolError, ValueError):
        raise Broken("it talks nonsense") from None
    if isinstance(said, m.BlobMissing):
        raise Broken(said.reason)
    if not isinstance(said, m.BlobChunk):
        raise Broken("it talks nonsense")
    return said


def own_address(addresses: tuple[str, ...]) -> str:
    """Our own on the way to the manager, whose ``addresses`` these are; loopback if there is no other way.

    OSError if there is none at all.
    """
    found = []
    hosts = [address.removeprefix("tcp://").rpartition(":")[0] for address in addresses]
    for host in filter(None, hosts):
        with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing; asks for the route
            found.append(str(probe.getsockname()[0]))
            if not found[-1].startswith("127."):
                return found[-1]
    if not found:
        raise OSError("no way to the manager")
    return found[0]
