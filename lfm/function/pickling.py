"""Functions and arguments as payloads, and what was met on the way: the names and the code they stand on.

Plain values take the plain pickler.  What lives in ``__main__``, or has no name, takes cloudpickle and travels by
value.  Every class and function met is noted: by its name where it travels as one, else as itself.
"""

from __future__ import annotations

import functools
import io
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from lfm.function.handle import Handle
from lfm.monitor import payload
from lfm.monitor.payload import Buffer

_OURS = frozenset({"builtins", "cloudpickle"})  # what every call has
_ATOMS = frozenset({int, float, complex, bool, str, bytes, bytearray, type(None), type(...)})
_CACHED = functools._lru_cache_wrapper
_BuffersTo = Callable[[pickle.PickleBuffer], Any]


@dataclass(slots=True)
class Met:
    """What a pickle refers to."""

    references: dict[tuple[str, str], None] = field(
        default_factory=dict
    )  # (module, qualified name; "" the module)
    functions: dict[int, FunctionType] = field(default_factory=dict)  # that travel by value, by id
    handles: dict[str, Handle] = field(default_factory=dict)

    def look(self, obj: Any) -> None:
        """Note an object that travels as its name, or else its class."""
        if isinstance(obj, ModuleType):
            self.references.setdefault((obj.__name__, ""))
            return
        if isinstance(obj, FunctionType) and not by_name(obj):
            self.functions.setdefault(id(obj), obj)
            return
        # What is neither class nor function may travel as its name too: a cached function says so, of a ufunc
        # its class tells where it is from.
        named = (
            obj
            if isinstance(obj, type | FunctionType | BuiltinFunctionType) or is_wrapper(obj)
            else type(obj)
        )
        module, name = getattr(named, "__module__", None), getattr(named, "__qualname__", "")
        if not isinstance(module, str):  # a method of a builtin: of whose?
            kind = type(getattr(named, "__self__", None))
            module, name = kind.__module__, kind.__qualname__
        if module.partition(".")[0] not in _OURS:
            self.references.setdefault((module, name))

    def hold(self, handle: Handle) -> None:
        """Note a handle, and what the object in its place needs."""
        self.handles.setdefault(handle.digest, handle)
        if handle.met is not None:
            self.references.update(handle.met.references)
            self.functions.update(handle.met.functions)


def is_wrapper(obj: Any) -> bool:
    """Whether an object took over the name of a function, as ``functools.cache`` does."""
    attributes = getattr(obj, "__dict__", None)
    return type(attributes) is dict and "__qualname__" in attributes and "__module__" in attributes


def by_name(obj: Any) -> bool:
    """Whether a function or class travels as its name: it can be found there, and not only in this process."""
    module = getattr(obj, "__module__", None)
    if not isinstance(module, str) or module == "__main__" or module not in sys.modules or _by_value(module):
        return False
    found: Any = sys.modules[module]
    for part in getattr(obj, "__qualname__", "").split("."):
        found = getattr(found, part, None)
    return found is obj


def _by_value(module: str) -> bool:
    """Whether the user told cloudpickle to take this module's code along by value."""
    cloudpickle = sys.modules.get("cloudpickle")
    registered = cloudpickle.list_registry_pickle_by_value() if cloudpickle else ()
    return any(module == one or module.startswith(one + ".") for one in registered)


class _NeedsMore(Exception):
    """The plain pickler met what it must not write."""


class _Plain(pickle.Pickler):
    """The C pickler; Python is asked only at objects that are neither containers nor atoms."""

    def __init__(self, file: io.BytesIO, buffers: _BuffersTo, met: Met) -> None:
        super().__init__(file, 5, buffer_callback=buffers)
        self._met = met
        self._kinds: set[type] = set()

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is Handle:
            raise _NeedsMore
        if kind is type or kind is FunctionType or kind is BuiltinFunctionType or isinstance(obj, type):
            if obj.__module__ == "__main__" or (kind is FunctionType and not by_name(obj)):
                raise _NeedsMore
            self._met.look(obj)
        elif kind not in self._kinds:
            if is_wrapper(obj):
                if obj.__module__ == "__main__":
                    raise _NeedsMore
            else:
                self._kinds.add(kind)
            self._met.look(obj)
        return NotImplemented


def _cached_by_value(obj: Any) -> tuple[Any, ...]:
    """A cached function of ``__main__``: with its function, and an empty cache."""
    how = obj.cache_parameters()
    return _CACHED, (obj.__wrapped__, how["maxsize"], how["typed"], functools._CacheInfo), dict(vars(obj))


@cache
def _thorough() -> tuple[type[Any], type[Any]]:
    """The picklers for everything else, without and with handles; made late, as importing cloudpickle takes a while."""
    import cloudpickle

    class Thorough(cloudpickle.Pickler):  # type: ignore[misc]
        def __init__(self, file: io.BytesIO, buffers: _BuffersTo, met: Met) -> None:
            super().__init__(file, 5, buffer_callback=buffers)
            self._met = met

        def reducer_override(self, obj: Any) -> Any:
            if type(obj) is _CACHED and not by_name(obj):
                return _cached_by_value(obj)
            self._met.look(obj)
            return super().reducer_override(obj)

    class WithHandles(Thorough):
        # Asked about every object, atoms included, so it serves only where there is a handle.
        def persistent_id(self, obj: Any) -> Any:
            if type(obj) is Handle:
                self._met.handles.setdefault(obj.digest, obj)
                if obj.met is not None:  # a call that gets the object needs what the object needs
                    self._met.references.update(obj.met.references)
                    self._met.functions.update(obj.met.functions)
                return obj.reference()
            return None

    return Thorough, WithHandles


def pickle_function(function: Any) -> tuple[list[Buffer], Met]:
    """A callable as a payload.  Raises what pickling raises."""
    met = Met()
    return payload.pack(function, _dumper(_thorough()[0], met)), met


def pickle_object(value: Any) -> tuple[list[Buffer], Met | None]:
    """(args, kwargs), or anything else, as a payload; Met is None for atoms only.  Raises what pickling raises."""
    if _only_atoms(value):
        return payload.assemble([pickle.dumps(value, 5)]), None
    met = Met()
    try:
        return payload.pack(value, _dumper(_Plain, met)), met
    except (_NeedsMore, pickle.PicklingError, AttributeError, TypeError):
        met = Met()
    try:
        return payload.pack(value, _dumper(_thorough()[0], met)), met
    except pickle.PicklingError:
        met = Met()
        return payload.pack(value, _dumper(_thorough()[1], met)), met


def _dumper(pickler: type[Any], met: Met) -> Callable[..., bytes]:
    def dumps(obj: Any, protocol: int, buffer_callback: _BuffersTo) -> bytes:
        file = io.BytesIO()
        pickler(file, buffer_callback, met).dump(obj)
        return file.getvalue()

    return dumps


def _only_atoms(value: Any) -> bool:
    """((atom, ...), {name: atom, ...})"""
    if (
        type(value) is not tuple
        or len(value) != 2
        or type(value[0]) is not tuple
        or type(value[1]) is not dict
    ):
        return False
    return all(type(a) in _ATOMS for a in value[0]) and all(type(a) in _ATOMS for a in value[1].values())
