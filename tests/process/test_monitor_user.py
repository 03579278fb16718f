"""The same monitor run by an ordinary user: a user namespace around the PID namespace, or none of either."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lfm

pytestmark = pytest.mark.process
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")

SCRIPT = """
import json, os, select, sys, time
from pathlib import Path
from lfm.monitor import host, payload, wire
from lfm.monitor.runtime import install_runtime

folder = Path(sys.argv[1])
(folder / "sandboxes").mkdir()
running = host.Host(
    sys.executable, install_runtime(folder / "runtime"), sandboxes=folder / "sandboxes", namespace=sys.argv[2] == "namespace"
)
(folder / "code").write_bytes(b"".join(payload.pack(os.system)))
poll = select.poll()
poll.register(running.fileno(), select.POLLIN)

def run(number, command, **limits):
    arguments = b"".join(payload.pack(((command,), {})))
    work = wire.Work(number, str(folder / "code"), arguments, "")
    running.start(work, wire.Limits(**limits))
    end = time.monotonic() + 50
    while time.monotonic() < end:
        poll.poll(20)
        for news in running.receive():
            if isinstance(news, host.Over):
                return news
        running.tick()

found = []
for number, (command, limits) in enumerate(json.loads(sys.argv[3]), 1):
    over = run(number, command, **limits)
    found.append([over.stdout.decode(), over.report.status, over.report.verdict, (folder / f"s{number}").exists()])
running.close()
print(json.dumps({"uid": os.getuid(), "told": running.told, "found": found}))
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that an ordinary user can reach, with what it needs of us; pytest's own are closed to others."""
    if os.getuid() or shutil.which("setpriv") is None:
        pytest.skip("only root can become an ordinary user")
    with tempfile.TemporaryDirectory(prefix="lfm-test-user-") as made:
        folder = Path(made)
        package = Path(lfm.__file__).parent
        shutil.copytree(package / "monitor", folder / "lfm" / "monitor", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(package / "__init__.py", folder / "lfm")
        (folder / "script.py").write_text(SCRIPT)
        os.chown(folder, 65534, 65534)
        yield folder


def _as_user(home: Path, *arguments: str) -> Any:
    environ = {"PATH": os.defpath, "PYTHONPATH": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    for python in (sys.executable, "/usr/bin/python3"):
        test = "import os, sys; assert sys.version_info >= (3, 11) and os.access(sys.executable, os.X_OK)"
        check = [*NOBODY, python, "-c", test]
        if shutil.which(python) and subprocess.run(check, capture_output=True, check=False).returncode == 0:
            break
    else:
        pytest.skip("no interpreter that an ordinary user can run")
    ended = subprocess.run(
        [*NOBODY, python, str(home / "script.py"), str(home), *arguments],
        capture_output=True, text=True, env=environ, cwd="/", timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.parametrize("tier", ["namespace", "subreaper"])
def test_an_ordinary_users_calls_are_contained(home: Path, tier: str) -> None:
    beat = home / "beat"
    calls = [
        ("id -u; echo made > file", {}),
        (f"(setsid sh -c 'while :; do touch {beat}; sleep 0.01; done' &) ; while ! test -e {beat}; do sleep 0.01; done", {}),
        ("sleep 600", {"wall_time": 0.3}),
        ("echo next", {}),
    ]
    told = _as_user(home, tier, json.dumps(calls))
    if told["told"]["containment"] != tier:
        pytest.skip("no namespaces for ordinary users here")
    assert told["uid"] == 65534
    (first, daemon, slept, after) = told["found"]
    assert first == ["65534\n", 0, 0, False]
    assert daemon[1:] == [0, 0, False]
    assert slept[2] == 3 and not slept[3]
    assert after == ["next\n", 0, 0, False]
    at = beat.stat().st_mtime_ns
    assert not [pid for pid in Path("/proc").iterdir() if pid.name.isdigit() and str(beat).encode() in _command(pid)]
    assert beat.stat().st_mtime_ns == at


def _command(pid: Path) -> bytes:
    try:
        return (pid / "cmdline").read_bytes()
    except OSError:
        return b""
