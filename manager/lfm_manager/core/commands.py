"""What the manager wants done: the only way out.  Imperatives; a shell or a simulator carries them out, in order."""

from __future__ import annotations

from dataclasses import dataclass

from lfm.protocol import messages as m
from lfm.protocol.ids import Digest, EnvironmentKey, FunctionId, PeerId, TaskId
from lfm.protocol.outcomes import Blob, Payload
from lfm.protocol.resources import Resources, Usage


@dataclass(frozen=True, slots=True)
class TellClient:
    peer: PeerId
    message: m.Started | m.Finished | m.Notice | m.MakeEnvironment | m.EnvironmentProgress | m.Capacity | m.Yours | m.SessionTaken


@dataclass(frozen=True, slots=True)
class TellWorker:
    peer: PeerId
    message: m.DefineFunction | m.ForgetFunction | m.Run | m.KillCall | m.Drain | m.ForgetBlob | m.BlobSource


@dataclass(frozen=True, slots=True)
class TellKept:
    """Tell a client how a call ended; that lies in the store."""

    peer: PeerId
    task: TaskId


@dataclass(frozen=True, slots=True)
class RunKept:
    """Tell a worker to run a call whose arguments lie in the store."""

    peer: PeerId
    message: m.Run


@dataclass(frozen=True, slots=True)
class BuildEnvironment:
    """Look the key up in the store of environments, else build it.

    Answered by EnvironmentBuilt, -Failed or -OutOfSight.
    """

    key: EnvironmentKey
    plan: Payload


@dataclass(frozen=True, slots=True)
class KeepEnvironment:
    """Put a blob, which a client made, into the store of environments; answered by EnvironmentBuilt or -Failed."""

    key: EnvironmentKey
    tarball: Blob
    description: bytes


@dataclass(frozen=True, slots=True)
class GetBlob:
    """Pull a blob from a peer into the manager's store; answered by BlobStored or BlobLost."""

    peer: PeerId
    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class DropBlob:
    """Nobody needs this blob any more."""

    digest: Digest


@dataclass(frozen=True, slots=True)
class SaveSession:
    """Write down who submits; also when it comes back on another connection."""

    key: str
    hello: m.ClientHello


@dataclass(frozen=True, slots=True)
class ForgetSession:
    """It is over, with all its tasks."""

    key: str


@dataclass(frozen=True, slots=True)
class SaveDeclared:
    """Write down a function or an environment: its tasks need it after a restart."""

    declared: m.DeclareFunction | m.DeclareEnvironment


@dataclass(frozen=True, slots=True)
class ForgetDeclared:
    """No session uses this function or environment, nor has for long."""

    id: FunctionId | EnvironmentKey


@dataclass(frozen=True, slots=True)
class SaveTask:
    """Write down an accepted task.  ``copy_of``: its arguments are those of another one, and lie in the store."""

    session: str
    submit: m.Submit
    copy_of: TaskId | None = None


@dataclass(frozen=True, slots=True)
class SaveAttempt:
    """Write down who is about to run a task, before it is told."""

    task: TaskId
    attempt: int
    worker: str  # its session


@dataclass(frozen=True, slots=True)
class SaveResult:
    """Write down a finished task; kept until ForgetTask."""

    finished: m.Finished


@dataclass(frozen=True, slots=True)
class ForgetTask:
    task: TaskId


@dataclass(frozen=True, slots=True)
class SaveMeasurement:
    """What one successful or exhausted attempt of a category used: it outlives the run."""

    category: str
    input_bytes: int
    allocation: Resources
    usage: Usage
    outcome: str


Command = (
    TellClient | TellWorker | TellKept | RunKept | BuildEnvironment | KeepEnvironment | GetBlob | DropBlob | SaveSession | ForgetSession | SaveDeclared | ForgetDeclared
    | SaveTask | SaveAttempt | SaveResult | ForgetTask | SaveMeasurement
)
