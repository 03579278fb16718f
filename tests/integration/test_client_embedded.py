"""The whole product from a client's chair: an executor with its own manager and worker on this machine.

Functions are defined inside the tests, so that they travel by value and need only what they name.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import lfm
from lfm.run import EMBEDDED
from lfm.testing import wait_until

pytestmark = pytest.mark.process
PATIENCE = 120.0  # seconds for a result: a first environment may have to be built


@pytest.fixture(scope="module")
def ex():
    with lfm.Executor(cores=2) as executor:
        yield executor


def result(future):
    return future.result(timeout=PATIENCE)


def test_a_value_and_what_it_took(ex):
    def square(x):
        print("squaring", x)
        return x * x

    future = ex.submit(square, 7)
    assert result(future) == 49
    assert future.stdout == "squaring 7\n" and future.stderr == ""
    usage = future.usage
    assert usage.wall_s > 0 and usage.processes >= 1 and usage.memory > 0
    assert future.allocation.cores == 1 and future.allocation.memory > 0
    (attempt,) = future.attempts
    assert attempt.outcome == "returned" and attempt.usage == usage
    assert "square returned after 1 attempt" in future.explain()


def test_map_in_order_and_in_chunks(ex):
    def double(x):
        return 2 * x

    assert list(ex.map(double, range(20), timeout=PATIENCE)) == list(range(0, 40, 2))
    assert list(ex.map(double, range(20), chunksize=7, timeout=PATIENCE)) == list(range(0, 40, 2))


def test_every_call_has_its_own_process_and_sandbox(ex):
    def where():
        import os
        import pathlib

        here = pathlib.Path.cwd()
        here.joinpath("mine").write_text("x")
        return os.getpid(), [p.name for p in here.iterdir()], str(here)

    first, second = [result(ex.submit(where)) for _ in range(2)]
    assert first[0] != second[0] and first[1] == second[1] == ["mine"]
    assert not Path(first[2], "mine").exists()


def test_a_large_exception_is_the_functions_own(ex):
    def fail():
        raise ValueError("x" * 300_000)

    future = ex.submit(fail)
    with pytest.raises(ValueError, match=r"x{300000}"):
        result(future)
    assert len(future.attempts) == 1


def test_the_functions_own_exception(ex):
    def bad(key):
        import sys

        print("about to fail", file=sys.stderr)
        return {}[key]

    future = ex.submit(bad, "there")
    with pytest.raises(KeyError, match="there") as raised:
        result(future)
    assert "return {}[key]" in str(raised.value.__cause__) or "bad" in str(raised.value.__cause__)
    assert any("about to fail" in note for note in raised.value.__notes__)
    assert future.stderr == "about to fail\n" and future.state == "failed"


def test_a_memory_limit_is_enforced_and_told(ex):
    def eat(size):
        held = bytearray(size)
        for at in range(0, size, 4096):
            held[at] = 1
        import time

        time.sleep(60)

    future = ex.options(memory="100MB").submit(eat, 400 << 20)
    with pytest.raises(lfm.ResourceExhausted, match="used more memory than its 100 MB") as raised:
        result(future)
    error = raised.value
    assert (error.resource, error.limit) == ("memory", 100_000_000) and error.measured > 100_000_000
    assert len(error.attempts) == 1


def test_a_wall_time_is_enforced_and_told(ex):
    def linger():
        import time

        time.sleep(60)

    with pytest.raises(lfm.ResourceExhausted, match="ran longer than"):
        result(ex.options(wall_time=0.5).submit(linger))


def test_what_was_sized_too_small_is_tried_again_bigger(ex):
    def take(size):
        held = bytearray(size)
        for at in range(0, size, 4096):
            held[at] = 1
        return len(held)

    sized = ex.options(category="grows")
    for _ in range(5):
        assert result(sized.submit(take, 1 << 20)) == 1 << 20
    future = sized.submit(take, 300 << 20)
    assert result(future) == 300 << 20
    assert future.usage.memory >= 300 << 20


@pytest.mark.parametrize("how", ["exit", "segfault", "killed"])
def test_a_crash_is_told(ex, how):
    def crash(how):
        import ctypes
        import os
        import signal

        if how == "exit":
            os._exit(7)
        elif how == "segfault":
            ctypes.string_at(0)
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(lfm.CallCrashed) as raised:
        result(ex.submit(crash, how))
    expected = {"exit": (None, 7), "segfault": (signal.SIGSEGV, None), "killed": (signal.SIGKILL, None)}
    assert (raised.value.signal, raised.value.exit_code) == expected[how]
    assert result(ex.submit(abs, -1)) == 1


def test_a_value_that_cannot_be_pickled(ex):
    def lock():
        import threading

        return threading.Lock()

    with pytest.raises(Exception, match="pickle"):
        result(ex.submit(lock))


def test_a_missing_import_is_named(ex):
    def wants():
        import surely_not_installed_anywhere

        return surely_not_installed_anywhere

    future = ex.submit(wants)
    with pytest.raises((lfm.LfmError, ImportError), match="surely_not_installed_anywhere"):
        result(future)


def test_kill_stops_what_runs(ex):
    def linger():
        import time

        time.sleep(600)

    future = ex.submit(linger)
    wait_until(future.running, "the call to run", PATIENCE)
    assert not future.cancel()
    assert future.kill()
    with pytest.raises(lfm.errors.CallKilled):
        result(future)


def test_large_values_both_ways(ex):
    def turn(data):
        return data[::-1]

    data = os.urandom(5 << 20)
    assert result(ex.submit(turn, data)) == data[::-1]


def test_arrays_and_handles(ex):
    np = pytest.importorskip("numpy")

    def total(array, factor):
        import numpy as np

        return np.asarray(array) * factor

    array = np.arange(300_000.0)
    handle = ex.put(array)
    first, second = ex.submit(total, handle, 2), ex.submit(total, handle, 3)
    values = result(first)
    values += 1  # writable
    assert values[-1] == 2 * array[-1] + 1 and result(second)[-1] == 3 * array[-1]
    assert first.environment == second.environment != ex.submit(abs, 1).environment


def test_a_handle_brings_what_its_object_needs(ex):
    np = pytest.importorskip("numpy")

    def total(array):
        return array.sum()

    assert result(ex.submit(total, ex.put(np.arange(10)))) == 45


def test_as_many_handles_as_anybody_wants_and_a_word_where_they_are_too_many(ex):
    def total(*numbers):
        return sum(numbers)

    numbers = range(1_500)  # their names alone are more than a message to the call may have
    assert result(ex.submit(total, *map(ex.put, numbers))) == sum(numbers)

    from lfm.function.handle import Handle

    future = ex.submit(total, *(Handle(f"{number:064x}", 1) for number in range(10_001)))
    with pytest.raises(ValueError, match=r"10001 objects of put\(\) among the arguments of one call, at most 10000"):
        result(future)


def test_status(ex):
    result(ex.submit(abs, -1))
    status = ex.status()
    assert status.manager["run"] and len(status.workers) == 1 and status.calls["finished"] >= 1
    assert any(c["category"] == "abs" for c in status.categories)
    assert ex._max_workers >= 1


def test_it_can_be_watched_from_elsewhere(ex, tmp_path):
    """By whoever names no run, and has none with a name: ``lfm status`` while a script or a notebook is at work."""
    future = ex.submit(time.sleep, 0)
    result(future)
    environ = {**{k: v for k, v in os.environ.items() if k != "LFM_RUN"}, "LFM_HOME": str(tmp_path)}
    shown = subprocess.run([sys.executable, "-m", "lfm", "status"], env=environ, capture_output=True, text=True)
    assert shown.returncode == 0 and shown.stdout.startswith(f"run {EMBEDDED}"), shown
    started = subprocess.run([sys.executable, "-m", "lfm", "worker", "start"], env=environ, capture_output=True, text=True)
    assert started.returncode != 0 and "no manager" in started.stderr, "nothing joins it by itself"


def test_a_call_larger_than_any_worker_is_warned_of(ex):
    with pytest.warns(lfm.Unschedulable, match="largest worker") as heard:
        future = ex.options(cores=1000).submit(abs, -1)
        wait_until(lambda: ex.status().alerts and heard.list, "an alert and a warning")
    assert future.cancel()


# ------------------------------------------------------------ beginnings and ends


def processes_naming(text):
    """Processes of ours whose command line or environment says ``text``."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            said = place.joinpath("cmdline").read_bytes() + place.joinpath("environ").read_bytes()
            state = place.joinpath("stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if text.encode() in said and state != "Z" and int(place.name) != os.getpid():
            found.append(int(place.name))
    return found


def script(tmp_path, text, **more):
    """A user's script, run in an empty directory; everything temporary of it lies in ``tmp_path``."""
    folder = tmp_path / "empty"
    folder.mkdir(exist_ok=True)
    temporary = tmp_path / "tmp"
    temporary.mkdir(exist_ok=True)
    file = tmp_path / "script.py"
    file.write_text(textwrap.dedent(text))
    environ = {k: v for k, v in os.environ.items() if k != "LFM_RUN"}
    return subprocess.Popen(
        [sys.executable, str(file)], cwd=folder, env={**environ, "TMPDIR": str(temporary), **more},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def nothing_is_left(tmp_path):
    """Neither process nor file of a script's, but for the node's cache of unpacked environments."""
    temporary = tmp_path / "tmp"
    cache = temporary / f"lfm-{os.getuid()}"

    def rest():
        own = [p for p in temporary.iterdir() if p != cache]
        return own + list(cache.glob("workers/*"))

    wait_until(lambda: not processes_naming(str(temporary)), "the end of its processes")
    wait_until(lambda: not rest(), "the removal of its files")
    assert not list((tmp_path / "empty").iterdir())


RUNNING = """
    import sys, time
    import lfm

    def linger():
        import time
        time.sleep(600)

    if __name__ == "__main__":
        with lfm.Executor(cores=1) as ex:
            future = ex.submit(linger)
            while not future.running():
                time.sleep(0.01)
            print("running", flush=True)
            future.result()
"""


def test_a_script_from_an_empty_directory(tmp_path):
    process = script(tmp_path, """
        import lfm

        def cube(x):
            return x ** 3

        if __name__ == "__main__":
            with lfm.Executor() as ex:
                print(list(ex.map(cube, range(4))))
    """)
    out, err = process.communicate(timeout=PATIENCE)
    assert (out, err, process.returncode) == ("[0, 1, 8, 27]\n", "", 0)
    nothing_is_left(tmp_path)


def test_the_users_own_modules_travel(tmp_path):
    helper = tmp_path / "helper.py"
    helper.write_text("import inspect\nFACTOR = 11\n\ndef times(x):\n    return FACTOR * x\n\ndef bad(x):\n    return len(inspect.getsource(bad)) / x\n")
    process = script(tmp_path, """
        import helper
        import lfm

        def use(x):
            return helper.times(x)

        if __name__ == "__main__":
            with lfm.Executor() as ex:
                print(ex.submit(use, 2).result(), ex.submit(helper.times, 3).result())
                print(ex.submit(helper.bad, 0).exception().__cause__)
    """)
    out, err = process.communicate(timeout=PATIENCE)
    assert out.startswith("22 33\n") and err == ""
    assert f'File "{helper}", line 8, in bad' in out and "/overlays/" not in out and "ZeroDivisionError" in out


def test_an_environment_that_lacks_a_module_is_repaired_and_remembered(tmp_path):
    (tmp_path / "of_mine.py").write_text("VALUE = 5\n")
    text = """
        import warnings
        import lfm

        def load(name):
            import importlib

            return importlib.import_module(name).__name__

        if __name__ == "__main__":
            with lfm.Executor(cores=2) as ex, warnings.catch_warnings(record=True) as heard:
                warnings.simplefilter("always")
                futures = [ex.submit(load, name) for name in ("packaging.version", "packaging.tags", "of_mine")]
                print([f.result() for f in futures])
                print([[a.number for a in f.attempts] for f in futures])
                print(sum("made again with it" in str(w.message) for w in heard))
                try:
                    ex.submit(load, "absent_everywhere").result()
                except lfm.EnvironmentFailed as error:
                    print(error.module, "not installed here either" in str(error))
    """
    cache = str(tmp_path / "cache")
    for attempts, repairs in (([[1, 2]] * 3, 3), ([[1]] * 3, 0)):
        process = script(tmp_path, text, LFM_CACHE=cache)
        out, err = process.communicate(timeout=PATIENCE)
        values, tried, repaired, absent = out.splitlines() or err
        assert values == "['packaging.version', 'packaging.tags', 'of_mine']", err
        assert tried == str(attempts) and int(repaired) <= repairs and absent == "absent_everywhere True"
    nothing_is_left(tmp_path)


def test_what_a_package_says_in_words_of_its_own_is_understood(tmp_path):
    process = script(tmp_path, """
        import lfm

        def caught(name):
            import importlib

            try:
                return importlib.import_module(name).__name__
            except ImportError:
                raise ImportError("this needs an optional part") from None

        def told(name):
            import importlib.util

            if importlib.util.find_spec(name) is None:
                raise RuntimeError(f"please install {name}, then try again")
            return name

        def silent(*names):
            import importlib.util

            if not all(map(importlib.util.find_spec, names)):
                raise RuntimeError("not available")

        if __name__ == "__main__":
            with lfm.Executor(cores=2) as ex:
                print([ex.submit(f, "packaging").result() for f in (caught, told)])
                error = ex.submit(silent, "json", "packaging").exception()
                print("packaging" in error.__notes__[0], "in vain" in str(error.__cause__))
                print(["in vain" in note for note in ex.submit(silent, "absent_everywhere").exception().__notes__])
                for f in (caught, told):
                    print(type(ex.submit(f, "absent_everywhere").exception()).__name__)
    """, LFM_CACHE=str(tmp_path / "cache"))
    out, err = process.communicate(timeout=PATIENCE)
    said = ["['packaging', 'packaging']", "True False", "[False]", "EnvironmentFailed", "RuntimeError"]
    assert out.splitlines() == said, err
    assert err.count("made again with it") == 2


def test_no_manager_is_started_inside_a_call(ex):
    def nested():
        import lfm

        lfm.Executor()

    with pytest.raises(lfm.ConnectionFailed, match="cannot start a manager of its own"):
        result(ex.submit(nested))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_stays_when_the_client_dies(tmp_path, number):
    process = script(tmp_path, RUNNING)
    assert process.stdout.readline() == "running\n", process.stderr.read()
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    if number == signal.SIGINT:
        assert err.rstrip().endswith("KeyboardInterrupt") and err.count("Traceback") == 1
    nothing_is_left(tmp_path)


def test_a_forked_child_keeps_nothing_alive(tmp_path):
    process = script(tmp_path, """
        import os, time
        import lfm

        if __name__ == "__main__":
            ex = lfm.Executor(cores=1)
            assert ex.submit(abs, -1).result() == 1
            child = os.fork()
            if child == 0:
                os.closerange(1, 3)
                time.sleep(300)
                os._exit(0)
            print(child, flush=True)
            time.sleep(300)
    """)
    child = int(process.stdout.readline())
    try:
        process.kill()
        process.communicate(timeout=PATIENCE)
        wait_until(lambda: set(processes_naming(str(tmp_path / "tmp"))) <= {child}, "the end of manager and worker")
    finally:
        os.kill(child, signal.SIGKILL)
    nothing_is_left(tmp_path)


def test_a_manager_that_dies_is_told():
    with lfm.Executor(cores=1) as executor:
        assert result(executor.submit(abs, -1)) == 1
        future = executor.submit(time.sleep, 600)
        wait_until(future.running, "the call to run", PATIENCE)
        manager = executor._session._embedded._processes[0]
        manager.kill()
        with pytest.raises(lfm.ConnectionFailed, match="manager on this machine ended"):
            result(future)
        with pytest.raises(lfm.ConnectionFailed):
            executor.submit(abs, -1)
    assert not executor._session._embedded.directory.exists()


def test_a_worker_that_dies_is_started_again():
    with lfm.Executor(cores=1) as executor:
        assert result(executor.submit(abs, -1)) == 1
        executor._session._embedded._processes[1].kill()
        assert result(executor.submit(abs, -2)) == 2
