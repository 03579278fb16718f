"""The socket options that both ends share.  Seconds; the reasons are what ZeroMQ was seen to do."""

from __future__ import annotations

import os
import sys
from typing import Any

import zmq

from lfm.errors import ConnectionFailed

PARTING = 500  # ms that what was said last, as why a session is refused, may take to leave
UNHEARD, SILENT = 6.0, 20.0  # without the other kernel's word, or the other process's, after which a connection is made anew: TCP tries ever more seldom, a dialer does not
OUTLIVES = 30.0  # by which a listener's connections outlive the lease: that one was closed must come from the other side, where a process ended
QUEUED = 16_384  # packets of one connection that wait at the manager, in or out: more than any link sends unconfirmed
DESCRIPTORS = 24  # that must be free before ZeroMQ opens some
MAX_FRAME = 16 << 20  # bytes; larger ones are refused by the transport

# pyzmq's names for these are enums, and each operation on one costs more than the call that it is for
_EVENTS, _POLLIN, _NOBLOCK, _MORE = int(zmq.EVENTS), int(zmq.POLLIN), int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE)


def tune(socket: zmq.Socket[bytes], unheard: float = UNHEARD, silent: float = SILENT) -> None:
    """What both ends set before they bind or connect."""
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, 0)  # the link's window bounds what is on its way
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME)
    socket.setsockopt(zmq.TCP_MAXRT, int(unheard * 1000))
    socket.setsockopt(zmq.HEARTBEAT_IVL, 5_000)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, int(silent * 1000))


def need_descriptors() -> None:
    """ConnectionFailed if so few are left that ZeroMQ, where it cannot open one, may end this process."""
    held: list[int] = []
    try:
        for _ in range(DESCRIPTORS):
            held.append(os.eventfd(0))
    except OSError as error:
        raise ConnectionFailed(f"cannot open a connection: {error.strerror}; how many this process may have: ulimit -n") from None
    finally:
        for one in held:
            os.close(one)


def new_context() -> zmq.Context[zmq.Socket[bytes]]:
    """With its threads to come.  ConnectionFailed if there are no descriptors for them."""
    need_descriptors()
    return zmq.Context()


def readable(socket: zmq.Socket[bytes]) -> bool:
    """Whether there is something to receive; at a tenth of the price of a poll."""
    events: Any = socket.getsockopt(_EVENTS)  # an int, and to make sure of it would take 50 ns each time
    return bool(events & _POLLIN)


def put(socket: zmq.Socket[bytes], packet: list[bytes]) -> None:
    """Send all parts without waiting, or none; raises what ZeroMQ says.  At half the price of pyzmq's own way."""
    last = len(packet) - 1
    for at, part in enumerate(packet):
        socket.send(part, _NOBLOCK if at == last else _MORE)


def event_of(message: list[bytes]) -> int:
    """What a socket's monitor says.  Read by hand: pyzmq's reader imports asyncio, a tenth of a second at every start."""
    return int.from_bytes(message[0][:2], sys.byteorder)
