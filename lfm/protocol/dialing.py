"""A client's, worker's or viewer's half of a session: what it answers, when it speaks up, when it gives up.  Pure.

Knows no socket and no clock: ``put`` sends one packet to the manager, if there is a connection just now, and times
are handed in.  ``lfm.connection.Dialer`` drives it in production, ``tests/sim/worlds`` in virtual time.
"""

from __future__ import annotations

from collections.abc import Callable

import msgpack

from lfm.errors import ConnectionFailed, ProtocolError
from lfm.protocol import messages as m
from lfm.protocol.codec import decode, encode
from lfm.protocol.link import ACK, PING, Link
from lfm.protocol.pace import (
    ACK_DELAY,
    BYE,
    DEAD_AFTER,
    HELLO,
    PING_EVERY,
    REFUSED,
    RESEND_AFTER,
    WELCOME,
    WHO,
)

Packet = list[bytes]


class Dialing:
    """``put`` need not send the packet: what of it matters, the link keeps."""

    def __init__(self, hello: Callable[[], m.Hello], put: Callable[[Packet], None], now: float) -> None:
        self.link = Link()
        self.epoch = ""  # of the manager that knows this session; none yet
        self.welcomed = False  # on this connection
        self.refused: str | None = None
        self.lost_since: float | None = now  # the last sign of life; None while connected
        self.heard = self._sent = now
        self._hello, self._put_out = hello, put
        self._ack_due: float | None = None

    # -- connections come and go

    def dialled(self, now: float) -> None:
        """A connection is being made: all its silence is still to come."""
        self.heard = self._sent = now
        self.welcomed = False

    def closed(self, now: float) -> None:
        """The connection was closed; the transport makes another one by itself."""
        if self.lost_since is None:
            self.lost_since = now  # until the next sign of life

    # -- packets

    def push(self, message: m.Message) -> None:
        """Queue a message; it leaves with ``flush``."""
        self.link.push(encode(message))

    def flush(self, now: float) -> None:
        """Send what is queued, as far as the window is open."""
        if self.welcomed:
            for packet in self.link.packets():
                self._put(packet, now)

    def catch_up(self, now: float) -> None:
        """After something came: the window may have opened for what had to wait.

        What else is queued leaves when its owner says so, with its siblings.
        """
        if self.link.overdue:
            self.flush(now)

    def take(self, packet: Packet, now: float) -> list[m.Message]:
        """What a packet of the manager says.

        ProtocolError if it refuses this session for good, or says what is none; ConnectionFailed if it has ended it.
        """
        self.heard = now
        kind = packet[0]
        if kind == WHO:
            self._say_hello(now)
            return []
        if kind == WELCOME:
            return [self._welcome(packet)]
        if kind == REFUSED:
            refused = decode(packet[1])
            self.refused = refused.reason if isinstance(refused, m.Refused) else "refused"
            raise ProtocolError(self.refused)
        if kind == BYE:
            raise ConnectionFailed("the manager has ended this session")
        if not self.welcomed:
            return []
        frames, answer = self.link.receive(packet)
        if answer is not None:
            self._put(self.link.control(answer), now)
        elif self.link.owes_ack and self._ack_due is None:
            self._ack_due = now + ACK_DELAY
        self.lost_since = None
        return [decode(frame) for frame in frames]

    def _say_hello(self, now: float) -> None:
        self.welcomed = False
        hello = self._hello()
        facts = {"version": m.VERSION, "session": hello.session, "epoch": self.epoch, "received": self.link.received}
        self._put([HELLO, msgpack.packb(facts), encode(hello)], now)

    def _welcome(self, packet: Packet) -> m.Welcome:
        welcome, received = decode(packet[1]), msgpack.unpackb(packet[2])
        if not isinstance(welcome, m.Welcome):
            raise ProtocolError("not a welcome")
        if welcome.resumed:
            self.link.resume(received)
        elif self.epoch:
            self.link = Link()  # what was said to a manager that forgot it: its owner says it again
        self.epoch = welcome.epoch
        self.welcomed = True
        self.lost_since = None
        return welcome

    def _put(self, packet: Packet, now: float) -> None:
        self._put_out(packet)
        self._sent = now  # also where there is no connection: or the next try were due at once, and again

    # -- time

    def deaf(self, now: float) -> None:
        """Nothing is received just now: that is not the manager's silence."""
        if self.welcomed:
            self.heard = max(self.heard, now - PING_EVERY)

    def tick(self, now: float) -> bool:
        """Keep the connection alive.  False: it is dead, and another is to be dialled."""
        if now >= self.heard + DEAD_AFTER:
            if self.lost_since is None:
                self.lost_since = self.heard
            self.welcomed = False
            return False
        if not self.welcomed:
            return True
        if self._ack_due is not None and now >= self._ack_due:
            self._ack_due = None
            if self.link.owes_ack:
                self._put(self.link.control(ACK), now)
        if now >= self._speaks_up():
            self._put(self.link.control(PING), now)
        return True

    def _speaks_up(self) -> float:
        """When the silence has lasted long enough."""
        return max(self._sent, self.heard) + (RESEND_AFTER if self.link.unacknowledged else PING_EVERY)

    def deadline(self) -> float:
        """Of the next tick."""
        due = self.heard + DEAD_AFTER
        if self.welcomed:
            due = min(due, self._speaks_up())
            if self._ack_due is not None:
                due = min(due, self._ack_due)
        return due
