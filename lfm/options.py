"""What may be said about a call besides its function and arguments: names, units, and how one saying yields to another.

Pure.  Knows nothing of sessions or messages but the Request that a call carries.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from lfm.protocol.resources import (
    MOST_CORES,
    MOST_DEVICES,
    Expected,
    Request,
    Resources,
    parse_duration,
    parse_size,
)

LONGEST_TEXT = 200  # characters
STRATEGIES = (
    "auto", "first-allocation-waste", "first-allocation-throughput", "greedy-bucketing", "exhaustive-bucketing",
    "max-seen", "fixed", "whole-worker",
)  # fmt: skip  # the manager has them


MANY = 1 << 31  # processes of a call, or tries


@dataclass(frozen=True, slots=True)
class Options:
    """None: not said, so it is learned (resources), or the default."""

    cores: float | None = None
    memory: int | None = None  # bytes
    disk: int | None = None  # bytes
    gpus: int | None = None
    wall_time: float | None = None  # seconds
    processes: int | None = None
    retries: int | None = None
    priority: float | None = None
    category: str | None = None
    imports: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    environment: Any = None
    expect: Expected | None = None
    labels: tuple[tuple[str, str], ...] = ()
    strategy: str | None = None

    @classmethod
    def parse(cls, said: Mapping[str, Any]) -> Options:
        """Options as a user writes them.  TypeError for a name that is none, ValueError for a wrong amount."""
        read: dict[str, Any] = {}
        for name, value in said.items():
            if name not in _READERS:
                raise TypeError(_unknown(name))
            if value is not None:
                try:
                    read[name] = _READERS[name](value)
                except (ValueError, TypeError) as error:
                    raise type(error)(f"{name}={value!r:.80}: {error}") from None
        return cls(**read)

    def over(self, other: Options) -> Options:
        """These, and what they do not say from ``other``; imports add up."""
        if other == _NOTHING:
            return self
        said = {f.name: mine for f in fields(self) if (mine := getattr(self, f.name)) not in (None, ())}
        for name in ("imports", "exclude"):
            if name in said:
                said[name] = tuple(dict.fromkeys((*getattr(other, name), *said[name])))
        return replace(other, **said) if said else other

    def request(self) -> Request:
        return Request(
            self.cores, self.memory, self.disk, self.gpus, self.wall_time, self.processes, self.expect, self.labels,
            self.strategy,
        )  # fmt: skip


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, _READERS, n=1, cutoff=0.5)
    known = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(_READERS)}"
    return f"{name!r} is not an option; {known}"


def _above_zero(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        amount = parse(value)
        if not amount > 0:
            raise ValueError("must be above zero")
        return amount

    return read


def _at_most(most: float, parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if (amount := parse(value)) > most:
            raise ValueError(f"must be at most {most:g}")
        return amount

    return read


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("must be a number")
    if not abs(value) <= sys.float_info.max:
        raise ValueError("must be finite")
    return float(value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError("must be a whole number")
    if (count := value.__index__()) < 0:
        raise ValueError("must not be negative")
    return int(count)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_TEXT:
        raise TypeError(f"must be a text, at most {LONGEST_TEXT} characters long")
    return value


def _names(value: Any) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else None
    if names is None or not all(isinstance(n, str) and n.replace(".", "").isidentifier() for n in names):
        raise TypeError("must be names of modules")
    return names


def _labels(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Mapping) or not all(isinstance(x, str) and x for pair in value.items() for x in pair):
        raise TypeError('must be a dict of texts, like {"site": "north"}')
    return tuple(sorted(value.items()))


def _strategy(value: Any) -> str:
    if value not in STRATEGIES:
        raise ValueError(f"there are: {', '.join(STRATEGIES)}")
    return str(value)


def _expected(value: Any) -> Expected:
    if isinstance(value, Expected | Resources):  # a future's allocation, say
        value = {name: getattr(value, name) or None for name in _EXPECTED}
    if not isinstance(value, Mapping):
        raise TypeError('must be a dict, like {"memory": "4GB"}, or lfm.Resources')
    if unknown := [name for name in value if name not in _EXPECTED]:
        raise TypeError(f"{unknown[0]!r} cannot be expected; there are: {', '.join(_EXPECTED)}")
    return Expected(**{name: _READERS[name](amount) for name, amount in value.items() if amount is not None})


def _environment(value: Any) -> Any:
    if not isinstance(value, str | os.PathLike):
        lines = tuple(value) if isinstance(value, Iterable) else ()
        if not isinstance(value, Iterable) or not all(isinstance(line, str) for line in lines):
            raise TypeError("must be a list of requirements, or the path of an environment.yml, a requirements.txt or a conda-pack tarball")
        if not lines:
            raise ValueError("names no requirement")
        return lines
    return value


_EXPECTED = ("cores", "memory", "disk", "wall_time")
_READERS: dict[str, Callable[[Any], Any]] = {
    "cores": _above_zero(_at_most(MOST_CORES, _number)),
    "memory": _above_zero(parse_size),
    "disk": _above_zero(parse_size),
    "gpus": _at_most(MOST_DEVICES, _count),
    "wall_time": _above_zero(parse_duration),
    "processes": _above_zero(_at_most(MANY, _count)),
    "retries": _at_most(MANY, _count),
    "priority": _number,
    "category": _text,
    "imports": _names,
    "exclude": _names,
    "environment": _environment,
    "expect": _expected,
    "labels": _labels,
    "strategy": _strategy,
}
_NOTHING = Options()
