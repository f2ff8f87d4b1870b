"""Encodes a message in one of its many ways, as Go does: the order of fields, and of a map's entries, is free."""

import random
from typing import Any

from google.protobuf.message import Message

_LENGTH_DELIMITED = 2


def shuffled(message: Message, order: random.Random) -> bytes:
    """Encode a message with everything in an order of its own; it is read as the same message."""
    chunks: list[bytes] = []
    for field, value in message.ListFields():
        if field.message_type is None:
            alone = type(message)()
            setattr(alone, field.name, value)
            chunks.append(alone.SerializeToString())
        elif field.message_type.GetOptions().map_entry:
            chunks += [_delimited(field.number, _entry(field.message_type, k, value[k], order)) for k in value]
        elif field.is_repeated:
            # In one chunk: the order of these is not free.
            chunks.append(b"".join(_delimited(field.number, shuffled(item, order)) for item in value))
        else:
            chunks.append(_delimited(field.number, shuffled(value, order)))
    order.shuffle(chunks)
    return b"".join(chunks)


def _entry(type_: Any, key: str, value: Any, order: random.Random) -> bytes:
    if isinstance(value, Message):
        value = shuffled(value, order)
    elif isinstance(value, str):
        value = value.encode()
    assert {f.type for f in type_.fields} <= {type_.fields[0].TYPE_STRING, type_.fields[0].TYPE_MESSAGE}, type_
    return _delimited(1, key.encode()) + _delimited(2, value)


def _delimited(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])
