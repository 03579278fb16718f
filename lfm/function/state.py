"""Whether a function is still what it was when it was last pickled, without pickling it again.

A token is made of what the pickle would hold: code, defaults, closure, the globals that the code names.  Small
values are compared by value, so that a changed list or attribute is noticed; large ones by identity, so that
looking costs microseconds whatever the function holds on to.
"""

from __future__ import annotations

import functools
import weakref
from functools import lru_cache
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

LIMIT = 256  # nodes of a value that are looked at
_SMALL = 4096  # bytes of a buffer that are compared
_ALONE = frozenset({FunctionType, type, ModuleType})
_PLAIN = frozenset({int, float, complex, bool, type(None)})


class _Same:
    """Equal while it is the same living object; keeps nothing alive."""

    __slots__ = ("reference",)

    def __init__(self, obj: Any) -> None:
        self.reference = weakref.ref(obj)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.reference is other.reference and self.reference() is not None

    def __hash__(self) -> int:
        return id(self.reference)


def token(obj: Any) -> Any:
    """What a callable stands on, as a value to compare."""
    return _Teller().callable(obj)


def identity(obj: Any) -> Any:
    """A token that is equal only for the same object."""
    try:
        return _Same(obj)
    except TypeError:  # it has no weak references
        return type(obj), id(obj)


class _Teller:
    """Makes one token, within a budget of nodes."""

    __slots__ = ("inside", "left")

    def __init__(self) -> None:
        self.left = LIMIT
        self.inside: set[int] = set()

    def callable(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is FunctionType:
            return self.function(obj)
        if kind is MethodType:
            return self.callable(obj.__func__), self.value(obj.__self__)
        if isinstance(obj, functools.partial):
            return self.callable(obj.func), self.value(obj.args), self.value(obj.keywords)
        return self.value(obj)

    def function(self, function: FunctionType) -> Any:
        code, names = function.__code__, function.__globals__
        parts: list[Any] = [weakref.ref(code)]  # compared by value, as the others of _ALONE by identity
        for held in (function.__defaults__, function.__kwdefaults__):
            parts.append(held if held is None else self.value(held))
        for cell in function.__closure__ or ():
            parts.append(self.cell(cell))
        for name in global_names(code):
            if name in names:
                parts.append(self.value(names[name]))
        return parts

    def cell(self, cell: Any) -> Any:
        try:
            return self.value(cell.cell_contents)
        except ValueError:  # empty
            return None

    def value(self, obj: Any) -> Any:
        kind = type(obj)
        if kind in _PLAIN:
            return kind, obj
        if kind is str or kind is bytes:
            return kind, len(obj), hash(obj)  # both remember their hash
        self.left -= 1
        if kind in _ALONE:
            return weakref.ref(obj)
        if self.left < 0 or id(obj) in self.inside:
            return identity(obj)
        self.inside.add(id(obj))
        try:
            return self.contents(obj, kind)
        finally:
            self.inside.discard(id(obj))

    def contents(self, obj: Any, kind: type) -> Any:
        if kind in (list, tuple, set, frozenset, dict):
            if len(obj) > self.left:
                return identity(obj), len(obj)
            items = obj.items() if kind is dict else obj
            return kind, tuple(self.value(item) for item in items)
        if isinstance(obj, functools.partial):
            return self.callable(obj)
        attributes = getattr(obj, "__dict__", None)
        if type(attributes) is dict and not isinstance(obj, type):
            return identity(obj), self.value(attributes)
        try:
            view = memoryview(obj)
            return (kind, view.shape, view.tobytes()) if view.nbytes <= _SMALL else identity(obj)
        except (TypeError, ValueError, BufferError):
            return identity(obj)


@lru_cache(maxsize=4096)
def global_names(code: CodeType) -> tuple[str, ...]:
    """The names that code, and code nested in it, may look up among its globals."""
    names = dict.fromkeys(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names.update(dict.fromkeys(global_names(constant)))
    return tuple(names)
