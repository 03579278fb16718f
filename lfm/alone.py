"""``lfm.monitored``: one call under a monitor on this machine, with no manager."""

from __future__ import annotations

import atexit
import os
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from lfm.ending import outcome_of, usage_of
from lfm.errors import CallCrashed, CallError, EnvironmentFailed, RemoteError, ResourceExhausted
from lfm.monitor import host, payload, wire
from lfm.monitor.runtime import install_runtime
from lfm.protocol.outcomes import Crashed, EnvironmentBroken, Exhausted, Inline, Payload, Raised, Returned
from lfm.protocol.resources import Usage, format_duration, format_size, parse_duration, parse_size

T = TypeVar("T")


def monitored(
    fn: Callable[..., T],
    /,
    *args: Any,
    memory: str | int | None = None,
    wall_time: str | float | None = None,
    disk: str | int | None = None,
    processes: int | None = None,
    **kwargs: Any,
) -> tuple[T, Usage]:
    """Run ``fn(*args, **kwargs)`` once in a process of its own, measured and bounded; (value, usage).

    Raises the function's own exception; ResourceExhausted for a limit; CallCrashed if it died.
    What it prints is printed here after its end.
    """
    limits = wire.Limits(
        memory=parse_size(memory) if memory is not None else 0,
        disk=parse_size(disk) if disk is not None else 0,
        wall_time=parse_duration(wall_time) if wall_time is not None else 0.0,
        processes=processes or 0,
        gpus=has_gpus(),
    )
    with _lock:
        over, value_file = _bench().run(fn, args, kwargs, limits)
        try:
            return _value(getattr(fn, "__name__", repr(fn)), over, value_file), usage_of(over) or Usage()
        finally:
            value_file.unlink(missing_ok=True)


_lock = threading.Lock()
_current: list[_Bench] = []


class _Bench:
    """This process's own template, started at the first monitored call and kept until the process ends."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.folder = Path(tempfile.mkdtemp(prefix="lfm-monitored-"))
        sandboxes = self.folder / "sandboxes"
        sandboxes.mkdir()
        self.host = host.Host(sys.executable, install_runtime(self.folder / "runtime"), sandboxes=sandboxes)
        self.calls = 0
        atexit.register(self.close)

    def run(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], limits: wire.Limits
    ) -> tuple[host.Over, Path]:
        import cloudpickle

        from lfm.function.pickling import pickle_function

        self.calls += 1
        folder = self.folder / str(self.calls)
        folder.mkdir()
        code, arguments, result = folder / "code", folder / "arguments", self.folder / f"{self.calls}.result"
        try:
            _write(code, pickle_function(fn)[0])
            _write(arguments, payload.pack((args, kwargs), cloudpickle.dumps))
            work = wire.Work(
                self.calls,
                str(code),
                str(arguments),
                str(result),
                paths=tuple(path or str(Path.cwd()) for path in sys.path),
                environ=dict(os.environb),
            )
            self.host.start(work, limits)
            return self._wait(), result
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # made by mkdtemp and mkdir above

    def _wait(self) -> host.Over:
        try:
            return wait_over(self.host)
        except KeyboardInterrupt:
            self.host.kill(self.calls)
            wait_over(self.host)
            raise

    def usable(self) -> bool:
        """Whether it is this process's, and its template lives."""
        if self.owner != os.getpid() or self.host.ended():
            return False
        self.host.receive()  # it may have died since the last call
        return not self.host.ended()

    def close(self) -> None:
        if os.getpid() == self.owner:
            self.host.close()
            shutil.rmtree(self.folder, ignore_errors=True)  # made by mkdtemp above


def has_gpus() -> bool:
    return Path("/dev/nvidiactl").exists()


def wait_over(running: host.Host) -> host.Over:
    """Wait until one call of a host is over."""
    poll = select.poll()
    poll.register(running.fileno(), select.POLLIN)
    while True:
        due = running.deadline()
        poll.poll(None if due is None else max(0.0, due - time.monotonic()) * 1000)
        for news in running.receive():
            if isinstance(news, host.Over):
                return news
        running.tick()


def _bench() -> _Bench:
    if not _current or not _current[0].usable():
        for ended in _current:
            ended.close()
        _current[:] = [_Bench()]
    return _current[0]


def _write(path: Path, pieces: list[payload.Buffer]) -> None:
    with path.open("wb") as file:
        file.writelines(pieces)


def _value(name: str, over: host.Over, file: Path) -> Any:
    for stream, printed in ((sys.stdout, over.stdout), (sys.stderr, over.stderr)):
        if printed:
            stream.write(printed.decode("utf-8", "replace"))
    match outcome_of(over):
        case Returned(value):
            return payload.unpack(_bytes(value, file))
        case Raised(error, kind, text, trace, _):
            cause = RemoteError(f"{kind}: {text}\n\n{trace}", type_name=kind, text=text, traceback=trace)
            if error is None:
                raise cause
            raise payload.unpack(_bytes(error, file)) from cause
        case Exhausted(resource, limit, measured, at):
            raise ResourceExhausted(
                f"{name} used {amount(resource, measured)} of {resource.replace('_', ' ')}, more than its limit of "
                f"{amount(resource, limit)}, {format_duration(at)} after its start",
                resource=resource,
                limit=limit,
                measured=measured,
                attempts=(),
            )
        case Crashed(number, code, fault, hint):
            how = f"signal {signal.Signals(number).name}" if number else f"exit code {code}"
            raise CallCrashed(
                f"the process of {name} ended with {how}{'; ' + hint if hint else ''}",
                signal=number,
                exit_code=code,
                faulthandler=fault,
                stderr=over.stderr.decode("utf-8", "replace"),
            )
        case EnvironmentBroken(module, where, line, reason):
            raise EnvironmentFailed(
                f"{where}:{line}: {reason}", module=module, file=where, line=line, hint=f"install {module} here"
            )
        case other:
            raise CallError(f"the call could not be monitored: {other}")


def amount(resource: str, value: float) -> str:
    """A limit or a measurement as people read it."""
    if resource in ("memory", "disk"):
        return format_size(value)
    return format_duration(value) if resource == "wall_time" else f"{value:.0f}"


def _bytes(value: Payload, file: Path) -> bytearray:
    return bytearray(value.data) if isinstance(value, Inline) else bytearray(file.read_bytes())
