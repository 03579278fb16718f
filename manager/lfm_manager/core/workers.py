"""What a worker offers, what is taken of it, and what it holds.  Amounts only; who gets them is the scheduler's.

Cores are counted in thousandths, as whole numbers: halves and tenths add up exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lfm.protocol.ids import Digest, FunctionId, PeerId, TaskId
from lfm.protocol.messages import EnvironmentComing, WorkerHello
from lfm.protocol.resources import Resources
from lfm_manager.core.conduct import Record


def millicores(cores: float) -> int:
    return round(cores * 1000)


@dataclass(frozen=True, slots=True)
class Demand:
    """What a call needs of one worker."""

    millicores: int
    memory: int
    disk: int
    gpus: int
    wall_time: float  # as long as it is expected to take; 0: unknown
    digest: Digest  # of its environment
    alone: bool = False
    promise: int = 0  # bytes to be reckoned with: ``memory``, and some for its growth
    labels: tuple[tuple[str, str], ...] = ()  # that the worker must have


@dataclass(slots=True, eq=False)
class Worker:
    peer: PeerId
    hello: WorkerHello
    joined: float
    millicores: int = 0  # offered
    memory: int = 0
    disk: int = 0
    devices: tuple[str, ...] = ()
    free_millicores: int = 0
    free_memory: int = 0
    free_disk: int = 0
    free_devices: list[str] = field(default_factory=list)
    taken_devices: set[str] = field(default_factory=set)  # also such as are not offered any more
    promised: int = 0  # bytes: what running calls hold, and what is kept free for them to grow into
    ends: float | None = None  # when its batch job ends
    running: dict[TaskId, int] = field(default_factory=dict)  # bytes promised to each
    collecting: dict[TaskId, None] = field(default_factory=dict)  # results that it keeps and that are asked for
    exclusive: bool = False  # a call that must be alone runs on it
    environments: set[Digest] = field(default_factory=set)  # unpacked, or told to
    unpacked: set[Digest] = field(default_factory=set)  # of these it has said that they are ready
    coming: dict[Digest, EnvironmentComing] = field(default_factory=dict)  # how far, of those that take long
    unusable: dict[Digest, str] = field(default_factory=dict)
    again: dict[Digest, float] = field(default_factory=dict)  # when to try one of these once more
    failures: dict[Digest, int] = field(default_factory=dict)  # how often that was in vain
    functions: set[FunctionId] = field(default_factory=set)
    draining: str = ""  # why it takes no more, for now or for good
    record: Record = field(default_factory=Record)
    stuck: bool = False  # it handed back a call that was sent ahead, and none has ended since
    ended: int = 0

    @property
    def name(self) -> str:
        return self.hello.name

    def offer(self, offer: Resources, now: float) -> None:
        """What it offers from now on; what is taken stays taken."""
        cores, devices = millicores(offer.cores), self._devices(offer)
        self.free_millicores += cores - self.millicores
        self.free_memory += offer.memory - self.memory
        self.free_disk += offer.disk - self.disk
        self.millicores, self.memory, self.disk, self.devices = cores, offer.memory, offer.disk, devices
        self.free_devices = [d for d in devices if d not in self.taken_devices]
        self.ends = None if offer.wall_time is None else now + offer.wall_time

    def _devices(self, offer: Resources) -> tuple[str, ...]:
        named = self.hello.gpu_devices or tuple(str(n) for n in range(offer.gpus))
        return named[: offer.gpus]

    def could(self, demand: Demand, now: float) -> bool:
        """Whether it would fit if nothing else ran here."""
        return (
            demand.millicores <= self.millicores
            and demand.memory <= self.memory
            and demand.disk <= self.disk
            and demand.gpus <= len(self.devices)
            and self.suits(demand)
            and (self.ends is None or demand.wall_time <= self.ends - now)
        )

    def suits(self, demand: Demand) -> bool:
        """Whether it is of the right kind, however large."""
        return demand.digest not in self.unusable and (
            not demand.labels or all(self.hello.labels.get(name) == value for name, value in demand.labels)
        )

    def fits(self, demand: Demand, now: float) -> bool:
        """Whether it fits now."""
        return (
            demand.millicores <= self.free_millicores
            and demand.memory <= self.free_memory
            and (demand.promise <= self.memory - self.promised or not self.running)
            and demand.disk <= self.free_disk
            and not self.exclusive
            and not self.draining
            and demand.gpus <= len(self.free_devices)
            and self.suits(demand)
            and (self.ends is None or demand.wall_time <= self.ends - now)
            and not (demand.alone and self.running)
        )

    def fits_ahead(self, demand: Demand, depth: int, now: float) -> bool:
        """Whether it fits as soon as one of the short calls here has ended: the cores are all that it lacks."""
        return (
            -depth * self.millicores <= self.free_millicores - demand.millicores < 0
            and not (self.exclusive or self.draining or self.stuck or demand.gpus or demand.alone)
            and self.could(demand, now)
        )

    def take(self, task: TaskId, amount: Resources, gpus: tuple[str, ...], *, alone: bool, promise: int) -> None:
        self.running[task] = promise
        self.promised += promise
        self.free_millicores -= millicores(amount.cores)
        self.free_memory -= amount.memory
        self.free_disk -= amount.disk
        self.taken_devices.update(gpus)
        self.free_devices = [d for d in self.free_devices if d not in gpus]
        self.exclusive = self.exclusive or alone

    def give_back(self, task: TaskId, amount: Resources, gpus: tuple[str, ...]) -> None:
        self.promised -= self.running.pop(task)
        self.free_millicores += millicores(amount.cores)
        self.free_memory += amount.memory
        self.free_disk += amount.disk
        self.taken_devices.difference_update(gpus)
        self.free_devices.extend(d for d in self.devices if d in gpus and d not in self.free_devices)
        if not self.running:
            self.exclusive = False

    def regrant(self, task: TaskId, before: Resources, after: Resources, promise: int) -> None:
        """A running call has grown."""
        self.promised += promise - self.running[task]
        self.running[task] = promise
        self.free_millicores -= millicores(after.cores) - millicores(before.cores)
        self.free_memory -= after.memory - before.memory
        self.free_disk -= after.disk - before.disk
