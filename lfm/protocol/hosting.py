"""The manager's half of all sessions: who is let in, what they may say, when one of them is over.  Pure.

Knows no socket and no clock: a *route* is whatever names a connection, ``say`` sends one packet on it, and times are
handed in.  ``lfm.connection.Listener`` drives it in production, ``tests/sim/worlds`` in virtual time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, ValuesView
from dataclasses import dataclass
from typing import Generic, TypeVar, get_args

import msgpack

from lfm.errors import ProtocolError
from lfm.protocol import messages as m
from lfm.protocol.codec import decode, encode
from lfm.protocol.ids import PeerId
from lfm.protocol.link import ACK, PING, Link
from lfm.protocol.pace import (
    ACK_DELAY,
    AWAY,
    BYE,
    GONE_LEASE,
    HELLO,
    LEASE,
    PING_EVERY,
    REFUSED,
    RESEND_AFTER,
    SESSIONS,
    SUSPICION,
    WELCOME,
    WHO,
)

Packet = list[bytes]
Route = TypeVar("Route", bound=Hashable)
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


@dataclass(slots=True, eq=False)
class Session(Generic[Route]):
    peer: PeerId
    name: str
    role: str
    route: Route | None  # the connection; None while there is none
    heard: float
    host: str
    pid: int
    link: Link
    sent: float = 0.0
    gone: float | None = None  # since when its connection is closed


class Hosting(Generic[Route]):
    def __init__(
        self, run: str, epoch: str, now: float, *, say: Callable[[Route, Packet], bool],
        is_dead: Callable[[Session[Route]], bool], refused: Callable[[str, str], None], lease: float = LEASE, later: bool = False,
    ) -> None:
        """``say``: False if nobody is there any more.  ``is_dead``: whether its process is surely gone.  ``refused``: who, and why.

        ``later``: what comes is confirmed only once its owner says ``settle``.
        """
        self._run, self._epoch, self._later = run, epoch, later
        self._say, self._is_dead, self._refused = say, is_dead, refused
        self._lease, self._gone_lease = lease, min(GONE_LEASE, lease)
        self._ping_every = min(PING_EVERY, lease / 4)  # a peer that lives is heard of in time
        self._by_name: dict[tuple[str, str], Session[Route]] = {}  # by role, too: no key ends the session of another role
        self._by_route: dict[Route, Session[Route]] = {}
        self._by_peer: dict[PeerId, Session[Route]] = {}
        self._dirty: dict[PeerId, Session[Route]] = {}  # has something to send
        self._unsettled: dict[PeerId, Session[Route]] = {}  # has said what is not settled yet
        self._last_peer = 0
        self._tick_at = now + self._ping_every
        self._ack_at: float | None = None
        self._suspicious_until = 0.0  # a connection was closed: find out whose

    @property
    def all(self) -> ValuesView[Session[Route]]:
        return self._by_peer.values()

    # -- what comes

    def take(self, route: Route, role: str, packet: Packet, now: float, news: News) -> None:
        """What a packet says.  ``role``: that its key gives, asked of a hello only."""
        session = self._by_route.get(route)
        kind = packet[0] if packet else b""
        try:
            if kind == HELLO:
                self._greet(route, role, packet, now, news)
            elif session is None:
                self._say(route, [WHO])
            elif kind == BYE:
                self._end(session, "it said goodbye", news, sure=True, goodbye=True)
            elif kind:
                self._hear(session, packet, now, news)
        except ProtocolError as error:
            self._refused(f"a packet of {session.role} {session.name}" if session else "a packet of a stranger", str(error))
            self._say(route, [REFUSED, encode(m.Refused(str(error)))])
            if session is not None:
                self._end(session, f"broke the protocol: {error}", news)

    def _hear(self, session: Session[Route], packet: Packet, now: float, news: News) -> None:
        session.heard = now
        frames, answer = session.link.receive(packet)
        allowed = _TYPES_OF[session.role]
        for frame in frames:
            message = decode(frame)
            if not isinstance(message, allowed):
                raise ProtocolError(f"a {session.role} may not say {type(message).__name__}")
            news.append(Said(session.peer, message))
        if answer is not None:
            self._put(session, session.link.control(answer), now)
        if self._later:
            if frames:
                self._unsettled[session.peer] = session
        elif session.link.owes_ack and self._ack_at is None:
            self._ack_at = now + ACK_DELAY
        if session.link.waiting:
            self._dirty[session.peer] = session

    def settle(self, now: float) -> None:
        """All that came is safe, and may be confirmed."""
        while self._unsettled:  # one after the other: where there is no memory for it now, the rest is for the next try
            session = next(iter(self._unsettled.values()))
            session.link.settle()
            if session.link.owes_much:
                self._put(session, session.link.control(ACK), now)
            elif session.link.owes_ack and self._ack_at is None:
                self._ack_at = now + ACK_DELAY
            self._unsettled.pop(session.peer, None)

    def _greet(self, route: Route, role: str, packet: Packet, now: float, news: News) -> None:
        hello, epoch, received = _read_hello(packet, role)
        known, before = self._by_name.get((role, hello.session)), self._by_route.get(route)
        if before is not None and before is known:
            return  # it was asked more than once who it is: the welcome is on its way
        if before is not None:
            self._end(before, "its connection is another's now", news)
        if known is not None and epoch == self._epoch:
            self._reroute(known, route, now)
            known.link.resume(received)
            self._welcome(known, True, now)
            return
        if known is not None:
            self._end(known, "began anew", news)
        if len(self._by_peer) >= SESSIONS:
            raise ProtocolError(f"{SESSIONS} sessions are open here already; no more are taken")
        self._last_peer += 1
        session = Session(
            PeerId(self._last_peer), hello.session, role, route, now, getattr(hello, "host", ""), getattr(hello, "pid", 0),
            Link(self._later),
        )
        self._by_name[role, session.name] = self._by_route[route] = self._by_peer[session.peer] = session
        self._welcome(session, False, now)
        news.append(Joined(session.peer, role, hello))

    def _welcome(self, session: Session[Route], resumed: bool, now: float) -> None:
        welcome = m.Welcome(self._run, self._epoch, resumed)
        self._put(session, [WELCOME, encode(welcome), msgpack.packb(session.link.settled)], now)
        self._dirty[session.peer] = session

    def _reroute(self, session: Session[Route], route: Route, now: float) -> None:
        if session.route is not None:
            self._by_route.pop(session.route, None)
        session.route, session.heard, session.gone = route, now, None
        self._by_route[route] = session

    # -- what leaves

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

    def flush(self, now: float) -> None:
        """Send what is queued, as far as each peer's window is open."""
        if not self._dirty:
            return
        dirty, self._dirty = self._dirty, {}
        for session in dirty.values():
            if session.route is not None:
                for packet in session.link.packets():
                    self._put(session, packet, now)

    def _put(self, session: Session[Route], packet: Packet, now: float) -> None:
        if session.route is not None and not self._say(session.route, packet):
            self._by_route.pop(session.route, None)
            session.route, session.gone = None, now
        session.sent = now

    # -- time

    def deadline(self) -> float:
        """Of the next tick."""
        return self._tick_at if self._ack_at is None else min(self._tick_at, self._ack_at)

    def tick(self, now: float, news: News) -> None:
        """Pings, acknowledgements and leases."""
        if self._ack_at is not None and now >= self._ack_at:
            self._ack_at = None
            for session in list(self._by_peer.values()):
                if session.link.owes_ack:
                    self._put(session, session.link.control(ACK), now)
        if now >= self._tick_at:
            self._forgive(now)
            for session in list(self._by_peer.values()):
                self._check(session, now, news)
            soon = now + (0.2 if now < self._suspicious_until else self._ping_every / 5)
            self._tick_at = min([soon, *map(self._end_of, self._by_peer.values())])

    def suspect(self, now: float) -> None:
        """Some connection was closed, nobody says whose: for a while all are tried, from the next tick, which is now."""
        self._forgive(now)
        self._suspicious_until = now + SUSPICION
        self._tick_at = now

    def _forgive(self, now: float) -> None:
        """We were stopped or very busy ourselves: what peers said meanwhile is still to be taken."""
        late = now - self._tick_at
        if late < AWAY:
            return
        for session in self._by_peer.values():
            session.heard = min(now, session.heard + late)
            if session.gone is not None:
                session.gone = min(now, session.gone + late)

    def _end_of(self, session: Session[Route]) -> float:
        """When its lease ends, if nothing is heard of it before."""
        end = session.heard + self._lease
        return end if session.gone is None else min(end, session.gone + self._gone_lease)

    def _check(self, session: Session[Route], now: float, news: News) -> None:
        silent = now - session.heard
        if now < self._suspicious_until and session.route is not None:
            sent = session.sent
            self._put(session, session.link.control(ACK), now)
            session.sent = sent  # that asks for nothing: a peer that is only probed, as others come and go, is asked in time
        if session.route is None and self._is_dead(session):
            self._end(session, "its process ended", news, sure=True)
        elif session.gone is not None and now >= session.gone + self._gone_lease:
            self._end(session, f"its connection closed and did not come back for {now - session.gone:.0f} s", news)
        elif now >= session.heard + self._lease:
            self._end(session, f"silent for {silent:.0f} s", news)
        elif session.route is not None:
            patience = min(RESEND_AFTER, self._ping_every) if session.link.unacknowledged else self._ping_every
            if now >= max(session.heard, session.sent) + patience:
                self._put(session, session.link.control(PING), now)

    # -- ends

    def drop(self, peer: PeerId, reason: str) -> None:
        """End a session from this side; no Left is told."""
        session = self._by_peer.get(peer)
        if session is not None:
            if session.route is not None:
                self._say(session.route, [REFUSED, encode(m.Refused(reason))])
            self._end(session, reason, [])

    def _end(self, session: Session[Route], reason: str, news: News, *, sure: bool = False, goodbye: bool = False) -> None:
        if self._by_name.get((session.role, session.name)) is session:
            del self._by_name[session.role, session.name]
        if session.route is not None:
            self._by_route.pop(session.route, None)
        self._by_peer.pop(session.peer, None)
        self._dirty.pop(session.peer, None)
        self._unsettled.pop(session.peer, None)
        news.append(Left(session.peer, reason, sure, goodbye))


def _read_hello(packet: Packet, role: str) -> tuple[m.Hello, str, int]:
    """Who it is, the epoch that it knows and how far it has come.  ProtocolError if it may not come in."""
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
    return hello, epoch, received
