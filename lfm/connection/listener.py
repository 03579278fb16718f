"""The manager's end of all connections: its sockets, and the doorkeeper that knows the keys.  The rest is ``Hosting``'s."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Container, Iterable

import zmq
from zmq.utils import z85

from lfm.connection.refusals import Refusals
from lfm.connection.tuning import OUTLIVES, PARTING, QUEUED, event_of, new_context, put, readable, tune
from lfm.errors import ConnectionFailed
from lfm.protocol import messages as m
from lfm.protocol.hosting import Hosting, News, Session
from lfm.protocol.ids import PeerId
from lfm.protocol.pace import HELLO, LEASE, WHO
from lfm.run import RunDirectory

STRANGE = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL


class Listener:
    """The manager's end: one ROUTER for all peers, and the doorkeeper that knows their keys."""

    def __init__(
        self, run: RunDirectory, interfaces: Iterable[str], ports: Iterable[int] = (0,),
        context: zmq.Context[zmq.Socket[bytes]] | None = None, lease: float = LEASE, later: bool = False,
    ) -> None:
        """Bind to the first free port of ``ports`` (0: any) on every interface.  ConnectionFailed if none is.

        ``later``: what comes is confirmed only once its owner says ``settle``.
        """
        self._run = run
        self._context = context or new_context()
        self._own_context = context is None
        self._zap = self._context.socket(zmq.REP)
        self._zap.bind("inproc://zeromq.zap.01")
        self._router = self._context.socket(zmq.ROUTER)
        tune(self._router, lease + OUTLIVES, lease + OUTLIVES)
        self._router.setsockopt(zmq.SNDHWM, QUEUED)
        self._router.setsockopt(zmq.RCVHWM, QUEUED)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._router.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._router.setsockopt(zmq.BACKLOG, 4096)
        self._router.curve_server = True
        self._router.curve_publickey, self._router.curve_secretkey = run.server_keys
        self._router.setsockopt(zmq.ZAP_DOMAIN, b"lfm")
        self._closings = self._router.get_monitor_socket(zmq.EVENT_DISCONNECTED | STRANGE)
        self.port = self._bind(list(interfaces), list(ports))
        self._host = socket.gethostname()
        self.refusals = Refusals()
        self._sessions: Hosting[bytes] = Hosting(
            run.name, os.urandom(8).hex(), time.monotonic(), say=self._say, is_dead=self._is_dead,
            refused=self.refusals.note, lease=lease, later=later,
        )

    def _bind(self, interfaces: list[str], ports: list[int]) -> int:
        for port in ports:
            try:
                self._router.bind(f"tcp://{interfaces[0]}:{port or '*'}")
                bound = int(self._router.getsockopt_string(zmq.LAST_ENDPOINT).rsplit(":", 1)[1])
                for interface in interfaces[1:]:
                    self._router.bind(f"tcp://{interface}:{bound}")
                return bound
            except zmq.ZMQError as error:
                trouble = error
        self.close()
        tried = f"port {ports[0]}" if len(ports) == 1 else f"ports {ports[0]}-{ports[-1]}"
        raise ConnectionFailed(
            f"cannot listen on {interfaces[0]}, {tried}: {trouble.strerror}; choose another with --port"
        )

    def sockets(self) -> list[zmq.Socket[bytes]]:
        return [self._router, self._zap, self._closings]

    def register(self, poller: zmq.Poller) -> None:
        for one in self.sockets():
            poller.register(one, zmq.POLLIN)

    # -- receiving

    def receive(self, limit: int = 1000, ready: Container[object] | None = None) -> News:
        """What has come, of at most ``limit`` packets.  ``ready``: the sockets that a poll found readable; None: look at
        all of them."""
        news: News = []
        if ready is None or self._zap in ready:
            self._open_doors()
        now = time.monotonic()
        while limit and readable(self._router):
            limit -= 1
            first = self._router.recv(zmq.NOBLOCK, copy=False)
            packet = self._router.recv_multipart(zmq.NOBLOCK) if first.more else []
            role = str(first.get("User-Id") or "") if packet and packet[0] == HELLO else ""
            self._sessions.take(first.bytes, role, packet, now, news)
        if ready is None or self._closings in ready:
            self._look_for_closed(now, news)
        return news

    def _open_doors(self) -> None:
        """ZAP (RFC 27): admit a CURVE key that this run has given out."""
        while readable(self._zap):
            request = self._zap.recv_multipart(zmq.NOBLOCK)
            version, number = request[0], request[1]
            key = request[6] if len(request) == 7 and request[5] == b"CURVE" else b""
            role = self._run.role_of(z85.encode(key)) if len(key) == 32 else None
            if role is None:
                address = request[3].decode(errors="replace") if len(request) > 3 else "somewhere"
                self.refusals.note(f"a connection from {address}", "its key is not of this run")
                self._zap.send_multipart([version, number, b"400", b"unknown key", b"", b""])
            else:
                self._zap.send_multipart([version, number, b"200", b"", role.encode(), b""])

    def settle(self) -> None:
        """All that was received is safe, and may be confirmed."""
        self._sessions.settle(time.monotonic())

    # -- sending

    def send(self, peer: PeerId, message: m.Message) -> None:
        """Queue a message; a peer whose session is over gets nothing, its end has been told."""
        self._sessions.send(peer, message)

    def backlog(self, peer: PeerId) -> int:
        """Bytes that a peer was sent, or is to be, and has not confirmed."""
        return self._sessions.backlog(peer)

    def flush(self) -> None:
        """Send what is queued, as far as each peer's window is open."""
        self._sessions.flush(time.monotonic())

    def _say(self, route: bytes, packet: list[bytes]) -> bool:
        try:
            put(self._router, [route, *packet])
        except zmq.Again:
            pass  # it does not read what it is sent; what matters of it, the link sends again
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return False
        return True

    # -- time

    def tick(self) -> News:
        """Pings, acknowledgements and leases; call it when ``deadline`` is due."""
        news: News = []
        self._sessions.tick(time.monotonic(), news)
        return news

    def _look_for_closed(self, now: float, news: News) -> None:
        """Some connection was closed; a ROUTER does not say whose, but refuses to send there."""
        closed = False
        while readable(self._closings):
            if event_of(self._closings.recv_multipart()) == zmq.EVENT_DISCONNECTED:
                closed = True
            else:
                self.refusals.note("a connection", "it does not shake hands as a peer of this run does")
        if closed:
            self._sessions.suspect(now)
            self._sessions.tick(now, news)

    def _is_dead(self, session: Session[bytes]) -> bool:
        """Whether a process of this very machine is surely gone; also one that nobody has waited for yet."""
        if session.host != self._host or not session.pid:
            return False
        try:
            with open(f"/proc/{session.pid}/stat", "rb") as file:
                return file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
        except (OSError, IndexError):
            pass
        try:
            os.kill(session.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False

    def deadline(self) -> float:
        """Monotonic time of the next tick."""
        return self._sessions.deadline()

    def drop(self, peer: PeerId, reason: str) -> None:
        """End a session from this side; no Left is told."""
        self._sessions.drop(peer, reason)

    def part(self, patience: float) -> None:
        """Send what is queued, and wait until it was heard: who is cut off drops what it has not read."""
        end = time.monotonic() + patience
        self.flush()
        while any(s.link.unacknowledged and s.route for s in self._sessions.all) and time.monotonic() < end:
            self._router.poll(20)
            self.receive()

    def dismiss(self, reason: str, patience: float) -> None:
        """End all sessions from this side, and wait until their peers have gone: who is cut off before loses the reason."""
        routes = [session.route for session in self._sessions.all if session.route is not None]
        for session in list(self._sessions.all):
            self.drop(session.peer, reason)
        end = time.monotonic() + patience
        while (routes := [route for route in routes if self._say(route, [WHO])]) and time.monotonic() < end:
            self._router.poll(20)
            while readable(self._router):  # what is not read when a connection is closed takes with it what was sent
                self._router.recv_multipart(zmq.NOBLOCK)

    def close(self) -> None:
        self._router.disable_monitor()
        self._closings.close(0)
        self._router.close(PARTING)
        self._zap.close(0)
        if self._own_context:
            self._context.term()
