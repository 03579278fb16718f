"""A dialer's rules, without sockets and clocks."""

from __future__ import annotations

import msgpack

from lfm.protocol import messages as m
from lfm.protocol.codec import encode
from lfm.protocol.dialing import Dialing, Packet
from lfm.protocol.pace import DEAD_AFTER, RESEND_AFTER, WELCOME


def test_who_has_no_connection_does_not_try_again_at_once() -> None:
    """A worker that was cut off took a whole core until it was back."""
    tried: list[Packet] = []
    one = Dialing(lambda: m.ViewerHello("v"), tried.append, 0.0)
    one.take([WELCOME, encode(m.Welcome("run", "epoch", False)), msgpack.packb(0)], 0.0)
    one.push(m.Query(1, "info", {}))
    one.flush(0.0)
    now, looks = 0.0, 0
    while one.tick(now):
        now, looks = one.deadline(), looks + 1
    assert now == DEAD_AFTER and looks <= DEAD_AFTER / RESEND_AFTER + 2 and len(tried) > 1


def test_who_has_no_memory_to_listen_gives_nobody_up() -> None:
    """Else it dropped what waited in its socket, and all that it had asked for after ten minutes."""
    one = Dialing(lambda: m.ViewerHello("v"), lambda packet: None, 0.0)
    one.take([WELCOME, encode(m.Welcome("run", "epoch", False)), msgpack.packb(0)], 0.0)
    for tenths in range(int(20 * DEAD_AFTER)):
        one.deaf(tenths / 10)
        assert one.tick(tenths / 10) and one.lost_since is None
    now = 2 * DEAD_AFTER
    while one.tick(now):
        now = max(now + 0.1, one.deadline())
    assert one.lost_since is not None
