"""How a call's outcome becomes what ``future.result()`` gives or raises: one line that says whose fault and what to do.

Pure, but for unpickling what the call sent.  Knows neither futures nor sessions.
"""

from __future__ import annotations

import re
import signal
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from lfm import errors
from lfm.monitor import payload
from lfm.monitor.wire import IN_VAIN
from lfm.protocol import outcomes as o
from lfm.protocol.messages import Finished
from lfm.protocol.resources import format_duration, format_size
from lfm.repair import is_here

_FRAME = re.compile(r'File "(?P<file>[^"]*)", line (?P<line>\d+) in (?P<name>.*)')  # faulthandler's; the innermost comes first
_OVERLAID = re.compile(r'(?:(?<=")|^)[^"\n]*/overlays/[0-9a-f]{64}/(?P<file>src/[^"\n]*?\.py)\b')  # a file of an overlay on its node
_WORDS = {
    "memory": "ran out of memory", "disk": "ran out of disk", "wall_time": "ran out of time",
    "processes": "had too many processes", "environmentbroken": "lacked a module", "lost": "lost its worker",
    "impossible": "could not run", "killed": "was killed", "cancelled": "was cancelled",
}  # fmt: skip
TAIL = 20  # lines of a call's stderr that are added to its exception


class RemoteTraceback(Exception):
    """The cause of a function's own exception: where it was raised, over there."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text.rstrip()}\n"""'


class Sealed:
    """A value as it came: unpickled when it is first asked for, by whoever asks."""

    __slots__ = ("_data",)

    def __init__(self, data: payload.Buffer) -> None:
        self._data = data

    def open(self) -> Any:
        """The value; raises what unpickling raises.  Arrays in it are writable and use this memory."""
        data = self._data
        if type(data) is bytes and len(data) >= 8 and struct.unpack_from("<I", data, 4)[0] > 1:
            data = bytearray(data)
        return payload.unpack(data)


def at_home(finished: Finished, homes: Mapping[str, str]) -> Finished:
    """The same, with the user's own files named as they are here and not as they were there."""

    def home(found: re.Match[str]) -> str:
        return homes.get(found["file"], found[0])

    match finished.outcome:
        case o.Raised(traceback=text) as raised:
            return finished.but(outcome=raised.but(traceback=_OVERLAID.sub(home, text)))
        case o.Crashed(faulthandler=text) as crashed:
            return finished.but(outcome=crashed.but(faulthandler=_OVERLAID.sub(home, text)))
        case o.EnvironmentBroken(file=file) as broken:
            return finished.but(outcome=broken.but(file=_OVERLAID.sub(home, file)))
        case _:
            return finished


def error_of(finished: Finished, name: str, data: payload.Buffer | None = None) -> BaseException:
    """The exception for any outcome but Returned.  ``data``: the payload of Raised, where it has one."""
    error: BaseException
    match finished.outcome:
        case o.Raised() as raised:
            error = _own(raised, name, data)
        case o.Exhausted() as exhausted:
            error = _exhausted(exhausted, finished, name)
        case o.Crashed() as crashed:
            error = _crashed(crashed, finished, name)
        case o.EnvironmentBroken() as broken:
            error = _broken(broken, name)
        case o.Killed():
            error = errors.CallKilled(f"{name} was killed by its user{_place(finished)}")
        case o.Lost(reason) | o.Impossible("lost", reason):
            tried = f" in {len(finished.attempts)} attempts" if len(finished.attempts) > 1 else ""
            error = errors.WorkerLost(
                f"{name} lost its worker{tried}: {reason}; if the call itself kills its node, give it a memory limit"
            )
        case o.Cancelled():
            error = errors.CallCancelled(f"{name} was cancelled before it gave a value")
        case o.Impossible("environment", reason):
            error = errors.EnvironmentFailed(
                f"{name}: its environment could not be made: {reason}", module="", file="", line=0, hint=""
            )
        case o.Impossible(kind, reason):
            error = errors.CallError(f"{name} cannot run ({kind}): {reason}")
        case o.Returned():
            raise AssertionError("a value is no error")
    _annotate(error, finished)
    return error


def how_it_ended(finished: Finished, name: str) -> Iterator[str]:
    """A line for the call, and one for each of its attempts."""
    yield f"{name} {_WORDS.get(ended := o.outcome_name(finished.outcome), ended)} after {len(finished.attempts)} attempt{'s' * (len(finished.attempts) != 1)}"
    for attempt in finished.attempts:
        given = f"{attempt.allocation.cores:g} cores, {format_size(attempt.allocation.memory)}"
        used = attempt.usage
        took = f"; used {used.cores:.1f} cores, {format_size(used.memory)} in {format_duration(used.wall_s)}" if used else ""
        yield f"  {attempt.number}. {_WORDS.get(attempt.outcome, attempt.outcome)} on {attempt.host or attempt.worker}: given {given}{took}"


def _own(raised: o.Raised, name: str, data: payload.Buffer | None) -> BaseException:
    trace, _, missed = raised.traceback.partition(f"\n{IN_VAIN}")
    error: object = None
    why = ""
    if data is not None:
        try:
            error = payload.unpack(bytearray(data))
        except Exception as trouble:
            why = f"; here it cannot be read: {type(trouble).__name__}: {trouble}"
    if not isinstance(error, BaseException):
        doing = {"load": "reading its arguments, ", "dump": "sending its value, "}.get(raised.stage, "")
        error = errors.RemoteError(
            f"{name}: {doing}{raised.type_name}: {raised.text}{why}",
            type_name=raised.type_name, text=raised.text, traceback=trace,
        )
    if trace:
        error.__cause__ = RemoteTraceback(trace)
    if here := [module for module in missed.strip().split(", ") if module and is_here(module)]:
        error.add_note(
            f"lfm: it looked in vain for what is installed here and not in its environment: {', '.join(here)}; "
            f"if that is why: @lfm.task(imports={here[:3]!r})"
        )
    return error


def _exhausted(outcome: o.Exhausted, finished: Finished, name: str) -> errors.ResourceExhausted:
    option = outcome.resource
    show = {"memory": format_size, "disk": format_size, "wall_time": format_duration}.get(option, "{:g}".format)
    what = {"wall_time": "ran longer than", "processes": "had more processes than"}.get(option, f"used more {option} than")
    twice = 2 * outcome.limit
    written = f"{twice:g}" if option == "processes" or twice < 1 else f'"{show(twice)}"'.replace(" ", "")
    tried = f" in {len(finished.attempts)} attempts" if len(finished.attempts) > 1 else ""
    return errors.ResourceExhausted(
        f"{name} {what} its {show(outcome.limit)}{tried} (measured {show(outcome.measured)}){_place(finished)}; "
        f"give it more: ex.options({option}={written})",
        resource=option, limit=outcome.limit, measured=outcome.measured, attempts=finished.attempts,
    )


def _broken(outcome: o.EnvironmentBroken, name: str) -> errors.EnvironmentFailed:
    module, where = outcome.module, f" (imported at {outcome.file}:{outcome.line})" if outcome.file else ""
    if module:
        top = module.partition(".")[0]
        if is_here(module):
            hint = f"add it: @lfm.task(imports=[{top!r}])"
        else:
            hint = "it is not installed here either; install it, then submit again"
        text = f"{name}: its environment has no {module!r}{where}: {outcome.reason}; {hint}"
    else:
        hint, text = "", f"{name}: its environment is unusable: {outcome.reason}"
    return errors.EnvironmentFailed(text, module=module, file=outcome.file, line=outcome.line, hint=hint)


def _crashed(outcome: o.Crashed, finished: Finished, name: str) -> errors.CallCrashed:
    if outcome.signal is not None:
        try:
            how = f"was killed by {signal.Signals(outcome.signal).name}"
        except ValueError:
            how = f"was killed by signal {outcome.signal}"
    else:
        how = f"left with exit code {outcome.exit_code}"
    why = f": {outcome.hint}" if outcome.hint else ""
    where = _FRAME.search(outcome.faulthandler)
    look = f", in {where['name']} ({where['file']}:{where['line']})" if where else ""
    look += "; see error.faulthandler" if outcome.faulthandler else ""
    error = errors.CallCrashed(
        f"{name} {how}{why}{_place(finished)}{look}",
        signal=outcome.signal, exit_code=outcome.exit_code, faulthandler=outcome.faulthandler,
        stderr=finished.stderr.decode(errors="replace"),
    )
    if outcome.faulthandler:
        error.add_note(outcome.faulthandler.rstrip())
    return error


def _place(finished: Finished) -> str:
    return f" on {finished.attempts[-1].host}" if finished.attempts and finished.attempts[-1].host else ""


def _annotate(error: BaseException, finished: Finished) -> None:
    """Say where it ran, and the last of what it wrote to stderr."""
    if finished.attempts:
        last = finished.attempts[-1]
        error.add_note(f"lfm: {finished.task}, attempt {last.number}, on {last.host or last.worker}")
    if tail := finished.stderr.decode(errors="replace").rstrip().splitlines()[-TAIL:]:
        error.add_note("\n".join(["its stderr ended with:", *tail]))
