"""What happens to the manager: the only way in.  Past participles; a shell or a simulator makes them."""

from __future__ import annotations

from dataclasses import dataclass

from lfm.protocol import messages as m
from lfm.protocol.ids import Digest, EnvironmentKey, PeerId, TaskId
from lfm.protocol.resources import Usage


@dataclass(frozen=True, slots=True)
class ClientJoined:
    peer: PeerId
    hello: m.ClientHello


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    peer: PeerId
    hello: m.WorkerHello


@dataclass(frozen=True, slots=True)
class PeerLost:
    """A session's lease is over, or it said goodbye: it never comes back under this PeerId.

    ``sure``: its process is known to be gone, so nobody will come back under another one either.
    ``goodbye``: it went on its own account, so nothing that it ran is to blame.
    """

    peer: PeerId
    reason: str
    sure: bool = False
    goodbye: bool = False


@dataclass(frozen=True, slots=True)
class ClientSaid:
    peer: PeerId
    message: (
        m.DeclareEnvironment | m.DeclareFunction | m.Submit | m.Cancel | m.Kill | m.Release | m.EnvironmentProgress
        | m.EnvironmentMade | m.EnvironmentNotMade | m.Goodbye
    )


@dataclass(frozen=True, slots=True)
class WorkerSaid:
    peer: PeerId
    message: (
        m.CallStarted | m.CallEnded | m.LimitRaised | m.EnvironmentReady | m.EnvironmentComing | m.EnvironmentUnusable
        | m.SeekBlob | m.BlobSought | m.OfferChanged | m.WorkerLeaving
    )


@dataclass(frozen=True, slots=True)
class EnvironmentAdvanced:
    """The build has come further; for the people who wait."""

    key: EnvironmentKey
    stage: str
    done: int
    total: int
    text: str = ""


@dataclass(frozen=True, slots=True)
class EnvironmentBuilt:
    key: EnvironmentKey
    digest: Digest
    size: int  # bytes of the tarball
    python: str  # "3.11.7"
    machine: str
    libc: str  # "glibc 2.36": workers with an older one are never given it


@dataclass(frozen=True, slots=True)
class EnvironmentFailed:
    key: EnvironmentKey
    reason: str
    module: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class EnvironmentOutOfSight:
    """What it is made of lies where only a client can see it."""

    key: EnvironmentKey
    reason: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class BlobStored:
    """A blob that the core asked for (FetchBlob command) lies in the manager's store, checked."""

    digest: Digest


@dataclass(frozen=True, slots=True)
class BlobLost:
    """A blob that the core asked for cannot be had."""

    digest: Digest
    reason: str


@dataclass(frozen=True, slots=True)
class DrainAsked:
    """A person said `lfm worker drain`."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class CancelAsked:
    """A person said `lfm cancel`: take it back, or kill it."""

    task: TaskId


@dataclass(frozen=True, slots=True)
class RetryAsked:
    """A person said `lfm retry`: run a failed call again, under another name."""

    task: TaskId


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed: a deadline that the core asked for (``ManagerCore.deadline``) is due."""


@dataclass(frozen=True, slots=True)
class SavedTask:
    """A task as the store knows it.  ``finished`` None: it was not; ``worker``: the session that had it then.

    Arguments of ``kept_size`` bytes, and values if ``kept``, were left in the store.
    """

    submit: m.Submit
    attempt: int
    worker: str
    finished: m.Finished | None
    kept_size: int = 0
    kept: bool = False


@dataclass(frozen=True, slots=True)
class SavedSession:
    key: str
    hello: m.ClientHello
    tasks: tuple[SavedTask, ...]


@dataclass(frozen=True, slots=True)
class Recovered:
    """The manager came back, and this is what its store holds.  Comes first, or not at all."""

    environments: tuple[m.DeclareEnvironment, ...]
    functions: tuple[m.DeclareFunction, ...]
    sessions: tuple[SavedSession, ...]
    blobs: tuple[Digest, ...] = ()  # what lies in the store


@dataclass(frozen=True, slots=True)
class Measured:
    """A measurement of an earlier run.  Comes before the first call of its category."""

    category: str
    input_bytes: int
    usage: Usage


Event = (
    ClientJoined | WorkerJoined | PeerLost | ClientSaid | WorkerSaid | EnvironmentAdvanced | EnvironmentBuilt
    | EnvironmentFailed | EnvironmentOutOfSight | BlobStored | BlobLost | DrainAsked | CancelAsked | RetryAsked | Recovered | Measured | Ticked
)
