"""How a call ended, and whose fault that was: exactly one of these for every attempt."""

from __future__ import annotations

from lfm.protocol.ids import Digest
from lfm.protocol.record import Record
from lfm.protocol.resources import Resources, Usage


class Inline(Record, frozen=True):
    """Bytes small enough to ride in the message (a payload of ``lfm.monitor.payload``, a tarball, a text)."""

    data: bytes


class Blob(Record, frozen=True):
    """Bytes that lie in a blob store and are fetched in chunks by their digest."""

    digest: Digest
    size: int


Payload = Inline | Blob
INLINE_LIMIT = 64 * 1024  # bytes; what is larger travels as a blob


class Returned(Record, frozen=True):
    """The function returned ``value``."""

    value: Payload


class Raised(Record, frozen=True):
    """The function raised.  ``error`` is its pickled exception, None when it cannot travel; the rest is text.

    Also an argument that cannot be unpickled, and a result that cannot be pickled (``stage`` tells).
    """

    error: Payload | None
    type_name: str
    text: str
    traceback: str
    stage: str = "call"  # "load" | "call" | "dump"


class Crashed(Record, frozen=True):
    """The call's process died: by a signal, or by leaving with an exit code (``os._exit``)."""

    signal: int | None
    exit_code: int | None
    faulthandler: str = ""  # Python's dump of where it died, if it could be written
    hint: str = ""  # "killed by the kernel: out of memory", where that is known


class Exhausted(Record, frozen=True):
    """The call outgrew a limit and was killed with its whole tree."""

    resource: str  # "memory" | "disk" | "wall_time" | "processes"
    limit: float
    measured: float
    at_s: float  # seconds after its start


class EnvironmentBroken(Record, frozen=True):
    """An import failed in the call (or the environment itself could not be made or entered)."""

    module: str
    file: str
    line: int
    reason: str


class Killed(Record, frozen=True):
    """Killed because its user said so."""


class Lost(Record, frozen=True):
    """Its node, template or monitor went away.  ``started`` False: the function surely never began."""

    reason: str
    started: bool = True


class Cancelled(Record, frozen=True):
    """Taken back before it started."""


class Impossible(Record, frozen=True):
    """It cannot run at all: the environment could not be built, or every retry is used up.  Made by the manager."""

    kind: str  # "environment" | "lost"
    reason: str


Outcome = (
    Returned | Raised | Crashed | Exhausted | EnvironmentBroken | Killed | Lost | Cancelled | Impossible
)


def payload_of(outcome: Outcome) -> Payload | None:
    """What a call gave: its value, or the exception that it raised."""
    return outcome.value if isinstance(outcome, Returned) else outcome.error if isinstance(outcome, Raised) else None


class Attempt(Record, frozen=True):
    """One run of a call, as the future shows it.  Times are seconds since the epoch, by the manager's clock."""

    number: int
    worker: str
    host: str
    allocation: Resources
    usage: Usage | None
    started: float
    ended: float
    outcome: str  # "returned", "raised", "memory", "crashed", "lost", ...: outcome_name()


def outcome_name(outcome: Outcome) -> str:
    """One word for a table: the resource for Exhausted, else the type's name in lower case."""
    return outcome.resource if isinstance(outcome, Exhausted) else type(outcome).__name__.lower()
