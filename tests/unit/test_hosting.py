"""A listener's rules, without sockets and clocks."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from lfm.protocol import messages as m
from lfm.protocol.codec import encode
from lfm.protocol.hosting import Hosting, Left, News
from lfm.protocol.link import Link
from lfm.protocol.pace import HELLO, LEASE


def hosting(say: Any = lambda route, packet: True) -> Hosting[int]:
    """With three viewers, at time 0."""
    made: Hosting[int] = Hosting("run", "epoch", 0.0, say=say, is_dead=lambda session: False, refused=lambda *why: None, later=True)
    news: News = []
    for route in range(3):
        facts = {"version": m.VERSION, "session": f"v{route}", "epoch": "", "received": 0}
        made.take(route, "viewer", [HELLO, msgpack.packb(facts), encode(m.ViewerHello(f"v{route}"))], 0.0, news)
    assert len(news) == 3
    return made


def test_who_was_away_itself_blames_nobody_though_connections_have_closed_meanwhile() -> None:
    """A manager that was stopped for longer than its lease gave up all its workers, whose connections had closed."""
    made, news, back = hosting(), [], LEASE + 30  # type: tuple[Hosting[int], News, float]
    made.suspect(back)
    made.tick(back, news)
    assert not news
    while not news:  # who has really gone is missed later
        now = made.deadline()
        made.tick(now, news)
    assert [type(one) for one in news] == [Left] * 3 and back < now <= back + LEASE


def test_what_cannot_be_settled_now_is_settled_later() -> None:
    made, news = hosting(), []  # type: tuple[Hosting[int], News]
    for route in range(3):
        link = Link()
        link.push(encode(m.Query(1, "info", {})))
        for packet in link.packets():
            made.take(route, "", packet, 1.0, news)
    settle, fails = Link.settle, iter([True])

    def short(link: Link) -> None:
        if next(fails, False):
            raise MemoryError
        settle(link)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Link, "settle", short)
        with pytest.raises(MemoryError):
            made.settle(2.0)
        made.settle(3.0)
    assert [session.link.settled for session in made.all] == [1] * 3
