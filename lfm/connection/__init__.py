"""One peer's ZeroMQ connection to its manager: CURVE, handshake, heartbeats, resend.

Two classes.  A ``Dialer`` is the end of a client, a worker or a viewer; a ``Listener`` is the manager's.  Both
are driven by their owner's poller loop and never block (``Dialer.connect`` does, within its timeout): register
their sockets, call ``receive`` after a wake and ``tick`` when ``deadline`` is due, ``send`` and then ``flush``.

A **session** outlives connections.  The dialer says hello with its session's name, the epoch that it knows and
how far it has come; a manager that knows the session goes on where it stopped (``lfm.protocol.link``), any
other starts it anew and says so.  Whoever connects without a hello is asked for one.  Times are monotonic.
These rules, without sockets and clocks, are ``lfm.protocol.dialing`` and ``hosting``; here is what carries them out.

Frames: ``H`` hello, ``W`` welcome, ``R`` refused, ``?`` say hello, ``B`` bye; and the packets of the link.
"""

from __future__ import annotations

from lfm.connection.dialer import Dialer as Dialer
from lfm.connection.listener import Listener as Listener
from lfm.protocol.hosting import Joined as Joined
from lfm.protocol.hosting import Left as Left
from lfm.protocol.hosting import Said as Said
