"""One attempt that a worker holds: what it needs, where it stands, and what starts it.  Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from lfm.protocol import messages as m
from lfm.protocol.ids import Digest
from lfm.protocol.outcomes import Blob, Payload
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


@dataclass(slots=True)
class Call:
    """An attempt.  ``doomed``: why it is being killed, where that is not its user's wish."""

    run: m.Run
    function: m.DefineFunction
    needs: frozenset[Item]
    allocation: Resources  # as it is now: its memory may have been raised
    since: float  # when it came
    state: Waiting | Placed = field(default_factory=Waiting)
    doomed: str = ""

    @classmethod
    def of(cls, run: m.Run, function: m.DefineFunction, now: float) -> Call:
        return cls(run, function, frozenset(_needs(run, function)), run.allocation, now)

    @property
    def environment(self) -> Digest:
        return self.function.environment.digest

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
        overlay = self.function.overlay
        return overlay if item.kind == "overlay" and overlay is not None else self.function.environment

    def size(self, item: Item) -> int:
        """Bytes of a blob that it needs."""
        payloads = (self.function.code, self.run.arguments, *self.run.blobs)
        return next(p.size for p in payloads if isinstance(p, Blob) and p.digest == item.digest)

    def start(self, number: int, template: int, grant: Grant, gpus: bool) -> StartCall:
        """``gpus``: the node has some, so that a call is told which are its own, or none."""
        run, asked = self.run, self.run.allocation
        environ = {"LFM_TASK": run.task, "LFM_ATTEMPT": str(run.attempt), "LFM_CORES": f"{asked.cores:g}"}
        if asked.memory:
            environ["LFM_MEMORY"] = str(asked.memory)
        if gpus:
            environ["CUDA_VISIBLE_DEVICES"] = ",".join(run.gpu_devices)
        threads = max(1, int(asked.cores))
        if threads > 1:  # the template has one
            environ |= dict.fromkeys(THREADS, str(threads))
        return StartCall(
            call=number, template=template, name=self.function.name, function=run.function, code=self.function.code,
            arguments=run.arguments, overlay=next((need.digest for need in self.needs if need.kind == "overlay"), None),
            cpus=grant.cpus or None, threads=threads, memory=asked.memory or None, disk=asked.disk or None,
            wall_time=asked.wall_time, processes=run.processes, chunk=run.chunk, grow=run.growth > asked.memory > 0,
            blobs=tuple(blob.digest for blob in run.blobs), environ=environ,
        )  # fmt: skip


def _needs(run: m.Run, function: m.DefineFunction) -> Iterable[Item]:
    """All that must be on the node before the call can start."""
    yield Item("environment", function.environment.digest)
    overlay = function.overlay
    if isinstance(overlay, Blob):
        yield Item("overlay", overlay.digest)
    elif overlay is not None:
        yield Item("overlay", Digest(hashlib.sha256(overlay.data).hexdigest()))
    for payload in (function.code, run.arguments, *run.blobs):
        if isinstance(payload, Blob):
            yield Item("blob", payload.digest)
