"""What happens to a worker: the only way into its core.  Past participles; the shell or a test makes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lfm.protocol import messages as m
from lfm.protocol.ids import Digest
from lfm.protocol.outcomes import Outcome
from lfm.protocol.resources import Usage
from lfm_worker.core.items import Item

# Why a blob or an environment could not be had, as far as it decides what to do next:
#   corrupt  damaged on the way or on the disk; to fetch it again may help
#   full     no room on the disk; to drop what is not used may help
#   short    neither descriptors nor memory to spare; to wait may help
#   gone     it was on the node, and another worker removed it; fetch it
Cause = Literal["corrupt", "full", "short", "gone", "other"]


@dataclass(frozen=True, slots=True)
class Told:
    """The manager said this."""

    message: m.DefineFunction | m.ForgetFunction | m.Run | m.KillCall | m.Drain | m.ForgetBlob | m.AskOutput


@dataclass(frozen=True, slots=True)
class Welcomed:
    """The manager greeted us again.  Not resumed: it has forgotten what was said in this session."""

    resumed: bool


@dataclass(frozen=True, slots=True)
class Fetched:
    """A blob that was asked for lies in the node's cache, checked."""

    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class FetchFailed:
    """A blob cannot be had."""

    digest: Digest
    reason: str
    cause: Cause = "other"


@dataclass(frozen=True, slots=True)
class Prepared:
    """An environment or an overlay is unpacked and ready on this node."""

    item: Item
    size: int
    seconds: float


@dataclass(frozen=True, slots=True)
class PrepareFailed:
    """An environment or an overlay cannot be unpacked here."""

    item: Item
    reason: str
    cause: Cause = "other"


@dataclass(frozen=True, slots=True)
class CacheScanned:
    """What the node's cache holds now, all its workers together: bytes and when it was last used."""

    held: dict[Item, tuple[int, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CallBegan:
    call: int


@dataclass(frozen=True, slots=True)
class CallStopped:
    """A call is over and nothing of it is left.  A large value lies in the results, named by its digest."""

    call: int
    outcome: Outcome
    usage: Usage | None
    stdout: bytes = b""
    stderr: bytes = b""


@dataclass(frozen=True, slots=True)
class LimitNeared:
    call: int
    resource: str
    measured: int
    limit: int


@dataclass(frozen=True, slots=True)
class TemplateEnded:
    """A template ended by itself, or could not start.  Its calls were reported before."""

    template: int
    reason: str
    passing: bool = False  # which is not the environment's fault


@dataclass(frozen=True, slots=True)
class DrainAsked:
    """A signal, the end of the allotment, or a person: take no more.  ``within``: seconds until what is left is killed."""

    reason: str
    within: float | None = None


@dataclass(frozen=True, slots=True)
class StopAsked:
    """Kill what runs, hand everything back, go."""

    reason: str


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed: ``WorkerCore.deadline`` is due."""


Event = (
    Told | Welcomed | Fetched | FetchFailed | Prepared | PrepareFailed | CacheScanned | CallBegan | CallStopped
    | LimitNeared | TemplateEnded | DrainAsked | StopAsked | Ticked
)
