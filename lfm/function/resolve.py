"""From modules to distributions: who installed them, what those require, and the key that names the whole.

The closure through declared requirements is taken whole: less would run until the day it does not.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from lfm.function.analyse import Analysis
from lfm.function.installed import Installation, Installed, normalise
from lfm.function.memory import Looking
from lfm.function.modules import Modules
from lfm.function.plan import Distribution, Interpreter, Plan

if TYPE_CHECKING:
    from packaging.requirements import Requirement

LAYOUT = 1  # counts up when the same plan comes to be packed differently
_COMPANIONS = (("cffi", "_cffi_backend"), ("cryptography", "_cffi_backend"), ("pyyaml", "_yaml"))
_SIMPLE = re.compile(
    r"([A-Za-z0-9][\w.-]*?)\s*\(?\s*(?:[<>=!~]=?=?[^;@()\[\]]*)?\)?"
)  # a name, perhaps with versions
_ONLY_EXTRA = re.compile(r"\bextra\s*==")


@dataclass(slots=True)
class Resolved:
    """``editables``: the user's own distributions that installed ones require; they belong in the overlay."""

    plan: Plan
    name: str  # for people: "numpy, scipy (+2)"
    editables: tuple[Installation, ...] = ()
    warnings: list[str] = field(default_factory=list)


def resolve(found: Analysis, modules: Modules, exclude: Collection[str], looking: Looking) -> Resolved:
    """The plan for what an analysis found."""
    closure = _Closure(modules.installed, exclude)
    for module, why in found.needs.items():
        if (owner := modules.find(module).owner) is not None:
            closure.add(owner, why, asked=True)
    for name, why in found.distributions.items():
        if (one := modules.installed.named(name)) is not None:
            closure.add(one, why, asked=True)
    for name in found.requiring:
        if (one := modules.installed.named(name)) is not None:
            closure.require(one, frozenset())
    kind = "python"
    if modules.installed.conda is not None:
        kind = "conda"
        if (python := modules.installed.conda.records.get("python")) is not None:
            closure.add(python, "the interpreter")
    closure.finish()
    closure.companions(modules)
    this = looking.python()
    taken = sorted(closure.why, key=lambda one: (one.name, one.metadata))
    distributions = tuple(
        Distribution(one.name, one.version, closure.why[one], one.location, one.metadata, looking.fingerprint(one))
        for one in taken
    )
    plan = Plan(
        kind=kind,
        key=key_of(kind, this, distributions),
        interpreter=this,
        distributions=distributions,
        verify=tuple(sorted(m for m in found.needs if closure.holds(modules.find(m).owner))),
        whole=looking.whole(modules.installed),
        host=platform.node(),
    )
    return Resolved(plan, _name(closure.asked, len(taken), this), tuple(closure.editables), closure.warnings)


def key_of(kind: str, python: Interpreter | None, distributions: Iterable[Distribution], *more: str) -> str:
    """The key of an environment: what is in it and for which platform, not where it lies nor in which order."""
    platform_tag = [python.soabi, python.machine, python.libc, python.fingerprint] if python else []
    content = sorted((d.name, d.version, d.fingerprint) for d in distributions)
    return hashlib.sha256(json.dumps([LAYOUT, kind, platform_tag, content, *more]).encode()).hexdigest()


def _name(asked: Iterable[str], total: int, python: Interpreter) -> str:
    names = sorted(dict.fromkeys(asked))
    shown = ", ".join(names[:3]) or f"python {python.version}"
    more = total - len(names[:3])
    return f"{shown} (+{more})" if more else shown


class _Closure:
    """Distributions and all that they require here, each with the reason it was first needed for."""

    def __init__(self, installed: Installed, exclude: Collection[str]) -> None:
        self.installed = installed
        self.excluded = {normalise(name) for name in exclude}
        self.why: dict[Installation, str] = {}
        self.asked: list[str] = []
        self.editables: dict[Installation, None] = {}
        self.warnings: list[str] = []
        self.seen: set[tuple[str, frozenset[str]]] = set()
        self.waiting: list[tuple[Installation, frozenset[str]]] = []

    def add(
        self, one: Installation, why: str, extras: frozenset[str] = frozenset(), *, asked: bool = False
    ) -> None:
        if one.name in self.excluded:
            return
        if one.editable is not None:
            self.editables.setdefault(one)
            return
        one = self.installed.promoted(one) or one
        if asked:
            self.asked.append(one.name)
        self.why.setdefault(one, why)
        if (one.name, extras) not in self.seen:
            self.seen.add((one.name, extras))
            self.waiting.append((one, extras))

    def holds(self, one: Installation | None) -> bool:
        return one in self.why or (one is not None and self.installed.promoted(one) in self.why)

    def finish(self) -> None:
        while self.waiting:
            self.require(*self.waiting.pop(0))

    def companions(self, modules: Modules) -> None:
        """Modules that lie beside a distribution's own without its saying so: Debian splits some packages."""
        for name, module in _COMPANIONS:
            needing = next((one for one in self.why if one.name == name), None)
            if needing is not None and (owner := modules.find(module).owner) is not None:
                self.add(owner, f"required by {name}")

    def require(self, one: Installation, extras: frozenset[str]) -> None:
        """Add what ``one`` requires here, by itself and for its ``extras``."""
        if one.kind == "conda" and self.installed.conda is not None:
            for name in one.requires:
                self.take(self.installed.conda.records.get(name), name, one, name)
            return
        for wanted in _requirements(one, extras):
            found = self.installed.named(wanted.name)
            self.take(found, wanted.name, one, wanted.text, wanted.extras)

    def take(
        self,
        found: Installation | None,
        name: str,
        by: Installation,
        text: str,
        extras: frozenset[str] = frozenset(),
    ) -> None:
        """Add what ``by`` requires as ``text``, or warn that it is not there."""
        if found is not None:
            self.add(found, f"required by {by.name}", extras)
        elif normalise(name) not in self.excluded:
            self.warnings.append(f"{by.name} {by.version} requires {text}, which is not installed here")


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One requirement that holds here."""

    name: str
    text: str
    extras: frozenset[str] = frozenset()


def _requirements(one: Installation, extras: frozenset[str]) -> Iterator[_Wanted]:
    for line in one.requires:
        if simple := _SIMPLE.fullmatch(line):  # most are; parsing the others costs fifty times as much
            yield _Wanted(simple[1], line)
        elif extras or not _ONLY_EXTRA.search(line) or " or " in line:
            wanted = _parse(line)
            if wanted is not None and _holds(wanted, extras):
                yield _Wanted(wanted.name, str(wanted), frozenset(wanted.extras))


def _holds(wanted: Requirement, extras: frozenset[str]) -> bool:
    marker = wanted.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in (*sorted(extras), ""))


@lru_cache(maxsize=4096)
def _parse(line: str) -> Requirement | None:
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        return Requirement(line)
    except InvalidRequirement:
        return None
