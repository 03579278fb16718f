"""The numbers that both ends of a connection keep to, and the kinds of packets beside the link's.  Seconds."""

from __future__ import annotations

HELLO, WELCOME, REFUSED, WHO, BYE = b"H", b"W", b"R", b"?", b"B"
PING_EVERY = 10.0  # of silence after which a peer is asked for a sign of life
DEAD_AFTER = 25.0  # of silence after which a connection is given up and dialled anew
LEASE = 60.0  # of silence after which a session is over, and its calls are given away
GONE_LEASE = 15.0  # the same, once the peer's side has closed the connection
AWAY = 1.0  # of lateness of the listener itself, which counts as nobody's silence
ACK_DELAY = 0.1  # that an acknowledgement may wait for data to ride on
SUSPICION = 2.0  # after a connection closed in which every peer is tried: ZeroMQ needs a moment to know whose it was
RESEND_AFTER = 2.0  # without news of what was sent, after which the peer is asked
SESSIONS = 50_000  # at most; whoever comes then is refused
