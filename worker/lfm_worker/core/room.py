"""How much of the worker is free, and which CPUs a call gets.  Pure."""

from __future__ import annotations

from dataclasses import dataclass

from lfm.protocol.resources import Resources


@dataclass(frozen=True, slots=True)
class Grant:
    """What a call holds while it runs."""

    cores: float
    memory: int
    cpus: tuple[int, ...]  # its own; empty: it is not pinned


class Room:
    """The worker's cores and memory, handed out and given back.

    ``cpus`` are the numbers of the CPUs that are the worker's alone; without them nothing is pinned.
    A call with whole cores gets CPUs of its own; one with a fraction of a core runs on what is left to share.
    """

    def __init__(self, offer: Resources, cpus: tuple[int, ...] = ()) -> None:
        self.offer = offer
        self._cpus = sorted(cpus)  # free ones
        self._pinning = bool(cpus)
        self._held: dict[int, Grant] = {}
        self.cores_free = offer.cores
        self.memory_free = offer.memory

    @property
    def is_full(self) -> bool:
        """Whether nothing more fits."""
        return self.cores_free <= 1e-6 and bool(self._held)

    def take(self, call: int, wanted: Resources) -> Grant | None:
        """The grant, or None while it does not fit.  Alone, a call gets what it wants: the manager knows why."""
        fits = wanted.cores <= self.cores_free + 1e-6 and wanted.memory <= self.memory_free
        if self._held and not fits:
            return None
        whole = int(wanted.cores) if self._pinning and wanted.cores == int(wanted.cores) else 0
        cpus = tuple(self._cpus[:whole]) if whole <= len(self._cpus) else ()
        self._cpus = self._cpus[len(cpus) :]
        grant = self._held[call] = Grant(wanted.cores, wanted.memory, cpus)
        self.cores_free -= grant.cores
        self.memory_free -= grant.memory
        return grant

    def grow(self, call: int, more: int) -> None:
        """Reserve ``more`` bytes in addition; they are free."""
        grant = self._held[call]
        self._held[call] = Grant(grant.cores, grant.memory + more, grant.cpus)
        self.memory_free -= more

    def give_back(self, call: int) -> None:
        grant = self._held.pop(call, None)
        if grant is not None:
            self.cores_free += grant.cores
            self.memory_free += grant.memory
            self._cpus = sorted([*self._cpus, *grant.cpus])
