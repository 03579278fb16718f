"""More calls that misbehave, each for real, while a neighbour in the same template runs undisturbed.

Whatever could hurt the machine has a cap of the test's own.
"""

from __future__ import annotations

import importlib.util
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from lfm.ending import outcome_of, usage_of
from lfm.monitor import host, page, payload, wire
from lfm.protocol.codec import encode
from lfm.protocol.ids import TaskId
from lfm.protocol.messages import CallEnded
from lfm.protocol.outcomes import Blob, Crashed, Exhausted, Inline, Killed, Returned

sys.path.insert(0, str(Path(__file__).parent))
from test_monitor_calls import Bench, _children

sys.path.pop(0)
cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = pytest.mark.process


@pytest.fixture(params=["namespace", "os.fork"])
def bench(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(tmp_path, clone=request.param == "namespace", namespace=request.param == "namespace")
    stop = tmp_path / "stop"
    neighbour = made.start(_wait_for, str(stop))
    yield made
    assert neighbour not in made.overs
    stop.touch()
    assert made.value(made.end(neighbour)[0], neighbour) == "undisturbed"
    made.host.close()


def _wait_for(file: str) -> str:
    while not os.path.exists(file):  # noqa: PTH110
        time.sleep(0.02)
    return "undisturbed"


def _ignore_all() -> None:
    for number in range(1, 65):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            continue
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
    while True:
        time.sleep(60)


def test_who_ignores_every_signal_ends_at_its_wall_time(bench: Bench) -> None:
    outcome = bench.run(_ignore_all, limits=wire.Limits(wall_time=0.3))
    assert isinstance(outcome, Exhausted) and outcome.resource == "wall_time"
    bench.well()


def _leave_threads() -> int:
    import threading

    for daemon in (True, False):
        threading.Thread(target=time.sleep, args=(600,), daemon=daemon).start()
    return threading.active_count()


def _open_all() -> int:
    """Until no descriptor is left, under a limit of the test's own."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
    opened = []
    try:
        while True:
            opened.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        return len(opened)


def _become_somebody() -> int:
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
    os.umask(0o777)
    os.nice(5)
    return os.getuid()


def _bound_forks() -> int:
    """As many children as a cap of the test's own allows, all left behind."""
    made = 0
    while made < 40:
        if os.fork() == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
        made += 1
    return made


@pytest.mark.parametrize(("fn", "least"), [(_leave_threads, 3), (_open_all, 50), (_become_somebody, 0), (_bound_forks, 40)])
def test_what_it_leaves_is_gone_and_its_value_there(bench: Bench, fn: Callable[[], int], least: int) -> None:
    assert bench.value(bench.run(fn)) >= least
    bench.well()


def _well_once_it_left(bench: Bench) -> None:
    """A slot that was given up has ended, and all else goes on."""
    bench.until(lambda: len(_children(bench.host.pid)) <= len(bench.host._slots))
    bench.well()


def _write_over_page(words: range, number: int) -> int:
    """These words of the page that it shares with its monitor and its forker."""
    page = sys._getframe(1).f_locals["shared"]
    for at in words:
        page[8 * at : 8 * at + 8] = number.to_bytes(8, "little")
    return 1


@pytest.mark.parametrize("words", [range(128), range(1), range(7, 8), range(9, 10)], ids=["all", "id", "pid", "unused"])
def test_who_writes_over_its_page_has_nobody_else_signalled(bench: Bench, words: range) -> None:
    bystander = subprocess.Popen(["sleep", "600"])
    try:
        number = bench.start(_write_over_page, words, bystander.pid, limits=wire.Limits(wall_time=60))
        bench.until(lambda: number in bench.overs)
        assert bench.value(bench.end(number)[0], number) == 1
        usage_of(bench.overs[number])
        _well_once_it_left(bench)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def _take_or_write(words: list[int], number: int, size: int) -> int:
    page = sys._getframe(1).f_locals["shared"]
    for at in words:
        page[8 * at : 8 * at + 8] = number.to_bytes(8, "little")
    return len(bytearray(size))


_WHO_RUNS = [0, 7]  # words; who writes over these loses its slot, and what is wrong there with it


@pytest.mark.parametrize(("number", "all"), [(0, True), (0, False), (2, False), (4096, False), (2**64 - 1, False)])
def test_who_writes_over_its_page_spoils_no_call_after_it(bench: Bench, number: int, all: bool) -> None:
    words = [at for at in range(512) if all or at not in _WHO_RUNS]
    taken = 64 << 20
    for writes in (True, False, True, True, False, False, True, False):
        size = 0 if writes else taken
        ended = bench.start(_take_or_write, words if writes else [], number, size)
        assert bench.value(bench.end(ended)[0], ended) == size
        usage = usage_of(bench.overs[ended])  # of one who wrote: whatever it is
        if not writes:
            assert usage and abs(usage.memory - taken) < 3 << 20 and usage.wall_s < 60 and usage.cpu_s < 60, usage
    _well_once_it_left(bench)


def _write_over_page_and_stay(number: int, file: str) -> None:
    sys._getframe(1).f_locals["shared"][:128] = number.to_bytes(8, "little") * 16
    Path(file).touch()
    time.sleep(600)


def test_who_writes_over_its_page_can_be_killed(bench: Bench, tmp_path: Path) -> None:
    wrote = tmp_path / "wrote"
    bystander = subprocess.Popen(["sleep", "600"])
    try:
        number = bench.start(_write_over_page_and_stay, bystander.pid, str(wrote))
        bench.until(lambda: number in bench.began and wrote.exists())
        bench.host.kill(number)
        assert isinstance(bench.end(number)[0], Killed)
        number = bench.start(_write_over_page_and_stay, bystander.pid, str(wrote), limits=wire.Limits(wall_time=0.3))
        assert isinstance(bench.end(number)[0], Exhausted)
        _well_once_it_left(bench)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def _write_to_all() -> int:
    written = 0
    for fd in range(3, 256):
        try:
            written += os.write(fd, b"not what was asked for\n" * 10)
        except OSError:
            continue
    return written


def _abort() -> None:
    os.abort()


def test_what_it_writes_to_every_descriptor_is_in_nobodys_crash(bench: Bench) -> None:
    assert bench.value(bench.run(_write_to_all)) > 0
    outcome = bench.run(_abort)
    assert isinstance(outcome, Crashed) and "Aborted" in outcome.faulthandler
    assert "not what was asked for" not in outcome.faulthandler
    bench.well()


def _shut_down_all() -> int:
    shut = 0
    for fd in range(3, 256):
        try:
            with socket.socket(fileno=fd) as one:
                one.shutdown(socket.SHUT_RDWR)
                shut += 1
        except OSError:
            continue
    return shut


def test_who_shuts_its_channel_down_ends_its_slot(bench: Bench) -> None:
    assert isinstance(bench.run(_shut_down_all), Crashed)
    assert bench.value(bench.run(max, 1, 2)) == 2
    _well_once_it_left(bench)


def _answer_and_go_on(id: int, seconds: float) -> None:
    """Say what the end of a quiet call says, and go on."""
    figures = bytearray(page.FIGURES_SIZE)
    page.NUMBER.pack_into(figures, page.QUIET_AT - page.FILES_AT, 1)
    value = b"".join(payload.pack("forged"))
    data = wire.RESULT.pack(wire.RETURNED, id, 0, 0, 0, 0, 0, 0, 0, 0, len(value)) + value + figures
    for fd in range(3, 64):
        try:
            with socket.socket(fileno=os.dup(fd)) as one:
                one.send(data)
        except OSError:
            continue
    time.sleep(seconds)


def test_who_answers_and_goes_on_is_ended(bench: Bench) -> None:
    """Else nobody watched it any more, and no limit were its own."""
    id = bench.last + 1
    assert bench.start(_answer_and_go_on, id, 600.0) == id
    bench.until(lambda: id in bench.overs or any(seat.result for seat in bench.host._slots.values()), tick=False)
    assert bench.value(bench.end(id)[0]) == "forged"
    bench.until(lambda: not any(seat.leaving for seat in bench.host._slots.values()))
    bench.well()


def _set_blocking(blocking: bool) -> bool:
    before = os.get_blocking(1)
    os.set_blocking(1, blocking)
    return before


def test_who_prints_without_waiting_does_so_alone(bench: Bench) -> None:
    assert bench.value(bench.run(_set_blocking, False)) is True
    assert bench.value(bench.run(_set_blocking, False)) is True
    bench.well()


def test_what_a_call_says_of_itself_fits_into_a_message() -> None:
    """Whatever it is."""
    huge = 2**62
    words = page.FIGURES_SIZE // 8
    figures = struct.pack(f"<{words}q", *[huge] * words)
    for before in range(0, page.FIGURES_SIZE, 8):
        figures_ = bytearray(figures)
        figures_[before : before + 8] = bytes(8)
        data = wire.RESULT.pack(wire.RETURNED, 1, huge, -1, 0, 0, 0, 0, 0, 0, 1) + b"x" + bytes(figures_)
        report = wire.Report(1, 0, 0, wire.STARTED, *[0.0] * 5, *[0] * 7, 2**63 - 1, 1, 1, 0, 0, 0, 0)
        result = wire.read_result(data)
        for told in (report, wire.quiet(1, result.figures), wire.quiet(1, result.figures._replace(io=b"rchar: %d\nwchar: %d\n" % (10**30, -1)))):
            used = usage_of(host.Over(1, result, told))
            encode(CallEnded(TaskId("t"), 1, Returned(Inline(b"x")), used))
    for line in ("\N{SUPERSCRIPT TWO}", "1" * 5000, "9" * 30):
        texts = tuple(text.encode() for text in ("module", "file", "reason", line, ""))
        data = wire.result(1, 0, 0, wire.BROKEN, 0, texts, ()) + bytes(page.FIGURES_SIZE)
        outcome = outcome_of(host.Over(1, wire.read_result(data), None))
        encode(CallEnded(TaskId("t"), 1, outcome, None))


def _seed() -> float:
    random.seed(1)
    return random.random()


def _draw() -> float:
    return random.random()


def test_a_seed_is_the_calls_own(bench: Bench) -> None:
    first = bench.value(bench.run(_seed))
    drawn = {bench.value(bench.run(_draw)) for _ in range(4)}
    assert len(drawn) == 4 and first not in drawn


class _Trap:
    """Runs code wherever it is unpickled."""

    def __init__(self, file: str) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return exec, (f"with open({self.file!r}, 'a') as f: f.write('x')",)


def test_what_runs_code_on_unpickling_runs_it_at_its_users_alone(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "sprung"
    outcome = bench.run(_Trap, str(file))
    assert isinstance(outcome, Returned)
    bench.well()
    assert not file.exists()
    assert bench.value(outcome) is None and file.read_text() == "x"


def _large(size: int) -> bytearray:
    return bytearray(size)


def test_a_large_value_passes_through_nobodys_memory(bench: Bench) -> None:
    size = 2_000_000_000 if os.environ.get("LFM_SOAK") else 100_000_000
    number = bench.start(_large, size)
    outcome, _ = bench.end(number)
    assert isinstance(outcome, Returned) and isinstance(outcome.value, Blob)
    assert size <= outcome.value.size < size + 10_000
    assert bench.result(number).stat().st_size == outcome.value.size
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < 2_000_000_000
    bench.result(number).unlink()
    bench.well()


def _libraries() -> float:
    """Thread pools of libraries that the template has loaded with one thread: used, and made larger, in the call."""
    import numpy

    total = float((numpy.ones((300, 300)) @ numpy.ones((300, 300))).sum())
    if "pyarrow" in sys.modules:
        import pyarrow
        import pyarrow.compute

        pyarrow.set_cpu_count(2)
        total += pyarrow.compute.sum(pyarrow.chunked_array([[1.0] * 100_000] * 4)).as_py()
    if "joblib" in sys.modules:
        import joblib

        for backend in ("threading", "loky"):
            total += sum(joblib.Parallel(n_jobs=2, backend=backend)(joblib.delayed(abs)(-n) for n in range(10)))
    return total


def test_libraries_with_threads_of_their_own(tmp_path: Path) -> None:
    there = [name for name in ("numpy", "pyarrow.compute", "joblib") if importlib.util.find_spec(name.partition(".")[0])]
    if "numpy" not in there:
        pytest.skip("no numpy here")
    bench = Bench(tmp_path, preload=there)
    try:
        expected = 300**3 + 400_000.0 * ("pyarrow.compute" in there) + 90 * ("joblib" in there)
        for threads in (1, 2):
            assert bench.value(bench.run(_libraries, threads=threads)) == expected
        bench.well()
    finally:
        bench.host.close()


def _pools() -> list[int]:
    """Each way to start processes; the later two leave servers of theirs behind."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    found: list[int] = []
    for method in ("fork", "forkserver", "spawn"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            found += pool.map(abs, [-1])
    with ProcessPoolExecutor(1) as executor:  # by the default, which is another since Python 3.14
        found += executor.map(abs, [-2])
    return found


def test_every_way_to_start_processes(bench: Bench) -> None:
    assert bench.value(bench.run(_pools)) == [1, 1, 1, 2]
    bench.well()
