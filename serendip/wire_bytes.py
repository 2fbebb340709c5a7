"""The wire format by hand, for messages that would take many objects.

A field is its number and kind, then its length or its value, and messages are joined by joining
their bytes (https://protobuf.dev/programming-guides/encoding). Knows no message.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

VARINT, LENGTH_PREFIXED, FOUR_BYTES = 0, 2, 5  # kinds of fields


def key(field: str, message: Any, kind: int) -> int:
    """The byte that a field of number 15 or less begins with."""
    number: int = message.DESCRIPTOR.fields_by_name[field].number
    return number << 3 | kind


def varint(value: int) -> bytes:
    """An unsigned number, seven bits a byte, the low ones first."""
    raw = bytearray()
    while value > 0x7F:
        raw.append(value & 0x7F | 0x80)
        value >>= 7
    raw.append(value)
    return bytes(raw)


def field(key_: int, value: bytes) -> bytes:
    """A length-prefixed field."""
    return b"%c%b%b" % (key_, varint(len(value)), value)


def leading(raw: bytes, key_: int) -> tuple[int, int]:
    """How many length-prefixed fields of one key stand first in a message, and where they end.

    Raises ValueError if one is cut off.
    """
    count = at = 0
    whole = len(raw)
    while at < whole and raw[at] == key_:
        count += 1
        if at + 1 < whole and (length := raw[at + 1]) <= 0x7F:
            at += 2 + length
        else:
            _, at = _value(raw, at + 1)
    if at > whole:
        raise ValueError("a field is cut off")
    return count, at


def split(raw: bytes, key_: int) -> Iterator[bytes]:
    """Those fields one by one, with their keys and lengths. Raises as ``leading``, on the way."""
    start, whole = 0, len(raw)
    while start < whole and raw[start] == key_:
        _, end = _value(raw, start + 1)
        yield raw[start:end]
        start = end


def length_prefixed(raw: bytes) -> dict[int, bytes]:
    """The values of a message that has length-prefixed fields alone, by key; the last of each.

    Raises ValueError if it is no such message.
    """
    found = {}
    at, whole = 0, len(raw)
    while at < whole:
        key_ = raw[at]
        if key_ & 7 != LENGTH_PREFIXED:
            raise ValueError(f"kind {key_ & 7} at byte {at}")
        start, at = _value(raw, at + 1)
        found[key_] = raw[start:at]
    return found


def _value(raw: bytes, at: int) -> tuple[int, int]:
    """Where the value begins and ends whose length stands at a byte."""
    length = shift = 0
    try:
        while (byte := raw[at]) > 0x7F:
            length |= (byte & 0x7F) << shift
            shift += 7
            at += 1
        length |= byte << shift
    except IndexError:
        raise ValueError("a length is cut off") from None
    end = at + 1 + length
    if end > len(raw):
        raise ValueError("a field is cut off")
    return at + 1, end
