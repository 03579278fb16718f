"""Connections as ZeroMQ makes them, and both their ends as ``lfm.connection`` drives them, in virtual time.

A wire carries packets late and in order; what is on its way when it breaks is lost, and its ends may learn of that
late.  While it is cut nothing passes, and it may live on after that.  ``Dial`` and ``Door`` do what ``Dialer`` and
``Listener`` do, without sockets; numbers, acknowledgements and resending are the shipped link's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from lfm.connection.tuning import (
    ACK_DELAY,
    BYE,
    DEAD_AFTER,
    GONE_LEASE,
    HELLO,
    LEASE,
    PING_EVERY,
    REFUSED,
    RESEND_AFTER,
    WELCOME,
    WHO,
)
from lfm.protocol import messages as m
from lfm.protocol.codec import decode, encode
from lfm.protocol.ids import PeerId
from lfm.protocol.link import ACK, PING, Link
from worlds.clock import Clock

UP, DOWN = 0, 1
TRANSPORT_PATIENCE = 20.0  # of a cut, after which ZeroMQ's own heartbeats give the connection up
Packet = list[bytes]


class Wire:
    """One connection."""

    def __init__(
        self, clock: Clock, delay: float, up: Callable[[Packet], None], down: Callable[[Packet], None], closed: Callable[[], None]
    ) -> None:
        """``closed`` is called when the manager's end notices that it is."""
        self._clock, self._delay, self._ends, self._closed = clock, delay, (up, down), closed
        self._flying: tuple[deque[Packet], deque[Packet]] = (deque(), deque())
        self._last = [0.0, 0.0]
        self._cut_until = [0.0, 0.0]
        self.open = True

    def send(self, way: int, packet: Packet) -> None:
        if self.open:
            self._flying[way].append(packet)
            self._later(way)

    def _later(self, way: int) -> None:
        clock = self._clock
        at = max(clock.now + clock.dice.random() * self._delay, self._last[way], self._cut_until[way])
        self._last[way] = at
        clock.at(at, lambda: self._arrive(way))

    def _arrive(self, way: int) -> None:
        if not self.open:
            return
        if self._cut_until[way] > self._clock.now:
            self._later(way)
        else:
            self._ends[way](self._flying[way].popleft())

    def lose_one(self, way: int) -> None:
        """A packet vanishes, and the connection lives on."""
        if self._flying[way]:
            self._flying[way].popleft()
            self._flying[way].appendleft([b"\0"])  # its arrival is on the agenda

    def cut(self, way: int, until: float) -> None:
        self._cut_until[way] = max(until, self._cut_until[way])

    def close(self) -> None:
        if self.open:
            self.open = False
            self._clock.at(self._cut_until[UP] + self._clock.dice.random() * 2, self._closed)


class Dial:
    """A client's or worker's end."""

    def __init__(
        self, clock: Clock, door: Callable[[], Door | None], hello: Callable[[], m.Hello], hear: Callable[[m.Message], None], *, near: bool
    ) -> None:
        """``near``: on the manager's machine, which sees its death."""
        self.clock, self._door, self._hello, self._hear, self.near = clock, door, hello, hear, near
        self.link = Link()
        self.wire: Wire | None = None
        self.cut_until = 0.0  # nothing gets through, in either direction
        self.closed = False
        self._epoch, self._welcomed = "", False
        self._heard = self._sent = clock.now
        self._ack_due: float | None = None
        self._timer = inf
        self._flushing = False
        self._again(0.2)

    @property
    def unacknowledged(self) -> int:
        return self.link.waiting + self.link.unacknowledged

    def send(self, message: m.Message) -> None:
        self.link.push(encode(message))
        if not self._flushing:  # with all that is said in the same moment
            self._flushing = True
            self.clock.after(0.0, self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._welcomed:
            for packet in self.link.packets():
                self._put(packet)
        self._arm()

    # -- connections come and go

    def _again(self, within: float) -> None:
        self.clock.soon(within, self._dial)

    def _dial(self) -> None:
        if self.closed or self.wire is not None:
            return
        door = self._door()
        if door is None or self.cut_until > self.clock.now:
            self._again(2.0)
            return
        self.wire = door.accept(self, self._take)
        self.wire.send(UP, [b""])  # the probe
        self._heard = self._sent = self.clock.now
        self._arm()

    def broke(self) -> None:
        """The connection is gone, and this end knows."""
        if self.wire is not None:
            self.wire.close()
            self.wire = None
            self._again(2.0)

    def close(self, goodbye: bool) -> None:
        if goodbye:
            self._put([BYE])
            self.clock.after(1.0, self.vanish)
        else:
            self.vanish()
        self.closed = True

    def vanish(self) -> None:
        """As a process does that is killed."""
        self.closed = True
        if self.wire is not None:
            self.wire.close()
            self.wire = None

    # -- packets

    def _put(self, packet: Packet) -> None:
        if self.wire is not None:  # else the link keeps it
            self.wire.send(UP, packet)
            self._sent = self.clock.now

    def _take(self, packet: Packet) -> None:
        if self.closed and packet[0] != ACK:
            return
        self._heard = self.clock.now
        kind = packet[0]
        if kind == WHO:
            self._welcomed = False
            hello = self._hello()
            facts = repr((hello.session, self._epoch, self.link.received)).encode()
            self._put([HELLO, facts, encode(hello)])
        elif kind == WELCOME:
            self._welcome(packet)
        elif kind == REFUSED:
            raise AssertionError(self.clock.tale(f"refused: {decode(packet[1])}"))
        elif self._welcomed and kind != b"\0":
            frames, answer = self.link.receive(packet)
            if answer is not None:
                self._put(self.link.control(answer))
            elif self.link.owes_ack and self._ack_due is None:
                self._ack_due = self.clock.now + ACK_DELAY
            for frame in frames:
                self._hear(decode(frame))
            if self.link.overdue:
                self._flush()
        self._arm()

    def _welcome(self, packet: Packet) -> None:
        welcome = decode(packet[1])
        assert isinstance(welcome, m.Welcome)
        first = not self._epoch
        if welcome.resumed:
            self.link.resume(int(packet[2]))
        elif not first:
            self.link = Link()
        self._epoch, self._welcomed = welcome.epoch, True
        if not first:
            self._hear(welcome)
        self._flush()

    # -- time

    def _deadline(self) -> float:
        if self.wire is None:
            return inf
        due = self._heard + DEAD_AFTER
        if self._welcomed:
            due = min(due, max(self._sent, self._heard) + self._patience(), self._ack_due or inf)
        return due

    def _patience(self) -> float:
        return RESEND_AFTER if self.link.unacknowledged else PING_EVERY

    def _arm(self) -> None:
        due = self._deadline()
        if due < self._timer and not self.closed:
            self._timer = due
            self.clock.at(due, self._tick)

    def _tick(self) -> None:
        now = self.clock.now
        if self._timer > now or self.closed:
            return
        self._timer = inf
        if self.wire is not None and now >= self._heard + DEAD_AFTER:
            self.broke()
        elif self._welcomed:
            if self._ack_due is not None and now >= self._ack_due:
                self._ack_due = None
                if self.link.owes_ack:
                    self._put(self.link.control(ACK))
            if now >= max(self._sent, self._heard) + self._patience():
                self._put(self.link.control(PING))
        self._arm()


@dataclass(slots=True, eq=False)
class Session:
    peer: PeerId
    name: str
    role: str
    dial: Dial  # to know whether its process lives; nothing else is asked of it
    wire: Wire | None
    heard: float
    link: Link = field(default_factory=lambda: Link(later=True))
    sent: float = 0.0
    gone: float | None = None


@dataclass(frozen=True, slots=True)
class Joined:
    peer: PeerId
    hello: m.Hello


@dataclass(frozen=True, slots=True)
class Said:
    peer: PeerId
    message: m.Message


@dataclass(frozen=True, slots=True)
class Left:
    peer: PeerId
    reason: str
    sure: bool = False
    goodbye: bool = False


News = list[Joined | Said | Left]


class Door:
    """A manager's end of all connections, as long as that manager lives."""

    def __init__(self, clock: Clock, epoch: str, delay: float, arrived: Callable[[Wire, Packet], None]) -> None:
        self.clock, self.epoch, self._delay, self._arrived = clock, epoch, delay, arrived
        self.by_peer: dict[PeerId, Session] = {}
        self._by_name: dict[str, Session] = {}
        self._by_wire: dict[Wire, Session] = {}
        self._dials: dict[Wire, Dial] = {}
        self._peers = 0
        self._ack_at: float | None = None
        self.tick_at = clock.now + PING_EVERY

    def accept(self, dial: Dial, take: Callable[[Packet], None]) -> Wire:
        wire = Wire(
            self.clock, self._delay, lambda packet: self._arrived(wire, packet),
            lambda packet: take(packet) if dial.wire is wire else None, lambda: self.noticed(wire),
        )
        self._dials[wire] = dial
        return wire

    def shut(self) -> None:
        """Its process is gone."""
        for wire, dial in self._dials.items():
            wire.open = False
            if dial.wire is wire:
                self.clock.soon(0.5, dial.broke)

    # -- packets

    def take(self, wire: Wire, packet: Packet) -> News:
        now, kind, session = self.clock.now, packet[0], self._by_wire.get(wire)
        news: News = []
        if kind == HELLO:
            self._greet(wire, packet, news)
        elif session is None:
            wire.send(DOWN, [WHO])
        elif kind == BYE:
            self._end(session, "it said goodbye", news, sure=True, goodbye=True)
        elif kind not in (b"", b"\0"):
            session.heard = now
            frames, answer = session.link.receive(packet)
            news += [Said(session.peer, decode(frame)) for frame in frames]
            if answer is not None:
                self._put(session, session.link.control(answer))
        return news

    def _greet(self, wire: Wire, packet: Packet, news: News) -> None:
        hello = decode(packet[2])
        assert isinstance(hello, m.ClientHello | m.WorkerHello)
        name, epoch, received = eval(packet[1])
        known = self._by_name.get(name)
        if known is not None and known.wire is wire:
            return
        if known is not None and epoch == self.epoch:
            if known.wire is not None:
                self._by_wire.pop(known.wire, None)
            known.wire, known.heard, known.gone = wire, self.clock.now, None
            self._by_wire[wire] = known
            known.link.resume(received)
            self._welcome(known, True)
            return
        if known is not None:
            self._end(known, "began anew", news)
        self._peers += 1
        role = "client" if isinstance(hello, m.ClientHello) else "worker"
        session = Session(PeerId(self._peers), name, role, self._dials[wire], wire, self.clock.now)
        self._by_name[name] = self._by_wire[wire] = self.by_peer[session.peer] = session
        self._welcome(session, False)
        news.append(Joined(session.peer, hello))

    def _welcome(self, session: Session, resumed: bool) -> None:
        self._put(session, [WELCOME, encode(m.Welcome("run", self.epoch, resumed)), b"%d" % session.link.settled])

    def _put(self, session: Session, packet: Packet) -> None:
        if session.wire is not None:
            if session.wire.open:
                session.wire.send(DOWN, packet)
            else:  # a ROUTER refuses to send there
                self.noticed(session.wire)
        session.sent = self.clock.now

    def noticed(self, wire: Wire) -> None:
        """A connection was closed."""
        session = self._by_wire.pop(wire, None)
        if session is not None:
            session.wire, session.gone = None, self.clock.now
            self.tick_at = self.clock.now

    def send(self, peer: PeerId, message: m.Message) -> None:
        session = self.by_peer.get(peer)
        if session is not None:
            session.link.push(encode(message))

    def settle(self) -> None:
        """What came is committed."""
        for session in list(self.by_peer.values()):
            session.link.settle()
            if session.link.owes_much:
                self._put(session, session.link.control(ACK))
            elif session.link.owes_ack and self._ack_at is None:
                self._ack_at = self.clock.now + ACK_DELAY

    def flush(self) -> None:
        for session in list(self.by_peer.values()):
            if session.wire is not None:
                for packet in session.link.packets():
                    self._put(session, packet)

    # -- time

    def deadline(self) -> float:
        return self.tick_at if self._ack_at is None else min(self.tick_at, self._ack_at)

    def tick(self) -> News:
        now = self.clock.now
        news: News = []
        if self._ack_at is not None and now >= self._ack_at:
            self._ack_at = None
            for session in list(self.by_peer.values()):
                if session.link.owes_ack:
                    self._put(session, session.link.control(ACK))
        if now >= self.tick_at:
            for session in list(self.by_peer.values()):
                self._check(session, now, news)
            ends = [s.heard + LEASE if s.gone is None else min(s.heard + LEASE, s.gone + GONE_LEASE) for s in self.by_peer.values()]
            self.tick_at = min([now + PING_EVERY / 5, *ends])
        return news

    def _check(self, session: Session, now: float, news: News) -> None:
        if session.wire is None and session.dial.closed and session.dial.near:
            self._end(session, "its process ended", news, sure=True)
        elif session.gone is not None and now >= session.gone + GONE_LEASE:
            self._end(session, "its connection closed and did not come back", news)
        elif now >= session.heard + LEASE:
            self._end(session, f"silent for {now - session.heard:.0f} s", news)
        elif session.wire is not None:
            patience = RESEND_AFTER if session.link.unacknowledged else PING_EVERY
            if now >= max(session.heard, session.sent) + patience:
                self._put(session, session.link.control(PING))

    def _end(self, session: Session, reason: str, news: News, *, sure: bool = False, goodbye: bool = False) -> None:
        if self._by_name.get(session.name) is session:
            del self._by_name[session.name]
        if session.wire is not None:
            self._by_wire.pop(session.wire, None)
        del self.by_peer[session.peer]
        news.append(Left(session.peer, reason, sure, goodbye))
