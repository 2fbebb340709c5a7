"""The wire format by hand, for responses that would take many messages.

A field is its number and kind, then its length or its value, and messages are joined by joining
their bytes (https://protobuf.dev/programming-guides/encoding). Knows no message.
"""

from __future__ import annotations

from typing import Any

LENGTH_PREFIXED, FOUR_BYTES = 2, 5  # kinds of fields


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
