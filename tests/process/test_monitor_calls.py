"""Calls that behave and calls that do not, each for real in a template of its own.

After each: what is said of it is right, the next call in the same template works, and nothing of it is left.
Every directory that could be removed is below ``tmp_path``; only processes that a test started are signalled.
"""

from __future__ import annotations

import hashlib
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from lfm.ending import outcome_of, usage_of
from lfm.function.pickling import pickle_function
from lfm.monitor import host, payload, wire
from lfm.monitor.runtime import install_runtime
from lfm.monitor.seat import Seat
from lfm.protocol.outcomes import (
    Blob,
    Crashed,
    EnvironmentBroken,
    Exhausted,
    Inline,
    Killed,
    Lost,
    Outcome,
    Raised,
    Returned,
)
from lfm.protocol.resources import Usage

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = pytest.mark.process
PATIENCE = 60.0  # seconds: only reached when something hangs


class Bench:
    """One template and what a test needs to run calls in it."""

    def __init__(self, folder: Path, **how: Any) -> None:
        self.folder = folder
        self.sandboxes = folder / "sandboxes"
        self.sandboxes.mkdir()
        self.host = host.Host(sys.executable, install_runtime(folder / "runtime"), sandboxes=self.sandboxes, **how)
        self.overlay = folder / "overlay"
        (self.overlay / "src").mkdir(parents=True)
        shutil.copytree(Path(cloudpickle.__file__).parent, self.overlay / "lib" / "cloudpickle")
        self.overs: dict[int, host.Over] = {}
        self.began: set[int] = set()
        self.near: list[host.Near] = []
        self.gone = ""
        self.last = 0
        self.poll = select.poll()
        self.poll.register(self.host.fileno(), select.POLLIN)

    def start(
        self, fn: Callable[..., Any], *args: Any, limits: wire.Limits = wire.Limits(), hurry: bool = True, **work: Any  # noqa: B008
    ) -> int:  # fmt: skip
        self.last += 1
        number = self.last
        data = b"".join(pickle_function(fn)[0])
        code = self.folder / f"code-{hashlib.sha256(data).hexdigest()}"
        if not code.exists():  # else a forker may be reading it
            code.write_bytes(data)
        given: dict[str, Any] = {"overlay": str(self.overlay), "id": number, "code": str(code)}
        given["arguments"] = b"".join(payload.pack((args, {}), cloudpickle.dumps))
        given["result"] = str(self.result(number))
        self.host.start(wire.Work(**given | work), limits, hurry=hurry)
        return number

    def result(self, number: int) -> Path:
        return self.folder / f"result-{number}"

    def until(self, done: Callable[[], bool], tick: bool = True) -> None:
        """``tick``: False where time is not to pass, so that no call is watched however slow the machine."""
        end = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < end, "waited too long"
            due = self.host.deadline()
            self.poll.poll(50 if due is None else min(50.0, max(0.0, due - time.monotonic()) * 1000))
            for news in self.host.receive():
                match news:
                    case host.Began(number):
                        self.began.add(number)
                    case host.Over():
                        assert news.id not in self.overs, "told twice"
                        self.overs[news.id] = news
                    case host.Near():
                        self.near.append(news)
                    case host.Gone(reason):
                        self.gone = reason
            if tick:
                self.host.tick()

    def end(self, number: int, tick: bool = True) -> tuple[Outcome, Usage | None]:
        self.until(lambda: number in self.overs, tick)
        over = self.overs[number]
        if len(self.overs) == self.last:
            assert [left for box in self.sandboxes.iterdir() for left in box.iterdir()] == []
        return outcome_of(over), usage_of(over)

    def run(self, fn: Callable[..., Any], *args: Any, limits: wire.Limits = wire.Limits(), **work: Any) -> Outcome:  # noqa: B008
        return self.end(self.start(fn, *args, limits=limits, **work))[0]

    def value(self, outcome: Outcome, number: int | None = None) -> Any:
        assert isinstance(outcome, Returned), outcome
        if isinstance(outcome.value, Inline):
            return payload.unpack(bytearray(outcome.value.data))
        return payload.unpack(bytearray(self.result(number or self.last).read_bytes()))

    def well(self) -> None:
        """The next calls work, and no process is left but the template, its monitors, forkers and waiting calls."""
        assert self.value(self.run(max, 1, 2)) == 2
        self.until(lambda: set(_children(self.host.pid)) == {slot.pid for slot in self.host._slots.values()})
        for monitor in _children(self.host.pid):
            self.until(lambda monitor=monitor: len(_children(monitor)) <= 3)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture(params=["namespace", "clone", "os.fork"])
def bench(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(tmp_path, clone=request.param != "os.fork", namespace=request.param == "namespace")
    pid = made.host.pid
    yield made
    made.host.close()
    assert not Path(f"/proc/{pid}").exists()


# -- what calls give back


def test_a_value_and_what_it_used(bench: Bench) -> None:
    outcome, usage = bench.end(bench.start(lambda a, b: a + b, 1, 2))
    assert bench.value(outcome) == 3
    assert usage is not None
    assert usage.processes == 1
    assert 0 < usage.wall_s < PATIENCE
    assert usage.memory_low <= usage.memory < 50_000_000


def test_what_a_first_call_finds_out_for_all_is_not_its_cpu_time(bench: Bench) -> None:
    for _ in range(3):
        _, usage = bench.end(bench.start(max, 1, 2))
        assert usage is not None and usage.threads == 1 and usage.cpu_s <= 1.5 * usage.wall_s, usage


def _leave_temporary(size: int) -> tuple[str, str]:
    """As multiprocessing does that is not ended well."""
    import tempfile
    from multiprocessing.connection import Listener

    folder = tempfile.mkdtemp(prefix="pymp-")
    Listener(tempfile.mktemp(prefix="listener-", dir=folder), family="AF_UNIX")
    with open(tempfile.mkstemp()[1], "wb") as file:
        file.write(b"x" * size)
    time.sleep(0.1)
    return folder, os.getcwd()  # noqa: PTH109


@pytest.mark.parametrize("deep", [False, True], ids=["short", "long"])
def test_temporary_files_go_with_the_sandbox(tmp_path_factory: pytest.TempPathFactory, deep: bool) -> None:
    base = tmp_path_factory.mktemp("t")
    temporary = base / "tmp"
    temporary.mkdir()
    folder = base / ("deep" * 20) if deep else base
    folder.mkdir(exist_ok=True)
    made = Bench(folder, environ={"TMPDIR": str(temporary)})
    try:
        for _ in range(3):  # also from a forker that has loaded the function
            outcome, usage = made.end(made.start(_leave_temporary, 1 << 20))
            where, sandbox = made.value(outcome)
            assert where.startswith(f"{temporary if deep else sandbox}/pymp-")
            assert deep or (usage is not None and usage.disk >= 1 << 20)
        assert deep or not any(temporary.iterdir())
    finally:
        made.host.close()


def test_what_nobody_has_heard_at_the_end_disturbs_no_end(bench: Bench) -> None:
    bench.start(max, 1, 2)
    bench.start(max, 1, 2)
    for end in (bench.host._control, *(slot.control for slot in bench.host._slots.values())):
        poll = select.poll()
        poll.register(end, select.POLLIN)
        assert poll.poll(PATIENCE * 1000)  # left unread: closing it looks like a failure to its other end
    bench.host.close()
    assert bench.host._process.returncode == 0


def test_the_same_function_many_times_keeps_nothing(bench: Bench) -> None:
    def count(seen: list[int] = []) -> int:  # noqa: B006 (that is the point)
        seen.append(1)
        return len(seen)

    assert [bench.value(bench.run(count)) for _ in range(6)] == [1] * 6


def test_random_numbers_differ_between_calls(bench: Bench) -> None:
    def draw() -> float:
        import random

        return random.random()

    assert len({bench.value(bench.run(draw)) for _ in range(6)}) == 6


def test_a_large_value_goes_to_its_file(bench: Bench) -> None:
    number = bench.start(lambda: bytes(3_000_000))
    outcome, _ = bench.end(number)
    assert isinstance(outcome, Returned) and isinstance(outcome.value, Blob)
    assert outcome.value.size == bench.result(number).stat().st_size
    assert bench.value(outcome, number) == bytes(3_000_000)


def test_large_arguments_come_from_a_file_as_writable_memory(bench: Bench, tmp_path: Path) -> None:
    def change(data: bytearray) -> int:
        data[0] = 7
        return data[0] + len(data)

    file = tmp_path / "arguments"
    file.write_bytes(b"".join(payload.pack(((bytearray(1_000_000),), {}))))
    assert bench.value(bench.run(change, arguments=str(file))) == 1_000_007


def test_an_exception_is_the_functions_own(bench: Bench) -> None:
    def fail() -> None:
        raise KeyError("missing")

    outcome = bench.run(fail)
    assert isinstance(outcome, Raised)
    assert outcome.type_name == "KeyError"
    assert isinstance(outcome.error, Inline)
    assert repr(payload.unpack(outcome.error.data)) == "KeyError('missing')"
    assert "in fail" in outcome.traceback and "lfm/monitor" not in outcome.traceback
    bench.well()


def test_an_exception_with_an_init_of_its_own_travels(bench: Bench) -> None:
    def fail() -> None:
        class Odd(Exception):
            def __init__(self, a: int, *, b: int) -> None:
                super().__init__(f"{a}-{b}")
                self.b = b

        raise Odd(1, b=2)

    outcome = bench.run(fail)
    assert isinstance(outcome, Raised) and isinstance(outcome.error, Inline)
    error = payload.unpack(outcome.error.data)
    assert (str(error), error.b, type(error).__name__) == ("1-2", 2, "Odd")


def test_exceptions_that_cannot_travel_come_as_text(bench: Bench) -> None:
    def holding() -> None:
        raise ValueError(_ for _ in ())

    def unprintable() -> None:
        class Worse(Exception):
            def __str__(self) -> str:
                raise ValueError

            def __init__(self) -> None:
                self.lock = __import__("threading").Lock()

        raise Worse

    for fn in (holding, unprintable):
        outcome = bench.run(fn)
        assert isinstance(outcome, Raised) and outcome.error is None and outcome.type_name


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_base_exceptions_are_raised_not_obeyed(bench: Bench, error: BaseException) -> None:
    def fail() -> None:
        raise error

    outcome = bench.run(fail)
    assert isinstance(outcome, Raised) and outcome.type_name == type(error).__name__
    bench.well()


def test_a_missing_module_is_the_environments_fault(bench: Bench) -> None:
    def fail() -> None:
        import no_such_module_here.part  # type: ignore[import-not-found]  # noqa: F401

    outcome = bench.run(fail)
    assert isinstance(outcome, EnvironmentBroken)
    assert outcome.module == "no_such_module_here"
    assert outcome.file in (__file__, "<dynamic-code>") and outcome.line > 0  # as cloudpickle before or since 3.1.3


def test_an_import_error_raised_by_hand_is_not(bench: Bench) -> None:
    def fail() -> None:
        raise ImportError("for another reason", name="json")

    assert isinstance(bench.run(fail), Raised)


def test_results_that_cannot_be_pickled_say_so(bench: Bench) -> None:
    outcome = bench.run(lambda: (_ for _ in ()))
    assert isinstance(outcome, Raised) and outcome.stage == "dump"
    bench.well()


def test_results_of_local_classes_travel_by_cloudpickle(bench: Bench) -> None:
    def make() -> Any:
        class Point:
            x = 4

        return Point()

    assert bench.value(bench.run(make)).x == 4


def test_a_chunk_is_one_call_with_many_values(bench: Bench, tmp_path: Path) -> None:
    calls = [((a, 2), {}) for a in range(3)]
    assert bench.value(bench.run(pow, arguments=b"".join(payload.pack(calls)), chunk=True)) == [0, 1, 4]


def test_environment_threads_and_affinity_are_the_calls_own(bench: Bench) -> None:
    def look() -> tuple[str | None, set[int], str]:
        return os.environ.get("LFM_TASK"), os.sched_getaffinity(0), os.popen("echo $LFM_TASK").read().strip()

    cpu = min(os.sched_getaffinity(0))
    assert bench.value(bench.run(look, environ={b"LFM_TASK": b"t-1"}, cpus=(cpu,))) == ("t-1", {cpu}, "t-1")
    assert bench.value(bench.run(look))[0] is None


# -- output


def test_output_of_the_call_and_its_children_in_order(bench: Bench) -> None:
    def talk() -> None:
        print("one")
        os.system("echo two; echo err >&2")
        print("three")
        import logging

        logging.warning("logged")

    number = bench.start(talk)
    bench.end(number)
    assert bench.overs[number].stdout == b"one\ntwo\nthree\n"
    assert b"err\n" in bench.overs[number].stderr and b"logged" in bench.overs[number].stderr


def test_endless_output_fills_nothing(bench: Bench) -> None:
    def flood() -> int:
        line = b"x" * 65536
        return sum(os.write(1, line) for _ in range(600))

    number = bench.start(flood)
    outcome, _ = bench.end(number)
    total = bench.value(outcome)
    out = bench.overs[number].stdout
    assert len(out) < 200_000 and b"bytes left out" in out
    assert out.count(b"x") + int(out.split(b"[... ")[1].split()[0]) == total
    bench.well()


def test_output_is_there_while_the_call_runs(bench: Bench) -> None:
    def talk() -> None:
        print("early")
        time.sleep(60)

    number = bench.start(talk)
    bench.until(lambda: (0, b"early\n") in bench.host.output(number)[:1])
    bench.host.kill(number)
    assert bench.end(number)[0] == Killed()
    assert bench.overs[number].stdout == b"early\n"


# -- limits


def test_memory(bench: Bench) -> None:
    def fill() -> None:
        held = []
        for _ in range(60):
            held.append(bytearray(10_000_000))
            time.sleep(0.005)

    outcome, usage = bench.end(bench.start(fill, limits=wire.Limits(memory=100_000_000)))
    assert isinstance(outcome, Exhausted) and outcome.resource == "memory" and usage is not None
    assert 100_000_000 < outcome.measured < 600_000_000
    bench.well()


def test_memory_of_the_whole_tree(bench: Bench) -> None:
    def fill() -> None:
        import subprocess

        code = "import time; b = bytearray(60_000_000); time.sleep(60)"
        for one in [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]:
            one.wait()

    outcome = bench.run(fill, limits=wire.Limits(memory=150_000_000))
    assert isinstance(outcome, Exhausted) and outcome.resource == "memory"
    bench.well()


def test_a_raised_limit_holds(bench: Bench, tmp_path: Path) -> None:
    raised = tmp_path / "raised"

    def fill() -> int:
        held = [bytearray(193_000_000)]
        while not raised.exists():
            time.sleep(0.01)
        held.append(bytearray(100_000_000))
        time.sleep(0.3)
        return sum(map(len, held))

    number = bench.start(fill, limits=wire.Limits(memory=200_000_000, grow=True))
    bench.until(lambda: bool(bench.near) or number in bench.overs)
    assert bench.near[0].id == number and bench.near[0].limit == 200_000_000
    bench.host.raise_memory(number, 1_000_000_000)
    raised.touch()
    assert bench.value(bench.end(number)[0]) == 293_000_000


def test_a_call_that_outgrew_its_limit_stands_still_until_it_is_answered(bench: Bench) -> None:
    limit = 100_000_000

    def fill() -> int:
        children = []
        for _ in range(2):
            if not (pid := os.fork()):
                time.sleep(0.1)
                os._exit(0)
            children.append(pid)
        held = []
        for _ in range(30):
            held.append(bytearray(10_000_000))
            time.sleep(0.03)
        return sum(map(len, held)) + sum(os.waitpid(pid, 0)[1] for pid in children)

    def grown() -> list[host.Near]:
        return [near for near in bench.near if near.id == number and near.measured > near.limit]

    for answer in (limit, 1_000_000_000):
        number = bench.start(fill, limits=wire.Limits(memory=limit, grow=True))
        bench.until(lambda: bool(grown()))
        assert grown()[0].limit == limit and grown()[0].measured < 250_000_000
        monitor = bench.host._running[number].pid
        bench.until(lambda monitor=monitor: "T" in map(_state, _children(monitor)))
        bench.host.raise_memory(number, answer)
        outcome, _ = bench.end(number)
        if answer == limit:
            assert isinstance(outcome, Exhausted) and (outcome.resource, outcome.limit) == ("memory", limit)
        else:
            assert bench.value(outcome) == 300_000_000
    bench.well()


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_wall_time(bench: Bench) -> None:
    outcome = bench.run(time.sleep, 60, limits=wire.Limits(wall_time=0.3))
    assert isinstance(outcome, Exhausted) and outcome.resource == "wall_time"
    assert 0.3 <= outcome.measured < PATIENCE
    bench.well()


def test_disk(bench: Bench) -> None:
    def fill() -> None:
        for number in range(200):
            Path(f"f{number}").write_bytes(bytes(1_000_000))
            time.sleep(0.02)

    outcome = bench.run(fill, limits=wire.Limits(disk=10_000_000))
    assert isinstance(outcome, Exhausted) and outcome.resource == "disk" and outcome.measured > 10_000_000
    bench.well()


def test_processes(bench: Bench) -> None:
    def multiply() -> None:
        for _ in range(20):
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
        time.sleep(60)

    outcome = bench.run(multiply, limits=wire.Limits(processes=8))
    assert isinstance(outcome, Exhausted) and outcome.resource == "processes" and outcome.measured > 8
    bench.well()


# -- calls that misbehave


def _segfault() -> None:
    import ctypes

    ctypes.string_at(0)


def _overflow_the_stack() -> None:
    import ctypes

    handler = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    compare = handler(lambda a, b: 0)
    sys.setrecursionlimit(1 << 30)

    def deeper(n: int) -> Any:
        items = (ctypes.c_int * 2)()
        return handler(lambda a, b: deeper(n + 1) or 0)(None, None) if n is not None else (items, compare)

    deeper(0)


@pytest.mark.parametrize(
    ("fn", "number"),
    [
        (_segfault, signal.SIGSEGV),
        (os.abort, signal.SIGABRT),
        pytest.param(
            _overflow_the_stack,
            signal.SIGSEGV,
            marks=pytest.mark.skipif(sys.version_info >= (3, 12), reason="Python guards the C stack itself"),
        ),
    ],
)
def test_crashes_leave_a_dump(bench: Bench, fn: Callable[[], None], number: int) -> None:
    for _ in range(2):  # the second dump begins where the first began
        outcome = bench.run(fn)
        assert isinstance(outcome, Crashed) and outcome.signal == number
        assert outcome.faulthandler.startswith("Fatal Python error")
    bench.well()


def test_the_kernels_want_of_memory_is_said(tmp_path: Path) -> None:
    """In a group with little memory of its own, which the template is moved to before it forks anything."""
    ours = next((line for line in Path("/proc/self/cgroup").read_text().splitlines() if ":memory:" in line), "::/")
    group = Path("/sys/fs/cgroup/memory" + ours.split(":", 2)[2]) / f"lfm-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no memory groups can be made here")
    bench = Bench(tmp_path)
    try:
        (group / "memory.limit_in_bytes").write_text("200000000")
        (group / "cgroup.procs").write_text(str(bench.host.pid))
        bench.until(lambda: bool(bench.host.told))
        outcome = bench.run(lambda: (time.sleep(1), len(bytearray(400_000_000))))  # its monitor watches it by then
        assert isinstance(outcome, Crashed) and outcome.signal == signal.SIGKILL
        assert "out of memory" in outcome.hint
        outcome = bench.run(lambda: os.kill(os.getpid(), signal.SIGKILL))
        assert isinstance(outcome, Crashed) and not outcome.hint
        bench.well()
    finally:
        bench.host.close()
        group.rmdir()


def test_leaving_by_exit_code(bench: Bench) -> None:
    assert bench.run(os._exit, 3) == Crashed(None, 3)
    outcome = bench.run(os._exit, 0)
    assert isinstance(outcome, Crashed) and outcome.exit_code == 0 and outcome.hint
    bench.well()


def test_killing_itself_and_its_group(bench: Bench) -> None:
    def kill_self() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def kill_group() -> None:
        os.killpg(0, signal.SIGKILL)

    neighbour = bench.start(time.sleep, 1.0)
    for fn in (kill_self, kill_group):
        outcome = bench.run(fn)
        assert isinstance(outcome, Crashed) and outcome.signal == signal.SIGKILL
    assert isinstance(bench.end(neighbour)[0], Returned)
    bench.well()


def test_killing_all_it_can_see_in_a_namespace(tmp_path: Path) -> None:
    """Only ever where the kernel shows it nothing but its own: the test asks that first."""
    bench = Bench(tmp_path)
    try:
        bench.run(max, 1, 2)
        if bench.host.told["containment"] != "namespace":
            pytest.skip("no PID namespaces here")

        def kill_all() -> None:
            seen = [path for path in Path("/proc").iterdir() if path.name.isdigit()]
            if os.getpid() > 100 or len(seen) > 2:
                raise RuntimeError("not in a namespace")
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
            os.kill(-1, signal.SIGKILL)
            os.kill(1, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)

        neighbour = bench.start(time.sleep, 1.0)
        outcome = bench.run(kill_all)
        assert isinstance(outcome, Crashed) and outcome.signal == signal.SIGKILL, outcome
        assert isinstance(bench.end(neighbour)[0], Returned)
        bench.well()
    finally:
        bench.host.close()


def test_stopping_itself_ends_at_its_wall_time(bench: Bench) -> None:
    def stop() -> None:
        os.killpg(0, signal.SIGSTOP)

    outcome = bench.run(stop, limits=wire.Limits(wall_time=0.3))
    assert isinstance(outcome, Exhausted)
    bench.well()


def test_killing_its_monitor(bench: Bench) -> None:
    def kill_parent() -> None:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)

    neighbour = bench.start(time.sleep, 1.0)
    outcome = bench.run(kill_parent)
    if bench.host.told["containment"] == "namespace":  # its parent is not to be seen: 0 is its own group
        assert isinstance(outcome, Crashed) and outcome.signal == signal.SIGKILL
    else:
        assert isinstance(outcome, Lost) and outcome.started
    assert isinstance(bench.end(neighbour)[0], Returned)
    bench.well()


def test_daemons_and_children_left_behind_are_ended(bench: Bench, tmp_path: Path) -> None:
    beat = tmp_path / "beat"

    def leave() -> None:
        import subprocess

        subprocess.Popen(["sleep", "600"])
        subprocess.Popen(["setsid", "sleep", "600"])
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                for number in range(1, 64):
                    if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33):
                        signal.signal(number, signal.SIG_IGN)
                while True:
                    beat.touch()
                    time.sleep(0.01)
            os._exit(0)
        while not beat.exists():
            time.sleep(0.01)

    outcome = bench.run(leave)
    assert isinstance(outcome, Returned)
    at = beat.stat().st_mtime_ns
    time.sleep(0.1)
    assert beat.stat().st_mtime_ns == at
    bench.well()


def test_a_rabbit_that_forks_and_exits_for_ever(bench: Bench, tmp_path: Path) -> None:
    beat = tmp_path / "beat"

    def rabbit() -> None:
        if os.fork() == 0:
            end = time.monotonic() + 20
            while time.monotonic() < end:  # bounded, should a test fail to catch it
                if os.fork():
                    os._exit(0)
                beat.touch()
            os._exit(0)
        while not beat.exists():
            time.sleep(0.001)

    for _ in range(3):
        beat.unlink(missing_ok=True)
        assert isinstance(bench.run(rabbit), Returned)
        at = beat.stat().st_mtime_ns
        time.sleep(0.1)
        assert beat.stat().st_mtime_ns == at
    bench.well()


def test_ignoring_sigchld_closing_descriptors_spoiling_globals(bench: Bench) -> None:
    def ignore() -> int:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        if os.fork() == 0:
            os._exit(0)
        return 1

    def close_all() -> None:
        os.closerange(0, 256)

    def spoil() -> None:
        os.umask(0o777)
        os.chdir("/")
        os.environ.clear()
        sys.path.clear()
        sys.stdout = None  # type: ignore[assignment]
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64))
        import builtins

        builtins.len = None  # type: ignore[assignment]

    assert isinstance(bench.run(ignore), Returned)
    outcome = bench.run(close_all)
    assert isinstance(outcome, Crashed | Lost)
    bench.run(spoil)
    bench.well()
    assert bench.value(bench.run(lambda: len(os.environ) > 0))


def test_writing_to_descriptors_that_are_not_its_own(bench: Bench) -> None:
    def scribble() -> None:
        for fd in range(3, 64):
            try:
                os.write(fd, b"\x15" + b"nonsense" * 9)
            except OSError:
                continue

    bench.run(scribble)
    bench.well()


def test_a_littered_locked_deleted_and_replaced_sandbox(bench: Bench, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("stays")

    def litter() -> None:
        Path("a/b/c").mkdir(parents=True)
        Path("a/b/c/f").write_text("x")
        Path("link").symlink_to(outside)
        Path("a/b").chmod(0)
        Path.cwd().chmod(0)

    def delete() -> None:
        Path.cwd().rmdir()

    number = bench.start(litter)
    outcome, usage = bench.end(number)
    assert isinstance(outcome, Returned) and usage is not None and usage.disk > 0
    assert (outside / "file").read_text() == "stays"
    assert isinstance(bench.run(delete), Returned)
    bench.well()


def test_dying_on_unpickling(bench: Bench) -> None:
    outcome = bench.run(max, arguments=b"".join(payload.pack(_Bomb())))
    assert isinstance(outcome, Crashed) and outcome.exit_code == 9
    outcome = bench.run(max, arguments=b"rubbish")
    assert isinstance(outcome, Raised) and outcome.stage == "load"
    bench.well()


class _Bomb:
    def __reduce__(self) -> Any:
        return os._exit, (9,)


def test_threads_event_loops_and_pools_inside_a_call(bench: Bench) -> None:
    def work() -> tuple[list[int], int]:
        import asyncio
        from concurrent.futures import ThreadPoolExecutor
        from multiprocessing import get_context

        async def loop() -> int:
            await asyncio.sleep(0)
            return 4

        with ThreadPoolExecutor(3) as threads:
            found = list(threads.map(abs, [-1, -2]))
        with get_context("fork").Pool(2) as pool:
            found += pool.map(abs, [-3])
        return found, asyncio.run(loop())

    outcome, usage = bench.end(bench.start(work))
    assert bench.value(outcome) == ([1, 2, 3], 4)
    assert usage is not None and usage.processes >= 2
    bench.well()


# -- the death of monitor, forker, template


def test_the_template_killed(bench: Bench) -> None:
    numbers = [bench.start(time.sleep, 60) for _ in range(2)]
    bench.until(lambda: set(numbers) <= bench.began)
    os.kill(bench.host.pid, signal.SIGKILL)
    for number in numbers:
        assert isinstance(bench.end(number)[0], Lost)
    bench.until(lambda: bool(bench.gone))
    assert bench.run(max, 1, 2) == Lost(bench.gone.splitlines()[0], started=False)


def test_work_that_cannot_be_sent_never_began(bench: Bench) -> None:
    assert bench.run(max, 1, 2, environ={b"MUCH": bytes(1 << 20)}) == Lost(
        "its work could not be sent: Message too long", started=False
    )
    bench.well()


def test_calls_are_ended_when_the_host_closes(bench: Bench) -> None:
    number = bench.start(time.sleep, 600)
    bench.until(lambda: number in bench.began)
    tree = [bench.host.pid, *_children(bench.host.pid)]
    bench.host.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in tree)
    assert list(bench.sandboxes.iterdir()) == []


def test_a_function_loaded_once_serves_many_calls(bench: Bench, tmp_path: Path) -> None:
    """The forker loads what calls have loaded well, unless it would share a thread or a descriptor."""
    (bench.overlay / "src" / "mine.py").write_text(
        "import os, pathlib\n"
        f"with open({str(tmp_path / 'loads')!r}, 'a') as f: f.write('x')\n"
        "def twice(n): return 2 * n, (os.readlink('/proc/self/ns/pid'), os.getpid())\n"
    )
    sys.path.insert(0, str(bench.overlay / "src"))
    try:
        from mine import twice  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
        sys.modules.pop("mine", None)
    (tmp_path / "loads").write_text("")
    sys.modules["mine"] = sys.modules[__name__]  # so that it is pickled by reference
    sys.modules[__name__].twice = twice  # type: ignore[attr-defined]
    values = [bench.value(bench.run(twice, n)) for n in range(10)]
    assert [n for n, _ in values] == [2 * n for n in range(10)]
    assert len({pid for _, pid in values}) == 10
    loads = len((tmp_path / "loads").read_text())
    if bench.host.told["fork"] == "clone":
        assert loads < 10
    del sys.modules["mine"]


def _descriptors(pid: int | str) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _one_slot(bench: Bench) -> Seat:
    """The oldest; the others, made where a call's process was slow to end, are let go now and not in half a minute."""
    bench.until(lambda: not bench.host._leaving)
    oldest = bench.host._slots[min(bench.host._slots)]
    for slot in [slot for slot in bench.host._idle if slot is not oldest]:
        bench.host._retire(slot)
    bench.until(lambda: _children(bench.host.pid) == [oldest.pid])
    return oldest


def test_nothing_leaks_over_many_calls(bench: Bench) -> None:
    for _ in range(20):
        bench.run(max, 1, 2)
    seat = _one_slot(bench)
    fds, held = _descriptors("self"), _descriptors(seat.pid)
    for _ in range(150):
        bench.run(max, 1, 2)
    assert _one_slot(bench) is seat
    assert _descriptors("self") <= fds
    bench.until(lambda: _descriptors(seat.pid) <= held + 3)  # it may still be closing what it watched the last call with


def test_a_command_works_in_its_users_directory_which_stays(tmp_path: Path) -> None:
    """A command has no sandbox: nothing of its directory is removed, whether it ends or is cut off."""
    home = tmp_path / "home"
    (home / "sub").mkdir(parents=True)
    (home / "sub" / "file").write_text("stays")
    for command in (("sh", "-c", "echo made > new; exit 3"), ("sleep", "600")):
        running = host.Host(sys.executable, install_runtime(tmp_path / "runtime"), session=False, clone=False)
        work = wire.Work(1, "", b"", "", "", directory=str(home), command=command)
        running.start(work, fds=(0, 1, 2))
        poll = select.poll()
        poll.register(running.fileno(), select.POLLIN)
        end, news = time.monotonic() + PATIENCE, []
        while time.monotonic() < end and not any(isinstance(one, host.Over) for one in news):
            poll.poll(50)
            news += running.receive()
            running.tick()
            if command[0] == "sleep" and news:
                break
        running.close()
        if command[0] == "sh":
            (over,) = [one for one in news if isinstance(one, host.Over)]
            assert outcome_of(over) == Crashed(None, 3)
    assert sorted(path.name for path in home.iterdir()) == ["new", "sub"]
    assert (home / "sub" / "file").read_text() == "stays"


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator[tuple[Bench, Any]]:
    """A template, and its one slot, whose monitor is stopped: nobody sees the process of its next call end."""
    bench = Bench(tmp_path)
    try:
        bench.well()
        if bench.host.told["fork"] != "clone":
            pytest.skip("calls are forked with os.fork here")
        (seat,) = bench.host._slots.values()
        made = 3 if bench.host.told["containment"] == "namespace" else 2  # forker, the next call's process, and the first of a namespace
        bench.until(lambda: seat in bench.host._idle and len(_children(seat.pid)) == made)
        os.kill(seat.pid, signal.SIGSTOP)
        try:
            yield bench, seat
        finally:
            if seat.number in bench.host._slots:
                os.kill(seat.pid, signal.SIGCONT)
        bench.until(lambda: not seat.leaving or seat.number not in bench.host._slots)
        bench.well()
    finally:
        bench.host.close()


def test_a_value_is_told_before_its_process_has_ended(stopped: tuple[Bench, Any]) -> None:
    """If that is all there is to tell."""
    bench, seat = stopped
    number = bench.start(max, 1, 2)
    outcome, usage = bench.end(number, tick=False)
    assert bench.value(outcome) == 2 and usage is not None and seat.leaving == number
    assert usage.wall_s > 0 and usage.memory_by == "self"


def _print(text: str) -> None:
    print(text)


def _fork_and_leave(seconds: float) -> None:
    if os.fork() == 0:
        time.sleep(seconds)
        os._exit(0)


@pytest.mark.parametrize("more", ["printed", "a child", "nobody hurries"])
def test_where_there_is_more_to_tell_its_end_is_waited_for(stopped: tuple[Bench, Any], more: str) -> None:
    bench, seat = stopped
    match more:
        case "printed":
            number = bench.start(_print, "said")
        case "a child":
            number = bench.start(_fork_and_leave, PATIENCE)
        case _:
            number = bench.start(max, 1, 2, hurry=False)
    bench.until(lambda: seat.result is not None or bool(select.select([seat.channel], [], [], 0)[0]), tick=False)
    bench.until(lambda: not bench.host.receive(), tick=False)
    assert number not in bench.overs
    os.kill(seat.pid, signal.SIGCONT)
    assert isinstance(bench.end(number)[0], Returned)
    assert bench.overs[number].stdout == (b"said\n" if more == "printed" else b"")


def test_who_waits_for_a_slot_is_not_held_up_by_a_process_that_does_not_end(stopped: tuple[Bench, Any]) -> None:
    bench, seat = stopped
    bench.end(bench.start(max, 1, 2), tick=False)
    waits = bench.start(max, 2, 3)
    assert seat.next is not None and waits not in bench.began
    bench.host.kill(waits)
    assert isinstance(bench.end(waits)[0], Killed)
    waits = bench.start(max, 2, 3)
    assert seat.next is not None
    assert bench.value(bench.end(waits)[0]) == 3  # after a moment, in another slot
    assert len(bench.host._slots) == 2 and seat.leaving


def test_the_end_of_a_monitor_takes_no_call_along_that_waits_for_its_slot(stopped: tuple[Bench, Any]) -> None:
    bench, seat = stopped
    bench.end(bench.start(max, 1, 2), tick=False)
    waits = bench.start(max, 2, 3)
    assert seat.next is not None
    os.kill(seat.pid, signal.SIGKILL)
    assert bench.value(bench.end(waits)[0]) == 3
    bench.until(lambda: seat.number not in bench.host._slots)


def _read_and_write(folder: str) -> int:
    with open("/dev/zero", "rb", buffering=0) as file:
        data = file.read(3 << 20)
    with open(os.devnull, "wb", buffering=0) as file:
        return file.write(data[: 2 << 20])


def test_what_a_short_call_reads_and_writes_is_counted(bench: Bench) -> None:
    outcome, usage = bench.end(bench.start(_read_and_write, ""))
    assert bench.value(outcome) == 2 << 20 and usage is not None
    assert 3 << 20 <= usage.read < 4 << 20 and 2 << 20 <= usage.written < 3 << 20
