"""Messages to bytes and back: ``decode(encode(m)) == m`` for every message.

A message is a msgpack array: the name of its type, then its fields in order.  Decoding checks every field
against its annotation, so that a broken peer gets a ProtocolError and not a crash later.
"""

from __future__ import annotations

import msgspec

from lfm.errors import ProtocolError
from lfm.protocol.messages import Message

_DECODER: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_ENCODER = msgspec.msgpack.Encoder()


def encode(message: Message) -> bytes:
    """One message as one frame."""
    return _ENCODER.encode(message)


def decode(frame: bytes | memoryview) -> Message:
    """The message of a frame; ProtocolError if it is none."""
    try:
        return _DECODER.decode(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise ProtocolError(f"not a message: {error or type(error).__name__}") from None
