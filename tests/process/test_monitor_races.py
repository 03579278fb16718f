"""What comes at a bad moment: deaths between two words, calls that crowd others out, what is left behind.

Whatever could hurt the machine has a cap of the test's own; only processes that a test started are signalled.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from lfm.alone import wait_over
from lfm.ending import outcome_of
from lfm.monitor import host, page, payload, runtime, wire
from lfm.protocol.outcomes import Blob, Crashed, EnvironmentBroken, Exhausted, Lost, Raised, Returned

sys.path.insert(0, str(Path(__file__).parent))
from test_monitor_calls import Bench, _children
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


def _spoil(option: int, value: bytes) -> None:
    """As if by the call's own channel only; which descriptor that is it cannot know."""
    import ctypes

    nothing = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))  # a filter: let nothing in
    for fd in Path("/proc/self/fd").iterdir():
        try:
            one = socket.socket(fileno=int(fd.name))
        except OSError:
            continue
        one.setsockopt(socket.SOL_SOCKET, option, value or struct.pack("HL", 1, ctypes.addressof(nothing)))
        one.detach()


@pytest.mark.parametrize(("option", "value"), [(26, b""), (socket.SO_SNDBUF, b"\1\0\0\0")], ids=["filter", "room"])
def test_a_call_that_spoils_its_channel_spoils_no_other(bench: Bench, option: int, value: bytes) -> None:
    for _ in range(2):  # also from a process that has the function loaded
        bench.end(bench.start(_spoil, option, value))
        assert len(bench.value(bench.run(bytes, 50_000))) == 50_000
    bench.well()


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


def _forget_what_it_began_with(size: int) -> None:
    sys._getframe(1).f_locals["shared"][page.BEFORE_AT : page.AFTER_AT] = bytes(page.AFTER_AT - page.BEFORE_AT)
    held = bytearray(size)
    time.sleep(30 if held else 0)


def test_who_writes_over_what_it_began_with_has_its_limit_still(tmp_path: Path) -> None:
    bench = Bench(tmp_path, groups=False)
    try:
        for _ in range(4):  # so that it is loaded, and does that before it is watched
            bench.run(_forget_what_it_began_with, 0)
        number = bench.start(_forget_what_it_began_with, 200 << 20, limits=wire.Limits(memory=100 << 20))
        outcome, _ = bench.end(number)
        assert isinstance(outcome, Exhausted) and outcome.resource == "memory" and outcome.measured < 250 << 20
        bench.well()
    finally:
        bench.host.close()


def _fork_many(number: int) -> None:
    for _ in range(number):
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
    time.sleep(20)


def test_more_processes_than_a_monitor_has_descriptors_for_are_seen(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    try:
        bench = Bench(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        outcome, usage = bench.end(bench.start(_fork_many, 60, limits=wire.Limits(processes=50)))
        assert isinstance(outcome, Exhausted) and outcome.resource == "processes" and usage is not None
        assert 50 < usage.processes <= 61
        bench.well()
    finally:
        bench.host.close()


def test_more_slots_than_a_busy_template_has_room_to_hear_of(bench: Bench) -> None:
    """Else some of their calls would wait for ever."""
    bench.until(lambda: bool(bench.host.told))
    bench.host._control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    os.kill(bench.host.pid, signal.SIGSTOP)
    try:
        started = [bench.start(max, 1, 2) for _ in range(12)]
        assert bench.host._unoffered
    finally:
        os.kill(bench.host.pid, signal.SIGCONT)
    for number in started:
        bench.until(lambda number=number: number in bench.overs)
        assert bench.value(outcome_of(bench.overs[number])) == 2
    bench.well()


def test_a_command_has_the_descriptors_it_was_given_and_no_other(tmp_path: Path) -> None:
    running = host.Host(sys.executable, runtime.install_runtime(tmp_path / "runtime"), session=False)
    try:
        command = ("sh", "-c", "exec ls /proc/self/fd > descriptors")
        running.start(wire.Work(1, "", b"", "", "", directory=str(tmp_path), command=command), fds=(0, 1, 2))
        over = wait_over(running)
        assert over.report is not None and over.report.status == 0
        assert (tmp_path / "descriptors").read_text().split() == ["0", "1", "2", "3"]  # the last is its look
    finally:
        running.close()


def test_a_host_that_cannot_be_started_leaves_no_descriptor(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(3):
        with pytest.raises(FileNotFoundError):
            host.Host(tmp_path / "nowhere", tmp_path)
    assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208 (what other tests left may go meanwhile)


LATE = """
import os, signal, socket, sys
from lfm.monitor import payload, slot, wire

class Slow:
    # poll(), and then the processor is somebody else's: until the call has ended
    def __init__(self, real):
        self.real, self.slow = real, False
        self.register, self.modify = real.register, real.modify

    def poll(self, timeout):
        ready = self.real.poll(timeout)
        if [fd for fd, _ in ready] == [monitor.signals] and not self.slow:
            self.slow = True
            os.write(woken[1], b"w")
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        return ready

control, its_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
channel, its_channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
files = [os.memfd_create(name) for name in ("stdout", "stderr", "fault")]
woken = os.pipe()
pid = os.fork()
if pid == 0:
    try:
        control.close(), channel.close()
        config = {"group": None, "clone": False, "session": False, "namespace": False, "slot": 1, "begin_within": 60}
        monitor = slot.Monitor(its_control, its_channel, files, config, [])
        monitor.poll = Slow(monitor.poll)
        monitor.run()
    finally:
        os._exit(1)
its_control.close()
assert control.recv(4096)[0] == wire.READY
os.kill(pid, signal.SIGCHLD)  # as a process's that had been reaped before it was told of
assert os.read(woken[0], 1)
for number in (1, 2):
    arguments = b"".join(payload.pack(((1, f"call {number}".encode()), {})))
    channel.send(wire.work(wire.Work(number, sys.argv[1], arguments, "")))
    report = wire.read_report(control.recv(4096))
    said = os.pread(files[0], report.stdout, 0)
    print(report.id, said.decode(), flush=True)
    os.ftruncate(files[0], 0)
control.close()
os.waitpid(pid, 0)
"""


def test_what_a_call_printed_is_its_own_however_late_its_monitor_is(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(LATE)
    (tmp_path / "code").write_bytes(b"".join(payload.pack(os.write)))
    run = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "code")], check=False, capture_output=True, text=True
    )
    assert run.stdout.splitlines() == ["1 call 1", "2 call 2"], run.stderr


SWEEP = """
import os, socket
from lfm.monitor import template

ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
one = template.Template(its, {"group": None}, [])
one.children.close()  # as where the kernel has no such file
one.monitors[os.spawnlp(os.P_NOWAIT, "true", "true")] = 7
os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
one._sweep()
assert template.SLOT.unpack_from(ours.recv(64)) == (template.GONE, 7)
"""


def test_a_template_sweeps_where_the_kernel_lists_no_children(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SWEEP)
    subprocess.run([sys.executable, str(tmp_path / "script.py")], check=True)


class _Loud(Exception):
    def __str__(self) -> str:
        return "\N{GRINNING FACE}" * 40_000


def _raise_much(size: int) -> None:
    raise _Loud("x" * size)


def _raise_a_long_name() -> None:
    raise type("N" * 200_000, (Exception,), {})


def _import_a_long_name() -> None:
    raise ImportError(name="n" * 300_000)


def test_whatever_is_raised_fits_into_a_message(bench: Bench) -> None:
    outcome = bench.run(_raise_much, 60_000)
    assert isinstance(outcome, Raised) and outcome.type_name.endswith("_Loud") and isinstance(outcome.error, Blob)
    outcome = bench.run(_raise_a_long_name)
    assert isinstance(outcome, Raised) and outcome.type_name.endswith("NN")
    outcome = bench.run(_import_a_long_name)
    assert isinstance(outcome, EnvironmentBroken) and outcome.module.endswith("nn")
    bench.well()


def test_who_waits_does_so_for_the_end_that_began_last(bench: Bench) -> None:
    """It is near, where an older one may be stuck."""
    first, second = bench.start(time.sleep, 0.05), bench.start(sum, [1])  # two, so that neither slot is the second's alone
    bench.until(lambda: bench.overs.keys() >= {first, second} and len(bench.host._idle) == 2)
    if bench.host.told["fork"] != "clone":
        pytest.skip("calls are forked with os.fork here")
    made = 3 if bench.host.told["containment"] == "namespace" else 2
    seats = list(bench.host._idle)
    bench.until(lambda: all(len(_children(seat.pid)) == made for seat in seats))
    for seat in seats:
        os.kill(seat.pid, signal.SIGSTOP)
    try:
        for _ in seats:
            bench.end(bench.start(max, 1, 2), tick=False)
        older, younger = bench.host._leaving
        waits = bench.start(max, 1, 2)
        assert younger.next is not None and older.next is None
    finally:
        for seat in seats:
            os.kill(seat.pid, signal.SIGCONT)
    assert bench.value(bench.end(waits)[0]) == 2
    bench.well()


def test_what_cannot_be_loaded_is_said_in_few_words(tmp_path: Path) -> None:
    bench = Bench(tmp_path, preload=["n" * 40_000])
    try:
        bench.until(lambda: bool(bench.host.told))
        (why,) = bench.host.told["skipped"].values()
        assert why.startswith("ModuleNotFoundError") and len(why) < 1000
    finally:
        bench.host.close()


def _hide(size: int) -> None:
    """Where no path is short enough to lead."""
    for _ in range(50):
        os.mkdir("d" * 100)  # noqa: PTH102
        os.chdir("d" * 100)
    with open("hidden", "wb") as file:
        file.write(b"x" * size)
    time.sleep(30)


def test_what_lies_deep_in_a_sandbox_counts(bench: Bench) -> None:
    outcome = bench.run(_hide, 20 << 20, limits=wire.Limits(disk=10 << 20))
    assert isinstance(outcome, Exhausted) and outcome.resource == "disk" and outcome.measured >= 20 << 20
    bench.well()


MAPPED = """
import mmap, sys
from lfm.monitor import forker

rights = (mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE)  # in turn, or the kernel would make them one
kept = [mmap.mmap(-1, mmap.PAGESIZE, prot=rights[at % 2], flags=mmap.MAP_PRIVATE) for at in range(int(sys.argv[1]))]
assert len(forker._Own().writable()) >= len(kept) // 2
"""


@pytest.mark.parametrize("number", [1000, 2000, 2500, 3000, 6000])
def test_to_look_at_its_memory_keeps_no_forker_for_ever(tmp_path: Path, number: int) -> None:
    """That takes memory and gives it back, and it looks different each time: so it was from 2,000 to 3,000."""
    (tmp_path / "script.py").write_text(MAPPED)
    subprocess.run([sys.executable, str(tmp_path / "script.py"), str(number)], check=True, timeout=60)


@pytest.mark.parametrize("namespace", [True, False])
def test_a_call_that_nobody_begins_is_lost_after_a_while(tmp_path: Path, namespace: bool) -> None:
    bench = Bench(tmp_path, namespace=namespace, begin_within=1.0)
    try:
        bench.run(max, 1, 2)
        (seat,) = bench.host._slots.values()
        bench.until(lambda: seat in bench.host._idle)
        made = (3 if bench.host.told["containment"] == "namespace" else 2) - (bench.host.told["fork"] != "clone")
        bench.until(lambda: len(_children(seat.pid)) == made)
        for pid in (stopped := _children(seat.pid)):
            os.kill(pid, signal.SIGSTOP)
        outcome = bench.run(max, 1, 2)
        assert isinstance(outcome, Lost) and not outcome.started and "before it began" in outcome.reason
        assert not any(Path(f"/proc/{pid}").exists() for pid in stopped)
        bench.well()
    finally:
        bench.host.close()
