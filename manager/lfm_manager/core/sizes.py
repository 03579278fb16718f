"""How much a call is allotted: what its user asked, else what the sizers have learned, never above the largest worker.

Knows the workers only as numbers: the largest amounts, and what one core's share of the memory is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from lfm.protocol.ids import Digest
from lfm.protocol.messages import Submit
from lfm.protocol.outcomes import Blob, Exhausted, Inline, Payload
from lfm.protocol.resources import Expected, Request, Resources, Usage
from lfm_manager.core.categories import Category
from lfm_manager.core.census import Census, Largest
from lfm_manager.core.strategies import Heard, Strategies
from lfm_manager.core.tasks import Task
from lfm_manager.core.workers import Demand, millicores
from lfm_manager.sizing.sizer import Sizer

LEAST = 64 << 20  # bytes: what an interpreter may need at any moment; nothing learned goes below it
NEARLY = 0.9  # of a limit that was raised or met: what the call has taken at least
AHEAD = 3  # one part in so many of the growth that is expected is kept free: calls grow at different times
UNKNOWN = 10  # ... and of what is held, where nothing is known
GRAIN = 1 << 20  # allocations are whole MiB
ABSURD = 1 << 60  # a measurement above this is none
TELLING_S = 1.0  # a call has to last so long for its share of a core to say anything
BUSY = 0.25  # of a core more than it was given: a call that uses that needs another one
NOTHING = Expected()


class Sizes:
    """``chosen``: the strategy by category, where it is not the one of ``sizers``."""

    def __init__(self, sizers: Mapping[str, Sizer], chosen: Mapping[str, str] | None = None) -> None:
        self._strategies = Strategies(sizers, {"memory": LEAST, "disk": LEAST}, chosen or {})
        self.largest = Largest()
        self._share = {"memory": 0.0, "disk": 0.0}  # bytes that one core claims
        self._whole = {"memory": 0, "disk": 0}  # bytes that every worker has, or every large one

    def workers_are(self, present: Census) -> bool:
        """Take note of who there is; whether allocations may have changed."""
        memory = present.memory / (present.millicores / 1000 or 1.0)
        # a disk limit does not grow in place, and free space differs a little everywhere: what any worker can give
        disk = present.least_disk_per_core()
        # with what is kept free for growth, as many shares fit on a worker as it has cores
        share = {"memory": memory * UNKNOWN / (UNKNOWN + 1), "disk": disk}
        largest = present.largest()
        whole = {"memory": present.least_large_memory(), "disk": present.least_disk()}
        changed = (largest, share, whole) != (self.largest, self._share, self._whole)
        self.largest, self._share, self._whole = largest, share, whole
        return changed

    def allocation(self, task: Task) -> Resources:
        """What the call gets if it is placed now."""
        asked = task.submit.request
        cores = asked.cores if asked.cores is not None else self._cores(task.category, asked)
        return Resources(
            cores,
            asked.memory if asked.memory is not None else self._automatic("memory", task, task.least_memory, cores),
            asked.disk if asked.disk is not None else self._automatic("disk", task, task.least_disk, cores),
            asked.gpus or 0,
            asked.wall_time,
        )

    def _cores(self, category: Category, asked: Request) -> float:
        """One, or as many whole ones as calls of this kind keep busy; as far as there is a worker that has them."""
        most = self.largest.millicores / 1000 or 1.0
        expected = (asked.expect or NOTHING).cores
        if expected is not None and not category.seen:
            return min(expected, most)
        if not category.busy or "cores" not in self._strategies:
            return min(1.0, most)
        busy = self._strategies.of("cores", category.name, asked.strategy).predict(category.name, 0, None, most)
        return min(most, max(1.0, math.ceil(busy - BUSY)))

    def forecast(self, category: Category) -> Resources | None:
        """What the next call of a category would get, given an input like the last one's."""
        if not category.seen or not self.largest.millicores:
            return None
        cores = self._cores(category, ANYTHING)
        return Resources(cores, *(self._size(r, category, category.last_input, cores, ANYTHING) for r in ("memory", "disk")))

    def demand(self, task: Task, digest: Digest) -> Demand:
        """The same, as the scheduler compares it."""
        amount = self.allocation(task)
        asked = task.submit.request
        lasts = amount.wall_time if amount.wall_time is not None else task.category.mean_wall
        if not lasts and asked.expect is not None:
            lasts = asked.expect.wall_time or 0.0
        promise = self.promise(task, amount.memory, task.least_memory)
        return Demand(
            max(1, millicores(amount.cores)), amount.memory, amount.disk, amount.gpus, lasts, digest, task.alone, promise,
            asked.labels,
        )

    def promise(self, task: Task, memory: int, outgrown: float) -> int:
        """The memory to reckon with for a call that has so much: also some of what it is expected to grow by.

        ``outgrown``: an amount that it is known to have used, nearly.
        """
        if not task.grows or not memory:
            return memory
        sizer = self._strategies.of("memory", task.category.name, task.submit.request.strategy)
        expected = None
        if hasattr(sizer, "expected"):  # Foreseeing: asked so, it costs a tenth
            expected = sizer.expected(task.category.name, task.input_bytes, NEARLY * outgrown)
        kept = memory // UNKNOWN if expected is None else int(max(0.0, expected - memory)) // AHEAD
        return min(max(memory, self.largest.memory), memory + kept)

    def _automatic(self, resource: str, task: Task, rung: int, cores: float) -> int:
        if rung:
            return min(rung, int(getattr(self.largest, resource)))
        return self._size(resource, task.category, task.input_bytes, cores, task.submit.request)

    def _size(self, resource: str, category: Category, input_bytes: int, cores: float, asked: Request) -> int:
        cap: int = getattr(self.largest, resource)
        if cap <= 0:
            return 0  # the workers do not offer it, so nobody counts it
        share = self._share[resource] * cores
        hint = self._hint(resource, category, asked)
        if hint is not None and not category.seen:
            share = hint  # who says what to expect gets that, and not what strangers took
        sizer = self._strategies.of(resource, category.name, asked.strategy)
        size = sizer.predict(category.name, input_bytes, hint, cap, share=share)
        if not size < cap:
            return self._whole[resource]  # the very largest worker is not meant: others are as good
        if size == share:
            return max(1, int(size // GRAIN) * GRAIN or int(size))  # as many as there are cores, and no byte more
        return min(cap, max(LEAST, _whole(size)))

    def _hint(self, resource: str, category: Category, asked: Request) -> float | None:
        """What the user expects, as long as no call has shown otherwise."""
        expected: int | None = getattr(asked.expect or NOTHING, resource)
        return None if expected is None or expected < getattr(category, f"most_{resource}") else expected

    def next_rung(
        self, task: Task, resource: str, allocation: int, measured: float, failures: int, spent_s: float
    ) -> int | None:
        """What to give after an automatic allocation was too small; None: there is no more to give."""
        cap: int = getattr(self.largest, resource)
        if allocation >= cap:
            return None
        asked = task.submit.request
        rung = self._strategies.of(resource, task.category.name, asked.strategy).exhausted(
            task.category.name, failures, allocation, measured, cap,
            hint=getattr(asked.expect or NOTHING, resource), spent_s=spent_s,
        )
        if rung is None or not math.isfinite(rung):
            return None
        size = min(cap, _whole(max(rung, 1.05 * min(measured, ABSURD))))
        return size if size > allocation else None

    def growth(self, task: Task, allocation: Resources) -> int:
        """How far a running call's memory may grow in place, where its node has room; 0: not at all."""
        return self.largest.memory if task.grows and allocation.memory else 0

    def succeeded(self, category: Category, input_bytes: int, usage: Usage, expect: Expected | None = None) -> None:
        """Learn from a call that ended well.  What cannot be a measurement is not learned."""
        wall = usage.wall_s if 0 <= usage.wall_s < math.inf else 0.0
        name, learn, hinted = category.name, self._strategies.succeeded, expect or NOTHING
        if usage.memory_by != "none" and 0 < usage.memory < ABSURD:
            learn(Heard("memory", name, input_bytes, usage.memory, wall, hinted.memory))
            category.most_memory = max(category.most_memory, usage.memory)
        if 0 <= usage.disk < ABSURD:
            learn(Heard("disk", name, input_bytes, max(usage.disk, 1), wall, hinted.disk))
            category.most_disk = max(category.most_disk, usage.disk)
        if wall >= TELLING_S and 0 <= usage.cores < ABSURD and "cores" in self._strategies:
            category.busy = category.busy or usage.cores > 1.0 + BUSY
            if category.busy:
                learn(Heard("cores", name, input_bytes, usage.cores, wall, None))


ANYTHING = Request()


def _whole(size: float) -> int:
    return math.ceil(size / GRAIN) * GRAIN


def input_size(submit: Submit) -> int:
    """What a call is given, in bytes: known before it runs, and what its size may depend on."""
    arguments = submit.arguments
    size = len(arguments.data) if isinstance(arguments, Inline) else arguments.size
    return size + sum(blob.size for blob in submit.blobs) if submit.blobs else size


def blobs_of(*payloads: Payload | None) -> tuple[Blob, ...]:
    return tuple(p for p in payloads if isinstance(p, Blob))


def was_asked(request: Request, exhausted: Exhausted) -> bool:
    """Whether the limit that was met is the user's own."""
    return exhausted.resource not in ("memory", "disk") or getattr(request, exhausted.resource) is not None
