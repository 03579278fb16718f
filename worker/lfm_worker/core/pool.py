"""Which warm interpreters there are, and which one the next call of an environment is forked from.  Pure.

One template serves an environment.  When functions arrive that want more modules preloaded than it has, a
new one takes over and the old one is closed with its last call.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lfm.protocol.ids import Digest

FUTILE = 3  # templates of an environment that ended, one after the other, before any call began: it does not work here


@dataclass(slots=True)
class Template:
    """One warm interpreter."""

    environment: Digest
    preload: tuple[str, ...]
    calls: set[int] = field(default_factory=set)
    idle_since: float = 0.0


class Pool:
    """The templates of a worker."""

    def __init__(self) -> None:
        self.templates: dict[int, Template] = {}
        self._current: dict[Digest, int] = {}
        self._futile: dict[Digest, int] = {}
        self._last = 0

    def pick(self, environment: Digest, preload: tuple[str, ...]) -> int | None:
        """The template to fork from, or None: start one."""
        number = self._current.get(environment)
        if number is None or not set(preload) <= set(self.templates[number].preload):
            return None
        return number

    def add(self, environment: Digest, preload: tuple[str, ...], now: float) -> int:
        """A new template takes over its environment."""
        self._last += 1
        self.templates[self._last] = Template(environment, preload, idle_since=now)
        self._current[environment] = self._last
        return self._last

    def enter(self, number: int, call: int) -> None:
        self.templates[number].calls.add(call)

    def leave(self, number: int, call: int, now: float) -> None:
        if (template := self.templates.get(number)) is not None:
            template.calls.discard(call)
            template.idle_since = now

    def began(self, number: int) -> None:
        """A call began in it: the environment works here."""
        if (template := self.templates.get(number)) is not None:
            self._futile.pop(template.environment, None)

    def lost(self, number: int) -> tuple[Digest, int]:
        """It ended by itself: its environment, and how many in a row did without a call having begun."""
        template = self.remove(number)
        count = self._futile.get(template.environment, 0) + 1
        self._futile[template.environment] = count
        return template.environment, count

    def remove(self, number: int) -> Template:
        template = self.templates.pop(number)
        if self._current.get(template.environment) == number:
            del self._current[template.environment]
        return template

    def superfluous(self, now: float, idle_s: float, keep: int) -> list[int]:
        """Idle templates that are replaced, idle for too long, or more than ``keep``."""
        idle = sorted((t.idle_since, n) for n, t in self.templates.items() if not t.calls)
        if not idle:
            return []
        gone = [n for since, n in idle if now - since >= idle_s or not self.is_current(n)]
        rest = [n for _, n in idle if n not in gone]
        return gone + rest[: max(0, len(rest) - keep)]

    def next_idle_end(self, idle_s: float) -> float | None:
        """When the first idle template will have been idle for too long."""
        return min((t.idle_since + idle_s for t in self.templates.values() if not t.calls), default=None)

    def of(self, environment: Digest) -> list[int]:
        return [n for n, t in self.templates.items() if t.environment == environment]

    def is_current(self, number: int) -> bool:
        return self._current.get(self.templates[number].environment) == number
