"""A link delivers every frame once and in order, whatever the wire loses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lfm.errors import ProtocolError
from lfm.protocol.link import AGAIN, BUNDLE, HEADER, PING, WINDOW_FRAMES, Link


class Wire:
    """Two links and what is on its way between them; a cut loses all of it."""

    def __init__(self) -> None:
        self.ends = (Link(), Link())
        self.flying: tuple[list[list[bytes]], list[list[bytes]]] = ([], [])  # towards end 0, towards end 1
        self.got: tuple[list[bytes], list[bytes]] = ([], [])

    def send(self, end: int) -> None:
        self.flying[1 - end].extend(self.ends[end].packets())

    def deliver(self, end: int) -> None:
        if self.flying[end]:
            frames, answer = self.ends[end].receive(self.flying[end].pop(0))
            self.got[end].extend(frames)
            if answer is not None:
                self.flying[1 - end].append(self.ends[end].control(answer))

    def lose(self, end: int) -> None:
        if self.flying[end]:
            self.flying[end].pop(0)

    def reconnect(self) -> None:
        self.flying[0].clear()
        self.flying[1].clear()
        for end in (0, 1):
            self.ends[end].resume(self.ends[1 - end].received)

    def resend(self, end: int) -> None:
        """A new connection while packets of the old one are still to come."""
        self.ends[end].resume(self.ends[1 - end].received)

    def settle(self) -> None:
        for _ in range(20):
            for end in (0, 1):
                self.send(end)
                self.flying[1 - end].append(self.ends[end].control(PING))
            while self.flying[0] or self.flying[1]:
                self.deliver(0)
                self.deliver(1)


STEPS = ["push", "send", "deliver", "lose", "reconnect", "resend"]


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 1)), max_size=120))
def test_every_frame_arrives_once_and_in_order(steps: list[tuple[str, int]]) -> None:
    wire = Wire()
    said: tuple[list[bytes], list[bytes]] = ([], [])
    for number, (what, end) in enumerate(steps):
        if what == "push":
            frame = b"%d" % number
            wire.ends[end].push(frame)
            said[1 - end].append(frame)
        elif what == "reconnect":
            wire.reconnect()
        else:
            getattr(wire, what)(end)
    wire.settle()
    assert wire.got == said
    assert all(link.unacknowledged == 0 and link.waiting == 0 for link in wire.ends)


def test_a_gap_is_asked_for_again() -> None:
    one, other = Link(), Link()
    one.push(b"a")
    one.packets()
    one.push(b"b")
    [late] = one.packets()
    assert other.receive(late) == ([], AGAIN)


def test_what_exceeds_the_window_waits_in_order() -> None:
    one, other = Link(), Link()
    frames = [b"%d" % n for n in range(20_000)]
    for frame in frames:
        one.push(frame)
    got: list[bytes] = []
    while packets := one.packets():
        for packet in packets:
            got += other.receive(packet)[0]
        one.receive(other.control(b"A"))
    assert got == frames


def test_what_was_held_back_is_told_from_what_waits_for_its_siblings() -> None:
    link, peer = Link(), Link()
    assert not link.overdue
    link.push(b"before the first connection")
    assert link.overdue
    for packet in link.packets():
        peer.receive(packet)
    link.push(b"with the next flush")
    assert not link.overdue
    link.resume(peer.received)  # a new connection: what the peer lacks is not to wait for anybody
    assert link.overdue
    link.packets()
    assert not link.overdue
    for _ in range(WINDOW_FRAMES):
        link.push(b"")
    link.packets()
    assert link.overdue  # as soon as the window opens


def test_small_frames_travel_as_one() -> None:
    one, other = Link(), Link()
    for n in range(300):
        one.push(b"x" * n)
    packets = one.packets()
    assert [len(p) for p in packets] == [1]
    assert other.receive(packets[0])[0] == [b"x" * n for n in range(300)]


def test_a_small_frame_travels_with_its_header() -> None:
    one, other = Link(), Link()
    one.push(b"alone")
    [packet] = one.packets()
    assert len(packet) == 1 and other.receive(packet)[0] == [b"alone"]
    assert other.receive(packet)[0] == []  # sent again: known


def test_large_frames_are_not_copied() -> None:
    one, large = Link(), bytes(1 << 20)
    one.push(b"small")
    one.push(large)
    [packet] = one.packets()
    assert packet[2] is large


@pytest.mark.parametrize("body", [b"\x01", b"\x05\0\0\0abc", b"\0\0\0\0\xff"])
def test_a_broken_bundle_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        Link().receive([HEADER.pack(BUNDLE, 1, 0) + body])


def test_what_is_not_settled_is_not_confirmed_and_comes_again() -> None:
    near, far = Link(), Link(later=True)
    near.push(b"a")
    near.push(b"b")
    (packet,) = near.packets()
    assert far.receive(packet) == ([b"a", b"b"], None)
    near.receive(far.control(PING))
    assert near.unacknowledged == 2 and not far.owes_ack and near.backlog == 2
    near.resume(far.settled)  # the connection was cut
    (packet,) = near.packets()
    assert far.receive(packet) == ([], None)  # known already
    far.settle()
    assert far.owes_ack
    near.receive(far.control(PING))
    assert near.unacknowledged == 0 and near.backlog == 0
