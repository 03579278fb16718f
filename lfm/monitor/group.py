"""One slot's control group: what its calls took of memory and CPU, exactly, however short-lived their processes.

The forker enters it once, so every call is born in it: a call costs a write and a read of one file.  The kernel
counts cached files too, though it gives them back when somebody needs room; so what a call took is known exactly
only where it cached few, and within bounds otherwise.
"""

from __future__ import annotations

import time

from lfm.monitor import cgroup

NOTHING = 1 << 20  # bytes that do not matter
LITTLE = 8 << 20  # bytes of which a call that was over before it was watched need not say what was cache
LEFT_OVER = 32 << 20  # bytes beyond a new group's that a call may leave in it, before the next gets another
SHARE = 1000  # reading what is cache may take one part in so many of the time


class SlotGroup:
    """The group that a slot's calls are in now; another where the last call left something in it."""

    def __init__(self, place: cgroup.Place, name: str) -> None:
        """OSError where none can be made."""
        self._place, self._name, self._number = place, name, 0
        self._old: list[cgroup.Group] = []
        self._idle = 0  # bytes of a forker with nothing loaded: a new one's are not the next call's
        self.now = self._make()

    def _make(self) -> cgroup.Group:
        self._number += 1
        made = cgroup.Group(self._place, f"{self._name}.{self._number}")
        self._base, self._warm = self._idle, 0
        self._before = self._cache = self._oom_kills = 0
        self.apparent = 0  # bytes in use, files cached since the last look at them included
        self._cpu = self._read_at = 0.0
        return made

    # -- one call; ``warm``: bytes that its forker holds for a function that it has loaded

    def begin(self, warm: int) -> None:
        """A call is watched from now on."""
        self._loaded(warm)
        self._cpu, self._oom_kills = self.now.cpu(), self.now.oom_kills()
        self._before = 0 if self._place.resets else self.now.peak()

    def used(self, low: int, now: float, limit: int = 0) -> int:
        """Bytes that it surely has in use now, files that the kernel has cached for it left out; ``low`` is a bound known
        otherwise.  What is cache is looked at while that costs little, or where a limit may be broken."""
        self.apparent = max(0, self.now.usage() - self._base - self._cache)
        if self.apparent <= low + NOTHING:
            return self.apparent
        if now < self._read_at and not (limit and self.apparent > limit):
            return low  # it may as well be cache
        began = time.thread_time()
        self._cache = max(self._cache, cache := self.now.cache())
        self._read_at = now + SHARE * (time.thread_time() - began)
        self.apparent = max(0, self.now.usage() - self._base - cache)
        return self.apparent

    def took(self, warm: int, watched: bool) -> tuple[int, int] | None:
        """The call's peak, between which bounds; None where a call before it hides it."""
        self._loaded(warm)
        peak = self.now.peak()
        if peak - self._base > (NOTHING if watched else LITTLE):
            if peak <= self._before:
                return None
            self._cache = max(self._cache, self.now.cache())
        return bounds(peak, self._base, self._cache)

    def cpu(self) -> float:
        """CPU seconds since it is watched, of all its processes."""
        return self.now.cpu() - self._cpu

    def oom_killed(self) -> bool:
        """Whether the kernel ended a process of it for want of memory."""
        before, self._oom_kills = self._oom_kills, self.now.oom_kills()
        return self._oom_kills > before

    def _loaded(self, warm: int) -> None:
        self._base += warm - self._warm
        self._warm = warm

    # -- between calls

    def settle(self, warm: int, forker: bool) -> bool:
        """Forget the call; whether the next needs another group to be measured well.  ``forker``: it lives."""
        self.now.reset()
        usage = self.now.usage()
        self._cache = self.now.cache() if usage > self._base + NOTHING else 0
        self._base, self._warm = usage - self._cache, warm
        if forker:
            self._idle = self._base - warm
        else:
            self._base = max(self._base, self._idle)
        hidden = not self._place.resets and self.now.peak() > usage + 4 * NOTHING
        return hidden or self._cache > LEFT_OVER

    def renew(self) -> None:
        """Another group, for a new forker to enter; nothing is left in the last one."""
        try:
            old, self.now = self.now, self._make()
        except OSError:  # somebody has taken the place away: the last one will do
            return
        self._old = [one for one in [*self._old, old] if not one.close()]

    def join(self) -> None:
        """Put this process, a copy of the monitor's, in it, and so all that it forks."""
        try:
            self.now.enter()
        except OSError:  # the place was taken away meanwhile: better unmeasured than not at all
            pass
        self.now.forget()

    def close(self) -> None:
        for one in [*self._old, self.now]:
            one.close()


def bounds(peak: int, base: int, cache: int) -> tuple[int, int]:
    """What was taken at most, at least and at most: ``base`` was there before, ``cache`` was ever files at most."""
    high = max(0, peak - base)
    return (high if cache < max(NOTHING, high // 100) else max(0, high - cache)), high
