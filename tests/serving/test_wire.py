"""Protos to border types and back; every INVALID_ARGUMENT that the protos' comments promise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serendip import wire, wire_plans
from serendip.core import (
    AttributeType,
    Candidate,
    Filter,
    InvalidRequest,
    Plan,
    PlannedCluster,
    PlanSource,
    Retrieval,
    RetrievalQuery,
    SerendipError,
    Versions,
)
from serendip.v1 import common_pb2, planner_pb2, retriever_pb2
from serendip.wire_filters import attributes_from_proto, attributes_to_proto

IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64)
NODES = st.integers(0, 2**31 - 1)
SCORES = st.floats(-100, 100, width=32)
VERSION = st.text("0123456789abcdef", min_size=12, max_size=12)


VALUES = (
    st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.booleans()
)
BOUNDS = st.none() | st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def filters(draw: st.DrawFn) -> Filter:
    any_of, none_of = (tuple(draw(st.lists(VALUES, max_size=4))) for _ in range(2))
    low, high = draw(BOUNDS), draw(BOUNDS)
    if not any_of and not none_of and low is None and high is None:
        any_of = (draw(VALUES),)
    return Filter(draw(IDS), any_of, none_of, low, high)


@st.composite
def queries(draw: st.DrawFn) -> RetrievalQuery:
    history = tuple(draw(st.lists(IDS, max_size=8)))
    unit = st.floats(0, 1, width=32)
    size = len(history)
    satisfaction = draw(st.just(()) | st.lists(unit, min_size=size, max_size=size).map(tuple))
    return RetrievalQuery(
        history=history,
        node_ids=tuple(draw(st.lists(NODES, min_size=1, max_size=8))),
        k=draw(st.integers(1, 1000)),
        exclude_node_ids=tuple(draw(st.lists(NODES, max_size=8))),
        widen_node_ids=tuple(draw(st.lists(NODES, max_size=8))),
        satisfaction=satisfaction,
        deny_item_ids=tuple(draw(st.lists(IDS, max_size=8))),
        include_seen=draw(st.booleans()),
        widening=draw(st.booleans()),
        filters=tuple(draw(st.lists(filters(), max_size=3))),
        allow_item_ids=draw(st.none() | st.lists(IDS, min_size=1, max_size=5).map(tuple)),
        max_per_leaf=draw(st.integers(0, 1000)),
        require_known_history=draw(st.booleans()),
    )


@given(queries(), VERSION)
def test_a_query_survives_the_wire(query: RetrievalQuery, tree_version: str) -> None:
    message = wire.query_to_proto(query, tree_version=tree_version)
    arrived = retriever_pb2.RetrieveRequest.FromString(message.SerializeToString())
    assert arrived.tree_version == tree_version
    got = wire.query_from_proto(arrived)
    assert got == query
    # True equals 1, and 1 equals 1.0: the types must survive as well.
    assert types_of(got) == types_of(query)


def types_of(query: RetrievalQuery) -> list[list[type]]:
    return [[type(v) for v in (*f.any_of, *f.none_of)] for f in query.filters]


@given(
    st.lists(st.builds(Candidate, IDS, SCORES, NODES, st.booleans(), st.booleans()), max_size=9),
    st.lists(NODES, max_size=5),
    st.builds(Versions, VERSION, VERSION, VERSION, VERSION, VERSION),
)
def test_a_retrieval_survives_the_wire(
    candidates: list[Candidate], widened_to: list[int], versions: Versions
) -> None:
    retrieval = Retrieval(tuple(candidates), tuple(widened_to), 3)
    raw = wire.retrieval_to_proto(retrieval, versions).SerializeToString()
    arrived = retriever_pb2.RetrieveResponse.FromString(raw)
    assert wire.retrieval_from_proto(arrived) == (retrieval, versions)


@given(
    st.lists(
        st.builds(PlannedCluster, NODES, st.text(max_size=9), SCORES, st.booleans()), max_size=8
    ),
    st.none() | NODES,
    st.integers(0, 4_000_000_000_000),
)
def test_a_plan_survives_the_wire(
    clusters: list[PlannedCluster], own: int | None, planned_at_ms: int
) -> None:
    unique = tuple({c.node_id: c for c in clusters}.values())
    plan = Plan("item", unique, own, "because", "t" * 12, "p" * 12, planned_at_ms)
    raw = wire_plans.plan_to_proto(plan).SerializeToString()
    assert wire_plans.plan_from_proto(planner_pb2.Plan.FromString(raw)) == plan


def test_a_plan_that_is_none_is_a_typed_error() -> None:
    cluster = common_pb2.PlannedCluster(node_id=3)
    with pytest.raises(SerendipError, match="plan"):
        wire_plans.plan_from_proto(planner_pb2.Plan(clusters=[cluster, cluster]))


def test_sources() -> None:
    for source in PlanSource:
        assert wire_plans.source_from_proto(wire_plans.source_to_proto(source)) is source
    assert wire_plans.source_from_proto(wire_plans.source_to_proto(None)) is None


def request() -> retriever_pb2.RetrieveRequest:
    return retriever_pb2.RetrieveRequest(
        history=[
            common_pb2.HistoryItem(item_id="a", timestamp_ms=5),
            common_pb2.HistoryItem(item_id="b", timestamp_ms=0),
            common_pb2.HistoryItem(item_id="c", timestamp_ms=5, satisfaction=0.5),
        ],
        node_ids=[3],
        tree_version="t",
        k=10,
    )


def test_an_unset_satisfaction_is_a_satisfied_one_and_an_unknown_time_compares_with_nothing() -> (
    None
):
    query = wire.query_from_proto(request())
    assert query.history == ("a", "b", "c")
    assert query.satisfaction == (1.0, 1.0, 0.5)
    plain = request()
    plain.history[2].ClearField("satisfaction")
    assert wire.query_from_proto(plain).satisfaction == ()


FILTER, VALUE = retriever_pb2.Filter, retriever_pb2.AttributeValue
SOUND = FILTER(attribute="a", any_of=[VALUE(text="x")])
Change = Callable[[retriever_pb2.RetrieveRequest], object]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda r: r.ClearField("tree_version"), "tree_version"),
        (lambda r: setattr(r, "k", 0), "k"),
        (lambda r: setattr(r, "k", 1001), "k"),
        (lambda r: setattr(r, "k", -1), "k"),
        (lambda r: r.ClearField("node_ids"), "node_ids"),
        (lambda r: r.node_ids.extend(range(64)), "node_ids"),
        (lambda r: r.exclude_node_ids.extend(range(1025)), "exclude_node_ids"),
        (lambda r: r.widen_node_ids.extend(range(65)), "widen_node_ids"),
        (lambda r: r.deny_item_ids.extend(["x"] * 10_001), "deny_item_ids"),
        (lambda r: r.deny_item_ids.extend(["x", ""]), "deny_item_ids[1]"),
        (lambda r: r.deny_item_ids.append("中" * 86), "deny_item_ids[0]"),
        (lambda r: setattr(r.history[1], "item_id", ""), "history[1].item_id"),
        (lambda r: setattr(r.history[1], "item_id", "x" * 257), "history[1].item_id"),
        (lambda r: setattr(r.history[2], "timestamp_ms", 4), "history[2].timestamp_ms"),
        (lambda r: setattr(r.history[2], "satisfaction", 1.5), "history.satisfaction"),
        (lambda r: setattr(r.history[2], "satisfaction", float("nan")), "history.satisfaction"),
        (lambda r: r.history.extend([r.history[2]] * 10_000), "history"),
        (lambda r: r.allow_item_ids.extend(["x"] * 10_001), "allow_item_ids"),
        (lambda r: r.allow_item_ids.extend(["x", "y" * 257]), "allow_item_ids[1]"),
        (lambda r: setattr(r, "max_per_leaf", -1), "max_per_leaf"),
        (lambda r: setattr(r, "max_per_leaf", 1001), "max_per_leaf"),
        (lambda r: r.filters.extend([SOUND] * 17), "filters"),
        (lambda r: r.filters.extend([SOUND, FILTER(attribute="a")]), "filters[1]"),
        (lambda r: r.filters.add(attribute="a", any_of=[VALUE()]), "filters[0].any_of[0]"),
        (lambda r: r.filters.add(attribute="a", none_of=[VALUE()]), "filters[0].none_of[0]"),
        (
            lambda r: r.filters.add(attribute="a", any_of=[VALUE(flag=True)] * 1001),
            "filters[0].any_of",
        ),
        (lambda r: r.filters.add(attribute="a", at_least=float("nan")), "filters[0].at_least"),
        (lambda r: r.filters.add(attribute="a", at_most=float("inf")), "filters[0].at_most"),
    ],
)
def test_what_the_protos_call_invalid_names_its_field(change: Change, field: str) -> None:
    message = request()
    wire.query_from_proto(message)
    change(message)
    with pytest.raises(InvalidRequest) as caught:
        wire.query_from_proto(message)
    assert caught.value.field == field


def test_an_empty_allowed_set_is_none_on_the_wire_and_refused_before_it() -> None:
    assert wire.query_from_proto(request()).allow_item_ids is None
    with pytest.raises(InvalidRequest, match="allow_item_ids"):
        RetrievalQuery(history=(), node_ids=(0,), k=1, allow_item_ids=())


def test_attribute_types_survive_the_wire_and_those_of_a_newer_server_are_left_out() -> None:
    types = {t.value: t for t in AttributeType}
    messages = attributes_to_proto(types)
    newer = retriever_pb2.Attribute(name="later", type=77)
    assert attributes_from_proto([*messages, newer]) == types


def test_ids_of_256_bytes_pass() -> None:
    message = request()
    message.deny_item_ids.extend(["x" * 256, "中" * 85, "𝄞" * 64])
    assert len(wire.query_from_proto(message).deny_item_ids) == 3


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (planner_pb2.PlanRequest(k=1), "context_item_ids"),
        (planner_pb2.PlanRequest(context_item_ids=["a"] * 257, k=1), "context_item_ids"),
        (planner_pb2.PlanRequest(context_item_ids=["a", ""], k=1), "context_item_ids[1]"),
        (planner_pb2.PlanRequest(context_item_ids=["a"]), "k"),
        (planner_pb2.PlanRequest(context_item_ids=["a"], k=9), "k"),
    ],
)
def test_plan_requests_are_checked(message: planner_pb2.PlanRequest, field: str) -> None:
    wire.check_plan_request(planner_pb2.PlanRequest(context_item_ids=["a"] * 256, k=8))
    with pytest.raises(InvalidRequest) as caught:
        wire.check_plan_request(message)
    assert caught.value.field == field
