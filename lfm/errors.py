"""Everything that lfm raises.

::

    LfmError
      CallError                  one call did not give a value, and it was not its own exception
        ResourceExhausted        it outgrew a limit: resource, limit, measured, attempts
        CallCrashed              it died: signal or exit code, faulthandler's text, tail of stderr
        EnvironmentFailed        an import could not be satisfied: module, file, line, hint
        WorkerLost               its node died, and the attempts are used up
        CallKilled               its user killed it
        RemoteError              its exception cannot travel: type name, text, traceback
      CallCancelled              also a concurrent.futures.CancelledError
      Unschedulable              larger than any worker: names the largest; a warning first
      ConnectionFailed           no manager there, or it does not know this key
      ProtocolError              the other side speaks another version, or nonsense
      AnalysisError              the function cannot be sent: which import is missing, file and line

The function's own exception is raised as it is, its remote traceback as ``__cause__``.
Each is one line that says what to do, and survives pickling.
"""

from __future__ import annotations

from concurrent.futures import CancelledError
from typing import Any


class LfmError(Exception):
    """Base of all.  Keyword arguments become attributes and survive pickling."""

    def __init__(self, text: str = "", /, **facts: Any) -> None:
        super().__init__(text)
        self.__dict__.update(facts)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__.copy())


def _rebuild(kind: type[LfmError], args: tuple[Any, ...], facts: dict[str, Any]) -> LfmError:
    error = kind(*args)
    error.__dict__.update(facts)
    return error


class CallError(LfmError):
    """A call gave no value, for a reason that is not its own exception."""


class ResourceExhausted(CallError):
    """The call outgrew a limit."""

    resource: str
    limit: float
    measured: float
    attempts: tuple[Any, ...]


class CallCrashed(CallError):
    """The call's process died."""

    signal: int | None
    exit_code: int | None
    faulthandler: str
    stderr: str


class EnvironmentFailed(CallError):
    """The environment lacks a module, or could not be made."""

    module: str
    file: str
    line: int
    hint: str


class WorkerLost(CallError):
    """The call's node went away, as often as it was tried."""


class CallKilled(CallError):
    """The call was killed because its user said so."""


class RemoteError(CallError):
    """The function raised an exception that cannot travel."""

    type_name: str
    text: str
    traceback: str


class CallCancelled(LfmError, CancelledError):
    """The call was taken back before it gave a value."""


class Unschedulable(LfmError, UserWarning):
    """The call is larger than any worker."""


class ConnectionFailed(LfmError):
    """No manager could be reached, or it refused."""


class ProtocolError(LfmError):
    """The other side breaks the protocol, or speaks another version of it."""


class AnalysisError(LfmError):
    """The function cannot be sent as it is."""

    module: str
    file: str
    line: int
