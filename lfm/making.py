"""Environments that only this client's machine can make: its manager, elsewhere, does not see the files.

The very same build program runs here, by command, into this user's cache, where the next session finds what it
made; the manager pulls the tarball.  One thread per build, which only reads what the program says.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from lfm.protocol import messages as m
from lfm.protocol.ids import Digest, EnvironmentKey
from lfm.protocol.outcomes import Blob
from lfm.spool import Spool

PATIENCE = 5.0  # seconds that a build has to end when it is not wanted any more
Answer = m.EnvironmentMade | m.EnvironmentNotMade


class Makings:
    """All of a session's.  ``make``, ``hear`` and ``close`` are the session's thread's own."""

    def __init__(
        self, plan: Callable[[EnvironmentKey], bytes | None], spool: Spool, say: Callable[[m.Message], object]
    ) -> None:
        """``say`` is called from other threads."""
        self._plan, self._spool, self._say = plan, spool, say
        self._lock = threading.Lock()  # of the processes
        self._processes: dict[EnvironmentKey, subprocess.Popen[bytes] | None] = {}
        self._offered: dict[EnvironmentKey, Blob] = {}
        self._closed = False

    def make(self, key: EnvironmentKey) -> None:
        """Begin, if it has not begun; the answer is said when there is one."""
        with self._lock:
            if key in self._processes:
                return
            self._processes[key] = None
        threading.Thread(target=self._work, args=(key,), name="lfm-making", daemon=True).start()

    def hear(self, news: m.EnvironmentProgress) -> None:
        """The manager needs the tarball no more."""
        if news.stage in ("ready", "failed") and (blob := self._offered.pop(news.key, None)) is not None:
            self._spool.release(blob)

    def serves(self, digest: Digest) -> EnvironmentKey | None:
        """The environment whose tarball the manager pulls."""
        return next((key for key, blob in self._offered.copy().items() if blob.digest == digest), None)

    def close(self) -> None:
        """End what runs, with all its processes."""
        with self._lock:
            self._closed = True
            running = [process for process in self._processes.values() if process is not None]
        for process in running:
            _signal(process, signal.SIGTERM)
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
            _signal(process, signal.SIGKILL)
            process.wait()

    # -- a build's own thread

    def _work(self, key: EnvironmentKey) -> None:
        try:
            answer: Answer = self._made(key)
        except Exception as error:  # whatever it is: the manager waits for a word
            answer = m.EnvironmentNotMade(key, f"its client cannot build it: {type(error).__name__}: {error}", "", "")
        with self._lock:
            del self._processes[key]
        self._say(answer)

    def _made(self, key: EnvironmentKey) -> Answer:
        plan = self._plan(key)
        if plan is None:
            return m.EnvironmentNotMade(key, "its client knows no such environment", "", "")
        with tempfile.TemporaryDirectory(prefix="lfm-build-") as work:
            source, result, log = (Path(work, name) for name in ("plan.json", "result.json", "log"))
            source.write_bytes(plan)
            with log.open("wb") as errors:
                self._run(key, source, result, errors.fileno())
            try:
                description = result.read_bytes()
            except FileNotFoundError:
                last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
                return m.EnvironmentNotMade(key, f"the program that builds environments died: {last[0]}", "", "")
        said = json.loads(description)
        if "error" in said:
            error = said["error"]
            return m.EnvironmentNotMade(key, error["reason"], error["module"], error["hint"])
        blob = Blob(Digest(said["digest"]), said["bytes"])
        self._spool.offer(Path(said["path"]), blob)
        self._offered[key] = blob
        return m.EnvironmentMade(key, blob, description)

    def _run(self, key: EnvironmentKey, source: Path, result: Path, errors: int) -> None:
        """The build program, until it ends; what it says goes to the manager."""
        with self._lock:
            if self._closed:
                return
            process = self._processes[key] = subprocess.Popen(
                [  # -P: nothing in the user's folder shadows ours
                    sys.executable, "-P", "-m", "lfm_manager.environments.build",
                    "--plan", str(source), "--result", str(result),
                ],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
            )  # fmt: skip
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                step = json.loads(line)
                self._say(m.EnvironmentProgress(key, "", step["stage"], step["done"], step["total"], step["text"]))
        process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
