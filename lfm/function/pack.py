"""A callable, and then its arguments, made ready to leave: environment plan, overlay, pickle.  Cached.

The only module that a client needs.  Packing an unchanged function again costs microseconds; an edited module of
the user's, a changed global, a new installation are noticed.
"""

from __future__ import annotations

import hashlib
import sys
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from types import CodeType, MethodType
from typing import Any

from lfm.errors import LfmError
from lfm.function import explicit, overlay, state
from lfm.function.analyse import Analysis, Live, Walk
from lfm.function.handle import Handle
from lfm.function.installed import Installed
from lfm.function.learned import Learned
from lfm.function.memory import Looking
from lfm.function.modules import Kind, Modules
from lfm.function.optional import asked_for
from lfm.function.pickling import Met, pickle_function, pickle_object
from lfm.function.plan import Plan
from lfm.function.resolve import Resolved, resolve
from lfm.function.task import layers, options_of
from lfm.monitor.payload import Buffer
from lfm.protocol.ids import FunctionId

_REMEMBERED = 1024  # functions, analyses, overlays
_BURST, _BURST_S = 64, 0.05  # looks at the disk within so many seconds
_References = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Packed:
    """A function as it travels."""

    function: FunctionId
    name: str  # for people: "fit", "model.fit"
    category: str
    options: dict[str, Any]  # what lfm.task remembered
    plan: Plan
    environment_name: str
    code: list[Buffer]  # a payload
    overlay: bytes | None  # a tar
    preload: tuple[str, ...]
    warnings: tuple[str, ...]
    homes: dict[str, str]  # path in the overlay -> where the user has this file
    generation: int  # of what was presumed to be installed


@dataclass(frozen=True, slots=True)
class _Wish:
    """What the user said about the environment, and earlier calls taught."""

    imports: tuple[str, ...]
    exclude: tuple[str, ...]
    environment: Any
    function: str = ""  # under which is kept what its calls teach
    learned: tuple[tuple[str, str], ...] = ()  # (module, why)

    @classmethod
    def of(
        cls, options: dict[str, Any], imports: Iterable[str], exclude: Iterable[str], environment: Any
    ) -> _Wish:
        def names(option: str, given: Iterable[str]) -> tuple[str, ...]:
            remembered = options.get(option) or ()
            both = ((one,) if isinstance(one, str) else one for one in (remembered, given))
            return tuple(sorted({name for some in both for name in some}))

        chosen = environment if environment is not None else options.get("environment")
        if chosen is not None and not isinstance(chosen, str) and not hasattr(chosen, "__fspath__"):
            chosen = tuple(chosen)
        return cls(names("imports", imports), names("exclude", exclude), chosen)


@dataclass(slots=True)
class _Basis:
    """What a packed function was made from: enough to make it anew with more."""

    wish: _Wish
    references: _References
    codes: dict[CodeType, Live]
    layer: overlay.Overlay
    token: object  # of an explicit environment
    known: set[tuple[str, str]]  # references that ask for nothing new
    known_codes: set[CodeType]
    grown: dict[Any, Packed] = field(default_factory=dict)  # by what was asked for; while a function lives
    users: int = 0  # functions that live

    def renew(self) -> None:
        """What is installed has changed, or was not as presumed: only what it was made from still holds."""
        self.grown.clear()
        self.users = 0  # who lives is remembered anew
        self.known, self.known_codes = set(self.references), set(self.codes)

    def left(self, users: int) -> None:
        self.users -= users
        if self.users <= 0:
            self.grown.clear()

    def stale(self) -> bool:
        moved = self.wish.environment is not None and explicit.token(self.wish.environment) != self.token
        return moved or self.layer.stale()


@dataclass(slots=True)
class _Entry:
    """A function that was packed, and how to know that it is still the same."""

    packed: Packed
    alive: tuple[Any, ...]  # weak references to what the key was made of
    token: Any
    others: tuple[tuple[Any, Any], ...]  # (weak reference, token) of the functions that went along by value
    learned: int  # how much had been learned then


class Packer:
    """Packs functions and arguments.  May be used from several threads."""

    def __init__(self, learned: Learned | None = None, looking: Looking | None = None) -> None:
        """``looking``: a Memory makes it quick; then what it presumes is looked at by ``settle``."""
        self._learned = Learned() if learned is None else learned
        self._looking = Looking() if looking is None else looking
        self._lock = threading.RLock()
        self._modules: Modules | None = None
        self._generation = 0  # of what is remembered here
        self._window, self._looks = 0.0, 0
        self._entries: OrderedDict[Any, _Entry] = OrderedDict()
        self._bases: OrderedDict[FunctionId, _Basis] = OrderedDict()
        self._analyses: OrderedDict[Any, tuple[Analysis, Resolved | None]] = OrderedDict()
        self._layers: OrderedDict[Any, overlay.Overlay] = OrderedDict()

    def pack(
        self,
        fn: Any,
        *,
        imports: Iterable[str] = (),
        exclude: Iterable[str] = (),
        environment: explicit.Environment | None = None,
    ) -> Packed:
        """``fn`` with all it needs.  AnalysisError for an import that is not there; else what pickling raises."""
        if not callable(fn):
            raise TypeError(f"{fn!r} cannot be called")
        options = options_of(fn)
        parts = (fn.__func__, fn.__self__) if type(fn) is MethodType else (fn,)
        key = (*map(id, parts), _fixed(imports), _fixed(exclude), _fixed(environment))
        with self._lock:
            look = self._modules is None or self._may_look()
            if look:
                self._refresh()
            entry = self._entries.get(key)
            if entry is not None and entry.packed.options == options and self._fresh(entry, fn, parts, look):
                return entry.packed
            self._refresh()
            wish = _Wish.of(options, imports, exclude, environment)
            identity = _identity(fn)
            wish = replace(wish, function=identity, learned=self._learned.of(identity))
            code, met = pickle_function(fn)
            codes = {function.__code__: Live.of(function) for function in met.functions.values()}
            packed = self._make(_name(fn), options, code, wish, frozenset(met.references), codes)
            self._remember(key, parts, fn, packed, met)
            return packed

    def arguments(
        self, packed: Packed, args: tuple[Any, ...], kwargs: dict[str, Any], found: list[Handle] | None = None
    ) -> tuple[Packed, list[Buffer]]:
        """The payload of one call's (args, kwargs), and the function as it is to be declared for it.

        That is ``packed``, or one whose environment also holds what these arguments need.  Handles that the
        payload refers to are appended to ``found``.  Raises what pickling raises.
        """
        return self.object(packed, (args, kwargs), found)

    def object(
        self, packed: Packed, obj: Any, found: list[Handle] | None = None
    ) -> tuple[Packed, list[Buffer]]:
        """``arguments`` for any object; a chunk of calls is a list of (args, kwargs)."""
        pieces, met = pickle_object(obj)
        if met is None:
            return packed, pieces
        if found is not None:
            found.extend(met.handles.values())
        with self._lock:
            return self._with(packed, met), pieces

    def repair(self, packed: Packed, module: str, where: str) -> Packed | None:
        """``packed`` with ``module``, which its call failed to import at ``where``; remembered for later sessions.

        None where that cannot help: the module is not here either, or it was there already.
        """
        with self._lock:
            basis = self._bases.get(packed.function)
            modules = self._refresh()
            found = modules.find(module)
            while found.kind is Kind.MISSING and "." in found.name:
                found = modules.find(found.name.rpartition(".")[0])
            if basis is None or found.kind in (Kind.MISSING, Kind.STANDARD):
                return None
            known = basis.grown.get(found.name)
            if known is not None:
                return known
            why = f"learned: import failed in {where}"
            wish = replace(
                basis.wish, learned=tuple(sorted({**dict(basis.wish.learned), found.name: why}.items()))
            )
            grown = self._make(packed.name, packed.options, packed.code, wish, basis.references, basis.codes)
            if grown.function == packed.function:
                return None
            basis.grown[found.name] = grown
            self._learned.add(wish.function, found.name, why)
            return grown

    def asked_for(self, packed: Packed, text: str) -> str | None:
        """A module that an error message of ``packed``'s call asks for, and its environment lacks; None if there is none."""
        with self._lock:
            return asked_for(text, self._refresh(), {one.name for one in packed.plan.distributions})

    # ------------------------------------------------------------ what was presumed

    def sure(self, packed: Packed) -> bool:
        """Whether it rests on nothing that was only presumed: else ``settle`` it."""
        return not self._looking.unsure and packed.generation == self._looking.generation  # in this order

    def settle(self, packed: Packed) -> Packed:
        """``packed``, of what is installed now: looks at what was presumed.  Raises what ``pack`` raises."""
        while not self.sure(packed):
            self._looking.look()
            if packed.generation != self._looking.generation:
                packed = self._anew(packed)
        return packed

    def _anew(self, packed: Packed) -> Packed:
        with self._lock:
            basis = self._bases.get(packed.function)
            if basis is None:  # many functions were packed since
                raise LfmError(f"what is installed changed while {packed.name} was submitted; submit it again")
            return self._make(packed.name, packed.options, packed.code, basis.wish, basis.references, basis.codes)

    # ------------------------------------------------------------ what is remembered

    def _refresh(self) -> Modules:
        """The modules as they are installed now; what was made from older ones, or on a wrong presumption, is forgotten."""
        if (
            self._modules is None
            or self._modules.installed.path != sys.path
            or self._modules.installed.stale()
        ):
            self._modules = Modules(Installed())
        elif self._generation == self._looking.generation:
            return self._modules
        self._generation = self._looking.generation
        for cache in (self._entries, self._analyses, self._layers):
            cache.clear()
        for basis in self._bases.values():
            basis.renew()
        return self._modules

    def _may_look(self) -> bool:
        """Whether to look at the disk: always, but in a burst of submits only now and then."""
        now = time.monotonic()
        if now >= self._window:
            self._window, self._looks = now + _BURST_S, 0
        self._looks += 1
        return self._looks <= _BURST

    def _fresh(self, entry: _Entry, fn: Any, parts: tuple[Any, ...], look: bool) -> bool:
        for reference, part in zip(entry.alive, parts, strict=True):
            if reference() is not part:
                return False
        if entry.learned != self._learned.revision or entry.token != state.token(fn):
            return False
        for reference, token in entry.others:
            if (function := reference()) is None or token != state.token(function):
                return False
        basis = self._bases.get(entry.packed.function)
        return basis is not None and not (look and basis.stale())

    def _remember(self, key: Any, parts: tuple[Any, ...], fn: Any, packed: Packed, met: Met) -> None:
        basis = self._bases[packed.function]
        entries = weakref.ref(self)

        def forget(_: Any) -> None:  # and let go of what the pickles hold on to
            basis.left(1)
            if (packer := entries()) is not None:
                packer._entries.pop(key, None)

        if (old := self._entries.get(key)) and (before := self._bases.get(old.packed.function)) is not None:
            before.left(len(parts))
        basis.users += len(parts)

        try:
            alive: tuple[Any, ...] = tuple(weakref.ref(part, forget) for part in parts)
        except TypeError:  # it has no weak references; keep it
            alive = tuple((lambda part=part: part) for part in parts)
        others = tuple((weakref.ref(f), state.token(f)) for f in met.functions.values() if f is not fn)
        _put(self._entries, key, _Entry(packed, alive, state.token(fn), others, self._learned.revision))

    # ------------------------------------------------------------ making

    def _make(
        self, name: str, options: dict[str, Any], code: list[Buffer], wish: _Wish,
        references: _References, codes: dict[CodeType, Live],
    ) -> Packed:  # fmt: skip
        analysis, resolved = self._analysed(name, wish, references, codes)
        generation = self._generation  # before more is looked at
        layer = self._layer(analysis)
        if resolved is None:
            plan, environment = explicit.plan(wish.environment)
            plan = replace(plan, verify=tuple(sorted(analysis.needs)))
        else:
            plan, environment = resolved.plan, resolved.name
        preload = tuple(sorted(analysis.preload))
        warnings = (*analysis.warnings, *(resolved.warnings if resolved else ()), *layer.warnings)
        digest = hashlib.sha256()
        for piece in code:
            digest.update(piece)
        for text in (plan.key, hashlib.sha256(layer.data).hexdigest(), *preload):
            digest.update(b"\0" + text.encode())
        packed = Packed(
            FunctionId(digest.hexdigest()), name, str(options.get("category") or name), options, plan,
            environment, code, layer.data, preload, tuple(dict.fromkeys(warnings)), layer.homes, generation,
        )  # fmt: skip
        token = None if wish.environment is None else explicit.token(wish.environment)
        if (known := self._bases.get(packed.function)) is not None:
            known.layer, known.token = layer, token  # of the same content, perhaps newer
        else:
            basis = _Basis(wish, references, codes, layer, token, set(references), set(codes))
            _put(self._bases, packed.function, basis)
        return packed

    def _analysed(
        self, name: str, wish: _Wish, references: _References, codes: dict[CodeType, Live]
    ) -> tuple[Analysis, Resolved | None]:
        modules = self._refresh()
        key = (name, wish, references, frozenset(codes))
        known = self._analyses.get(key)
        if known is not None and not self._stale(known[0]):
            return known
        walk = Walk(modules, wish.exclude, elsewhere=wish.environment is not None)
        for live in codes.values():
            walk.function(live)
        for module, qualified in sorted(references):
            walk.reference(module, qualified, name)
        for module in wish.imports:
            walk.asked(module)
        for module, why in wish.learned:
            if modules.find(module).kind is not Kind.MISSING and not walk.excluded(module):
                walk.asked(module, why, preload=True)
        analysis, resolved = walk.finish(), None
        while wish.environment is None:
            resolved = resolve(analysis, modules, wish.exclude, self._looking)
            new = [one for one in resolved.editables if one.name not in analysis.editables]
            if not new:
                break
            for one in new:  # the user's own, required by an installed one: into the overlay, whole
                analysis.editables[one.name] = one
                for top in one.tops:
                    if modules.find(top).kind is not Kind.MISSING:
                        walk.asked(top, f"required through {one.name}")
            walk.finish()
        _put(self._analyses, key, (analysis, resolved))
        return analysis, resolved

    def _stale(self, analysis: Analysis) -> bool:
        layer = self._layers.get(_layer_key(analysis))
        return layer is None or layer.stale()

    def _layer(self, analysis: Analysis) -> overlay.Overlay:
        key = _layer_key(analysis)
        layer = self._layers.get(key)
        if layer is None or layer.stale():
            local = (analysis.local[name] for name in sorted(analysis.local))
            editables = (analysis.editables[name] for name in sorted(analysis.editables))
            layer = overlay.build(self._refresh(), local, editables)
            _put(self._layers, key, layer)
        return layer

    # ------------------------------------------------------------ arguments

    def _with(self, packed: Packed, met: Met) -> Packed:
        """``packed``, grown by what its arguments need."""
        basis = self._bases.get(packed.function)
        if basis is None:
            return packed
        references = met.references.keys() - basis.known
        codes = {
            f.__code__: Live.of(f) for f in met.functions.values() if f.__code__ not in basis.known_codes
        }
        if not references and not codes:
            return packed
        key = (frozenset(references), frozenset(codes))
        grown = basis.grown.get(key)
        if grown is not None and (known := self._bases.get(grown.function)) is not None and not known.stale():
            return grown
        grown = self._make(packed.name, packed.options, packed.code, basis.wish,
                           basis.references | references, {**basis.codes, **codes})  # fmt: skip
        if grown.function == packed.function:
            basis.known |= references
            basis.known_codes |= codes.keys()
            return packed
        basis.grown[key] = grown
        return grown


def _layer_key(analysis: Analysis) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(sorted(analysis.local)), tuple(sorted(analysis.editables))


def _fixed(names: Any) -> Any:
    """Names as part of a key."""
    return (
        names
        if names is None or isinstance(names, str | tuple) or hasattr(names, "__fspath__")
        else tuple(names)
    )


def _name(fn: Any) -> str:
    """A callable's name as people know it."""
    named = next((one for one in layers(fn) if hasattr(one, "__qualname__")), type(fn))
    module = getattr(named, "__module__", None)
    return (
        named.__qualname__ if module in (None, "__main__", "builtins") else f"{module}.{named.__qualname__}"
    )


def _identity(fn: Any) -> str:
    """A function's name and file: what stays the same from session to session."""
    *_, inner = layers(fn)
    code = getattr(inner, "__code__", None)
    home = sys.modules.get(type(inner).__module__)
    file = code.co_filename if isinstance(code, CodeType) else getattr(home, "__file__", None)
    return f"{_name(inner)} {file or ''}"


def _put(cache: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    cache[key] = value
    cache.move_to_end(key)
    if len(cache) > _REMEMBERED:
        cache.popitem(last=False)
