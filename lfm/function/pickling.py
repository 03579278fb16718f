"""Functions and arguments as payloads, and what was met on the way: the names and the code they stand on.

Plain values take the plain pickler.  What lives in ``__main__``, or has no name, takes cloudpickle and travels by
value.  Every class and function met is noted: by its name where it travels as one, else as itself.
"""

from __future__ import annotations

import builtins
import functools
import io
import linecache
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

from lfm.function.handle import Handle
from lfm.monitor import payload
from lfm.monitor.payload import Buffer

_OURS = frozenset({"builtins", "cloudpickle"})  # what every call has
_ATOMS = frozenset({int, float, complex, bool, str, bytes, bytearray, type(None), type(...)})
_LONGEST = 1 << 18  # characters of a script that travels for its tracebacks
_CACHED = functools._lru_cache_wrapper
_FILENAME = 10  # where CodeType takes co_filename, Python 3.11 on
_BuffersTo = Callable[[pickle.PickleBuffer], Any]


@dataclass(slots=True)
class Met:
    """What a pickle refers to.  A reference is (module, qualified name); of a module itself, (module, "")."""

    references: dict[tuple[str, str], None] = field(default_factory=dict)
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
        nameable = isinstance(obj, type | FunctionType | BuiltinFunctionType) or is_wrapper(obj)
        named = obj if nameable else type(obj)
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
    if not isinstance(module, str) or module == "__main__" or module not in sys.modules:
        return False
    if _by_value(module) or _made_by_hand(module):
        return False
    found: Any = sys.modules[module]
    for part in getattr(obj, "__qualname__", "").split("."):
        found = getattr(found, part, None)
    return found is obj


def _made_by_hand(module: Any) -> bool:
    """Whether a module exists in this process only: nobody could import it anywhere else."""
    found = sys.modules.get(module) if isinstance(module, str) and "." not in module else None
    if found is None or module in sys.stdlib_module_names or module == "__main__":
        return False
    return getattr(found, "__spec__", None) is None and not getattr(found, "__file__", None)


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
        if kind in _NAMED or isinstance(obj, type):
            if obj not in _BY_NAME:
                self._first(obj)
            self._met.references.update(_BY_NAME[obj])
        elif kind not in self._kinds:
            if kind is Handle:
                raise _NeedsMore
            if is_wrapper(obj):
                if not by_name(obj):
                    raise _NeedsMore
            else:
                self._kinds.add(kind)
            self._met.look(obj)
        return NotImplemented

    def _first(self, obj: Any) -> None:
        """Learn how a class or function travels."""
        module = obj.__module__
        if module == "__main__" or _made_by_hand(module) or (type(obj) is FunctionType and not by_name(obj)):
            raise _NeedsMore
        met = Met()
        met.look(obj)
        if len(_BY_NAME) > 10_000:
            _BY_NAME.clear()
        _BY_NAME[obj] = met.references


_NAMED = frozenset({type, FunctionType, BuiltinFunctionType})
_BY_NAME: dict[
    Any, dict[tuple[str, str], None]
] = {}  # should one no longer be found there, pickle itself will tell


@cache
def _thorough() -> tuple[type[Any], type[Any]]:
    """The picklers for everything else, without and with handles; made late, as importing cloudpickle takes a while."""
    import cloudpickle

    class Thorough(cloudpickle.Pickler):  # type: ignore[misc]
        def __init__(self, file: io.BytesIO, buffers: _BuffersTo, met: Met) -> None:
            super().__init__(file, 5, buffer_callback=buffers)
            self._met = met

        def reducer_override(self, obj: Any) -> Any:
            kind = type(obj)
            if kind is _CACHED and not by_name(obj):
                return _cached_by_value(obj)
            if kind is CodeType:  # tracebacks are to show the user's file, which cloudpickle >= 3.1.3 leaves out
                make, parts = self.dispatch_table[CodeType](obj)
                return make, (*parts[:_FILENAME], obj.co_filename, *parts[_FILENAME + 1 :])
            if kind is _WithSources:
                return _RESTORE, (obj.function, _SOURCES)
            if kind is _Sources:
                return dict, (tuple(_sources(self._met).items()),)
            if (kind is FunctionType or isinstance(obj, type)) and _made_by_hand(obj.__module__):
                cloudpickle.register_pickle_by_value(sys.modules[obj.__module__])
            if obj is not _RESTORE:
                self._met.look(obj)
            return super().reducer_override(obj)

    class WithHandles(Thorough):
        # Asked about every object, atoms included, so it serves only where there is a handle.
        def persistent_id(self, obj: Any) -> Any:
            if type(obj) is Handle:
                self._met.hold(obj)
                return obj.reference()
            return None

    return Thorough, WithHandles


def _cached_by_value(obj: Any) -> tuple[Any, ...]:
    """A cached function of ``__main__``: with its function, and an empty cache."""
    how = obj.cache_parameters()
    return _CACHED, (obj.__wrapped__, how["maxsize"], how["typed"], functools._CacheInfo), dict(vars(obj))


def pickle_function(function: Any) -> tuple[list[Buffer], Met]:
    """A callable as a payload.  Raises what pickling raises."""
    met = Met()
    travels = function if by_name(function) else _WithSources(function)
    return payload.pack(travels, _dumper(_thorough()[0], met)), met


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
    if type(value) is tuple and len(value) == 2:
        args, kwargs = value
        if type(args) is tuple and type(kwargs) is dict:
            return _ATOMS.issuperset(map(type, args)) and _ATOMS.issuperset(map(type, kwargs.values()))
    return False


# ---------------------------------------------------------------- the text of code that travels by value


@dataclass(frozen=True, slots=True)
class _WithSources:
    """Pickled as ``function``, which brings along the text that it and its helpers were written in.

    So that a traceback in the call, and ``inspect.getsource``, show the lines of a script or a notebook cell.
    """

    function: Any


class _Sources:
    """Stands after the function in the pickle, where it is known which texts it needs."""


_SOURCES = _Sources()


# Runs while unpickling, where lfm is not.  linecache keeps what comes without a time of change.
def _with_sources(function: Any, sources: dict[str, str]) -> Any:
    import linecache

    for name, text in sources.items():
        linecache.cache.setdefault(name, (len(text), None, text.splitlines(True), name))
    return function


# As if it were of ``__main__``, so that it travels by value.
_RESTORE = FunctionType(
    _with_sources.__code__.replace(co_filename="<sources>"),
    {"__name__": "__main__", "__builtins__": builtins},
)


def _sources(met: Met) -> dict[str, str]:
    """File -> text, of the functions that travel by value."""
    files = sorted({function.__code__.co_filename for function in met.functions.values()})
    texts = {file: "".join(linecache.getlines(file)) for file in files}
    return {file: text for file, text in texts.items() if 0 < len(text) <= _LONGEST}
