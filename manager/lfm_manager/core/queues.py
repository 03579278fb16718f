"""Where ready calls stand: one queue for all that are alike, so that looking at its head says all.

Alike: of one client session, category, environment and request, about the same input size, about the same
rung of the retry ladder, equal priority.  The number of queues does not grow with the number of calls.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

from lfm.protocol.ids import EnvironmentKey, TaskId
from lfm.protocol.resources import Request
from lfm_manager.core.categories import Category
from lfm_manager.core.functions import Environment
from lfm_manager.core.sessions import Session
from lfm_manager.core.tasks import Task
from lfm_manager.core.workers import Demand

Rank = tuple[float, bool, bool, float, int]


class QueueKey(NamedTuple):
    session: str
    category: str
    environment: EnvironmentKey
    request: Request
    priority: float
    input_class: int  # doubling sizes
    memory_class: int  # the rung of a retry, in eighths of a doubling; 0: no retry
    disk_class: int
    alone: bool
    again: bool  # it has run before: such go first


def queue_key(task: Task) -> QueueKey:
    return QueueKey(
        task.session.key, task.category.name, task.function.environment.key, task.submit.request,
        task.submit.priority, (task.input_bytes >> 12).bit_length(), _eighths(task.least_memory),
        _eighths(task.least_disk), task.alone, bool(task.attempts),
    )


def _eighths(amount: int) -> int:
    """A class for amounts: eight per doubling."""
    bits = amount.bit_length()
    return 0 if not amount else bits * 8 + ((amount >> max(0, bits - 4)) & 7)


@dataclass(slots=True, eq=False)
class Queue:
    """``blocked`` is the head's demand at the time when no worker had room for it; None: not known to be so."""

    key: QueueKey
    number: int
    session: Session
    category: Category
    environment: Environment
    tasks: OrderedDict[TaskId, Task] = field(default_factory=OrderedDict)
    blocked: Demand | None = None
    since: float = 0.0  # when its head came to wait for room
    passed: tuple[int, int] = (0, 0)  # how many calls had been placed by then: of all clients, of its own
    watched: bool = False  # stands in the scheduler's list of those that may starve
    warned: bool = False
    _demand: Demand | None = None
    _known_for: tuple[TaskId, int, int] | None = None

    @property
    def head(self) -> Task:
        return next(iter(self.tasks.values()))

    def rank(self) -> Rank:
        """Smallest first: priority, repeated calls, categories without a result, the longest, order of submission."""
        category = self.category
        return (-self.key.priority, not self.key.again, bool(category.seen), -category.mean_wall, self.head.order)

    def remembered(self, epoch: int) -> Demand | None:
        """The head's demand, if nothing has changed since it was found."""
        return self._demand if self._known_for == (self.head.id, self.category.generation, epoch) else None

    def remember(self, demand: Demand, epoch: int) -> Demand:
        self._demand = demand
        self._known_for = (self.head.id, self.category.generation, epoch)
        return demand
