"""Which ready call goes to which worker.  Pure: the same calls, workers and times give the same placements.

Looks only at what changed.  A queue whose head fits nowhere is *blocked* and is not looked at again until some
worker gets more room, and then only at that worker; a call that joins a blocked queue costs nothing.
``check`` proves after every event that nothing which fits is left waiting.

Order: the client with the fewest cores in use; then priority; repeated calls; categories without a result (at
most ``probes`` of them in flight while other work is ready); the longest category; the order of submission.
A head that others pass for ``patience`` seconds gets a worker reserved, and it takes nothing else until then.
"""

from __future__ import annotations

import heapq
import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from lfm.protocol.ids import Digest, PeerId
from lfm_manager.core.policy import Policy
from lfm_manager.core.queues import Queue, QueueKey, Rank, queue_key
from lfm_manager.core.tasks import Task
from lfm_manager.core.turns import Turns, share
from lfm_manager.core.workers import Demand, Worker


@dataclass(frozen=True, slots=True)
class Placement:
    task: Task
    worker: Worker
    demand: Demand
    ahead: bool = False  # there is no room yet, but soon


COMPARED = 32  # workers that fit, of which the best is taken
BEST: Rank = (-math.inf, False, False, -math.inf, 0)


class Scheduler:
    """The queues, and what is known of their heads.  Who places a call tells the worker's books before the next."""

    def __init__(
        self, workers: dict[PeerId, Worker], demand: Callable[[Task], Demand], policy: Policy
    ) -> None:
        self.workers = workers
        self._demand_of = demand
        self._policy = policy
        self._patience, self._probes = policy.patience, policy.probes
        self.queues: dict[QueueKey, Queue] = {}
        self.epoch = 0  # changes when the workers' sizes change, and with them what is predicted
        self.placed = 0
        self._tops: dict[str, _Tops] = {}  # per session
        self.reserved: tuple[Queue, Worker] | None = None
        self.impossible: list[Queue] = []  # whose head is larger than any worker; for whoever warns
        self._by_session: dict[str, dict[QueueKey, Queue]] = {}
        self.turns = Turns()
        self._ordered: dict[str, list[Queue]] = {}  # per session; absent when it has to be sorted anew
        self._woken: dict[QueueKey, Queue] = {}
        self._freed: dict[PeerId, Worker] = {}
        self._roomy: dict[PeerId, Worker] = {}
        self._least = NOTHING  # no head needs less of any of these
        self._most = NO_ROOM  # no worker has more room
        self._waiting: list[tuple[float, int, QueueKey]] = []  # heap of when a blocked head may starve
        self._numbers = 0

    # ------------------------------------------------------------ calls come and go

    def add(self, task: Task, now: float) -> None:
        """A call is ready."""
        key = queue_key(task)
        queue = self.queues.get(key)
        if queue is None:
            queue = self._open(key, task)
        task.queue = queue
        queue.tasks[task.id] = task
        if len(queue.tasks) == 1:
            queue.since = now
            self._wake(queue)

    def _open(self, key: QueueKey, task: Task) -> Queue:
        self._numbers += 1
        queue = Queue(key, self._numbers, task.session, task.category, task.function.environment)
        self.queues[key] = queue
        self._by_session.setdefault(key.session, {})[key] = queue
        self.turns.enter(task.session)
        task.category.queues[key] = queue
        self._ordered.pop(key.session, None)
        return queue

    def remove(self, task: Task, now: float) -> None:
        """A call is not ready any more."""
        queue = task.queue
        assert queue is not None
        task.queue = None
        was_head = queue.head is task
        del queue.tasks[task.id]
        if not queue.tasks:
            self._shut(queue)
        elif was_head:
            if len(queue.category.queues) > 1:
                self._ordered.pop(queue.key.session, None)  # its rank among its like is its head's
            queue.since = now
            queue.passed = self._counts(queue)
            self._look_at_head(queue)

    def _shut(self, queue: Queue) -> None:
        key = queue.key
        del self.queues[key], queue.category.queues[key]
        mine = self._by_session[key.session]
        del mine[key]
        if not mine:
            del self._by_session[key.session]
            self.turns.leave(queue.session)
            self._tops.pop(key.session, None)
        self._ordered.pop(key.session, None)
        self._woken.pop(key, None)
        if self.reserved is not None and self.reserved[0] is queue:
            self._free_reserved()

    def _wake(self, queue: Queue) -> None:
        queue.blocked = None
        self._woken[queue.key] = queue
        self.demand(queue)

    def _look_at_head(self, queue: Queue) -> None:
        """Its head changed: it is blocked still if that needs no less than what fitted nowhere."""
        demand = self.demand(queue)
        if queue.blocked is not None:
            if _covers(demand, queue.blocked):
                queue.blocked = demand  # from now on workers are offered to that: what needed less may fit by now
            else:
                self._wake(queue)

    # ------------------------------------------------------------ workers change

    def room(self, worker: Worker) -> None:
        """A worker has more room than before, or came."""
        if worker.draining:
            self._roomy.pop(worker.peer, None)
        else:
            self._freed[worker.peer] = worker
            self._roomy[worker.peer] = worker
            self._most = self._most.and_of(worker)

    def gone(self, worker: Worker) -> None:
        """A worker left, or takes no more."""
        self._freed.pop(worker.peer, None)
        self._roomy.pop(worker.peer, None)
        if self.reserved is not None and self.reserved[1] is worker:
            self.reserved = None

    def resized(self) -> None:
        """The largest worker changed, so allocations may: look at every head anew."""
        self.epoch += 1
        for queue in self.queues.values():
            self._wake(queue)

    def refused(self, digest: Digest) -> None:
        """A worker cannot use this environment: calls in it may have nowhere to go."""
        for queue in self.queues.values():
            if queue.blocked is not None and queue.blocked.digest == digest:
                self._wake(queue)

    def learned(self, queues: dict[object, Queue]) -> None:
        """A category's sizes changed: a smaller head may fit where it did not."""
        for queue in queues.values():
            self._ordered.pop(queue.key.session, None)
            self._look_at_head(queue)

    # ------------------------------------------------------------ placing

    def demand(self, queue: Queue) -> Demand:
        """What its head needs."""
        known = queue.remembered(self.epoch)
        if known is None:
            known = queue.remember(self._demand_of(queue.head), self.epoch)
            self._least = self._least.and_of(known)
        return known

    def has_news(self, now: float) -> bool:
        """Whether there is anything to look at."""
        return bool(self._woken or self._freed or (self._waiting and self._waiting[0][0] <= now))

    def placements(self, now: float) -> Iterator[Placement]:
        """One after the other; take the room and the call out before asking for the next."""
        self._reserve(now)
        if not self.queues:
            self._freed.clear()
        while self._freed or self._woken:
            filled: list[Worker] = []
            while self._freed:
                filled.append(self._freed.pop(min(self._freed)))
                yield from self._fill(filled[-1], now)
            for held in (False, True):
                yield from self._spread(now, held)
            for worker in filled:
                while (queue := self._short(worker, now)) is not None:
                    yield self._take(queue, worker, ahead=True)

    def _fill(self, worker: Worker, now: float) -> Iterator[Placement]:
        """Give a worker's room to the queues, the first in order that fits."""
        for held in (False, True):
            while self._least.fits(worker) and (queue := self._first(worker, now, held)) is not None:
                yield self._take(queue, worker)

    def _first(self, worker: Worker, now: float, held: bool) -> Queue | None:
        if self.reserved is not None and self.reserved[1] is worker:
            queue = self.reserved[0]
            return queue if worker.fits(self.demand(queue), now) else None
        least = NOTHING
        for session in self.turns:
            for queue in self._order(session.key):
                demand = self.demand(queue)
                least = least.and_of(demand)
                if self._is_held(queue) is held and worker.fits(demand, now):
                    return queue
        self._least = least  # of all heads, as they are now
        return None

    def _short(self, worker: Worker, now: float) -> Queue | None:
        """The queue that is next on a worker, if its calls are so short that to ask for each costs more than they do.

        They hold up others for a moment, but nobody who goes first: what is next is taken, or nothing.
        """
        free, most = worker.free_millicores, worker.millicores
        if self.reserved is not None or free >= most or free <= -self._policy.ahead * most:
            return None
        for session in self.turns:
            for queue in self._order(session.key):
                if worker.could(self.demand(queue), now):
                    mean = queue.category.mean_wall
                    depth = int(min(self._policy.ahead, self._policy.ahead_s / mean)) if mean else 0
                    return queue if worker.fits_ahead(self.demand(queue), depth, now) else None
        return None

    def _order(self, session: str) -> list[Queue]:
        order = self._ordered.get(session)
        if order is None:
            order = self._ordered[session] = sorted(self._by_session[session].values(), key=Queue.rank)
        return order

    def _is_held(self, queue: Queue) -> bool:
        return not queue.category.seen and queue.category.in_flight >= self._probes

    def _spread(self, now: float, held: bool) -> Iterator[Placement]:
        """Give the woken queues' heads to the workers with room, until they fit nowhere."""
        for queue in sorted(self._woken.values(), key=lambda q: (share(q.session), q.rank())):
            while self._woken.get(queue.key) is queue and (held or not self._is_held(queue)):
                worker = self._best(self.demand(queue), queue, now) if self.workers else None
                if worker is None:
                    self._block(queue, now)
                else:
                    yield self._take(queue, worker)

    def _take(self, queue: Queue, worker: Worker, ahead: bool = False) -> Placement:
        self.placed += 1
        self._tops.setdefault(queue.key.session, _Tops()).placed(queue.rank())
        if self.reserved is not None and self.reserved[0] is queue:
            self._free_reserved()
        return Placement(queue.head, worker, self.demand(queue), ahead)

    def _best(self, demand: Demand, queue: Queue, now: float) -> Worker | None:
        """Of the workers with room: one that holds the environment; then the one with most free memory.

        Of many that fit only the first few are compared, so that a large idle cluster costs no more than a small one.
        """
        if not self._most.fits(demand):
            return None
        best: Worker | None = None
        fitting = 0
        rank = (False, -1, 0)
        spent = []
        most = NO_ROOM
        for worker in self._roomy.values():
            if worker.free_millicores <= 0:
                spent.append(worker.peer)
            elif worker.fits(demand, now) and not self._is_reserved(worker, queue):
                mine = (demand.digest in worker.environments, worker.free_memory, -worker.peer)
                if best is None or mine > rank:
                    best, rank = worker, mine
                fitting += 1
                if fitting == COMPARED:
                    break
            elif not fitting:
                most = most.and_of(worker)
        for peer in spent:
            del self._roomy[peer]
        if best is None:
            self._most = most  # of all, as they are now
        return best

    def _is_reserved(self, worker: Worker, queue: Queue) -> bool:
        return self.reserved is not None and self.reserved[1] is worker and self.reserved[0] is not queue

    def _block(self, queue: Queue, now: float) -> None:
        del self._woken[queue.key]
        if not self.workers:
            return
        queue.blocked = self.demand(queue)
        queue.passed = self._counts(queue)
        present = (w for w in self.workers.values() if not w.draining)
        if (first := next(present, None)) is not None:
            rest = itertools.chain((first,), present)  # most often the first one could: the others are not looked at
            if not any(w.could(queue.blocked, now) for w in rest):
                self.impossible.append(queue)
        self._watch(queue)

    # ------------------------------------------------------------ those that others pass

    def _watch(self, queue: Queue) -> None:
        if not queue.watched:
            queue.watched = True
            heapq.heappush(self._waiting, (queue.since + self._patience, queue.number, queue.key))

    def deadline(self) -> float | None:
        """When somebody's patience ends."""
        return self._waiting[0][0] if self._waiting else None

    def _reserve(self, now: float) -> None:
        while self._waiting and self._waiting[0][0] <= now:
            _, number, key = heapq.heappop(self._waiting)
            queue = self.queues.get(key)
            if queue is None or queue.number != number:
                continue
            queue.watched = False
            if queue.blocked is None:
                continue
            if queue.since + self._patience > now:
                self._watch(queue)
                continue
            self._reserve_for(queue, now)
            queue.watched = True
            heapq.heappush(self._waiting, (now + self._patience, number, key))

    def _reserve_for(self, queue: Queue, now: float) -> None:
        if self.reserved is not None or not (queue.key.alone or self._was_passed(queue)):
            return  # what runs was there before, or rightly went first
        demand = self.demand(queue)
        able = [w for w in self.workers.values() if not w.draining and w.could(demand, now)]
        if able:
            worker = max(able, key=lambda w: (w.free_memory / (w.memory or 1) + w.free_millicores / w.millicores, -w.peer))
            self.reserved = (queue, worker)

    def _counts(self, queue: Queue) -> tuple[int, int]:
        tops = self._tops.get(queue.key.session)
        return self.placed, tops.count if tops is not None else 0

    def _was_passed(self, queue: Queue) -> bool:
        """Whether others' calls were placed while its head waited, or its own client's that rank behind it."""
        everybody, own = self._counts(queue)
        others = (everybody - own) - (queue.passed[0] - queue.passed[1])
        tops = self._tops.get(queue.key.session)
        return bool(others) or (tops is not None and tops.since(queue.passed[1]) > queue.rank())

    def _free_reserved(self) -> None:
        """Its worker may be given others again."""
        assert self.reserved is not None
        worker = self.reserved[1]
        self.reserved = None
        self.room(worker)


class Least(NamedTuple):
    """What some calls need, each at least.  A worker with less is not offered to any: nobody looks at all of them."""

    millicores: float
    memory: float
    promise: float

    def and_of(self, demand: Demand) -> Least:
        """Of these and of one more."""
        millicores, memory, promise = self
        if demand.millicores >= millicores and demand.memory >= memory and demand.promise >= promise:
            return self
        return Least(min(demand.millicores, millicores), min(demand.memory, memory), min(demand.promise, promise))

    def fits(self, worker: Worker) -> bool:
        """False: none of the calls does."""
        return (
            0 < worker.free_millicores >= self.millicores
            and worker.free_memory >= self.memory
            and (worker.memory - worker.promised >= self.promise or not worker.running)
        )


NOTHING = Least(math.inf, math.inf, math.inf)


class Most(NamedTuple):
    """The room that some workers have, each at most.  A call that needs more is not offered to any."""

    millicores: float
    memory: float
    promise: float

    def and_of(self, worker: Worker) -> Most:
        """Of these and of one more."""
        cores, memory = worker.free_millicores, worker.free_memory
        promise = worker.memory - worker.promised if worker.running else math.inf
        if cores <= self.millicores and memory <= self.memory and promise <= self.promise:
            return self
        return Most(max(cores, self.millicores), max(memory, self.memory), max(promise, self.promise))

    def fits(self, demand: Demand) -> bool:
        """False: the call fits on none of the workers."""
        return demand.millicores <= self.millicores and demand.memory <= self.memory and demand.promise <= self.promise


NO_ROOM = Most(0, -math.inf, -math.inf)


class _Tops:
    """The worst rank that was placed since any moment, in little space: ranks only fall along the stack."""

    def __init__(self) -> None:
        self.count = 0
        self._stack: list[tuple[int, Rank]] = []

    def placed(self, rank: Rank) -> None:
        self.count += 1
        while self._stack and self._stack[-1][1] <= rank:
            self._stack.pop()
        self._stack.append((self.count, rank))

    def since(self, count: int) -> Rank:
        """The worst rank of those placed after the first ``count``; the best there is if there are none."""
        at = bisect_right(self._stack, count, key=lambda entry: entry[0])
        return self._stack[at][1] if at < len(self._stack) else BEST


def _covers(demand: Demand, other: Demand) -> bool:
    """Whether whatever has no room for ``other`` has none for ``demand`` either."""
    return (
        demand.millicores >= other.millicores
        and demand.memory >= other.memory
        and demand.promise >= other.promise
        and demand.disk >= other.disk
        and demand.gpus >= other.gpus
        and demand.wall_time >= other.wall_time
        and demand.digest == other.digest
        and demand.alone >= other.alone
        and demand.labels == other.labels
    )
