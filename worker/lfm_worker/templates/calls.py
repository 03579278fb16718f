"""What the worker asks of a template interpreter, and what it hears back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lfm.protocol.outcomes import Outcome
from lfm.protocol.resources import Usage


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt to run, with all it needs already on this node's disk."""

    id: int  # the worker's own number for the attempt: > 0, never used twice
    name: str  # of the function, for messages
    code: Path  # file holding the payload of the callable
    arguments: bytes | Path  # payload of (args, kwargs); with ``chunk`` of a list of these
    result: Path | str  # where a payload larger than INLINE_LIMIT is written
    overlay: Path | None = None  # unpacked; goes to the front of sys.path, its ``lib/`` to the end
    environ: dict[str, str] = field(default_factory=dict)  # added to the template's environment
    cpus: tuple[int, ...] | None = None  # affinity
    threads: int = 1  # for BLAS and OpenMP
    memory: int | None = None  # limits: bytes, seconds; None: none
    disk: int | None = None
    wall_time: float | None = None
    processes: int | None = None
    chunk: int = 0
    grow: bool = False  # say NearLimit when the memory limit is nearly reached
    blobs: Path | None = None  # where persistent references lie, each named by its digest


@dataclass(frozen=True, slots=True)
class Started:
    """Not said of a call that has ended meanwhile."""

    id: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The call is over and nothing of it is left: its processes are reaped, its directory is empty again.  Of a short
    call that hurries this may be a moment ahead: its value is told, and its one process is about to end.

    ``Returned(Blob(...))``: the value lies in ``Call.result``.
    """

    id: int
    outcome: Outcome
    usage: Usage | None
    stdout: bytes = b""
    stderr: bytes = b""


@dataclass(frozen=True, slots=True)
class NearLimit:
    """The running call's peak is near its memory limit; raise it with Template.raise_limit or let it die."""

    id: int
    resource: str
    measured: int
    limit: int


@dataclass(frozen=True, slots=True)
class TemplateLost:
    """The template ended by itself.  Every call in it has been reported Ended(Lost) before."""

    reason: str


Report = Started | Ended | NearLimit | TemplateLost
