"""What can be called, and in which environment.  Knows no call and no worker."""

from __future__ import annotations

from dataclasses import dataclass, field

from lfm.protocol.ids import EnvironmentKey, PeerId, TaskId
from lfm.protocol.messages import DeclareEnvironment, DeclareFunction, EnvironmentMade
from lfm.protocol.outcomes import Blob


@dataclass(frozen=True, slots=True)
class Declared:
    """Known; built when the first call needs it."""


@dataclass(frozen=True, slots=True)
class Fetching:
    """Its plan is still on its way from the client."""


@dataclass(frozen=True, slots=True)
class Building:
    since: float


@dataclass(frozen=True, slots=True)
class Built:
    tarball: Blob
    python: str
    machine: str
    libc: str


@dataclass(frozen=True, slots=True)
class Unbuildable:
    reason: str
    module: str
    hint: str


@dataclass(frozen=True, slots=True)
class Away:
    """Only clients see what it is made of.  ``peer`` makes it; None: until one that can is here again."""

    since: float
    peer: PeerId | None
    why: Unbuildable  # the manager cannot, or the client that was asked last could not


@dataclass(frozen=True, slots=True)
class Coming:
    """A client made it, and it is on its way from there."""

    since: float
    peer: PeerId
    made: EnvironmentMade
    why: Unbuildable  # the manager did not make it


EnvironmentState = Declared | Fetching | Building | Away | Coming | Built | Unbuildable


@dataclass(slots=True, eq=False)
class Environment:
    """``waiters`` are the calls in state Waiting that need it; ``clients`` are those who declared it, are here, and
    were not found unable to make it."""

    declared: DeclareEnvironment
    state: EnvironmentState = field(default_factory=Declared)
    waiters: dict[TaskId, None] = field(default_factory=dict)
    clients: dict[PeerId, None] = field(default_factory=dict)
    refused: bool = False  # by a client that was asked to make it
    users: int = 0  # functions, and sessions that declared it
    told: float | None = None  # when clients last heard that it is on its way to workers; None: it is not, or not for long

    @property
    def key(self) -> EnvironmentKey:
        return self.declared.key


@dataclass(slots=True, eq=False)
class Function:
    declared: DeclareFunction
    environment: Environment
    blobs: tuple[Blob, ...] = ()  # of its code and overlay, if they are too large for a message
    users: int = 0  # calls, and sessions that declared it


def too_old(built: Built, labels: dict[str, str]) -> str | None:
    """Why a node with these labels cannot use the environment; None: it can, as far as is known."""
    machine = labels.get("machine", "")
    if machine and built.machine and machine != built.machine:
        return f"built for {built.machine}, the node is {machine}"
    needed, here = _glibc(built.libc), _glibc(labels.get("libc", ""))
    if needed and here and here < needed:
        return f"needs {built.libc}, the node has {labels['libc']}"
    return None


def _glibc(text: str) -> tuple[int, ...]:
    name, _, version = text.partition(" ")
    parts = version.split(".")
    return tuple(int(p) for p in parts) if name == "glibc" and all(p.isdigit() for p in parts) else ()
