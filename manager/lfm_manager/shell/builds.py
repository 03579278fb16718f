"""Builds environments, and keeps those that clients built, in child processes, a few at a time.

Knows the tarballs by digest.

Never waits for one: the loop polls the children's output and calls ``readable``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

import zmq

from lfm.protocol.ids import Digest, EnvironmentKey
from lfm.shortage import passes
from lfm_manager.core.events import (
    EnvironmentAdvanced,
    EnvironmentBuilt,
    EnvironmentFailed,
    EnvironmentOutOfSight,
)
from lfm_manager.environments.child import adopt_command, build_command, read_result
from lfm_manager.environments.problems import BuildFailed, OutOfSight
from lfm_manager.environments.store import Built, Hold, Store
from lfm_manager.shell.transfers import AGAIN

log = logging.getLogger(__name__)

AT_ONCE = 2  # builds
TRIES = 60  # of a build that cannot be begun as a file is not there: it may only seem so
News = EnvironmentAdvanced | EnvironmentBuilt | EnvironmentFailed | EnvironmentOutOfSight


@dataclass(frozen=True, slots=True)
class _Job:
    """``source`` is the plan, or the file that it lies in, or, with ``tarball``, the description of what is to be kept."""

    key: EnvironmentKey
    source: bytes | Path
    tarball: Path | None = None
    missed: int = 0  # how often it could not be begun


@dataclass(slots=True, eq=False)
class _Child:
    key: EnvironmentKey
    process: subprocess.Popen[bytes]
    work: tempfile.TemporaryDirectory[str]
    errors: IO[bytes]
    said: bytes = b""


@dataclass(slots=True, eq=False)
class Builds:
    """``shelf``: a folder of ours, in which workers on this machine find the tarballs."""

    poller: zmq.Poller
    shelf: Path | None = None
    store: Store = field(default_factory=Store)
    tarballs: dict[Digest, Path] = field(default_factory=dict)
    begun: int = 0
    _holds: dict[Digest, Hold] = field(default_factory=dict)
    _waiting: deque[_Job] = field(default_factory=deque)
    _children: dict[int, _Child] = field(default_factory=dict)  # by the descriptor of their output
    _put_off: list[_Job] = field(default_factory=list)  # neither descriptors nor room for them now
    trouble: str = ""  # for people
    _late: list[EnvironmentFailed] = field(default_factory=list)
    _again: float = math.inf  # when to try once more

    def want(self, key: EnvironmentKey, plan: bytes | Path) -> EnvironmentBuilt | EnvironmentFailed | None:
        """The environment, if it is there already; else it is built, and told of later."""
        return self._find(_Job(key, plan))

    def _find(self, job: _Job) -> EnvironmentBuilt | EnvironmentFailed | None:
        try:
            if isinstance(job.source, Path):
                job = replace(job, source=job.source.read_bytes())
            found = self.store.find(job.key) if job.tarball is None else None
            return self._built(found) if found is not None else self._begin(job)
        except OSError as error:
            return self._failed(job, error)

    def keep(self, key: EnvironmentKey, tarball: Path, description: bytes) -> EnvironmentFailed | None:
        """Put a tarball that a client made into the store; told of later.  Stays where it is until then."""
        return self._begin(_Job(key, description, tarball))

    def _begin(self, job: _Job) -> EnvironmentFailed | None:
        self._waiting.append(job)
        failures = list(self._start())
        others = [failed for failed in failures if failed.key != job.key]
        if others:
            self._late, self._again = self._late + others, 0.0
        return next((failed for failed in failures if failed.key == job.key), None)

    def _failed(self, job: _Job, error: OSError) -> EnvironmentFailed | None:
        """For good, or put off if that passes."""
        if error.errno == errno.ENOENT and job.missed < TRIES:  # so says Python where a temporary directory is full
            job = replace(job, missed=job.missed + 1)
        elif not passes(error):
            return EnvironmentFailed(job.key, f"the manager cannot start a build: {error}")
        if not self.trouble:
            log.error("environment %s waits, as the manager cannot start a build: %s", job.key[:12], error)
        self.trouble = f"no environment can be built now: {error}"
        self._put_off.append(job)
        self._again = time.monotonic() + AGAIN
        return None

    def deadline(self) -> float:
        """When ``retry`` is due."""
        return self._again

    def retry(self) -> list[EnvironmentBuilt | EnvironmentFailed]:
        """Once more what was put off."""
        jobs, self._put_off, self._again = self._put_off, [], math.inf
        answers = [self._find(job) for job in jobs]
        if not self._put_off:
            self.trouble = ""
        late, self._late = self._late, []
        return [*late, *(answer for answer in answers if answer is not None)]

    def _start(self) -> Iterator[EnvironmentFailed]:
        """Begin as many as may run at once; those that cannot be begun."""
        while self._waiting and len(self._children) < AT_ONCE:
            job = self._waiting.popleft()
            try:
                self._spawn(job)
            except OSError as error:
                if (failed := self._failed(job, error)) is not None:
                    yield failed

    def _spawn(self, job: _Job) -> None:
        work = tempfile.TemporaryDirectory(prefix="lfm-build-")
        try:
            self._spawn_in(work, job)
        except BaseException:
            work.cleanup()
            raise

    def _spawn_in(self, work: tempfile.TemporaryDirectory[str], job: _Job) -> None:
        source, result = Path(work.name, "source.json"), Path(work.name, "result.json")
        source.write_bytes(job.source if isinstance(job.source, bytes) else job.source.read_bytes())
        root = self.store.root
        command = (
            build_command(source, root, result)
            if job.tarball is None
            else adopt_command(job.key, job.tarball, source, root, result)
        )
        errors = Path(work.name, "log").open("wb+")  # noqa: SIM115  # lives as long as the child
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
            umask=0o022,  # ours is for secrets; what it builds is none, and keeps its modes
        )
        assert process.stdout is not None
        descriptor = process.stdout.fileno()
        os.set_blocking(descriptor, False)
        self.begun += job.tarball is None
        self._children[descriptor] = _Child(job.key, process, work, errors)
        self.poller.register(descriptor, zmq.POLLIN)

    def owns(self, descriptor: object) -> bool:
        return descriptor in self._children

    def readable(self, descriptor: int) -> Iterator[News]:
        """What a child has said; its end brings its result."""
        child = self._children[descriptor]
        try:
            data = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return
        if not data:
            if (ended := self._ended(descriptor)) is not None:
                yield ended
            yield from self._start()
            return
        *lines, child.said = (child.said + data).split(b"\n")
        for line in lines[-1:]:  # the newest says it all
            try:
                step = json.loads(line)
                yield EnvironmentAdvanced(child.key, step["stage"], step["done"], step["total"], step["text"])
            except (ValueError, KeyError, TypeError):
                log.warning("a build says what is not understood: %r", line[:200])

    def _ended(self, descriptor: int) -> News | None:
        child = self._children.pop(descriptor)
        self.poller.unregister(descriptor)
        child.process.wait()
        child.errors.seek(0)
        said = child.errors.read().decode(errors="replace")
        if said.strip():
            log.info("building %s said: %s", child.key[:12], said.strip())
        try:
            return self._built(read_result(Path(child.work.name, "result.json"), said))
        except OutOfSight as error:
            log.info("environment %s is to be made by a client: %s", child.key[:12], error)
            return EnvironmentOutOfSight(child.key, error.reason, error.hint)
        except BuildFailed as error:
            log.warning("environment %s cannot be built: %s", child.key[:12], error)
            return EnvironmentFailed(child.key, error.reason, error.module, error.hint)
        except OSError as error:  # it is made, and will be found
            return self._failed(_Job(child.key, b""), error)
        finally:
            self._clean(child)

    def _built(self, built: Built) -> EnvironmentBuilt:
        digest = Digest(built.digest)
        self.tarballs[digest] = built.path
        self._put_out(digest, built.path)
        if digest not in self._holds:
            self._holds[digest] = self.store.hold(built.key)  # while we serve it, nobody clears it away
        return EnvironmentBuilt(
            EnvironmentKey(built.key), digest, built.bytes, built.python, built.machine, built.libc
        )

    def _put_out(self, digest: Digest, tarball: Path) -> None:
        if self.shelf is not None:
            with contextlib.suppress(OSError):  # then it is sent
                self.shelf.mkdir(mode=0o700, exist_ok=True)
                (self.shelf / digest).unlink(missing_ok=True)
                (self.shelf / digest).symlink_to(tarball)

    @staticmethod
    def _clean(child: _Child) -> None:
        assert child.process.stdout is not None
        child.process.stdout.close()
        child.errors.close()
        child.work.cleanup()

    def close(self) -> None:
        """End what is being built, with all its processes."""
        for child in self._children.values():
            _signal(child, signal.SIGTERM)
        for descriptor, child in self._children.items():
            self.poller.unregister(descriptor)
            try:
                child.process.wait(5)
            except subprocess.TimeoutExpired:
                pass
            _signal(child, signal.SIGKILL)  # also what it may have left in its group
            child.process.wait()
            self._clean(child)
        self._children.clear()
        if self.shelf is not None:
            for digest in self.tarballs:
                (self.shelf / digest).unlink(missing_ok=True)
        for hold in self._holds.values():
            hold.close()
        self._holds.clear()
        self._waiting.clear()
        self._put_off.clear()


def _signal(child: _Child, number: signal.Signals) -> None:
    try:
        os.killpg(child.process.pid, number)
    except (ProcessLookupError, PermissionError):
        pass
