"""The user's own modules as they are written: what each defines, what it calls things.  Nothing is imported or run."""

from __future__ import annotations

import importlib.machinery
import os
import sys
from functools import lru_cache
from types import ModuleType

from lfm.errors import AnalysisError
from lfm.function.code import Chain, Import, Source, read_module
from lfm.function.modules import Kind, Module, Modules

_MARKS = frozenset({"property", "staticmethod", "classmethod"})  # decorators that call nothing


class Sources:
    def __init__(self, modules: Modules) -> None:
        self.modules = modules

    def of(self, name: str) -> Source | None:
        """What a module of the user's holds, read from its file; None: it is none, or not one that can be read."""
        found = self.modules.find(name)
        if found.kind is not Kind.LOCAL or not found.file.endswith(".py"):
            return None
        try:
            state = os.stat(found.file)
        except OSError:
            return None
        return _source(name, found.file, state.st_size, state.st_mtime_ns)

    def defines(self, name: str, part: str) -> bool:
        """Whether a module of the user's has ``part`` by its own code, not only as a submodule."""
        source = self.of(name)
        if source is None:
            return False
        return (
            part in source.units
            or part in source.top.bound
            or any(i.names == ("*",) for i in source.top.imports)
        )

    def only_marks(self, source: Source, chain: Chain) -> bool:
        """Whether a decorator surely leaves it to others to call the function: the standard library's, lfm's."""
        target = source.top.bound.get(chain[0])
        if target is None:
            return chain[0] not in source.units and chain[0] in _MARKS
        first = outermost(target.source.module)
        return not target.source.level and (first == "lfm" or self.modules.find(first).kind is Kind.STANDARD)

    def submodule(self, parent: Module, part: str) -> Module | None:
        """A module below a package; None: that name is something else there, or nothing."""
        if parent.places is None:
            return None
        value = getattr(sys.modules.get(parent.name), "__dict__", {}).get(part)
        if value is not None and not isinstance(value, ModuleType):
            return None
        found = self.modules.find(f"{parent.name}.{part}")
        return None if found.kind is Kind.MISSING else found


def absolute(statement: Import, package: str) -> str:
    """The full name of what a statement imports; "" where a relative one leads out of its package."""
    if not statement.level:
        return statement.module
    parts = package.split(".") if package else []
    if statement.level > len(parts):
        return ""
    base = parts[: len(parts) - statement.level + 1]
    return ".".join((*base, statement.module) if statement.module else base)


@lru_cache(maxsize=4096)
def _source(name: str, file: str, size: int, mtime_ns: int) -> Source | None:
    """A file read; its size and time are there to notice an edit."""
    try:
        code = importlib.machinery.SourceFileLoader(name, file).get_code(name)
    except SyntaxError as error:
        raise AnalysisError(
            f"{file}:{error.lineno or 0}: the module {name} cannot be compiled: {error.msg}",
            module=name, file=file, line=error.lineno or 0,
        ) from None  # fmt: skip
    except OSError:
        return None
    return None if code is None else read_module(code)


def outermost(name: str) -> str:
    """The package that a module is part of, or itself."""
    return name.partition(".")[0]
