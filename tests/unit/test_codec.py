"""Every message survives the wire; nothing else is taken for one."""

import typing

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lfm.errors import ProtocolError
from lfm.protocol import messages as m
from lfm.protocol.codec import decode, encode

MESSAGES = list(m.Message.__args__)
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=5), lambda s: st.lists(s, max_size=3)
)
st.register_type_strategy(float, st.floats(allow_nan=False))
st.register_type_strategy(int, st.integers(-(2**63), 2**64 - 1))
free = {(m.Query, "arguments"): st.dictionaries(st.text(), anything), (m.Answer, "body"): anything}  # fields that hold anything
for kind in MESSAGES:
    hints = typing.get_type_hints(kind)
    fields = {name: free[kind, name] if (kind, name) in free else st.from_type(hints[name]) for name in kind.__struct_fields__}
    st.register_type_strategy(kind, st.builds(kind, **fields))


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_every_message_survives_the_wire(kind: type) -> None:
    @given(st.from_type(kind))
    def check(message: m.Message) -> None:
        assert decode(encode(message)) == message

    check()


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(frame: bytes) -> None:
    try:
        message = decode(frame)
    except ProtocolError:
        return
    assert type(message) in MESSAGES


@given(anything)
def test_other_values_are_refused(value: object) -> None:
    try:
        message = decode(msgpack.packb([1, value] if not isinstance(value, list) else value))
    except (ProtocolError, OverflowError):
        return
    assert type(message) in MESSAGES


def test_a_part_is_not_a_message() -> None:
    with pytest.raises(ProtocolError):
        decode(msgspec.msgpack.encode(m.Source("tcp://127.0.0.1:1", "key")))
