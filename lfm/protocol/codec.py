"""Messages to bytes and back: ``decode(encode(m)) == m`` for every message.

A message is a msgpack array: the position of its type in ``TYPES``, then its fields in order.  Nested
dataclasses that stand in a union carry their position too.  Which fields need work is read once from the
annotations; plain fields are passed through.  Decoding checks shapes, so that a broken peer gets a
ProtocolError and not a crash later.
"""

from __future__ import annotations

import dataclasses
import operator
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
    fields: list[Any] = [_NUMBER[kind]]
    for get, convert in _ENCODERS[kind]:
        item = get(value)
        fields.append(item if convert is None else convert(item))
    return fields


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


def _unpack_any(value: Any, allowed: frozenset[type] | None = None) -> Any:
    if not isinstance(value, list) or not value or type(value[0]) is not int or not 0 <= value[0] < len(TYPES):
        raise ProtocolError("not a message")
    kind = TYPES[value[0]]
    if allowed is not None and kind not in allowed:
        raise ProtocolError(f"a {kind.__name__} where none belongs")
    readers = _DECODERS[kind]
    if len(value) != len(readers) + 1:
        raise ProtocolError(f"a {kind.__name__} with {len(value) - 1} fields instead of {len(readers)}")
    return kind(*[read(item) for read, item in zip(readers, value[1:], strict=True)])


_ENCODERS: dict[type, list[tuple[Convert, Convert | None]]] = {}
_DECODERS: dict[type, list[Convert]] = {}

for _kind in TYPES:
    _hints = typing.get_type_hints(_kind)
    _names = [f.name for f in dataclasses.fields(_kind)]
    _ENCODERS[_kind] = [(operator.attrgetter(n), _packer(_hints[n])) for n in _names]
    _DECODERS[_kind] = [_unpacker(_hints[n]) for n in _names]

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
