"""What must be true between any two events, across the parts.  Slow, and meant to be: for tests and simulations."""

from __future__ import annotations

from collections import Counter

from lfm.protocol.ids import Digest, PeerId
from lfm_manager.core.calls import result_blob
from lfm_manager.core.census import Census
from lfm_manager.core.functions import Away, Built, Coming, Unbuildable
from lfm_manager.core.manager import ManagerCore
from lfm_manager.core.payloads import inline_bytes, inline_size
from lfm_manager.core.queues import queue_key
from lfm_manager.core.sizes import blobs_of
from lfm_manager.core.tasks import Adrift, Collecting, Done, Failed, Placed, Ready, Task, Waiting
from lfm_manager.core.turns import share
from lfm_manager.core.workers import millicores


def check(core: ManagerCore, now: float) -> None:
    """AssertionError if the books contradict each other."""
    placed: dict[PeerId, list[tuple[Task, Placed]]] = {peer: [] for peer in core.workers}
    collecting: Counter[PeerId] = Counter()
    queued = 0
    for task in core.calls.tasks.values():
        assert core.calls.tasks[task.id] is task and task.id in task.session.tasks
        match task.state:
            case Waiting(environment, blobs):
                assert environment or blobs, f"{task.id} waits for nothing"
                assert environment == (task.id in task.function.environment.waiters)
                for digest in blobs:
                    assert task.id in core.blobs.known[digest].waiters and not core.blobs.known[digest].here
            case Ready():
                queued += 1
                assert task.queue is not None and task.queue.tasks[task.id] is task
                assert task.queue.key == queue_key(task) and core.scheduler.queues[task.queue.key] is task.queue
            case Placed(worker):
                placed[worker].append((task, task.state))
            case Collecting(worker):
                collecting[worker] += 1
                assert task.id in core.workers[worker].collecting
            case Adrift():
                assert core.crew.recovery_ends is not None
            case Done() | Failed():
                assert not task.session.over
        assert isinstance(task.state, Ready) == (task.queue is not None)
    _check_workers(core, placed, collecting)
    _check_queues(core, queued, now)
    _check_blobs(core)
    _check_declared(core)
    _check_memory(core)
    _check_totals(core)
    core.spread.check()


def _check_totals(core: ManagerCore) -> None:
    """What is kept up to date piece by piece is what all pieces come to."""
    census = Census()
    for worker in core.workers.values():
        census.count(worker)
    assert vars(census) == vars(core.crew.present)
    sessions = core.clients.sessions.values()
    times = [at for s in sessions for at in (s.expires, s.orphans_due) if at is not None]
    assert core.clients.deadline() == min(times, default=None)


def _check_workers(
    core: ManagerCore, placed: dict[PeerId, list[tuple[Task, Placed]]], collecting: Counter[PeerId]
) -> None:
    for peer, worker in core.workers.items():
        here = placed[peer]
        assert worker.running.keys() == {task.id for task, _ in here}
        assert len(worker.collecting) == collecting[peer]
        amounts = [state.allocation for _, state in here]
        assert worker.free_millicores == worker.millicores - sum(millicores(a.cores) for a in amounts)
        assert worker.free_memory == worker.memory - sum(a.memory for a in amounts)
        assert worker.free_disk == worker.disk - sum(a.disk for a in amounts)
        assert worker.promised == sum(worker.running.values())
        assert all(worker.running[t.id] >= s.allocation.memory for t, s in here)
        devices = [d for _, state in here for d in state.gpus]
        assert len(devices) == len(set(devices)), "one GPU to two calls"
        assert not set(devices) & set(worker.free_devices)
        assert not worker.exclusive or len(here) == 1
    for session in {task.session.key: task.session for task in core.calls.tasks.values()}.values():
        held = sum(millicores(s.allocation.cores) for all_ in placed.values() for t, s in all_ if t.session is session)
        assert session.millicores == held
    assert core.calls.placed == sum(map(len, placed.values()))
    for category in core.calls.categories.values():
        assert category.in_flight == sum(t.category is category for all_ in placed.values() for t, _ in all_)


def _check_queues(core: ManagerCore, queued: int, now: float) -> None:
    """Every ready call stands in its queue, and nothing that fits somewhere is left waiting."""
    scheduler = core.scheduler
    assert queued == sum(len(q.tasks) for q in scheduler.queues.values())
    waiting = {queue.session.key: queue.session for queue in scheduler.queues.values()}
    assert list(scheduler.turns) == sorted(waiting.values(), key=share)
    for key, queue in scheduler.queues.items():
        assert queue.tasks and queue.key == key
        demand = scheduler.demand(queue)
        for worker in core.workers.values():
            kept = scheduler.reserved is not None and scheduler.reserved[1] is worker and scheduler.reserved[0] is not queue
            assert kept or not worker.fits(demand, now), f"{queue.head.id} fits on {worker.name} and waits"


def _check_memory(core: ManagerCore) -> None:
    """What is reckoned to be here is here."""
    calls = core.calls
    over = [t.state for t in calls.tasks.values() if isinstance(t.state, Done | Failed)]
    assert calls.held == sum(inline_size(t.submit.arguments) for t in calls.tasks.values())
    assert calls.unfetched == sum(inline_bytes(state.finished) for state in over if not state.kept)
    assert not any(t.kept and inline_size(t.submit.arguments) for t in calls.tasks.values())


def _check_declared(core: ManagerCore) -> None:
    """What calls and sessions use is remembered, and not much more."""
    sessions = core.clients.sessions.values()
    users = Counter(task.submit.function for task in core.calls.tasks.values())
    users.update(function for session in sessions for function in session.functions)
    assert {name: function.users for name, function in core.calls.functions.items() if function.users} == users
    assert len(core.calls.functions) <= len(users) + core.policy.idle
    needed = Counter(function.environment.key for function in core.calls.functions.values())
    needed.update(key for session in sessions for key in session.environments)
    assert {key: one.users for key, one in core.environments.known.items() if one.users} == needed


def _check_blobs(core: ManagerCore) -> None:
    users: Counter[Digest] = Counter()
    for task in core.calls.tasks.values():
        if isinstance(task.state, Done | Failed):
            blob = result_blob(task.state.finished.outcome)
            users.update([blob.digest] if blob is not None else [])
        else:
            users.update(b.digest for b in (*blobs_of(task.submit.arguments), *task.submit.blobs))
        if isinstance(task.state, Collecting):
            users[task.state.digest] += 1
    for function in core.calls.functions.values():
        users.update(b.digest for b in blobs_of(function.declared.code, function.declared.overlay))
    for environment in core.environments.known.values():
        users.update(b.digest for b in blobs_of(environment.declared.plan))
        assert not environment.waiters or not isinstance(environment.state, Built | Unbuildable)
        assert environment.clients.keys() <= core.clients.peers.keys()
        if isinstance(environment.state, Coming):
            users[environment.state.made.tarball.digest] += 1
        if isinstance(environment.state, Away | Coming) and environment.state.peer is not None:
            assert environment.state.peer in environment.clients
        if isinstance(environment.state, Away) and environment.state.peer is None:
            assert not environment.clients
    users.update(blob.digest for blob in core.calls.past.kept.values())
    for session in core.clients.sessions.values():
        users.update(session.held)
    assert users == Counter({digest: known.users for digest, known in core.blobs.known.items()})
