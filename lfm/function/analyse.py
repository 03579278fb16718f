"""What a function needs in order to run: the installed modules it imports, the user's own modules it lives in.

Follows names: from a function's bytecode into the user's own modules, definition by definition, so that a module
with two functions gives each its own needs.  Stops at installed modules: their distribution comes whole.  Never
runs the function, and imports nothing.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from types import CodeType, FunctionType, ModuleType

from lfm.errors import AnalysisError
from lfm.function import inside, partners
from lfm.function.code import Chain, Import, Source, Target, Unit, read_function
from lfm.function.installed import Installation
from lfm.function.modules import Kind, Module, Modules
from lfm.function.sources import Sources, absolute, outermost
from lfm.function.state import global_names


@dataclass(slots=True)
class Analysis:
    """What was found; insertion order is the order of finding."""

    needs: dict[str, str] = field(default_factory=dict)  # installed module -> why
    preload: dict[str, None] = field(default_factory=dict)  # of these, what the code itself will import
    local: dict[str, Module] = field(default_factory=dict)  # the user's own modules that will be imported
    editables: dict[str, Installation] = field(default_factory=dict)  # whose modules are among these
    requiring: dict[str, str] = field(
        default_factory=dict
    )  # editables whose declared requirements are needed -> why
    distributions: dict[str, str] = field(default_factory=dict)  # needed by name, not by import -> why
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Live:
    """A function that travels by value, without what it holds on to: its code, and its names for modules."""

    code: CodeType
    who: str
    package: str  # for relative imports
    modules: dict[str, str]  # global name -> module

    @classmethod
    def of(cls, function: FunctionType) -> Live:
        names = function.__globals__
        package = names.get("__package__")
        if package is None:
            package = str(names.get("__name__", "")).rpartition(".")[0]
        modules = {
            name: value.__name__
            for name in global_names(function.__code__)
            if isinstance(value := names.get(name), ModuleType)
        }
        return cls(function.__code__, function.__qualname__, package, modules)


@dataclass(frozen=True, slots=True)
class _Place:
    """Whose code is being read."""

    who: str  # "fit", "model.fit", "model"
    file: str
    package: str  # for relative imports
    module: str = ""  # of code read from a file; "" for a live function
    modules: dict[str, str] | None = None  # what a live function calls them
    top: bool = False  # the code that importing the module runs

    def at(self, line: int) -> str:
        return f"{self.who} ({os.path.basename(self.file)}:{line})"


class Walk:
    """One analysis.  Feed it functions, references and wishes, then ``finish``."""

    def __init__(self, modules: Modules, exclude: Collection[str] = (), *, elsewhere: bool = False) -> None:
        self.modules = modules
        self.sources = Sources(modules)
        self.exclude = tuple(exclude)
        self.elsewhere = elsewhere  # it will run in an environment that is not made of what is installed here
        self.found = Analysis()
        self.words: set[str] = set()
        self.constants: set[str] = set()
        self.entered: set[str] = set()
        self.reached: set[tuple[str, str]] = set()
        self.chased: set[tuple[str, Chain, bool]] = set()
        self.queue: deque[tuple[Unit, _Place]] = deque()

    # ------------------------------------------------------------ what to look at

    def function(self, live: Live) -> None:
        """A function that travels by value: its code and globals are as they are now."""
        place = _Place(live.who, live.code.co_filename, live.package, modules=live.modules)
        self.queue.append((read_function(live.code), place))
        self.drain()

    def reference(self, module: str, name: str, who: str) -> None:
        """An object that travels as the name ``name`` of ``module``; a module itself if ``name`` is empty."""
        if module == "__main__" or self.excluded(module):
            return
        if outermost(module) == "lfm":
            if module not in inside.MODULES:
                self.need_lfm(who)
            return
        found = self.modules.find(module)
        if found.kind is Kind.INSTALLED:
            self.need(found, f"used by {who}")
        elif found.kind is Kind.LOCAL:
            self.enter(module)
            if name:
                self.reach(module, tuple(name.split(".")))
        self.drain()

    def asked(self, name: str, why: str = "asked for by imports=", *, preload: bool = False) -> None:
        """A module that the user asked for by name; whole, if it is the user's own."""
        found = self.modules.find(name)
        if found.kind is Kind.MISSING:
            if self.elsewhere:
                self.found.needs.setdefault(name, why)
                return
            owner = self.modules.installed.named(name)
            if owner is None:
                raise AnalysisError(
                    f"imports= asks for {name!r}, which is not installed here: install it, or leave it out",
                    module=name, file="", line=0,
                )  # fmt: skip
            self.found.distributions.setdefault(owner.name, why)
        elif found.kind is Kind.INSTALLED:
            self.need(found, why, preload=preload)
        elif found.kind is Kind.LOCAL:
            self.everything(name)
            if editable := self.modules.installed.editable_owner(found.file):
                self.found.requiring.setdefault(editable.name, why)
        elif found.kind is Kind.NAMESPACE:
            self.namespace(found, why)
        self.drain()

    def finish(self) -> Analysis:
        """All that was found, with what libraries will import lazily."""
        libraries = dict.fromkeys(map(outermost, self.found.needs))
        for module, library, word in partners.wanted(
            libraries, self.words, self.constants, self.is_installed
        ):
            if not self.excluded(module):
                self.need(self.modules.find(module), f"used by {library} for {word}", preload=False)
        if self.words & {"entry_points", "iter_entry_points"}:
            for group in sorted(self.constants):
                for one in self.modules.installed.providing(group):
                    self.found.distributions.setdefault(one.name, f"offers entry points of {group}")
        return self.found

    # ------------------------------------------------------------ reading

    def drain(self) -> None:
        while self.queue:
            self.read(*self.queue.popleft())

    def read(self, unit: Unit, place: _Place) -> None:
        self.words.update(unit.attributes)
        self.constants.update(unit.constants)
        for statement in unit.imports:
            self.imported(statement, place)
        for target, rest, line in unit.uses:
            self.target(target, rest, place, line)
        for chain, line in unit.chains.items():
            self.words.add(chain[0])
            if place.modules is None:
                self.reach(place.module, chain, top=place.top)
            elif (module := place.modules.get(chain[0])) is not None:
                self.dotted(module, chain[1:], place, line)
        for line in unit.computed:
            self.found.warnings.append(
                f"{place.file}:{line}: {place.who} imports a module whose name it computes; "
                f"name what it may import with imports=[...]"
            )

    def imported(self, statement: Import, place: _Place) -> None:
        """An import statement that runs."""
        name = absolute(statement, place.package)
        self.words.update(statement.names)
        if not name or self.excluded(name):
            return
        if outermost(name) == "lfm":
            if not place.top and not inside.holds(name, statement.names):
                self.need_lfm(place.at(statement.line))
            return
        found = self.modules.find(name)
        if found.kind is Kind.MISSING:
            self.missing(name, statement, place)
            return
        why, surely = f"imported by {place.at(statement.line)}", statement.guard != "branch"
        self.use(found, why, preload=surely)
        for part in statement.names:
            if part != "*" and not (found.kind is Kind.LOCAL and self.sources.defines(name, part)):
                inner = self.sources.submodule(found, part)
                if inner is not None and not self.excluded(inner.name):
                    self.use(inner, why, preload=surely)
        if statement.dynamic and found.kind is Kind.LOCAL:
            self.everything(name)

    def use(self, found: Module, why: str, *, preload: bool) -> None:
        if found.kind is Kind.INSTALLED:
            self.need(found, why, preload=preload)
        elif found.kind is Kind.LOCAL:
            self.enter(found.name)

    def target(self, target: Target, rest: Chain, place: _Place, line: int) -> None:
        """A name that an import bound is used, with attributes ``rest``."""
        name = absolute(target.source, place.package)
        if not name or self.excluded(name):
            return
        if not target.attribute:
            self.dotted(name if target.whole else outermost(name), rest, place, line)
            return
        if outermost(name) == "lfm":
            if not place.top and not inside.holds(name, (target.attribute,)):
                self.need_lfm(place.at(line))
            return
        found = self.modules.find(name)
        if found.kind is Kind.LOCAL and self.sources.defines(name, target.attribute):
            self.reach(name, (target.attribute, *rest))
        elif (inner := self.sources.submodule(found, target.attribute)) is not None:
            self.dotted(inner.name, rest, place, line)

    def dotted(self, name: str, rest: Chain, place: _Place, line: int) -> None:
        """A module is used through attributes ``rest``, some of which may be modules too."""
        if self.excluded(name):
            return
        if outermost(name) == "lfm":
            if not place.top and not inside.holds(name, rest[:1] or ("lfm as a whole",)):
                self.need_lfm(place.at(line))
            return
        found = self.modules.find(name)
        while rest and found.kind in (Kind.INSTALLED, Kind.NAMESPACE):
            inner = self.sources.submodule(found, rest[0])
            if inner is None or self.excluded(inner.name):
                break
            found, rest = inner, rest[1:]
        why = f"imported by {place.at(line)}"
        if found.kind is Kind.INSTALLED:
            self.need(found, why)
        elif found.kind is Kind.NAMESPACE and not rest:
            self.namespace(found, why)
        elif found.kind is Kind.LOCAL:
            self.enter(found.name)
            if rest:
                self.reach(found.name, rest)
            elif not place.top:
                self.everything(found.name)

    # ------------------------------------------------------------ the user's own modules

    def enter(self, name: str) -> None:
        """A module of the user's is imported, and with it its parents."""
        if name in self.entered or self.excluded(name):
            return
        self.entered.add(name)
        if parent := name.rpartition(".")[0]:
            self.enter(parent)
        found = self.modules.find(name)
        if found.kind is not Kind.LOCAL:
            return
        self.found.local[name] = found
        if editable := self.modules.installed.editable_owner(found.file):
            self.found.editables.setdefault(editable.name, editable)
        source = self.sources.of(name)
        if source is None:
            return
        self.queue.append((source.top, self.place(found, top=True)))
        for defined, chains in source.passed.items():
            if not all(self.sources.only_marks(source, chain) for chain in chains):
                self.reach(name, (defined,), top=True)

    def reach(self, name: str, chain: Chain, *, top: bool = False) -> None:
        """Code reads ``chain``: a name of the module ``name``, and attributes of what it names.

        ``top``: that code is run by importing ``name`` itself.
        """
        source = self.sources.of(name)
        if source is None or (name, chain, top) in self.chased:
            return
        self.chased.add((name, chain, top))  # modules may import each other's names in circles
        first, rest = chain[0], chain[1:]
        found = self.modules.find(name)
        unit = source.units.get(first)
        if unit is not None and (name, first) not in self.reached:
            self.reached.add((name, first))
            self.queue.append((unit, self.place(found, first)))
        target = source.top.bound.get(first)
        if target is not None:
            self.target(target, rest, self.place(found, top=top), target.source.line)
        elif unit is None:
            inner = self.sources.submodule(found, first)
            if inner is not None:
                self.dotted(inner.name, rest, self.place(found, top=top), 0)
            else:
                self.starred(source, found, chain)

    def starred(self, source: Source, found: Module, chain: Chain) -> None:
        """A name that may come from ``from other import *``."""
        for statement in source.top.imports:
            if statement.names == ("*",):
                name = absolute(statement, self.place(found).package)
                if name and self.sources.defines(name, chain[0]):
                    self.reach(name, chain)

    def everything(self, name: str) -> None:
        """A module of the user's is used in a way that does not show which part of it."""
        self.enter(name)
        if (source := self.sources.of(name)) is not None:
            for defined in (*source.units, *source.top.bound):
                self.reach(name, (defined,))

    def place(self, found: Module, defined: str = "", *, top: bool = False) -> _Place:
        package = found.name if found.places is not None else found.name.rpartition(".")[0]
        who = f"{found.name}.{defined}" if defined else found.name
        return _Place(who, found.file, package, module=found.name, top=top)

    # ------------------------------------------------------------ what is installed

    def need(self, found: Module, why: str, *, preload: bool = True) -> None:
        if found.kind is not Kind.INSTALLED or self.excluded(found.name):
            return
        self.found.needs.setdefault(found.name, why)
        if preload:
            self.found.preload.setdefault(found.name)
        if parent := found.name.rpartition(".")[0]:
            outer = self.modules.find(parent)
            if outer.owner is not found.owner:  # a part that one distribution adds to another's package
                self.need(outer, why, preload=preload)

    def namespace(self, found: Module, why: str) -> None:
        """A namespace as a whole: everybody who has a part in it."""
        for one in self.modules.installed.by_name.values():
            if one.owns_below(found.name.replace(".", "/")):
                self.found.distributions.setdefault(one.name, why)

    def need_lfm(self, who: str) -> None:
        """lfm itself, with all it requires: its names are loaded lazily, so following them would find too little."""
        why = f"used by {who}"
        found = self.modules.find("lfm")
        if found.kind is Kind.INSTALLED:
            self.need(found, why)
            return
        self.enter("lfm")
        editable = self.modules.installed.editable_owner(found.file) or self.modules.installed.named("lfm")
        if editable is not None:
            self.found.requiring.setdefault(editable.name, why)
        else:
            self.found.warnings.append(
                f"lfm, {why}, is not installed as a distribution: what it requires is unknown"
            )

    def missing(self, name: str, statement: Import, place: _Place) -> None:
        if statement.guard == "try":
            return
        if self.elsewhere:
            self.found.needs.setdefault(name, f"imported by {place.at(statement.line)}")
            return
        nearest = name
        while "." in nearest and self.modules.find(nearest).kind is Kind.MISSING:
            nearest = nearest.rpartition(".")[0]
        found = self.modules.find(nearest)
        where = f"{place.file}:{statement.line}"
        if found.kind in (Kind.INSTALLED, Kind.STANDARD) or statement.guard == "branch":
            self.found.warnings.append(f"{where}: {place.who} imports {name}, which is not found here")
            self.need(found, f"imported by {place.at(statement.line)}")
            return
        raise AnalysisError(
            f"{place.who} imports {name!r} ({where}), which is not installed here: "
            f"install it, or leave it out with exclude=[{nearest!r}]",
            module=name, file=place.file, line=statement.line,
        )  # fmt: skip

    def is_installed(self, module: str) -> bool:
        return self.modules.find(module).kind is Kind.INSTALLED

    def excluded(self, name: str) -> bool:
        return any(name == one or name.startswith(one + ".") for one in self.exclude)
