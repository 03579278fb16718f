"""What a worker's core wants done: the only way out.  Imperatives; the shell carries them out, in order."""

from __future__ import annotations

from dataclasses import dataclass, field

from lfm.protocol import messages as m
from lfm.protocol.ids import Digest, FunctionId
from lfm.protocol.outcomes import Inline, Payload
from lfm_worker.core.items import Item

News = (
    m.CallStarted | m.CallEnded | m.LimitRaised | m.EnvironmentReady | m.EnvironmentComing | m.EnvironmentUnusable | m.OfferChanged
    | m.WorkerLeaving | m.OutputSoFar
)


@dataclass(frozen=True, slots=True)
class Tell:
    """Say this to the manager."""

    message: News


@dataclass(frozen=True, slots=True)
class Fetch:
    """Pull a blob into the node's cache; answered by Fetched or FetchFailed."""

    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class Prepare:
    """Unpack an environment or an overlay; answered by Prepared or PrepareFailed.  ``data``: it rode in the message."""

    item: Item
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class StartTemplate:
    """Start a warm interpreter of an environment."""

    template: int
    environment: Digest
    preload: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CloseTemplate:
    template: int


@dataclass(frozen=True, slots=True)
class StartCall:
    """Start a call in a template: all that it needs is on the node's disk."""

    call: int
    template: int
    name: str
    function: FunctionId
    code: Payload
    arguments: Payload
    overlay: Digest | None
    cpus: tuple[int, ...] | None
    threads: int
    memory: int | None
    disk: int | None
    wall_time: float | None
    processes: int | None
    chunk: int = 0
    grow: bool = False  # tell when it is near its memory limit
    blobs: tuple[Digest, ...] = ()
    environ: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StopCall:
    """Kill a running call with all its processes; its CallStopped follows."""

    call: int
    template: int


@dataclass(frozen=True, slots=True)
class RaiseLimit:
    call: int
    template: int
    memory: int


@dataclass(frozen=True, slots=True)
class ReadOutput:
    """Tell the manager what a running call has printed so far."""

    call: int
    template: int
    asked: m.AskOutput


@dataclass(frozen=True, slots=True)
class Drop:
    """Remove from the node's cache, unless another worker of the node uses it."""

    item: Item


@dataclass(frozen=True, slots=True)
class DropCode:
    """Nobody needs the file with this code."""

    code: Inline


@dataclass(frozen=True, slots=True)
class DropResult:
    """The manager has this result."""

    digest: Digest


@dataclass(frozen=True, slots=True)
class Leave:
    """Everything is said and over: close the link, remove what is ours, exit."""

    reason: str


Command = (
    Tell | Fetch | Prepare | StartTemplate | CloseTemplate | StartCall | StopCall | RaiseLimit | ReadOutput | Drop
    | DropCode | DropResult | Leave
)
