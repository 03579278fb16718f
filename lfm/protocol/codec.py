"""Messages to bytes and back: ``decode(encode(m)) == m`` for every message.

A message is a msgpack array: the position of its type in ``TYPES``, then its fields in order.  Nested
dataclasses that stand in a union carry their position too.  Decoding checks shapes, so that a broken peer gets
a ProtocolError and not a crash later.

Each type's writer and reader are compiled from its annotations when it is first met: one straight line of code
per type, as messages are most of what client, manager and worker do for a call.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Any

import msgpack

from lfm.errors import ProtocolError
from lfm.protocol import messages, outcomes, resources

# A type's number is its place here.  Usage lives where only the standard library is, and is named first.
TYPES: tuple[type, ...] = (
    resources.Usage,
    *(
        kind
        for module in (resources, outcomes, messages)
        for kind in vars(module).values()
        if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__module__ == module.__name__
    ),
)
_NUMBER = {kind: number for number, kind in enumerate(TYPES)}

Convert = Callable[[Any], Any]
_PLAIN: dict[Any, tuple[type, ...]] = {
    int: (int,), float: (int, float), str: (str,), bytes: (bytes,), bool: (bool,), type(None): (type(None),),
}


def _strip(hint: Any) -> Any:
    while hasattr(hint, "__supertype__"):  # NewType
        hint = hint.__supertype__
    return hint


def _packer(hint: Any) -> Convert | None:
    """How a field of this type becomes something msgpack knows; None: it is that already."""
    hint = _strip(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) or (
        origin in (types.UnionType, typing.Union) and any(dataclasses.is_dataclass(_strip(a)) for a in args)
    ):
        return _pack_any
    if origin is tuple and (inner := _packer(args[0])) is not None:
        return lambda values: [inner(v) for v in values]
    return None


def _pack_any(value: Any) -> Any:
    if value is None:
        return None
    kind = type(value)
    return (_WRITERS.get(kind) or _learn(kind, _WRITERS))(value)


def _unpacker(hint: Any) -> Convert:
    """How a field of this type is read back, checked."""
    hint = _strip(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return lambda value: value
    if hint in _PLAIN:
        kinds = _PLAIN[hint]
        real = float if hint is float else None

        def plain(value: Any) -> Any:
            if type(value) not in kinds:
                raise ProtocolError(f"expected {hint.__name__}, got {type(value).__name__}")
            return value if real is None else real(value)

        return plain
    if origin is tuple:
        inner = _unpacker(args[0])

        def items(value: Any) -> Any:
            if not isinstance(value, list):
                raise ProtocolError(f"expected a list, got {type(value).__name__}")
            return tuple(inner(v) for v in value)

        return items
    if origin is dict:
        key, content = _unpacker(args[0]), _unpacker(args[1])

        def mapping(value: Any) -> Any:
            if not isinstance(value, dict):
                raise ProtocolError(f"expected a map, got {type(value).__name__}")
            return {key(k): content(v) for k, v in value.items()}

        return mapping
    allowed = frozenset(_strip(a) for a in (args if origin in (types.UnionType, typing.Union) else (hint,)))
    if any(dataclasses.is_dataclass(a) for a in allowed):
        optional = type(None) in allowed

        def nested(value: Any) -> Any:
            return None if value is None and optional else _unpack_any(value, allowed)

        return nested
    choices = [(_PLAIN[a], a) for a in allowed]

    def choice(value: Any) -> Any:
        for kinds, kind in choices:
            if type(value) in kinds:
                return float(value) if kind is float else value
        raise ProtocolError(f"expected one of {sorted(a.__name__ for a in allowed)}, got {type(value).__name__}")

    return choice


def _unpack_any(value: Any, allowed: frozenset[type]) -> Any:
    if type(value) is not list or not value or type(value[0]) is not int or not 0 <= value[0] < len(TYPES):
        raise ProtocolError("not a message")
    kind = TYPES[value[0]]
    if kind not in allowed:
        raise ProtocolError(f"a {kind.__name__} where none belongs")
    return (_READERS.get(kind) or _learn(kind, _READERS))(value)


_WRITERS: dict[type, Convert] = {}
_READERS: dict[type, Convert] = {}


def _learn(kind: type, wanted: dict[type, Convert]) -> Convert:
    """Compile a type's writer and reader.

    For ``Blob(digest: str, size: int)`` they are, but for the names::

        def write(message):
            return [2, message.digest, message.size]

        def read(value):
            if len(value) != 3: wrong_length(value)
            _, f0, f1 = value
            if type(f0) is not str: f0 = read0(f0)
            if type(f1) is not int: f1 = read1(f1)
            return Blob(f0, f1)

    ``read0`` raises, or converts: an int where a float belongs, nested messages, tuples, maps.
    """
    hints, names = typing.get_type_hints(kind), [f.name for f in dataclasses.fields(kind)]

    def wrong_length(value: list[Any]) -> typing.NoReturn:
        raise ProtocolError(f"a {kind.__name__} with {len(value) - 1} fields instead of {len(names)}")

    space: dict[str, Any] = {"kind": kind, "wrong_length": wrong_length}
    written, checks = [str(_NUMBER[kind])], []
    for n, name in enumerate(names):
        pack = _packer(hints[name])
        space[f"pack{n}"], space[f"read{n}"] = pack, _unpacker(hints[name])
        written.append(f"pack{n}(message.{name})" if pack else f"message.{name}")
        checks.append(_check(n, hints[name], space))
    fields = ", ".join(f"f{n}" for n in range(len(names)))
    source = [
        f"def write(message): return [{', '.join(written)}]",
        "def read(value):",
        f"  if len(value) != {len(names) + 1}: wrong_length(value)",
        *([f"  _, {fields}, = value"] if names else []),
        *(f"  {check}" for check in checks if check),
        f"  return kind({fields})",
    ]
    exec("\n".join(source), space)
    _WRITERS[kind], _READERS[kind] = space["write"], space["read"]
    return wanted[kind]


def _check(n: int, hint: Any, space: dict[str, Any]) -> str:
    """The line that checks, and where it must converts, field ``n``."""
    hint = _strip(hint)
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    plain = {_strip(a) for a in (typing.get_args(hint) if union else (hint,))}
    if hint is Any:
        return ""
    if not plain <= _PLAIN.keys():
        return f"f{n} = read{n}(f{n})"
    optional = f"f{n} is not None and " if type(None) in plain else ""
    space[f"plain{n}"] = kinds = tuple(plain - {type(None)})
    if len(kinds) == 1:
        space[f"plain{n}"] = kinds[0]
        return f"if {optional}type(f{n}) is not plain{n}: f{n} = read{n}(f{n})"
    return f"if {optional}type(f{n}) not in plain{n}: f{n} = read{n}(f{n})"


_TOP = frozenset(typing.get_args(messages.Message))


def encode(message: messages.Message) -> bytes:
    """One message as one frame."""
    packed: bytes = msgpack.packb(_pack_any(message))
    return packed


def decode(frame: bytes | memoryview) -> messages.Message:
    """The message of a frame; ProtocolError if it is none."""
    try:
        value = msgpack.unpackb(frame, raw=False, strict_map_key=False)
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise ProtocolError(f"not a message: {error}") from None
    try:
        return typing.cast(messages.Message, _unpack_any(value, _TOP))
    except RecursionError:
        raise ProtocolError("not a message: nested too deeply") from None
