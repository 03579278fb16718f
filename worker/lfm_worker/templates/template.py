"""A template as the worker's loop sees it: calls in, reports out, never a wait.

All that matters is done by ``lfm.monitor``, which knows neither outcomes nor workers; this translates.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lfm.ending import outcome_of, usage_of
from lfm.monitor import host, wire
from lfm_worker.templates.calls import Call, Ended, NearLimit, Report, Started, TemplateLost

# Calls' own variables, as most calls have them: to change a variable in place costs little, to add one much.
LIKELY = {"LFM_TASK": "", "LFM_ATTEMPT": "1", "LFM_CORES": "1", "LFM_MEMORY": "0"}


class Template:
    """One warm interpreter and the monitors of its calls.  Register ``fileno()`` with the poller (POLLIN); after
    any wake call ``receive()``, and ``tick()`` when ``deadline()`` has come."""

    def __init__(
        self,
        python: Path,
        *,
        runtime: Path,
        preload: Sequence[str] = (),
        sandboxes: Path,
        slots: int = 1,
        environ: dict[str, str] | None = None,
    ) -> None:
        """``python``: the packed interpreter; ``runtime``: what ``lfm.monitor.runtime`` installed; ``sandboxes``: a folder in
        which calls get their directories; ``slots``: calls at a time that it should be ready for (more are possible)."""
        self._host = host.Host(python, runtime, preload, sandboxes=sandboxes, environ=LIKELY | (environ or {}))
        self._spilled: dict[int, Path] = {}

    @property
    def pid(self) -> int:
        return self._host.pid

    @property
    def told(self) -> dict[str, Any]:
        """What the template said of itself when it was ready: how it forks, what it could not preload and why."""
        return self._host.told

    def fileno(self) -> int:
        return self._host.fileno()

    def start(self, call: Call, hurry: bool = True) -> None:
        """Run it now; Started and Ended will tell.  ``hurry``: as soon as its value is known."""
        arguments: bytes | str = call.arguments if isinstance(call.arguments, bytes) else str(call.arguments)
        if isinstance(arguments, bytes) and len(arguments) > wire.INLINE_LIMIT:
            spilled = self._spilled[call.id] = Path(f"{call.result}.arguments")
            spilled.write_bytes(arguments)
            arguments = str(spilled)
        work = wire.Work(
            id=call.id,
            code=str(call.code),
            arguments=arguments,
            result=str(call.result),
            overlay=str(call.overlay) if call.overlay else None,
            environ={name.encode(): text.encode(errors="surrogateescape") for name, text in call.environ.items()},
            cpus=call.cpus,
            threads=call.threads,
            chunk=bool(call.chunk),
            blobs=str(call.blobs) if call.blobs else "",
        )
        limits = wire.Limits(
            call.memory or 0, call.disk or 0, call.wall_time or 0.0, call.processes or 0, call.grow,
            gpus=bool(call.environ.get("CUDA_VISIBLE_DEVICES")),
        )
        self._host.start(work, limits, hurry=hurry)

    def kill(self, id: int) -> None:
        self._host.kill(id)

    def raise_limit(self, id: int, *, memory: int) -> None:
        self._host.raise_memory(id, memory)

    def output(self, id: int, stdout_from: int = 0, stderr_from: int = 0) -> list[tuple[int, bytes]]:
        """What a running call has printed from these positions on: (where it begins, bytes) of stdout and stderr,
        bounded; [] if it runs no more."""
        return self._host.output(id, stdout_from, stderr_from)

    def deadline(self) -> float | None:
        """When ``tick()`` is due (monotonic clock); None: not before something happens."""
        return self._host.deadline()

    def tick(self) -> None:
        self._host.tick()

    def receive(self) -> list[Report]:
        heard = self._host.receive()
        over = {news.id for news in heard if isinstance(news, host.Over)}  # that they began goes without saying
        return [self._translate(news) for news in heard if not (isinstance(news, host.Began) and news.id in over)]

    def close(self) -> None:
        """End it and all that runs in it."""
        self._host.close()
        for path in self._spilled.values():
            path.unlink(missing_ok=True)
        self._spilled.clear()

    def _translate(self, news: host.News) -> Report:
        match news:
            case host.Began(id):
                return Started(id)
            case host.Near(id, measured, limit):
                return NearLimit(id, "memory", measured, limit)
            case host.Gone(reason):
                return TemplateLost(reason)
            case host.Over(id=id, stdout=out, stderr=err):
                if id in self._spilled:
                    self._spilled.pop(id).unlink(missing_ok=True)
                return Ended(id, outcome_of(news), usage_of(news), out, err)
