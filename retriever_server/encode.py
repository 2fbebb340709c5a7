"""Retrievals as the bytes of their responses, without a message a candidate.

What ``serendip.wire`` makes of a retrieval, serialised: a message for each of fifty candidates
would take several times as long. Only a candidate's item ID and score are written by hand: in the
wire format (https://protobuf.dev/programming-guides/encoding) a field is its number and kind, then
its length or its value, and messages are joined by joining their bytes. Knows no ranker.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import lru_cache
from itertools import chain, repeat
from typing import Any

from google.rpc import status_pb2

from serendip.core import Versions
from serendip.retrieval.found import Found
from serendip.v1 import common_pb2, retriever_pb2
from serendip.wire import versions_to_proto

_LENGTH_PREFIXED, _FOUR_BYTES = 2, 5  # kinds of fields


def _key(field: str, message: Any, kind: int) -> int:
    number: int = message.DESCRIPTOR.fields_by_name[field].number
    return number << 3 | kind


_ITEM_ID = _key("item_id", common_pb2.Candidate, _LENGTH_PREFIXED)
_SCORE = bytes([_key("score", common_pb2.Candidate, _FOUR_BYTES)])
_CANDIDATE = _key("candidates", retriever_pb2.RetrieveResponse, _LENGTH_PREFIXED)
_ROW = _key("rows", retriever_pb2.RetrieveBatchResponse, _LENGTH_PREFIXED)
_STATUS = _key("status", retriever_pb2.RetrieveRow, _LENGTH_PREFIXED)
_RESPONSE = _key("response", retriever_pb2.RetrieveRow, _LENGTH_PREFIXED)


def encode_found(found: Found, versions: Versions) -> bytes:
    """A RetrieveResponse. Scores become 32-bit floats on the way."""
    return _candidates(found) + _rest(found.widened_to, found.unknown_history_items, versions)


def encode_rows(rows: Iterable[bytes | status_pb2.Status]) -> bytes:
    """A RetrieveBatchResponse: of each row the bytes of its response, or what it failed with."""
    parts = []
    for row in rows:
        if isinstance(row, bytes):
            ok = b"%c\0%c%b" % (_STATUS, _RESPONSE, _varint(len(row)))
            parts += [b"%c%b" % (_ROW, _varint(len(ok) + len(row))), ok, row]
        else:
            failed = retriever_pb2.RetrieveRow(status=row).SerializeToString()
            parts += [b"%c%b" % (_ROW, _varint(len(failed))), failed]
    return b"".join(parts)


def _candidates(found: Found) -> bytes:
    names, packed = found.item_ids, struct.pack(f"<{len(found)}f", *found.scores)
    scores = [_SCORE + packed[at : at + 4] for at in range(0, len(packed), 4)]
    tails = list(map(_tail, found.node_ids, found.widened, found.fresh or repeat(False)))
    heads = map(_head, map(len, names), map(len, tails))
    return b"".join(chain.from_iterable(zip(heads, names, scores, tails, strict=True)))


@lru_cache(maxsize=4096)
def _head(name: int, tail: int) -> bytes:
    """What stands before a candidate's item ID, by the lengths of that and of the tail."""
    before = b"%c%b" % (_ITEM_ID, _varint(name))
    length = len(before) + name + len(_SCORE) + 4 + tail
    return b"%c%b%b" % (_CANDIDATE, _varint(length), before)


@lru_cache(maxsize=4096)
def _tail(node_id: int, widened: bool, fresh: bool) -> bytes:
    """What stands after a candidate's score."""
    message = common_pb2.Candidate(node_id=node_id, widened=widened, fresh=fresh)
    tail: bytes = message.SerializeToString()
    return tail


@lru_cache(maxsize=1024)
def _rest(widened_to: tuple[int, ...], unknown_history_items: int, versions: Versions) -> bytes:
    """A RetrieveResponse without candidates."""
    message = retriever_pb2.RetrieveResponse(
        widened_to=widened_to,
        unknown_history_items=unknown_history_items,
        versions=versions_to_proto(versions),
    )
    return message.SerializeToString()


def _varint(value: int) -> bytes:
    """An unsigned number, seven bits a byte, the low ones first."""
    raw = bytearray()
    while value > 0x7F:
        raw.append(value & 0x7F | 0x80)
        value >>= 7
    raw.append(value)
    return bytes(raw)
