"""Retrievals as the bytes of their responses, without a message a candidate.

What ``serendip.wire`` makes of a retrieval, serialised: a message for each of fifty candidates
would take several times as long. Only a candidate's item ID and score are written by hand: in the
wire format (https://protobuf.dev/programming-guides/encoding) a field is its number and kind, then
its length or its value, and messages are joined by joining their bytes. Knows no ranker.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain, repeat
from typing import Any

from google.rpc import status_pb2

from serendip.core import Candidate, Retrieval, Versions
from serendip.v1 import common_pb2, retriever_pb2
from serendip.wire import versions_to_proto

_LENGTH_PREFIXED, _FOUR_BYTES = 2, 5  # kinds of fields

_score = struct.Struct("<Bf").pack


def _key(field: str, message: Any, kind: int) -> int:
    number: int = message.DESCRIPTOR.fields_by_name[field].number
    return number << 3 | kind


_ITEM_ID = _key("item_id", common_pb2.Candidate, _LENGTH_PREFIXED)
_SCORE = _key("score", common_pb2.Candidate, _FOUR_BYTES)
_CANDIDATE = _key("candidates", retriever_pb2.RetrieveResponse, _LENGTH_PREFIXED)
_ROW = _key("rows", retriever_pb2.RetrieveBatchResponse, _LENGTH_PREFIXED)
_STATUS = _key("status", retriever_pb2.RetrieveRow, _LENGTH_PREFIXED)
_RESPONSE = _key("response", retriever_pb2.RetrieveRow, _LENGTH_PREFIXED)


def encode_retrieval(retrieval: Retrieval, versions: Versions) -> bytes:
    """A RetrieveResponse. Scores become 32-bit floats on the way."""
    return _candidates(retrieval.candidates) + _rest(
        retrieval.widened_to, retrieval.unknown_history_items, versions
    )


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


def _candidates(candidates: Sequence[Candidate]) -> bytes:
    if not candidates:
        return b""
    item_ids, scores, *others = zip(*candidates, strict=True)
    names = list(map(str.encode, item_ids))
    heads, tails = zip(*map(_frame, map(len, names), *others), strict=True)
    packed = map(_score, repeat(_SCORE), scores)
    return b"".join(chain.from_iterable(zip(heads, names, packed, tails, strict=True)))


@lru_cache(maxsize=4096)
def _frame(name_length: int, *others: int) -> tuple[bytes, bytes]:
    """What stands before a candidate's item ID, and what after its score."""
    fields: dict[str, Any] = dict(zip(Candidate._fields[2:], others, strict=True))
    after = common_pb2.Candidate(**fields).SerializeToString()
    before = b"%c%b" % (_ITEM_ID, _varint(name_length))
    length = len(before) + name_length + len(_score(_SCORE, 0.0)) + len(after)
    return b"%c%b%b" % (_CANDIDATE, _varint(length), before), after


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
