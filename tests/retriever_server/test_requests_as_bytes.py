"""Requests read without a message an event mean what the protos' own classes say."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from retriever_server import decode
from retriever_server.decode import decode_batch, decode_request, read_query
from serendip.core import Filter, InvalidRequest, RetrievalQuery
from serendip.v1 import common_pb2, retriever_pb2
from serendip.wire import query_from_proto, query_to_proto

TREE = "t" * 12
IDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=70) | st.sampled_from(
    ["i0001", "i0002", "i0003", "ü", "x" * 125, "x" * 126, "x" * 256, "x" * 257]
)
EVENTS = st.builds(
    common_pb2.HistoryItem,
    item_id=IDS,
    timestamp_ms=st.sampled_from([0, 0, 0, 5, 7]),
    satisfaction=st.sampled_from([None, None, None, 0.0, 0.5, 2.0]),
)
PLAIN = st.builds(common_pb2.HistoryItem, item_id=IDS)
SAME = st.builds(common_pb2.HistoryItem, item_id=st.sampled_from(["i0001", "i0002", "i0003"]))
REQUESTS = st.builds(
    retriever_pb2.RetrieveRequest,
    history=st.one_of(*(st.lists(of, max_size=6) for of in (SAME, PLAIN, EVENTS))),
    node_ids=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    tree_version=st.just(TREE),
    k=st.integers(0, 9),
    deny_item_ids=st.lists(IDS, max_size=2),
)


def outcome(read: Any) -> RetrievalQuery | tuple[str, str]:
    try:
        return read()
    except InvalidRequest as e:
        return e.field, str(e)


@given(REQUESTS)
def test_a_request_is_read_as_by_its_own_class(request: Any) -> None:
    raw = request.SerializeToString()
    assert outcome(lambda: read_query(decode_request(raw))) == outcome(
        lambda: query_from_proto(request)
    )


@given(st.lists(REQUESTS, max_size=4))
def test_so_is_a_batch(requests: list[Any]) -> None:
    raw = retriever_pb2.RetrieveBatchRequest(requests=requests).SerializeToString()
    read = [outcome(lambda r=r: read_query(r)) for r in decode_batch(raw).requests]
    assert read == [outcome(lambda r=r: query_from_proto(r)) for r in requests]


@given(REQUESTS, st.integers(0, 200), st.integers(0, 255))
def test_a_request_with_a_wrong_byte_is_read_alike_or_refused_by_both(
    request: Any, at: int, byte: int
) -> None:
    raw = bytearray(request.SerializeToString())
    if at < len(raw):
        raw[at] = byte
    try:
        whole = retriever_pb2.RetrieveRequest.FromString(bytes(raw))
    except DecodeError:
        with pytest.raises((DecodeError, InvalidRequest)):
            read_query(decode_request(bytes(raw)))
        return
    own = outcome(lambda: query_from_proto(whole))
    assert outcome(lambda: read_query(decode_request(bytes(raw)))) == own


def test_item_ids_alone_take_the_short_way_and_all_else_the_long_one() -> None:
    plain = RetrievalQuery(("i1", "i2"), (3,), 5, filters=(Filter("language", any_of=("en",)),))
    raw = query_to_proto(plain, tree_version=TREE).SerializeToString()
    assert type(decode_request(raw)) is decode._Plain
    assert read_query(decode_request(raw)) == plain
    rich = RetrievalQuery(("i1", "i2"), (3,), 5, satisfaction=(0.5, 1.0))
    raw = query_to_proto(rich, tree_version=TREE).SerializeToString()
    assert type(decode_request(raw)) is retriever_pb2.RetrieveRequest
    assert read_query(decode_request(raw)) == rich


def test_both_classes_have_the_same_fields() -> None:
    """A field that is added to the protos is there without being asked for."""
    for own, plain in (
        (retriever_pb2.RetrieveRequest, decode._Plain),
        (retriever_pb2.RetrieveBatchRequest, decode._PlainBatch),
    ):
        fields = {f.name: f.number for f in own.DESCRIPTOR.fields}
        assert {f.name: f.number for f in plain.DESCRIPTOR.fields} == fields


def test_text_that_is_no_utf_8_is_the_callers_fault() -> None:
    event = b"\x0a\x02\x0a\x00"
    raw = b"\x0a\x03\x0a\x01\xff" + event
    with pytest.raises((InvalidRequest, DecodeError)):
        read_query(decode_request(raw + b"\x10\x01\x2a\x01t\x30\x01"))
