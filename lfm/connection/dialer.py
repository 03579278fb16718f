"""A client's, worker's or viewer's end of a connection: its sockets.  What it says on them is ``Dialing``'s."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import zmq

from lfm.connection.tuning import event_of, need_descriptors, new_context, put, readable, tune
from lfm.errors import ConnectionFailed
from lfm.protocol import messages as m
from lfm.protocol.dialing import Dialing
from lfm.protocol.pace import BYE
from lfm.run import ConnectionFile

HANDSHAKES = 8  # that fail before a dialer believes that it is not a manager of this run that answers
_WATCHED = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


class Dialer:
    """A client's, worker's or viewer's end."""

    def __init__(
        self, file: ConnectionFile | Callable[[], ConnectionFile], hello: Callable[[], m.Hello],
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ) -> None:
        self._file: Callable[[], ConnectionFile] = file if callable(file) else lambda: file
        self._context = context or new_context()
        self._own_context = context is None
        self._session = Dialing(hello, self._put, time.monotonic())
        self._early: list[m.Message] = []  # what came with the welcome, for the next receive()
        self._racers: list[zmq.Socket[bytes]] = []  # one per address until one answers
        self._socket: zmq.Socket[bytes] | None = None
        self._monitors: dict[zmq.Socket[bytes], zmq.Socket[bytes]] = {}  # of each of these: what becomes of its connection
        self._knows_key = True
        self._strangers: dict[zmq.Socket[bytes], int] = {}  # how often what answered there was not our manager
        self._pollers: list[zmq.Poller] = []
        self._redial_at: float | None = None

    @property
    def lost_since(self) -> float | None:
        """Monotonic time of the last sign of life; None while connected."""
        return self._session.lost_since

    @property
    def refused(self) -> str | None:
        """Why the manager refused this session, if it did."""
        return self._session.refused

    # -- what the owner's loop needs

    def register(self, poller: zmq.Poller) -> None:
        """Keep this poller told of the sockets to watch, which change when a connection is dialled anew."""
        self._pollers.append(poller)
        for one in (*self._sockets(), *self._monitors.values()):
            poller.register(one, zmq.POLLIN)

    def owns(self, socket_: object) -> bool:
        return any(one is socket_ for one in (*self._sockets(), *self._monitors.values()))

    def _sockets(self) -> list[zmq.Socket[bytes]]:
        return [self._socket] if self._socket is not None else list(self._racers)

    def connect(self, timeout: float = 10.0) -> m.Welcome:
        """Dial and shake hands.  ConnectionFailed within ``timeout`` seconds, ProtocolError if refused."""
        try:
            self._dial()
        except ConnectionFailed:
            self.close()
            raise
        poller = zmq.Poller()
        self.register(poller)
        try:
            return self._shake_hands(time.monotonic() + timeout, timeout, poller)
        except BaseException:
            self.close()
            raise
        finally:
            self._pollers.remove(poller)

    def _shake_hands(self, end: float, timeout: float, poller: zmq.Poller) -> m.Welcome:
        while (left := end - time.monotonic()) > 0:
            poller.poll(int(min(left, 1.0) * 1000) + 1)
            heard = self.receive()
            for at, message in enumerate(heard):
                if isinstance(message, m.Welcome):
                    self._early = heard[at + 1 :]  # it may go on speaking at once
                    return message
            if not self._knows_key:
                raise ConnectionFailed(
                    f"the manager at {self._where()} does not know this key; use its present connection file"
                )
            if self._racers and all(self._strangers.get(one, 0) >= HANDSHAKES for one in self._racers):
                raise ConnectionFailed(
                    f"what answers at {self._where()} has not the keys of this connection file; is the file an old one?"
                )
            self.tick()
        raise ConnectionFailed(f"no manager answers at {self._where()} (waited {timeout:.0f} s); see: lfm manager info")

    def send(self, message: m.Message) -> None:
        """Queue a message; it leaves with ``flush``."""
        self._session.push(message)

    def flush(self) -> None:
        """Send what is queued, as far as the window is open."""
        self._session.flush(time.monotonic())

    @property
    def address(self) -> str:
        """Where the manager answered; empty before it did."""
        return "" if self._socket is None else self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    @property
    def waiting(self) -> int:
        """How many messages have not left yet: the manager is slow or away."""
        return self._session.link.waiting

    @property
    def unacknowledged(self) -> int:
        """How many messages the manager has not yet confirmed, sent or not."""
        link = self._session.link
        return link.waiting + link.unacknowledged

    def receive(self) -> list[m.Message]:
        """What has come, while what was sent before ``flush`` goes on waiting.  A Welcome with ``resumed`` False (after the first): the manager knows nothing of before.

        ProtocolError if the manager refused this session for good.
        """
        news, self._early = self._early, []
        now, heard = time.monotonic(), False
        for one in self._sockets():
            while not one.closed and readable(one):
                packet = one.recv_multipart(zmq.NOBLOCK)
                heard = True
                if self._socket is None:
                    self._choose(one)
                news += self._session.take(packet, now)
        if heard:
            self._session.catch_up(now)
        else:
            self._watch(now)
        return news

    def deaf(self) -> None:
        """Instead of ``receive`` where there is no memory for what has come: it waits in the socket."""
        self._session.deaf(time.monotonic())

    def _watch(self, now: float) -> None:
        """What became of the connections: refused for the key, or closed (ZeroMQ dials again by itself)."""
        for one, monitor in list(self._monitors.items()):
            while readable(monitor):
                event = event_of(monitor.recv_multipart())
                if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                    self._knows_key = False
                elif event != zmq.EVENT_DISCONNECTED:
                    self._strangers[one] = self._strangers.get(one, 0) + 1
                elif self._socket is not None:
                    self._session.closed(now)

    def tick(self) -> None:
        """Keep the connection alive; call it when ``deadline`` is due."""
        now = time.monotonic()
        if self._redial_at is not None:
            if now >= self._redial_at:
                self._dial()
            return
        if not self._session.tick(now):
            self._drop_sockets()
            self._session.dialled(now)
            self._redial_at = now + random.uniform(0.0, 1.0)

    def deadline(self) -> float:
        """Monotonic time of the next tick."""
        if self._early:
            return self._session.heard
        return self._redial_at if self._redial_at is not None else self._session.deadline()

    def close(self, goodbye: bool = False) -> None:
        """Give the connection up.  ``goodbye``: tell the manager that the session is over, if that is possible."""
        if goodbye and self._socket is not None:
            self._socket.setsockopt(zmq.LINGER, 500)
            self._put([BYE])
        self._drop_sockets()
        self._redial_at = None
        if self._own_context:
            self._context.term()

    # -- dialling

    def _dial(self) -> None:
        self._drop_sockets()
        self._redial_at = None
        now = time.monotonic()
        self._session.dialled(now)
        try:
            file = self._file()
            need_descriptors()
        except ConnectionFailed:
            if self._session.epoch:  # the manager may be on its way back, with a new file; or others let go of descriptors
                self._redial_at = now + 2.0
                return
            raise
        for address in file.addresses:
            one = self._context.socket(zmq.DEALER)
            tune(one)
            one.curve_serverkey = file.server_key.encode()
            one.curve_publickey = file.public_key.encode()
            one.curve_secretkey = file.secret_key.encode()
            one.setsockopt(zmq.PROBE_ROUTER, 1)  # at each connection an empty message, answered by "say hello"
            one.setsockopt(zmq.IMMEDIATE, 1)  # a pipe lives as long as its connection: then each has its probe
            one.setsockopt(zmq.CONNECT_TIMEOUT, 2_000)
            one.setsockopt(zmq.RECONNECT_IVL, random.randint(50, 250))  # many workers do not come back at once
            one.setsockopt(zmq.RECONNECT_IVL_MAX, 2_000)
            self._monitors[one] = one.get_monitor_socket(_WATCHED)
            one.connect(address)
            self._racers.append(one)
            for poller in self._pollers:
                poller.register(one, zmq.POLLIN)
                poller.register(self._monitors[one], zmq.POLLIN)

    def _choose(self, winner: zmq.Socket[bytes]) -> None:
        """The first address that answers is the one; CURVE has proved that it is our manager."""
        losers = [one for one in self._racers if one is not winner]
        self._racers = []
        self._socket = winner
        for one in losers:
            self._drop(one)

    def _drop_sockets(self) -> None:
        for one in self._sockets():
            self._drop(one)
        self._racers, self._socket = [], None

    def _drop(self, one: zmq.Socket[bytes]) -> None:
        monitor = self._monitors.pop(one)
        self._strangers.pop(one, None)
        for poller in self._pollers:
            poller.unregister(one)
            poller.unregister(monitor)
        one.disable_monitor()
        monitor.close(0)
        one.close()  # with the linger that was set

    def _put(self, packet: list[bytes]) -> None:
        if self._socket is not None:
            try:
                put(self._socket, packet)
            except zmq.Again:  # not connected
                pass

    def _where(self) -> str:
        try:
            return " or ".join(self._file().addresses)
        except ConnectionFailed:
            return "(no connection file)"
