"""Responses as bytes: what the protos' own classes serialise, to the last bit or to the meaning."""

from __future__ import annotations

from google.rpc import code_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from retriever_server.encode import encode_found, encode_rows
from serendip.core import Candidate, Retrieval, Versions
from serendip.retrieval.found import Found
from serendip.serving.errors import OK_STATUS
from serendip.v1 import retriever_pb2
from serendip.wire import retrieval_to_proto

# Up to 256 bytes, so that lengths take one byte and two.
IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64)
NODES = st.integers(0, 2**31 - 1)
SCORES = st.floats(width=32, allow_nan=False)
ROWS = st.lists(st.tuples(IDS.map(str.encode), SCORES, NODES, st.booleans()), max_size=9)


@st.composite
def founds(draw: st.DrawFn) -> Found:
    rows = draw(ROWS)
    item_ids, scores, node_ids, fresh = zip(*rows, strict=True) if rows else ((), (), (), ())
    own = draw(st.integers(0, len(rows)))
    fresh = draw(st.sampled_from([(), fresh]))
    widened_to = tuple(draw(st.lists(NODES, max_size=3)))
    return Found(item_ids, scores, node_ids, own, fresh, widened_to, draw(st.integers(0, 10_000)))


VERSIONS = Versions("t" * 12, "", "", "r" * 12, "o" * 12)


@given(founds())
def test_a_response_reads_as_the_message_that_the_wire_makes(found: Found) -> None:
    raw = encode_found(found, VERSIONS)
    message = retrieval_to_proto(found.retrieval(), VERSIONS)
    assert retriever_pb2.RetrieveResponse.FromString(raw) == message


def test_a_common_response_is_the_same_to_the_last_bit() -> None:
    found = Found([b"i1", b"\xc3\xbc" * 100], [1.5, -2.0], [300, 7], 1, [False, True], (7,), 2)
    candidates = Candidate("i1", 1.5, 300), Candidate("ü" * 100, -2.0, 7, True, True)
    assert found.retrieval() == Retrieval(candidates, (7,), 2)
    message = retrieval_to_proto(found.retrieval(), VERSIONS)
    assert encode_found(found, VERSIONS) == message.SerializeToString()


@given(st.lists(founds() | st.sampled_from([5, 9]), max_size=4))
def test_rows_stand_in_order_with_what_failed_among_them(outcomes: list[Found | int]) -> None:
    failures = {code: status_pb2.Status(code=code, message="no") for code in (5, 9)}
    raw = encode_rows(
        failures[o] if isinstance(o, int) else encode_found(o, VERSIONS) for o in outcomes
    )
    expected = [
        retriever_pb2.RetrieveRow(status=failures[o])
        if isinstance(o, int)
        else retriever_pb2.RetrieveRow(
            status=OK_STATUS, response=retrieval_to_proto(o.retrieval(), VERSIONS)
        )
        for o in outcomes
    ]
    got = retriever_pb2.RetrieveBatchResponse.FromString(raw)
    assert list(got.rows) == expected
    assert [row.HasField("response") for row in got.rows] == [
        row.status.code == code_pb2.OK for row in expected
    ]
