"""Retrievals as the bytes of their responses, without a message a candidate.

What ``serendip.wire`` makes of a retrieval, serialised: a message for each of fifty candidates
would take several times as long. Only a candidate's item ID and score are written by hand. Knows
no ranker.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import lru_cache
from itertools import chain, repeat

import numpy as np
from google.rpc import status_pb2

from serendip.core import Versions
from serendip.retrieval.found import Found
from serendip.v1 import common_pb2, retriever_pb2
from serendip.wire import versions_to_proto
from serendip.wire_bytes import FOUR_BYTES, LENGTH_PREFIXED, key, varint

_ITEM_ID = key("item_id", common_pb2.Candidate, LENGTH_PREFIXED)
_SCORE = bytes([key("score", common_pb2.Candidate, FOUR_BYTES)])
_CANDIDATE = key("candidates", retriever_pb2.RetrieveResponse, LENGTH_PREFIXED)
_ROW = key("rows", retriever_pb2.RetrieveBatchResponse, LENGTH_PREFIXED)
_STATUS = key("status", retriever_pb2.RetrieveRow, LENGTH_PREFIXED)
_RESPONSE = key("response", retriever_pb2.RetrieveRow, LENGTH_PREFIXED)


def encode_found(found: Found, versions: Versions) -> bytes:
    """A RetrieveResponse. Scores become 32-bit floats on the way."""
    return _candidates(found) + _rest(found.widened_to, found.unknown_history_items, versions)


def encode_rows(rows: Iterable[bytes | status_pb2.Status]) -> bytes:
    """A RetrieveBatchResponse: of each row the bytes of its response, or what it failed with."""
    parts = []
    for row in rows:
        if isinstance(row, bytes):
            ok = b"%c\0%c%b" % (_STATUS, _RESPONSE, varint(len(row)))
            parts += [b"%c%b" % (_ROW, varint(len(ok) + len(row))), ok, row]
        else:
            failed = retriever_pb2.RetrieveRow(status=row).SerializeToString()
            parts += [b"%c%b" % (_ROW, varint(len(failed))), failed]
    return b"".join(parts)


def _candidates(found: Found) -> bytes:
    names, n = found.item_ids, len(found)
    packed = struct.pack(f"<{n}f", *found.scores)
    if found.own == n and not found.fresh:  # nearly always: of few nodes, and none is widened to
        of_node = {node: _tail(node, False, False) for node in set(found.node_ids)}
        tails = [of_node[node] for node in found.node_ids]
    else:
        tails = list(map(_tail, found.node_ids, found.widened, found.fresh or repeat(False)))
    lengths, behind = set(map(len, names)), set(map(len, tails))
    if len(lengths) == len(behind) == 1:  # nearly always: all of one length, a table
        before = _head(lengths.pop(), behind.pop())
        columns = (before * n, b"".join(names), _SCORE * n, packed, b"".join(tails))
        return _side_by_side(columns, n)
    heads, scores = map(_head, map(len, names), map(len, tails)), struct.unpack("4s" * n, packed)
    parts = zip(heads, names, repeat(_SCORE, n), scores, tails, strict=True)
    return b"".join(chain.from_iterable(parts))


def _side_by_side(columns: Iterable[bytes], n: int) -> bytes:
    """Rows of n, of columns that hold n values of one length each."""
    values = [np.frombuffer(column, np.uint8).reshape(n, -1) for column in columns]
    return np.concatenate(values, axis=1).tobytes()


@lru_cache(maxsize=4096)
def _head(name: int, tail: int) -> bytes:
    """What stands before a candidate's item ID, by the lengths of that and of the tail."""
    before = b"%c%b" % (_ITEM_ID, varint(name))
    length = len(before) + name + len(_SCORE) + 4 + tail
    return b"%c%b%b" % (_CANDIDATE, varint(length), before)


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
