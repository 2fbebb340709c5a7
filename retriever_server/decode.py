"""Requests read without a message an event, where histories are item IDs alone.

Most histories are: fifty events are fifty messages then, of which nothing but the ID is wanted.
So a request whose first event has an ID and nothing else is parsed by a class that differs from
the protos' in one thing: it leaves the events as their bytes. What it does not expect is read event
by event, with the same outcome; any other request is parsed by the protos' own class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from serendip.core import InvalidRequest, RetrievalQuery
from serendip.v1 import common_pb2, retriever_pb2
from serendip.wire import check_history, history_from_proto, query_from_proto
from serendip.wire_bytes import LENGTH_PREFIXED, key

_HISTORY = key("history", retriever_pb2.RetrieveRequest, LENGTH_PREFIXED)
_ITEM_ID = key("item_id", common_pb2.HistoryItem, LENGTH_PREFIXED)
_REQUESTS = key("requests", retriever_pb2.RetrieveBatchRequest, LENGTH_PREFIXED)
_ONE_BYTE = 0x80  # lengths below it take one


def decode_request(raw: bytes) -> Any:
    """A RetrieveRequest, or one that has its history as bytes. Raises DecodeError."""
    if _is_plain(raw, 0):
        return _Plain.FromString(raw)
    return retriever_pb2.RetrieveRequest.FromString(raw)


def decode_batch(raw: bytes) -> Any:
    """A RetrieveBatchRequest, or one of requests that have their histories as bytes."""
    at = 1
    while at < len(raw) and raw[at] >= _ONE_BYTE:  # the first request's length
        at += 1
    if raw[:1] == bytes((_REQUESTS,)) and _is_plain(raw, at + 1):
        return _PlainBatch.FromString(raw)
    return retriever_pb2.RetrieveBatchRequest.FromString(raw)


def read_query(request: Any) -> RetrievalQuery:
    """As ``query_from_proto``, of what this module decodes.

    Raises:
        InvalidRequest: as there; and an event is none, or its ID no UTF-8.
    """
    if type(request) is _Plain:
        return query_from_proto(request, _history)
    return query_from_proto(request)


def _is_plain(raw: bytes, at: int) -> bool:
    """Whether an event that is an ID alone begins at a byte."""
    head = raw[at : at + 4]
    if len(head) < 4:
        return False
    history, length, item_id, inner = head
    return history == _HISTORY and item_id == _ITEM_ID and length == inner + 2 < _ONE_BYTE


def _history(events: Sequence[bytes]) -> tuple[tuple[str, ...], tuple[float, ...]]:
    try:
        item_ids = _ids_alone(list(events))
        if item_ids is None:
            return history_from_proto([common_pb2.HistoryItem.FromString(e) for e in events])
    except (DecodeError, UnicodeDecodeError) as e:
        raise InvalidRequest(
            "has an event that is none",
            field="history",
            remedy="Send it as the protos have it; text must be UTF-8.",
        ) from e
    check_history(item_ids)
    return item_ids, ()


def _ids_alone(events: list[bytes]) -> tuple[str, ...] | None:
    """The IDs of events that are nothing else; None where one is more, or longer than 127 bytes."""
    lengths = set(map(len, events))
    n = len(events)
    if len(lengths) == 1 and 2 < (length := lengths.pop()) < _ONE_BYTE:
        whole = b"".join(events)
        heads, inner = bytes((_ITEM_ID,)), bytes((length - 2,))
        if whole[::length] == heads * n and whole[1::length] == inner * n and whole.isascii():
            text = whole.decode()
            return tuple([text[at + 2 : at + length] for at in range(0, n * length, length)])
    item_ids = []
    for event in events:
        alone = len(event) > 2 and event[0] == _ITEM_ID and event[1] == len(event) - 2 < _ONE_BYTE
        if not alone:
            return None
        item_ids.append(event[2:].decode())
    return tuple(item_ids)


def _plain_classes() -> tuple[Any, Any]:
    """The protos' requests, their histories of type bytes: the same on the wire."""
    own = descriptor_pb2.FileDescriptorProto()
    retriever_pb2.DESCRIPTOR.CopyToProto(own)
    own.name, own.package = "serendip/plain.proto", "serendip.plain"
    del own.service[:]
    wanted = ("RetrieveRequest", "RetrieveBatchRequest")
    kept = [message for message in own.message_type if message.name in wanted]
    del own.message_type[:]
    own.message_type.extend(kept)
    for message in own.message_type:
        for field in message.field:
            if field.name == "history":
                field.type = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES
                field.ClearField("type_name")
            elif field.name == "requests":
                field.type_name = ".serendip.plain.RetrieveRequest"
    pool = descriptor_pool.DescriptorPool()
    _add(pool, retriever_pb2.DESCRIPTOR, set())
    pool.Add(own)
    one, many = (pool.FindMessageTypeByName(f"serendip.plain.{name}") for name in wanted)
    return message_factory.GetMessageClass(one), message_factory.GetMessageClass(many)


def _add(pool: descriptor_pool.DescriptorPool, file: Any, added: set[str]) -> None:
    if file.name in added:
        return
    added.add(file.name)
    for needed in file.dependencies:
        _add(pool, needed, added)
    copy = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(copy)
    pool.Add(copy)


_Plain, _PlainBatch = _plain_classes()
