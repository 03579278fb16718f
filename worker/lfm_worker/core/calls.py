"""One attempt that a worker holds: what it needs, where it stands, and what starts it.  Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from lfm.protocol import messages as m
from lfm.protocol.ids import Digest
from lfm.protocol.outcomes import Blob, Inline, Payload
from lfm.protocol.resources import Resources
from lfm_worker.core.commands import StartCall
from lfm_worker.core.items import Item
from lfm_worker.core.room import Grant

# What BLAS and OpenMP libraries read, where they are loaded in the call
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Waiting:
    """For items or for room."""


@dataclass(frozen=True, slots=True)
class Placed:
    """In a template."""

    template: int
    began: bool = False


@dataclass(frozen=True, slots=True)
class Function:
    """What the manager has defined, and what all its calls need."""

    defined: m.DefineFunction
    overlay: Digest | None
    needs: frozenset[Item]

    @classmethod
    def of(cls, defined: m.DefineFunction) -> Function:
        needs = {Item("environment", defined.environment.digest), *_blobs(defined.code)}
        overlay = _digest(defined.overlay)
        if overlay is not None:
            needs.add(Item("overlay", overlay))
        return cls(defined, overlay, frozenset(needs))

    @property
    def environment(self) -> Digest:
        return self.defined.environment.digest


@dataclass(slots=True)
class Call:
    """An attempt.  ``doomed``: why it is being killed, where that is not its user's wish."""

    run: m.Run
    function: Function
    needs: frozenset[Item]
    allocation: Resources  # as it is now: its memory may have been raised
    since: float  # when it came
    state: Waiting | Placed = field(default_factory=Waiting)
    doomed: str = ""

    @classmethod
    def of(cls, run: m.Run, function: Function, now: float) -> Call:
        own = _blobs(run.arguments, *run.blobs)
        return cls(run, function, function.needs.union(own) if own else function.needs, run.allocation, now)

    @property
    def environment(self) -> Digest:
        return self.function.environment

    @property
    def began(self) -> bool:
        return isinstance(self.state, Placed) and self.state.began

    def as_running(self) -> m.Running:
        """As a hello names it."""
        return m.Running(self.run.task, self.run.attempt, self.allocation, self.run.gpu_devices, started=self.began)

    def wants(self, item: Item) -> bool:
        """Whether it needs the item, or what is packed in it."""
        return item in self.needs or any(need.digest == item.digest for need in self.needs if need.kind != "blob")

    def archive(self, item: Item) -> Payload:
        """What an environment or an overlay is unpacked from."""
        defined = self.function.defined
        return defined.overlay if item.kind == "overlay" and defined.overlay is not None else defined.environment

    def size(self, item: Item) -> int:
        """Bytes of a blob that it needs."""
        payloads = (self.function.defined.code, self.run.arguments, *self.run.blobs)
        return next(p.size for p in payloads if isinstance(p, Blob) and p.digest == item.digest)

    def start(self, number: int, template: int, grant: Grant, gpus: bool) -> StartCall:
        """``gpus``: the node has some, so that a call is told which are its own, or none."""
        run, asked, defined = self.run, self.run.allocation, self.function.defined
        environ = {"LFM_TASK": run.task, "LFM_ATTEMPT": str(run.attempt), "LFM_CORES": f"{asked.cores:g}"}
        if asked.memory:
            environ["LFM_MEMORY"] = str(asked.memory)
        if gpus:
            environ["CUDA_VISIBLE_DEVICES"] = ",".join(run.gpu_devices)
        threads = max(1, int(asked.cores))
        if threads > 1:  # the template has one
            environ |= dict.fromkeys(THREADS, str(threads))
        return StartCall(
            call=number, template=template, name=defined.name, function=run.function, code=defined.code,
            arguments=run.arguments, overlay=self.function.overlay,
            cpus=grant.cpus or None, threads=threads, memory=asked.memory or None, disk=asked.disk or None,
            wall_time=asked.wall_time, processes=run.processes, chunk=run.chunk, grow=run.growth > asked.memory > 0,
            blobs=tuple(blob.digest for blob in run.blobs), environ=environ,
        )  # fmt: skip


def _blobs(*payloads: Payload) -> list[Item]:
    """Those that must be on the node before the call can start."""
    return [Item("blob", payload.digest) for payload in payloads if isinstance(payload, Blob)]


def _digest(payload: Payload | None) -> Digest | None:
    if isinstance(payload, Inline):
        return Digest(hashlib.sha256(payload.data).hexdigest())
    return payload.digest if payload is not None else None
