"""The manager and the workers that an Executor starts for itself on this machine, as processes, by command.

They end when their standard input closes: at ``stop``, or when this process dies in whatever way.  The run
directory is temporary; the manager removes it.  In their own sessions, so that a Ctrl-C at the terminal
reaches only the client, which then decides.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from lfm.errors import ConnectionFailed
from lfm.run import EMBEDDED, ConnectionFile

START_TIMEOUT = 60.0  # seconds until the manager's address must be known
STOP_TIMEOUT = 10.0  # seconds until what does not end by itself is ended
RESTARTS = 3  # of a worker that dies


class Embedded:
    """One manager and ``workers`` workers."""

    def __init__(self, workers: int = 1, cores: float | None = None, memory: int | None = None) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix=EMBEDDED))
        self.slots = workers * max(1, int(cores or processors() // workers))  # until the manager knows better
        self._arguments = _worker_arguments(workers, cores, memory)
        self._restarts = 0
        self._logs: list[IO[bytes]] = []
        self._watches: dict[int, int] = {}  # pid -> a descriptor that becomes readable when it ends
        self._processes: list[subprocess.Popen[bytes]] = []  # the manager, then the workers
        run = str(self.directory)
        try:
            self._processes.append(self._start("manager", "start", "--run-dir", run, "--ephemeral", "--stdin-eof"))
            self._processes += [self._start_worker() for _ in range(workers)]
        except OSError as error:
            self.stop()
            raise ConnectionFailed(f"cannot start a manager here: {error}") from error

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        log = tempfile.TemporaryFile()  # noqa: SIM115  # outlives the run directory; gone with this process
        self._logs.append(log)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "lfm", *arguments],  # -P: nothing in the user's folder shadows ours
            stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True, bufsize=0,
        )  # fmt: skip
        with contextlib.suppress(OSError, AttributeError):
            self._watches[process.pid] = os.pidfd_open(process.pid)
        return process

    def _start_worker(self) -> subprocess.Popen[bytes]:
        return self._start("worker", "start", "--run-dir", str(self.directory), "--stdin-eof", "--no-peers", *self._arguments)

    # -- while it lives

    def connection(self) -> ConnectionFile:
        """ConnectionFailed until the manager has published it."""
        return ConnectionFile.read(self.directory / "client.json")

    def wait_published(self, given_up: Callable[[], bool]) -> bool:
        """Until the manager can be reached; False if given up.  ConnectionFailed, in its own words, if it ended."""
        file, end, pause = self.directory / "client.json", time.monotonic() + START_TIMEOUT, 0.002
        while not file.exists():
            if (reason := self.failure()) is not None:
                raise ConnectionFailed(reason)
            if given_up():
                return False
            if time.monotonic() > end:
                raise ConnectionFailed(f"the manager did not start in {START_TIMEOUT:.0f} s: {self._last_words(0)}")
            time.sleep(pause)
            pause = min(pause * 1.2, 0.02)
        return True

    @property
    def watches(self) -> list[int]:
        """Descriptors that become readable when a process ends; none where the system has no such thing."""
        return list(self._watches.values())

    def failure(self) -> str | None:
        """Why calls cannot be answered any more, if they cannot.  A worker that died is started again."""
        manager, *workers = self._processes
        if (code := manager.poll()) is not None:
            return f"the manager on this machine ended ({_ending(code)}): {self._last_words(0)}"
        for place, worker in enumerate(workers, 1):
            if (code := worker.poll()) is not None:
                if self._restarts >= RESTARTS * len(workers):
                    return f"the worker on this machine keeps ending ({_ending(code)}): {self._last_words(-1)}"
                self._restarts += 1
                self._forget(worker)
                self._processes[place] = self._start_worker()
        return None

    def _last_words(self, log: int) -> str:
        with contextlib.suppress(OSError, IndexError, ValueError):
            file = self._logs[log]
            size = os.fstat(file.fileno()).st_size
            said = os.pread(file.fileno(), 4096, max(0, size - 4096)).decode(errors="replace").split("\n")
            if words := [line.strip() for line in said if line.strip()]:
                return words[-1]
        return "it said nothing"

    # -- the end

    def stop(self, patience: float = STOP_TIMEOUT) -> None:
        """End all of it and wait until it has ended."""
        manager, workers = self._processes[:1], self._processes[1:]
        end = time.monotonic() + patience
        for processes in (workers, manager):  # workers first: they say goodbye to a manager that is there
            for process in processes:
                _close(process)
            for process in processes:
                _await(process, end)
                self._forget(process)
        for log in self._logs:
            log.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def abandon(self) -> None:
        """In a forked child: these processes are the parent's; let go of what keeps them alive."""
        for process in self._processes:
            _close(process)
            process.returncode = 0  # nobody here may wait for them
        for watch in self._watches.values():
            os.close(watch)
        self._watches.clear()

    def _forget(self, process: subprocess.Popen[bytes]) -> None:
        _close(process)
        if (watch := self._watches.pop(process.pid, None)) is not None:
            os.close(watch)


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None and not process.stdin.closed:
        with contextlib.suppress(OSError):
            process.stdin.close()


def _await(process: subprocess.Popen[bytes], end: float) -> None:
    for last_resort in (process.terminate, process.kill, None):
        try:
            process.wait(max(0.0, end - time.monotonic()))
            return
        except subprocess.TimeoutExpired:
            if last_resort is None:
                return
            last_resort()
            end = time.monotonic() + 3.0


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _worker_arguments(workers: int, cores: float | None, memory: int | None) -> list[str]:
    """What each worker offers: what was said, or its share of this machine; one alone finds out by itself."""
    if workers > 1:
        import psutil

        cores = cores or max(1, processors() // workers)
        memory = memory or int(psutil.virtual_memory().total * 0.9) // workers
    said = []
    if cores is not None:
        said += ["--cores", f"{cores:g}"]
    if memory is not None:
        said += ["--memory", str(memory)]
    return said
