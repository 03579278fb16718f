"""What comes at a bad moment: deaths between two words, calls that crowd others out, what is left behind.

Whatever could hurt the machine has a cap of the test's own; only processes that a test started are signalled.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from lfm.ending import outcome_of
from lfm.monitor import host, wire
from lfm.protocol.outcomes import Crashed, Exhausted, Returned

sys.path.insert(0, str(Path(__file__).parent))
from test_monitor_calls import Bench
from test_monitor_misbehaviour import _answer_and_go_on

sys.path.pop(0)
cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = pytest.mark.process


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.host.close()


def test_short_calls_without_a_pause_keep_no_other_from_being_watched(bench: Bench) -> None:
    warm = [bench.start(time.sleep, 0.05) for _ in range(2)]
    bench.until(lambda: bench.overs.keys() >= {*warm} and len(bench.host._idle) == 2)
    short, long = bench.start(max, 1, 2, hurry=False), bench.start(time.sleep, 600, limits=wire.Limits(wall_time=0.3))
    due = bench.host._running[long].began + host.WATCH_AFTER
    for _ in range(5):
        bench.until(lambda short=short: short in bench.overs, tick=False)
        short = bench.start(max, 1, 2, hurry=False)  # in the very turn that told of the last one's end
        at = bench.host.deadline()
        assert at is not None and at <= due
    assert isinstance(bench.end(long)[0], Exhausted)


def _dig(depth: int) -> None:
    for _ in range(depth):
        os.mkdir("d")  # noqa: PTH102 (a path of the whole would be too long)
        os.close(os.open("f", os.O_WRONLY | os.O_CREAT))
        os.chdir("d")
    os.chdir("..")
    os.chmod("d", 0)  # noqa: PTH101


def test_a_sandbox_as_deep_as_you_like_is_removed(bench: Bench) -> None:
    number = bench.start(_dig, 520)
    assert isinstance(bench.end(number)[0], Returned)
    assert len(bench.host._slots) == 1
    bench.well()


def _print_much(size: int) -> None:
    os.write(1, b"x" * size)
    time.sleep(600)


def test_output_is_asked_for_from_beyond_its_end(bench: Bench) -> None:
    """As by one who follows a call that was begun anew."""
    number = bench.start(_print_much, 300_000)
    bench.until(lambda: bool(bench.host.output(number)) and bench.host.output(number, 299_000)[0][1] != b"")
    assert bench.host.output(number, 10**6, 10**6) == [(10**6, b""), (10**6, b"")]
    bench.host.kill(number)
    bench.end(number)


def _answer_and_litter(id: int, heard: str, who: int | None, seconds: float) -> None:
    """Say what the end of a quiet call says; then be anything but quiet.  ``who``: what the page is to say who runs."""
    shared = sys._getframe(1).f_locals["shared"]
    _answer_and_go_on(id, 0)
    while not os.path.exists(heard):  # noqa: PTH110
        time.sleep(0.001)
    Path("littered").mkdir()
    print("late", flush=True)
    if who is not None:
        shared[:8] = who.to_bytes(8, "little")
    time.sleep(seconds)


def _leaving(bench: Bench, who: int | None, seconds: float) -> Any:
    """The slot of such a call, which was told over, and is not."""
    id, heard = bench.last + 1, bench.folder / "heard"
    assert bench.start(_answer_and_litter, id, str(heard), who, seconds) == id
    seat = bench.host._running[id]
    path = Path(seat.box.owned.path)
    bench.until(lambda: id in bench.overs, tick=False)
    heard.touch()
    bench.until((path / "littered").exists, tick=False)
    return seat


def test_what_one_prints_who_is_over_is_not_his_who_waits(bench: Bench) -> None:
    seat = _leaving(bench, None, 600)
    bench.until(lambda: seat.output(0, 0)[0] == (0, b"late\n"), tick=False)
    waits = bench.start(max, 1, 2)
    assert seat.next is not None and bench.host.output(waits) == []
    bench.until(lambda: waits in bench.overs)
    assert bench.value(outcome_of(bench.overs[waits])) == 2 and bench.overs[waits].stdout == b""
    bench.until(lambda: not seat.leaving)
    bench.well()


def test_what_one_leaves_who_was_over_goes_with_his_monitor(bench: Bench) -> None:
    seat = _leaving(bench, None, 600)
    os.kill(seat.pid, signal.SIGKILL)
    bench.until(lambda: seat.number not in bench.host._slots, tick=False)
    assert not list(bench.sandboxes.iterdir())
    bench.well()


def test_what_one_leaves_who_was_over_goes_with_its_host(bench: Bench) -> None:
    _leaving(bench, None, 600)
    bench.host.close()
    assert not list(bench.sandboxes.iterdir())


def test_what_one_leaves_who_says_he_is_another_goes_too(bench: Bench) -> None:
    seat = _leaving(bench, 12345, 0.05)
    bench.until(lambda: seat.number not in bench.host._slots, tick=False)
    assert not list(bench.sandboxes.iterdir())
    bench.well()


def _litter_and_crash(files: int) -> None:
    for number in range(files):
        os.close(os.open(str(number), os.O_WRONLY | os.O_CREAT))
    os.abort()


def test_who_crashed_is_not_lost_where_its_monitor_dies_as_it_cleans_up(bench: Bench) -> None:
    number = bench.start(_litter_and_crash, 3000)
    (seat,) = bench.host._slots.values()
    bench.until(lambda: seat.over is not None)
    os.kill(seat.pid, signal.SIGKILL)
    outcome, usage = bench.end(number)
    assert isinstance(outcome, Crashed) and outcome.signal == signal.SIGABRT and usage is not None
    bench.well()
    assert len(list(bench.sandboxes.iterdir())) == 1
