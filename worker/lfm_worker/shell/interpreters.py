"""The warm interpreters of a worker and the calls in them: the core's commands to them, their reports to events.

The directories that calls get lie below the worker's own.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable
from pathlib import Path

from lfm.headroom import Headroom
from lfm.monitor.runtime import install_runtime
from lfm.protocol import messages as m
from lfm.protocol.ids import Digest
from lfm.protocol.outcomes import Blob, Inline, Lost, Payload, Raised, Returned, payload_of
from lfm.shortage import passes
from lfm_worker.core import commands as c
from lfm_worker.core import events as e
from lfm_worker.core.items import Item
from lfm_worker.shell.places import Cache, Home
from lfm_worker.shell.transfers import Transfers
from lfm_worker.templates.calls import Call, Ended, NearLimit, Started, TemplateLost
from lfm_worker.templates.template import Template

HEADROOM = 16 << 20  # bytes that a call may take here, with its beginning and its end


class Interpreters:
    """``tell`` takes their events; ``watch`` and ``unwatch`` register a descriptor with the poller."""

    def __init__(
        self, home: Home, cache: Cache, transfers: Transfers, slots: int, *, tell: Callable[[e.Event], None],
        watch: Callable[[int, Callable[[], None]], None], unwatch: Callable[[int], None],
    ) -> None:  # fmt: skip
        self._home, self._cache, self._transfers, self._slots = home, cache, transfers, slots
        self._tell, self._watch, self._unwatch = tell, watch, unwatch
        self._templates: dict[int, Template] = {}
        self._runtime: Path | None = None
        self._sandboxes, self._results = home / "sandboxes", home / "results"
        self._headroom = Headroom(HEADROOM)
        self._codes: dict[bytes, Path] = {}  # where what many calls share lies
        self._overlays: dict[Digest, Path] = {}

    def pids(self) -> set[int]:
        return {template.pid for template in self._templates.values()}

    def deadline(self) -> float | None:
        return min((at for t in self._templates.values() if (at := t.deadline()) is not None), default=None)

    def tick(self, now: float) -> None:
        for number, template in list(self._templates.items()):
            if (due := template.deadline()) is not None and now >= due:
                template.tick()
                self._hear(number)

    def close(self) -> None:
        for number in list(self._templates):
            self.close_one(number)

    def close_one(self, number: int) -> None:
        if (template := self._templates.pop(number, None)) is not None:
            self._unwatch(template.fileno())
            template.close()

    def start(self, command: c.StartTemplate) -> None:
        python = self._cache.path(Item("environment", command.environment)) / "bin" / "python"
        try:
            self._need_memory()
            if self._runtime is None:
                self._runtime = install_runtime(self._home / "runtime")
            template = Template(
                python, runtime=self._runtime, preload=command.preload, sandboxes=self._sandboxes, slots=self._slots
            )
        except (OSError, MemoryError) as error:
            self._tell(e.TemplateEnded(command.template, f"cannot be started: {error}", passing=passes(error)))
            return
        self._templates[command.template] = template
        self._watch(template.fileno(), lambda: self._hear(command.template))

    def call(self, command: c.StartCall, hurry: bool) -> None:
        template = self._templates.get(command.template)
        if template is None:
            return  # it could not be started, and the core hears of it
        try:
            self._need_memory()
            template.start(self._as_call(command), hurry)
        except (OSError, MemoryError) as error:
            reason = f"the worker cannot start it: {error}"
            self._tell(e.CallStopped(command.call, Lost(reason, started=False), None))

    def _need_memory(self) -> None:
        """OSError if there is too little to begin something."""
        if self._headroom.lacks():
            raise OSError(errno.ENOMEM, "not enough memory (see: ulimit -v)")

    def kill(self, command: c.StopCall) -> None:
        if (template := self._templates.get(command.template)) is not None:
            template.kill(command.call)

    def raise_limit(self, command: c.RaiseLimit) -> None:
        if (template := self._templates.get(command.template)) is not None:
            template.raise_limit(command.call, memory=command.memory)

    def output(self, command: c.ReadOutput) -> m.OutputSoFar:
        """What a running call has printed."""
        asked, template = command.asked, self._templates.get(command.template)
        found = template.output(command.call, asked.stdout_from, asked.stderr_from) if template is not None else []
        if not found:  # it has just ended
            return m.OutputSoFar(asked.number, asked.stdout_from, b"", asked.stderr_from, b"")
        (stdout_from, stdout), (stderr_from, stderr) = found
        return m.OutputSoFar(asked.number, stdout_from, stdout, stderr_from, stderr)

    def _as_call(self, command: c.StartCall) -> Call:
        return Call(
            id=command.call, name=command.name, code=self._code(command.code), arguments=self._payload(command.arguments),
            result=self._result(command.call),
            overlay=self._overlay(command.overlay) if command.overlay else None,
            environ=command.environ, cpus=command.cpus, threads=command.threads, memory=command.memory, disk=command.disk,
            wall_time=command.wall_time, processes=command.processes, chunk=command.chunk, grow=command.grow,
            blobs=self._transfers.own.directory if command.blobs else None,
        )  # fmt: skip

    def _code(self, code: Payload) -> Path:
        if isinstance(code, Blob):
            return self._transfers.own.path(code.digest)
        if (known := self._codes.get(code.data)) is not None:
            return known
        # Named by its content: a function's id comes from outside and is no path.
        path = self._home / "functions" / hashlib.sha256(code.data).hexdigest()
        path.write_bytes(code.data)
        self._codes[code.data] = path
        return path

    def forget(self, code: Inline) -> None:
        """No call needs it any more."""
        if (path := self._codes.pop(code.data, None)) is not None:
            path.unlink(missing_ok=True)

    def _overlay(self, digest: Digest) -> Path:
        if digest not in self._overlays:
            self._overlays[digest] = self._cache.path(Item("overlay", digest))
        return self._overlays[digest]

    def _payload(self, payload: Payload) -> bytes | Path:
        return payload.data if isinstance(payload, Inline) else self._transfers.own.path(payload.digest)

    def _result(self, call: int) -> str:
        return f"{self._results}/.call-{call}"

    def _hear(self, number: int) -> None:
        template = self._templates.get(number)
        for report in template.receive() if template is not None else ():
            match report:
                case Started():
                    self._tell(e.CallBegan(report.id))
                case Ended():
                    self._tell(self._ended(report))
                case NearLimit():
                    self._tell(e.LimitNeared(report.id, report.resource, report.measured, report.limit))
                case TemplateLost():
                    self.close_one(number)
                    self._tell(e.TemplateEnded(number, report.reason))
                    return

    def _ended(self, report: Ended) -> e.CallStopped:
        """A large value, or exception, moves to the results, from where the manager pulls it.

        Its size and digest are the file's: what a call says of itself may be anything.
        """
        outcome = report.outcome
        if isinstance(payload_of(outcome), Blob):
            try:
                kept = self._transfers.results.adopt(Path(self._result(report.id)))
                outcome = outcome.but(error=kept) if isinstance(outcome, Raised) else Returned(kept)
            except OSError as error:
                lost = Lost(f"its result could not be kept on the worker: {error}")
                outcome = outcome.but(error=None) if isinstance(outcome, Raised) else lost
        return e.CallStopped(report.id, outcome, report.usage, report.stdout, report.stderr)
