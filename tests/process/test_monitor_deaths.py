"""kill -9 of two at a time: the daemon, its template, the monitor of a call.  Nothing of the call stays.

The daemon is a process of the test's own; only it and what descends from it is signalled.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.process
PATIENCE = 60.0  # seconds: only reached when something hangs

DAEMON = """
import json, os, select, sys, time
from pathlib import Path
import cloudpickle
from lfm.monitor import host, payload, wire
from lfm.monitor.runtime import install_runtime

def call(beat, namespace):
    import os, time
    if namespace and os.fork() == 0:  # who leaves the session, and its parent behind, is ended by the namespace
        os.setsid()
        if os.fork() == 0:
            while True:
                open(beat + "-daemon", "w").close()
                time.sleep(0.01)
        os._exit(0)
    while True:
        open(beat, "w").close()
        time.sleep(0.01)

folder, namespace = Path(sys.argv[1]), sys.argv[2] == "namespace"
(folder / "sandboxes").mkdir()
running = host.Host(
    sys.executable, install_runtime(folder / "runtime"), sandboxes=folder / "sandboxes", namespace=namespace
)
(folder / "code").write_bytes(b"".join(payload.pack(call, cloudpickle.dumps)))
arguments = b"".join(payload.pack(((str(folder / "beat"), namespace), {})))
running.start(wire.Work(1, str(folder / "code"), arguments, ""))
poll = select.poll()
poll.register(running.fileno(), select.POLLIN)
said = False
while True:
    poll.poll(20)
    running.receive()
    running.tick()
    slot = running._slots.get(1)
    if not said and slot is not None and slot.pid and slot.job is not None:
        said = True
        told = {"template": running.pid, "monitor": slot.pid, "containment": running.told["containment"]}
        print(json.dumps(told), flush=True)
"""


@pytest.mark.parametrize("tier", ["namespace", "subreaper"])
@pytest.mark.parametrize("two", [("daemon", "template"), ("daemon", "monitor"), ("template", "monitor")])
def test_two_killed_at_once(tmp_path: Path, two: tuple[str, str], tier: str) -> None:
    script = tmp_path / "daemon.py"
    script.write_text(DAEMON)
    daemon = subprocess.Popen([sys.executable, str(script), str(tmp_path), tier], stdout=subprocess.PIPE, cwd=tmp_path)
    try:
        assert daemon.stdout is not None
        told = json.loads(daemon.stdout.readline())
        if told["containment"] != tier:
            pytest.skip("no PID namespaces here")
        beats = [tmp_path / "beat"] + [tmp_path / "beat-daemon"] * (tier == "namespace")
        _until(lambda: all(beat.exists() for beat in beats))
        tree = _below(told["template"])
        assert len(tree) >= 4
        pids = {"daemon": daemon.pid, "template": told["template"], "monitor": told["monitor"]}
        for name in two:
            os.kill(pids[name], signal.SIGKILL)
        _until(lambda: not any(map(_alive, tree)))
        at = [beat.stat().st_mtime_ns for beat in beats]
        time.sleep(0.2)
        assert [beat.stat().st_mtime_ns for beat in beats] == at
    finally:
        daemon.kill()
        daemon.wait()
        if daemon.stdout:
            daemon.stdout.close()


def _until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def _below(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(below for child in children for below in _below(int(child)))]


def _alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
