"""Every message.  Frozen, typed, version in the handshake; only payloads are opaque, and only a call unpickles them.

Who says what: a **client** and a **worker** open their session with a hello; the manager answers Welcome or
Refused (both handled by ``lfm.connection``, as are sequence numbers, acknowledgement, resend and heartbeats:
what is below arrives exactly once and in order while both ends live).  A **viewer** asks Query only.

Blobs are pulled: whoever lacks one says FetchBlob, range by range, with a few ranges outstanding (its credits);
the other answers BlobChunk or BlobMissing.  The same three messages serve in every direction, also between two
workers.  A worker that lacks a large one says SeekBlob first and is told where to pull it from (BlobSource), and
says BlobSought when that is over.
"""

from __future__ import annotations

from typing import Any

import msgspec

from lfm.protocol.ids import Digest, EnvironmentKey, FunctionId, TaskId
from lfm.protocol.outcomes import Attempt, Blob, Outcome, Payload
from lfm.protocol.record import Record
from lfm.protocol.resources import Request, Resources, Usage

VERSION = 3
CHUNK = 1 << 20  # bytes of one BlobChunk at most

# ---------------------------------------------------------------- opening a session


class ClientHello(Record, frozen=True):
    session: str  # random, chosen by the client; prefix of its task ids
    user: str
    host: str
    pid: int
    name: str | None = None  # a session that may be resumed by name


class Running(Record, frozen=True):
    """A call that a worker still holds when it says hello again: running, or ended and not yet taken."""

    task: TaskId
    attempt: int
    allocation: Resources | None = None  # what it holds of the node, grown limits included
    gpu_devices: tuple[str, ...] = ()
    started: bool = True


class WorkerHello(Record, frozen=True):
    session: str
    name: str  # "host-pid", or the batch job's id: what `lfm worker list` shows
    host: str
    pid: int
    offer: Resources  # ``wall_time``: seconds left to live, None if unbounded
    gpu_devices: tuple[str, ...] = ()  # what CUDA_VISIBLE_DEVICES would say
    labels: dict[str, str] = msgspec.field(default_factory=dict)  # "machine", "libc", "batch", "job", "version", ...
    environments: tuple[Digest, ...] = ()  # unpacked on its node
    running: tuple[Running, ...] = ()


class ViewerHello(Record, frozen=True):
    session: str


class Welcome(Record, frozen=True):
    run: str  # the run's name
    epoch: str  # changes when the manager restarts
    resumed: bool  # False: the manager knows nothing of this session's past


class Refused(Record, frozen=True):
    reason: str  # one line, for a person


# ---------------------------------------------------------------- client -> manager


class DeclareEnvironment(Record, frozen=True):
    """What an environment holds.  ``plan`` is the JSON of ``lfm.function.plan.Plan``; sent once a session and key."""

    key: EnvironmentKey
    plan: Payload
    name: str  # for people: "numpy, scipy (+2)"


class DeclareFunction(Record, frozen=True):
    """A function, its environment and its overlay; sent once a session."""

    function: FunctionId
    name: str  # module-qualified name, for people
    category: str
    environment: EnvironmentKey
    code: Payload  # the pickled callable, a payload
    overlay: Payload | None  # tar of the user's own modules and cloudpickle
    preload: tuple[str, ...]  # third-party modules that a warm interpreter should have imported


class Submit(Record, frozen=True):
    task: TaskId
    function: FunctionId
    arguments: Payload  # payload of (args, kwargs); with ``chunk`` a list of these
    request: Request
    category: str | None = None  # None: the function's
    retries: int = 0  # for the function's own exceptions
    priority: float = 0.0
    chunk: int = 0  # > 0: so many calls in one fork; the value is the list of their values
    blobs: tuple[Blob, ...] = ()  # what ex.put() made and the arguments refer to


class Cancel(Record, frozen=True):
    """Take back if it has not started.  Answered by Finished(Cancelled) if that worked, else not at all."""

    tasks: tuple[TaskId, ...]


class Kill(Record, frozen=True):
    """Cancel, and kill if it runs.  Always ends in a Finished."""

    tasks: tuple[TaskId, ...]


class Release(Record, frozen=True):
    """The client has these results; the manager may forget them."""

    tasks: tuple[TaskId, ...]


class EnvironmentMade(Record, frozen=True):
    """The answer to MakeEnvironment; the tarball is kept until the environment is "ready" or "failed"."""

    key: EnvironmentKey
    tarball: Blob
    description: bytes  # the JSON of what the build program made


class EnvironmentNotMade(Record, frozen=True):
    """The other answer to MakeEnvironment."""

    key: EnvironmentKey
    reason: str
    module: str  # the import at fault, if one is
    hint: str


class Goodbye(Record, frozen=True):
    """The session ends on purpose.  A client's remaining calls are cancelled, unless ``detach``."""

    detach: bool = False


# ---------------------------------------------------------------- manager -> client


class Started(Record, frozen=True):
    """The call is running (future.running() from now on); said again for every attempt."""

    task: TaskId
    attempt: int
    worker: str
    allocation: Resources


class Finished(Record, frozen=True):
    task: TaskId
    outcome: Outcome
    usage: Usage | None
    allocation: Resources | None
    attempts: tuple[Attempt, ...]
    stdout: bytes = b""  # head and tail, bounded
    stderr: bytes = b""


class Notice(Record, frozen=True):
    """For the person at the client: a warning, once."""

    level: str  # "info" | "warning"
    text: str
    tasks: tuple[TaskId, ...] = ()


class MakeEnvironment(Record, frozen=True):
    """The manager's machine does not see what you declared: make it with yours.  EnvironmentProgress, then an answer."""

    key: EnvironmentKey


class EnvironmentProgress(Record, frozen=True):
    """How far an environment is.  ``total`` 0: unknown.  What is made ends with "ready" or "failed".

    Said by the manager to all clients, and to it by the client that makes the environment.  Then, where it takes
    long and to the clients that declared it: "send" and "unpack", in bytes of all workers that it is on its way to,
    and "unpacked" when it is on none any more.
    """

    key: EnvironmentKey
    name: str
    stage: str  # "build" | "pack" | "verify" | "upload" | "ready" | "failed", then "send" | "unpack" | "unpacked"
    done: int
    total: int
    text: str = ""


class Capacity(Record, frozen=True):
    """What the workers offer together; said at the start and whenever it changes."""

    workers: int
    cores: float
    memory: int
    calls: int  # how many calls could run at once at present sizes, at least


# ---------------------------------------------------------------- any -> manager and back


class Query(Record, frozen=True):
    """A question for a person or a script; ``what`` is a name of the command line: "status", "tasks", "explain", ..."""

    number: int
    what: str
    arguments: dict[str, Any] = msgspec.field(default_factory=dict)


class Answer(Record, frozen=True):
    number: int
    body: Any  # what --json prints; {"error": text} where it cannot be answered


class FetchBlob(Record, frozen=True):
    digest: Digest
    offset: int
    length: int  # CHUNK at most


class BlobChunk(Record, frozen=True):
    digest: Digest
    offset: int
    size: int  # of the whole blob
    data: bytes


class BlobMissing(Record, frozen=True):
    digest: Digest
    reason: str


class Source(Record, frozen=True):
    """Where a worker gives other workers of its run the blobs that it has."""

    address: str  # "tcp://10.0.0.2:40123"
    key: str  # the public key that is proved there, Z85


# ---------------------------------------------------------------- manager -> worker


class DefineFunction(Record, frozen=True):
    """What a worker needs before it can run a function; sent once a session, before the first Run of it."""

    function: FunctionId
    name: str
    environment: Blob  # the tarball, ready on the manager
    code: Payload
    overlay: Payload | None
    preload: tuple[str, ...]


class ForgetFunction(Record, frozen=True):
    """No call needs it any more; it is defined again before the next one does."""

    function: FunctionId


class Run(Record, frozen=True):
    task: TaskId
    attempt: int
    function: FunctionId
    arguments: Payload
    allocation: Resources  # memory, disk and wall_time are enforced; 0 or None: not
    gpu_devices: tuple[str, ...] = ()
    processes: int | None = None
    chunk: int = 0
    blobs: tuple[Blob, ...] = ()
    growth: int = 0  # bytes to which the worker may raise its memory in place; 0: it may not, a user set it
    ahead: bool = False  # it takes the place of a short call that still runs; handed back if that takes long


class KillCall(Record, frozen=True):
    task: TaskId
    attempt: int


class Drain(Record, frozen=True):
    """Take no more; finish what runs; then say WorkerLeaving and go."""

    reason: str


class ForgetBlob(Record, frozen=True):
    """No call needs this blob any more (a result that was taken, an argument of finished calls)."""

    digest: Digest


class BlobSource(Record, frozen=True):
    """The answer to SeekBlob, as soon as somebody is free to give it.  ``source`` None: the manager itself."""

    digest: Digest
    source: Source | None


# ---------------------------------------------------------------- worker -> manager


class CallStarted(Record, frozen=True):
    task: TaskId
    attempt: int


class CallEnded(Record, frozen=True):
    task: TaskId
    attempt: int
    outcome: Outcome
    usage: Usage | None
    stdout: bytes = b""
    stderr: bytes = b""


class LimitRaised(Record, frozen=True):
    """The worker let a running call grow instead of killing it; it holds the difference reserved."""

    task: TaskId
    attempt: int
    allocation: Resources


class EnvironmentReady(Record, frozen=True):
    digest: Digest
    unpack_s: float


class EnvironmentComing(Record, frozen=True):
    """How far an environment is on its way to a worker, said now and then where that takes long."""

    digest: Digest
    stage: str  # "send" | "unpack"
    done: int  # bytes of its tarball
    total: int


class EnvironmentUnusable(Record, frozen=True):
    """This worker cannot use the environment (glibc too old, disk full, corrupt); its calls must go elsewhere.

    ``passing``: it may be able to later.
    """

    digest: Digest
    reason: str
    passing: bool = False


class SeekBlob(Record, frozen=True):
    """Who gives me this blob?  Asked again: whom you named does not."""

    digest: Digest
    size: int


class BlobSought(Record, frozen=True):
    """No more need to seek it.  ``offer``: from now on others may have it here; None: not, or not any more."""

    digest: Digest
    offer: Source | None


class OfferChanged(Record, frozen=True):
    offer: Resources
    draining: bool = False


class WorkerLeaving(Record, frozen=True):
    reason: str


# ---------------------------------------------------------------- what a running call prints, when somebody asks


class AskOutput(Record, frozen=True):
    """Manager -> worker: what has this attempt printed from these positions on?"""

    number: int
    task: TaskId
    attempt: int
    stdout_from: int = 0
    stderr_from: int = 0


class OutputSoFar(Record, frozen=True):
    """The answer to AskOutput.  Where a call printed much, its middle is gone: then ``_from`` is later than asked."""

    number: int
    stdout_from: int = 0
    stdout: bytes = b""
    stderr_from: int = 0
    stderr: bytes = b""


# ---------------------------------------------------------------- sessions that change hands (manager -> client)


class Yours(Record, frozen=True):
    """A call of your session that you did not submit: whoever had the session before did, or somebody said retry."""

    task: TaskId
    name: str  # of its function, for people
    environment: EnvironmentKey


class SessionTaken(Record, frozen=True):
    """Another client has come with your session's name: it has its calls from now on."""

    host: str
    pid: int


Hello = ClientHello | WorkerHello | ViewerHello
FromClient = (
    DeclareEnvironment | DeclareFunction | Submit | Cancel | Kill | Release | EnvironmentProgress | EnvironmentMade
    | EnvironmentNotMade | Goodbye | Query | FetchBlob | BlobChunk | BlobMissing
)
ToClient = (
    Started | Finished | Notice | MakeEnvironment | EnvironmentProgress | Capacity | Answer | Yours | SessionTaken | FetchBlob
    | BlobChunk | BlobMissing
)
FromWorker = (
    CallStarted | CallEnded | LimitRaised | EnvironmentReady | EnvironmentComing | EnvironmentUnusable | OfferChanged | WorkerLeaving
    | SeekBlob | BlobSought | OutputSoFar | FetchBlob | BlobChunk | BlobMissing
)
ToWorker = (
    DefineFunction | ForgetFunction | Run | KillCall | Drain | ForgetBlob | BlobSource | AskOutput | FetchBlob | BlobChunk | BlobMissing
)
Message = Hello | Welcome | Refused | FromClient | ToClient | FromWorker | ToWorker
