"""Connections as ZeroMQ makes them, and both their ends as ``lfm.connection`` drives them, in virtual time.

A wire carries packets late and in order; what is on its way when it breaks is lost, and its ends may learn of that
late.  While it is cut nothing passes, and it may live on after that.  ``Dial`` and ``Door`` are to the shipped
``Dialing`` and ``Hosting`` what ``Dialer`` and ``Listener`` are: they carry packets and tell them the time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf

from lfm.errors import ProtocolError
from lfm.protocol import messages as m
from lfm.protocol.codec import decode
from lfm.protocol.dialing import Dialing
from lfm.protocol.hosting import Hosting, News, Session
from lfm.protocol.pace import BYE, HELLO
from worlds.clock import Clock

UP, DOWN = 0, 1
NOTHING = b"\0"  # arrives in place of a packet that is lost
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
            self._flying[way].appendleft([NOTHING])  # its arrival is on the agenda

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
        self.clock, self._door, self._hear, self.near = clock, door, hear, near
        self._session = Dialing(hello, self._put, clock.now)
        self.wire: Wire | None = None
        self.cut_until = 0.0  # nothing gets through, in either direction
        self.closed = False
        self._timer = inf
        self._flushing = False
        self._again(0.2)

    @property
    def unacknowledged(self) -> int:
        return self._session.link.waiting + self._session.link.unacknowledged

    def send(self, message: m.Message) -> None:
        self._session.push(message)
        if not self._flushing:  # with all that is said in the same moment
            self._flushing = True
            self.clock.after(0.0, self._flush)

    def _flush(self) -> None:
        self._flushing = False
        self._session.flush(self.clock.now)
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
        self._session.dialled(self.clock.now)
        self._arm()

    def broke(self) -> None:
        """The connection is gone, and this end knows."""
        if self.wire is not None:
            self.wire.close()
            self.wire = None
            self._session.closed(self.clock.now)
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
        if self.wire is not None:
            self.wire.send(UP, packet)

    def _take(self, packet: Packet) -> None:
        if self.closed or packet[0] == NOTHING:
            return
        session, known = self._session, bool(self._session.epoch)
        try:
            said = session.take(packet, self.clock.now)
        except ProtocolError as error:
            raise AssertionError(self.clock.tale(f"refused: {error}")) from error
        for message in said:
            if known or not isinstance(message, m.Welcome):  # the first is connect()'s
                self._hear(message)
        session.catch_up(self.clock.now)
        self._arm()

    # -- time

    def _arm(self) -> None:
        due = self._session.deadline() if self.wire is not None else inf
        if due < self._timer and not self.closed:
            self._timer = due
            self.clock.at(due, self._tick)

    def _tick(self) -> None:
        if self._timer > self.clock.now or self.closed:
            return
        self._timer = inf
        if self.wire is not None and not self._session.tick(self.clock.now):
            self.broke()
        self._arm()


class Door:
    """A manager's end of all connections, as long as that manager lives."""

    def __init__(
        self, clock: Clock, epoch: str, delay: float, arrived: Callable[[Wire, Packet], None], closed: Callable[[], None]
    ) -> None:
        """``closed``: some connection was, and the time of a tick has come."""
        self.clock, self._delay, self._arrived, self._closed = clock, delay, arrived, closed
        self._dials: dict[Wire, Dial] = {}
        self._processes: dict[str, Dial] = {}  # by session: to know whether it lives; nothing else is asked of it
        self._sessions: Hosting[Wire] = Hosting(
            "run", epoch, clock.now, say=self._say, is_dead=self._is_dead, refused=self._refused, later=True
        )
        self.send, self.deadline = self._sessions.send, self._sessions.deadline

    def accept(self, dial: Dial, take: Callable[[Packet], None]) -> Wire:
        wire = Wire(
            self.clock, self._delay, lambda packet: self._arrived(wire, packet),
            lambda packet: take(packet) if dial.wire is wire else None, self._noticed,
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
        news: News = []
        role = ""
        if packet[0] == HELLO:
            hello = decode(packet[2])
            assert isinstance(hello, m.ClientHello | m.WorkerHello)
            role = "client" if isinstance(hello, m.ClientHello) else "worker"
            self._processes[hello.session] = self._dials[wire]
        if packet[0] != NOTHING:
            self._sessions.take(wire, role, packet, self.clock.now, news)
        return news

    def _say(self, wire: Wire, packet: Packet) -> bool:
        if wire.open:
            wire.send(DOWN, packet)
        return wire.open  # a ROUTER refuses to send to one that is closed

    def _noticed(self) -> None:
        self._sessions.suspect(self.clock.now)
        self._closed()

    def _is_dead(self, session: Session[Wire]) -> bool:
        dial = self._processes[session.name]
        return dial.near and dial.closed

    def _refused(self, who: str, why: str) -> None:
        raise AssertionError(self.clock.tale(f"refused {who}: {why}"))

    def settle(self) -> None:
        """What came is committed."""
        self._sessions.settle(self.clock.now)

    def flush(self) -> None:
        self._sessions.flush(self.clock.now)

    def tick(self) -> News:
        news: News = []
        self._sessions.tick(self.clock.now, news)
        return news
