"""The manager's end of all connections, and the doorkeeper that knows the keys."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import get_args

import msgpack
import zmq
from zmq.utils import z85

from lfm.connection.refusals import Refusals
from lfm.connection.tuning import (
    ACK_DELAY,
    AWAY,
    BYE,
    GONE_LEASE,
    HELLO,
    LEASE,
    OUTLIVES,
    PARTING,
    PING_EVERY,
    QUEUED,
    REFUSED,
    RESEND_AFTER,
    SESSIONS,
    SUSPICION,
    WELCOME,
    WHO,
    event_of,
    new_context,
    readable,
    tune,
)
from lfm.errors import ConnectionFailed, ProtocolError
from lfm.protocol import messages as m
from lfm.protocol.codec import decode, encode
from lfm.protocol.ids import PeerId
from lfm.protocol.link import ACK, PING, Link
from lfm.run import RunDirectory

STRANGE = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
_TYPES_OF = {
    "client": get_args(m.FromClient),
    "worker": (*get_args(m.FromWorker), m.Goodbye),
    "viewer": (m.Query, m.Goodbye),
}
_HELLO_OF = {"client": m.ClientHello, "worker": m.WorkerHello, "viewer": m.ViewerHello}


@dataclass(frozen=True, slots=True)
class Joined:
    peer: PeerId
    role: str  # "client" | "worker" | "viewer"
    hello: m.Hello


@dataclass(frozen=True, slots=True)
class Said:
    peer: PeerId
    message: m.Message


@dataclass(frozen=True, slots=True)
class Left:
    """The session is over: it said goodbye, its process is dead, or its lease ran out."""

    peer: PeerId
    reason: str
    sure: bool = False  # nobody comes back: its process is known to be gone
    goodbye: bool = False  # it went on its own account


News = list[Joined | Said | Left]


@dataclass(slots=True)
class _Session:
    peer: PeerId
    name: str
    role: str
    route: bytes | None  # the connection's routing id; None while there is no connection
    heard: float
    host: str = ""
    pid: int = 0
    link: Link = field(default_factory=Link)
    sent: float = 0.0
    gone: float | None = None  # since when its connection is closed


class Listener:
    """The manager's end: one ROUTER for all peers, and the doorkeeper that knows their keys."""

    def __init__(
        self, run: RunDirectory, interfaces: Iterable[str], ports: Iterable[int] = (0,),
        context: zmq.Context[zmq.Socket[bytes]] | None = None, lease: float = LEASE, later: bool = False,
    ) -> None:
        """Bind to the first free port of ``ports`` (0: any) on every interface.  ConnectionFailed if none is.

        ``later``: what comes is confirmed only once its owner says ``settle``.
        """
        self._run, self._lease, self._later = run, lease, later
        self._gone_lease = min(GONE_LEASE, lease)
        self._ping_every = min(PING_EVERY, lease / 4)  # a peer that lives is heard of in time
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
        self.epoch = os.urandom(8).hex()
        self.port = self._bind(list(interfaces), list(ports))
        self._by_name: dict[tuple[str, str], _Session] = {}  # by role, too: no key ends the session of another role
        self._by_route: dict[bytes, _Session] = {}
        self._by_peer: dict[PeerId, _Session] = {}
        self._dirty: dict[PeerId, _Session] = {}  # has something to send
        self._heard: dict[PeerId, _Session] = {}  # has said what is not settled yet
        self._last_peer = 0
        self._host = socket.gethostname()
        self._tick_at = time.monotonic() + self._ping_every
        self._ack_at: float | None = None
        self._suspicious_until = 0.0  # a connection was closed: find out whose
        self.refusals = Refusals()

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

    def receive(self, limit: int = 1000) -> News:
        """What has come, of at most ``limit`` packets."""
        news: News = []
        self._open_doors()
        now = time.monotonic()
        while limit and readable(self._router):
            limit -= 1
            first = self._router.recv(zmq.NOBLOCK, copy=False)
            packet = self._router.recv_multipart(zmq.NOBLOCK) if first.more else []
            self._take(first, packet, now, news)
        if readable(self._closings):
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

    def _take(self, first: zmq.Frame, packet: list[bytes], now: float, news: News) -> None:
        route = first.bytes
        session = self._by_route.get(route)
        kind = packet[0] if packet else b""
        try:
            if kind == HELLO:
                self._greet(route, str(first.get("User-Id") or ""), packet, now, news)
            elif session is None:
                self._say(route, [WHO])
            elif kind == BYE:
                self._end(session, "it said goodbye", news, sure=True, goodbye=True)
            elif kind:
                self._hear(session, packet, now, news)
        except ProtocolError as error:
            self.refusals.note(f"a packet of {session.role} {session.name}" if session else "a packet of a stranger", str(error))
            self._say(route, [REFUSED, encode(m.Refused(str(error)))])
            if session is not None:
                self._end(session, f"broke the protocol: {error}", news)

    def _hear(self, session: _Session, packet: list[bytes], now: float, news: News) -> None:
        session.heard = now
        frames, answer = session.link.receive(packet)
        allowed = _TYPES_OF[session.role]
        for frame in frames:
            message = decode(frame)
            if not isinstance(message, allowed):
                raise ProtocolError(f"a {session.role} may not say {type(message).__name__}")
            news.append(Said(session.peer, message))
        if answer is not None:
            self._put(session, session.link.control(answer))
        if self._later:
            if frames:
                self._heard[session.peer] = session
        elif session.link.owes_ack and self._ack_at is None:
            self._ack_at = now + ACK_DELAY
        if session.link.waiting:
            self._dirty[session.peer] = session

    def settle(self) -> None:
        """All that was received is safe, and may be confirmed."""
        heard, self._heard = self._heard, {}
        for session in heard.values():
            session.link.settle()
            if session.link.owes_much:
                self._put(session, session.link.control(ACK))
            elif session.link.owes_ack and self._ack_at is None:
                self._ack_at = time.monotonic() + ACK_DELAY

    def _greet(self, route: bytes, role: str, packet: list[bytes], now: float, news: News) -> None:
        try:
            facts = msgpack.unpackb(packet[1])
            version, name = facts["version"], facts["session"]
            epoch, received = facts["epoch"], int(facts["received"])
        except (IndexError, KeyError, TypeError, ValueError, OverflowError, msgpack.exceptions.UnpackException):
            raise ProtocolError("not a hello") from None
        if version != m.VERSION:
            raise ProtocolError(
                f"this manager speaks protocol {m.VERSION}, not {version}; install the same version of lfm at both ends"
            )
        hello = decode(packet[2]) if len(packet) > 2 else None
        if not isinstance(hello, m.ClientHello | m.WorkerHello | m.ViewerHello) or hello.session != name:
            raise ProtocolError("not a hello")
        if type(hello) is not _HELLO_OF.get(role):
            raise ProtocolError(f"this key is for a {role or 'nobody'}; use the connection file of your role")
        known, before = self._by_name.get((role, name)), self._by_route.get(route)
        if before is not None and before is known:
            return  # it was asked more than once who it is: the welcome is on its way
        if before is not None:
            self._end(before, "its connection is another's now", news)
        if known is not None and epoch == self.epoch:
            self._reroute(known, route, now)
            known.link.resume(received)
            self._welcome(known, True)
            return
        if known is not None:
            self._end(known, "began anew", news)
        if len(self._by_peer) >= SESSIONS:
            raise ProtocolError(f"{SESSIONS} sessions are open here already; no more are taken")
        self._last_peer += 1
        session = _Session(
            PeerId(self._last_peer), name, role, route, now, getattr(hello, "host", ""), getattr(hello, "pid", 0),
            Link(self._later),
        )
        self._by_name[role, name] = self._by_route[route] = self._by_peer[session.peer] = session
        self._welcome(session, False)
        news.append(Joined(session.peer, role, hello))

    def _welcome(self, session: _Session, resumed: bool) -> None:
        welcome = m.Welcome(self._run.name, self.epoch, resumed)
        self._put(session, [WELCOME, encode(welcome), msgpack.packb(session.link.settled)])
        self._dirty[session.peer] = session

    def _reroute(self, session: _Session, route: bytes, now: float) -> None:
        if session.route is not None:
            self._by_route.pop(session.route, None)
        session.route, session.heard, session.gone = route, now, None
        self._by_route[route] = session

    # -- sending

    def send(self, peer: PeerId, message: m.Message) -> None:
        """Queue a message; a peer whose session is over gets nothing, its end has been told."""
        session = self._by_peer.get(peer)
        if session is not None:
            session.link.push(encode(message))
            self._dirty[peer] = session

    def backlog(self, peer: PeerId) -> int:
        """Bytes that a peer was sent, or is to be, and has not confirmed."""
        session = self._by_peer.get(peer)
        return session.link.backlog if session is not None else 0

    def flush(self) -> None:
        """Send what is queued, as far as each peer's window is open."""
        if not self._dirty:
            return
        dirty, self._dirty = self._dirty, {}
        for session in dirty.values():
            if session.route is not None:
                for packet in session.link.packets():
                    self._put(session, packet)

    def _put(self, session: _Session, packet: list[bytes]) -> None:
        if session.route is not None and not self._say(session.route, packet):
            self._by_route.pop(session.route, None)
            session.route, session.gone = None, time.monotonic()
        session.sent = time.monotonic()

    def _say(self, route: bytes, packet: list[bytes]) -> bool:
        try:
            self._router.send_multipart([route, *packet], zmq.NOBLOCK)
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
        now = time.monotonic()
        news: News = []
        if self._ack_at is not None and now >= self._ack_at:
            self._ack_at = None
            for session in list(self._by_peer.values()):
                if session.link.owes_ack:
                    self._put(session, session.link.control(ACK))
        if now >= self._tick_at:
            self._forgive(now - self._tick_at)
            for session in list(self._by_peer.values()):
                self._check(session, now, news)
            soon = now + (0.2 if now < self._suspicious_until else self._ping_every / 5)
            self._tick_at = min([soon, *map(self._end_of, self._by_peer.values())])
        return news

    def _forgive(self, late: float) -> None:
        """We were stopped or very busy ourselves: what peers said meanwhile still lies in the socket."""
        if late < AWAY:
            return
        for session in self._by_peer.values():
            session.heard += late
            if session.gone is not None:
                session.gone += late

    def _end_of(self, session: _Session) -> float:
        """When its lease ends, if nothing is heard of it before."""
        end = session.heard + self._lease
        return end if session.gone is None else min(end, session.gone + self._gone_lease)

    def _check(self, session: _Session, now: float, news: News) -> None:
        silent = now - session.heard
        if now < self._suspicious_until and session.route is not None:
            self._put(session, session.link.control(ACK))
        if session.route is None and self._is_dead(session):
            self._end(session, "its process ended", news, sure=True)
        elif session.gone is not None and now >= session.gone + self._gone_lease:
            self._end(session, f"its connection closed and did not come back for {now - session.gone:.0f} s", news)
        elif now >= session.heard + self._lease:
            self._end(session, f"silent for {silent:.0f} s", news)
        elif session.route is not None:
            patience = min(RESEND_AFTER, self._ping_every) if session.link.unacknowledged else self._ping_every
            if now - max(session.heard, session.sent) >= patience:
                self._put(session, session.link.control(PING))

    def _look_for_closed(self, now: float, news: News) -> None:
        """Some connection was closed; a ROUTER does not say whose, but refuses to send there."""
        closed = False
        while readable(self._closings):
            if event_of(self._closings.recv_multipart()) == zmq.EVENT_DISCONNECTED:
                closed = True
            else:
                self.refusals.note("a connection", "it does not shake hands as a peer of this run does")
        if not closed:
            return
        self._suspicious_until = now + SUSPICION
        self._tick_at = now
        news += self.tick()

    def _is_dead(self, session: _Session) -> bool:
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
        return self._tick_at if self._ack_at is None else min(self._tick_at, self._ack_at)

    def drop(self, peer: PeerId, reason: str) -> None:
        """End a session from this side; no Left is told."""
        session = self._by_peer.get(peer)
        if session is not None:
            if session.route is not None:
                self._say(session.route, [REFUSED, encode(m.Refused(reason))])
            self._end(session, reason, [])

    def _end(
        self, session: _Session, reason: str, news: News, *, sure: bool = False, goodbye: bool = False
    ) -> None:
        if self._by_name.get((session.role, session.name)) is session:
            del self._by_name[session.role, session.name]
        if session.route is not None:
            self._by_route.pop(session.route, None)
        self._by_peer.pop(session.peer, None)
        self._dirty.pop(session.peer, None)
        self._heard.pop(session.peer, None)
        news.append(Left(session.peer, reason, sure, goodbye))

    def part(self, patience: float) -> None:
        """Send what is queued, and wait until it was heard: who is cut off drops what it has not read."""
        end = time.monotonic() + patience
        self.flush()
        while any(s.link.unacknowledged and s.route for s in self._by_peer.values()) and time.monotonic() < end:
            self._router.poll(20)
            self.receive()

    def dismiss(self, reason: str, patience: float) -> None:
        """End all sessions from this side, and wait until their peers have gone: who is cut off before loses the reason."""
        routes = [session.route for session in self._by_peer.values() if session.route is not None]
        for peer in list(self._by_peer):
            self.drop(peer, reason)
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
