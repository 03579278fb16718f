"""One session's stream of messages, both ways, whole and in order over connections that come and go.  Pure.

ZeroMQ loses what is on the wire when a connection is cut and tells nobody.  So every frame has a number, the
receiver says how far it has come, and what it has not come to is sent again.  A packet is a list of frames
whose first is its header::

    D first acknowledged   data: the frames that follow are numbered from ``first``
    S first acknowledged   the same of a single small frame, which follows in the very same part
    M first acknowledged   the same of many small frames: u32 length, content, u32 length, ...
    P last  acknowledged   ping: an answer (any packet) is wanted; ``last`` is the newest number sent
    A last  acknowledged   the same, and no answer is wanted
    N last  acknowledged   something is missing: send again from acknowledged + 1

A link is bounded: what exceeds the window waits at the sender, in the order in which it was pushed.  What came is
confirmed at once; with ``later`` only when its owner says ``settle``, as it may have to be written down first.
"""

from __future__ import annotations

import struct
from collections import deque

from lfm.errors import ProtocolError

HEADER = struct.Struct("<cQQ")
DATA, SINGLE, BUNDLE, PING, ACK, AGAIN = b"D", b"S", b"M", b"P", b"A", b"N"

WINDOW_FRAMES = 8192  # sent and not acknowledged, at most
WINDOW_BYTES = 64 << 20
PACKET_FRAMES = 512
PACKET_BYTES = 4 << 20
COPIED_BYTES = 1 << 18  # up to which frames share a part with the header: one of their own costs more than to copy them
ACK_FRAMES = 256  # acknowledge at the latest after so many


class Link:
    """The state of one end of a session."""

    __slots__ = (
        "_acknowledged", "_bytes", "_first", "_held_back", "_later", "_newest", "_next", "_out", "acked_to_peer", "backlog",
        "received", "settled",
    )  # fmt: skip

    def __init__(self, later: bool = False) -> None:
        self._later = later
        self._out: deque[bytes] = deque()  # from _first on: sent and unacknowledged, then waiting
        self._first = 1  # the number of _out[0]
        self._next = 1  # the number of the next frame to send: _first <= _next <= _first + len(_out)
        self._newest = 0  # the newest number ever sent, on any connection
        self._acknowledged = 0
        self._bytes = 0  # of _first .. _next - 1
        self._held_back = True  # the last attempt to send could not send all: none yet, a closed window, a cut
        self.backlog = 0  # bytes of all that is not yet acknowledged, sent or not
        self.received = 0  # the newest number that came, with all before it
        self.settled = 0  # how far that may be confirmed
        self.acked_to_peer = 0  # how far the peer has been told

    @property
    def unacknowledged(self) -> int:
        """How many frames were sent and not yet acknowledged."""
        return self._next - self._first

    @property
    def waiting(self) -> int:
        """How many frames have not been sent: packets() has more as soon as the window opens."""
        return len(self._out) - self.unacknowledged

    @property
    def overdue(self) -> bool:
        """Whether what waits would have been sent already, but for a closed window or a cut."""
        return self._held_back and self.waiting > 0

    @property
    def owes_ack(self) -> bool:
        return self.settled > self.acked_to_peer

    @property
    def owes_much(self) -> bool:
        """So much was not confirmed yet that the peer may soon have to wait."""
        return self.settled - self.acked_to_peer >= ACK_FRAMES

    def settle(self) -> None:
        """What came is safe."""
        self.settled = self.received

    def push(self, frame: bytes) -> None:
        """Send this frame, some time, exactly once."""
        self._out.append(frame)
        self.backlog += len(frame)

    def packets(self) -> list[list[bytes]]:
        """What can be sent now."""
        ready = []
        while self._next < self._first + len(self._out) and self._bytes < WINDOW_BYTES:
            room = min(PACKET_FRAMES, WINDOW_FRAMES - self.unacknowledged)
            if room <= 0:
                break
            frames: list[bytes] = []
            size, at = 0, self._next - self._first
            while at + len(frames) < len(self._out) and len(frames) < room and size < PACKET_BYTES:
                frame = self._out[at + len(frames)]
                frames.append(frame)
                size += len(frame)
            if size > COPIED_BYTES:
                ready.append([HEADER.pack(DATA, self._next, self.settled), *frames])
            elif len(frames) == 1:
                ready.append([HEADER.pack(SINGLE, self._next, self.settled) + frames[0]])
            else:
                ready.append([HEADER.pack(BUNDLE, self._next, self.settled) + _bundle(frames)])
            self._next += len(frames)
            self._newest = max(self._newest, self._next - 1)
            self._bytes += size
            self.acked_to_peer = self.settled
        self._held_back = self.waiting > 0
        return ready

    def control(self, kind: bytes) -> list[bytes]:
        """A packet without frames: PING, ACK or AGAIN."""
        self.acked_to_peer = self.settled
        return [HEADER.pack(kind, self._next - 1, self.settled)]

    def receive(self, packet: list[bytes]) -> tuple[list[bytes], bytes | None]:
        """The new frames of a packet, and the kind of control packet that it wants for an answer.

        ProtocolError if it is no packet, or acknowledges what was never sent.
        """
        try:
            kind, number, acknowledged = HEADER.unpack_from(packet[0])
        except struct.error:
            raise ProtocolError("not a packet") from None
        self.acknowledge(acknowledged)
        if kind in (SINGLE, DATA, BUNDLE):
            frames = _frames(kind, packet)
            if number > self.received + 1:
                return [], AGAIN
            new = frames[self.received + 1 - number :]
            self.received += len(new)
            if not self._later:
                self.settled = self.received
            return new, ACK if self.owes_much else None
        if kind not in (PING, ACK, AGAIN):
            raise ProtocolError("not a packet")
        if kind == AGAIN:
            self.resume(acknowledged)
        if number > self.received:
            return [], AGAIN
        return [], ACK if kind == PING else None

    def acknowledge(self, number: int) -> None:
        """The peer has everything up to ``number``."""
        if number <= self._acknowledged:
            return
        if number > self._newest:
            raise ProtocolError("acknowledges what was never sent")
        for at in range(self._first, number + 1):
            frame = self._out.popleft()
            self.backlog -= len(frame)
            if at < self._next:
                self._bytes -= len(frame)
        self._acknowledged = number
        self._first = number + 1
        self._next = max(self._next, self._first)  # what was to be sent again has come after all

    def resume(self, received: int) -> None:
        """The connection is new and the peer has come to ``received``: what follows is to be sent again."""
        self.acknowledge(received)
        self._next = self._first
        self._bytes = 0
        self._held_back = True


_LENGTH = struct.Struct("<I")


def _bundle(frames: list[bytes]) -> bytes:
    pieces: list[bytes] = []
    for frame in frames:
        pieces += (_LENGTH.pack(len(frame)), frame)
    return b"".join(pieces)


def _frames(kind: bytes, packet: list[bytes]) -> list[bytes]:
    """ProtocolError for a bundle that is none, or parts that are no frames."""
    if kind == DATA:
        return packet[1:]
    if len(packet) > 1:
        raise ProtocolError("not a packet")
    return [packet[0][HEADER.size :]] if kind == SINGLE else _unbundle(packet[0], HEADER.size)


def _unbundle(body: bytes, at: int) -> list[bytes]:
    frames = []
    try:
        while at < len(body):
            (length,) = _LENGTH.unpack_from(body, at)
            frames.append(body[at + 4 : at + 4 + length])
            at += 4 + length
    except struct.error:
        raise ProtocolError("not a packet") from None
    if at != len(body):
        raise ProtocolError("a packet that is cut short")
    return frames
