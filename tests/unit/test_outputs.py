"""What a running call has printed: positions in a stream whose middle may be gone."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lfm.monitor import capture
from lfm.protocol.ids import PeerId, TaskId
from lfm.protocol.messages import Answer, OutputSoFar
from lfm_manager.shell import outputs

STREAM = os.urandom(1 << 20).replace(b"[", b"(")
VIEWER, WORKER = PeerId(1), PeerId(2)


@pytest.fixture
def taken() -> Iterator[capture.Capture]:
    one = capture.Capture(os.memfd_create("out", os.MFD_CLOEXEC))
    yield one
    for end in (one.file, one.read_end, one.write_end):
        os.close(end)


def write(taken: capture.Capture, data: bytes) -> None:
    for at in range(0, len(data), 4096):
        os.write(taken.write_end, data[at : at + 4096])
        taken.pump()


def test_who_follows_sees_all_that_is_still_there(taken: capture.Capture) -> None:
    position, written = 0, 0
    for step in (0, 10, 40_000, 90_000, 100_000, 7, 200_000):
        write(taken, STREAM[written : written + step])
        written += step
        while True:
            begins, data = capture.since(taken.file, position)
            assert begins >= position and data == STREAM[begins : begins + len(data)]
            if not data:
                break
            position = begins + len(data)
        assert position == written
    assert capture.since(taken.file, 10) == (10, STREAM[10 : capture.HEAD])
    assert capture.since(taken.file, 50_000) == (written - capture.TAIL, STREAM[written - capture.TAIL : written])
    taken.restart()
    assert capture.since(taken.file, 0)[1] == b""


@given(st.integers(0, 400_000), st.integers(0, 400_000))
def test_the_end_goes_on_where_the_follower_was(total: int, position: int) -> None:
    position = min(position, total)
    kept, printed = capture.HEAD + capture.TAIL, STREAM[:total]
    if total > kept:
        gap = b"\n[... %d bytes left out ...]\n" % (total - kept)
        printed = STREAM[: capture.HEAD] + gap + STREAM[total - capture.TAIL : total]
    begins, data = outputs.since(printed, position)
    if total <= kept or position <= capture.HEAD:
        assert (begins, data) == (position, printed[position:])
    else:
        assert begins == max(position, total - capture.TAIL) and data == STREAM[begins:total]


def test_text_is_never_cut_within_a_character() -> None:
    data = "déjà".encode()
    first = outputs.body(TaskId("t"), "running", 1, (0, 0), (0, data[:2]), (0, b""))
    assert first["stdout"] == "d" and first["stdout_next"] == 1
    rest = outputs.body(TaskId("t"), "done", 1, (1, 0), (1, data[1:]), (0, b""))
    assert rest["stdout"] == "éjà" and rest["stdout_next"] == len(data)
    later = outputs.body(TaskId("t"), "running", 1, (1, 0), (9, b"x"), (0, b""))
    assert later["stdout"] == "\n[... 8 bytes left out ...]\nx" and later["stdout_next"] == 10


def test_everybody_who_asks_is_answered_once() -> None:
    waiting = outputs.Outputs()
    asks = [waiting.ask(VIEWER, n, WORKER, TaskId("t"), 1, (5, 0), now=float(n)) for n in range(3)]
    numbers = [ask.number for ask in asks if ask is not None]
    assert len(numbers) == 3 and waiting.deadline() == outputs.PATIENCE
    assert waiting.came(PeerId(7), OutputSoFar(numbers[0])) is None  # not whom we asked
    reply = waiting.came(WORKER, OutputSoFar(numbers[0], 5, b"x"))
    assert reply is not None and reply[0] == VIEWER and reply[1].number == 0 and reply[1].body["stdout"] == "x"
    assert waiting.came(WORKER, OutputSoFar(numbers[0], 5, b"x")) is None
    ((_, late),) = waiting.overdue(1.0 + outputs.PATIENCE)
    assert isinstance(late, Answer) and late.number == 1 and late.body["stdout_next"] == 5
    assert [answer.number for _, answer in waiting.gone(WORKER)] == [2] and waiting.deadline() is None
    waiting.ask(VIEWER, 9, WORKER, TaskId("t"), 1, (0, 0), now=0.0)
    assert waiting.gone(VIEWER) == [] and waiting.deadline() is None


def test_many_who_ask_are_too_many() -> None:
    waiting = outputs.Outputs()
    asked = [waiting.ask(VIEWER, n, WORKER, TaskId("t"), 1, (0, 0), now=0.0) for n in range(outputs.AT_ONCE + 1)]
    assert asked[-1] is None and None not in asked[:-1]
