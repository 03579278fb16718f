"""Sessions with a name, which are left and found again, and failed calls that run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

import lfm
from lfm.testing import LocalCluster, wait_until

pytestmark = pytest.mark.process
PATIENCE = 120.0


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(workers=1, cores=4) as running:
        yield running


def asked(cluster, *arguments):
    return json.loads(cluster.command(*arguments, "--json").stdout)


def until_there(path):
    """Returns its content, once it is there."""
    import pathlib
    import time

    while not pathlib.Path(path).exists():
        time.sleep(0.05)
    return pathlib.Path(path).read_text()


def test_a_session_is_left_and_found_again(cluster, tmp_path):
    first = lfm.Executor(cluster.run, session="thesis")
    small = first.options(memory="50MB")
    done, waits, raises = small.submit(abs, -1), small.submit(until_there, str(tmp_path / "go")), small.submit(int, "x")
    large = small.submit(len, b"x" * 5_000_000)
    assert large.result(PATIENCE) == 5_000_000  # taken, and what came of the others is not
    wait_until(lambda: done.done() and raises.done() and waits.running(), "the calls to get there", PATIENCE)
    first.detach()
    with pytest.raises(lfm.ConnectionFailed, match="session 'thesis' was left; "):
        waits.result(PATIENCE)
    with pytest.raises(RuntimeError):
        first.submit(abs, -1)

    with lfm.Executor(cluster.run, session="thesis") as second:
        futures = second.futures()
        assert [f.id for f in futures] == [done.id, waits.id, raises.id]
        (tmp_path / "go").write_text("gone")
        assert futures[0].result(PATIENCE) == 1
        assert futures[1].result(PATIENCE) == "gone" and futures[1].usage is not None
        with pytest.raises(ValueError, match="invalid literal"):
            futures[2].result(PATIENCE)
        assert second.futures() == []
        own = second.options(memory="50MB").submit(abs, -3)
        wait_until(own.done, "the call to end", PATIENCE)
        assert second.futures() == [own]
    with lfm.Executor(cluster.run, session="thesis") as third:
        (kept,) = third.futures()
        assert kept.result(PATIENCE) == 3


SCRIPT = """
    import sys, time
    import lfm

    def slow(x):
        import time
        time.sleep(2.0)
        return x

    if __name__ == "__main__":
        ex = lfm.Executor(sys.argv[1], session="laptop").options(memory="50MB")
        futures = [ex.submit(slow, n) for n in range(3)]
        while not futures[0].running() and not futures[0].done():
            time.sleep(0.05)
        print("ready", flush=True)
        time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_ends_leaves_its_named_session(cluster, tmp_path, how):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    process = subprocess.Popen(
        [sys.executable, str(script), str(cluster.run)], env=cluster.environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(how)
    process.communicate(timeout=PATIENCE)
    with lfm.Executor(cluster.run, session="laptop") as ex:
        assert [f.result(PATIENCE) for f in ex.futures()] == [0, 1, 2]


def test_the_latest_has_the_session(cluster, tmp_path):
    first = lfm.Executor(cluster.run, session="notebook")
    future = first.options(memory="50MB").submit(until_there, str(tmp_path / "go"))
    wait_until(future.running, "the call to run", PATIENCE)
    with lfm.Executor(cluster.run, session="notebook") as second:
        with pytest.raises(lfm.ConnectionFailed, match=f"is now that of process {os.getpid()}"):
            future.result(PATIENCE)
        (mine,) = second.futures()
        assert mine.id == future.id
        (tmp_path / "go").write_text("x")
        assert mine.result(PATIENCE) == "x"
    with pytest.raises(lfm.ConnectionFailed):
        first.submit(abs, -1)
    first.shutdown()


def test_a_session_needs_a_name_and_a_manager(cluster, monkeypatch):
    monkeypatch.delenv("LFM_RUN", raising=False)
    with pytest.raises(TypeError, match="outlives this process"):
        lfm.Executor(session="thesis")
    with pytest.raises(ValueError, match="letters"):
        lfm.Executor(cluster.run, session="my/thesis")
    with cluster.executor() as ex, pytest.raises(RuntimeError, match="with a name"):
        ex.detach()


def test_failed_calls_run_again(cluster, tmp_path):
    def needs(path, n):
        import pathlib

        if not pathlib.Path(path).exists():
            raise OSError(f"{n}: no {path}")
        return n

    path = str(tmp_path / "data")
    with cluster.executor() as ex:
        futures = [ex.options(memory="50MB", category="needy").submit(needs, path, n) for n in range(3)]
        assert all(isinstance(f.exception(PATIENCE), OSError) for f in futures)
        (tmp_path / "data").touch()
        wait_until(lambda: not asked(cluster, "tasks", "--category", "needy")["tasks"], "the manager to forget them")
        assert cluster.command("retry", futures[0].id.replace("-", ":")).stdout == "1 call to run again\n"
        again = asked(cluster, "retry", "--category", "needy")
        assert again["count"] == 2
        assert sorted(again["tasks"]) == [f.id for f in futures[1:]]  # they ended in any order
        assert again["left"] == {"its arguments are not kept any more": 1}

        def done():
            return {t["task"] for t in asked(cluster, "tasks", "--category", "needy", "--state", "done")["tasks"]}

        wait_until(lambda: done() == {f.id + ".1" for f in futures}, "them to end well")
    assert cluster.command("retry", check=False).returncode == 2


def test_calls_are_cancelled_by_number_and_by_what_they_have_in_common(cluster):
    with cluster.executor() as ex:
        ex.submit(abs, 1).result(PATIENCE)
        futures = [ex.options(cores=1, memory="50MB", category=f"c{n % 2}").submit(time.sleep, 600) for n in range(6)]
        session, numbers = futures[0].id[:12], [int(f.id.rpartition("-")[2]) for f in futures]
        try:
            wait_until(lambda: len(asked(cluster, "tasks", session, "--category", "c1")["tasks"]) == 3, "all to be there")
            said = cluster.command("cancel", f"{session}:{numbers[0]}-{numbers[1]},{futures[2].id}").stdout
            assert said == "3 calls cancelled\n"
            assert asked(cluster, "cancel", "--category", "c1")["tasks"] == [futures[3].id, futures[5].id]
            assert asked(cluster, "cancel", "all")["tasks"] == [futures[4].id]
        finally:
            cluster.command("cancel", "all")
        assert all(f.cancelled() or f.exception(PATIENCE) for f in futures)
