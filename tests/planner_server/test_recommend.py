"""Recommend on real servicers of both tiers: every option, both ways, and whole batches."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import both_tiers
import grpc
import pytest
from both_tiers import LEVEL
from hypothesis import given, settings
from hypothesis import strategies as st
from running import in_thread
from serendip_client import (
    AsyncSerendipClient,
    Filter,
    InvalidRequest,
    NotFound,
    PlanSource,
    Recommendation,
    RecommendQuery,
    SerendipClient,
    SerendipError,
)

from serendip.v1 import recommender_pb2, recommender_pb2_grpc

TREE = both_tiers.tree_of()
PLANNED = {plan.context_item_id: plan for plan in both_tiers.plans_of(TREE)}
LONG = next(item for item, plan in PLANNED.items() if len(plan.clusters) == 8)
# A plan with one of the two siblings, so that the fallback has another one.
PART = next(i for i, p in PLANNED.items() if sum(c.serendipitous for c in p.clusters) == 1)
WITHOUT = TREE.item_ids[1]  # in the tree, but without a plan


@pytest.fixture(scope="module")
def up(tmp_path_factory: Any) -> Any:
    serving = both_tiers.planner_serving(TREE, tmp_path_factory.mktemp("plans"))
    with (
        in_thread(lambda: both_tiers.retriever_service(TREE).services()) as retriever,
        in_thread(lambda: both_tiers.planner_services(serving, retriever.address)) as planner,
        SerendipClient(planner.address, retriever.address, timeout_s=30) as client,
    ):
        yield SimpleNamespace(planner=planner, retriever=retriever, client=client)


def nodes_at(*levels: int) -> list[int]:
    return [node for level in levels for node in TREE.nodes.at_level(level)]


def items_of(node: int) -> set[str]:
    start, end = TREE.slice(node)
    return set(TREE.item_ids[start:end])


ITEMS = st.sampled_from(TREE.item_ids)
QUERIES = st.builds(
    RecommendQuery,
    history=st.lists(ITEMS | st.just("unknown"), max_size=8),
    context_item_id=st.sampled_from(sorted(PLANNED)) | ITEMS | st.just("nobody"),
    k=st.integers(1, 40) | st.sampled_from([0, 300]),
    constraint=st.sampled_from(["not_own", "siblings", "none"]),
    include_seen=st.booleans(),
    deny_item_ids=st.lists(ITEMS, max_size=5),
    clusters=st.integers(0, 8) | st.just(9),
    merge=st.sampled_from(["score", "quota"]),
    exclude_node_ids=st.lists(st.sampled_from([*nodes_at(1, 2, 3, 4), 9999]), max_size=3),
    min_score=st.none() | st.integers(-8, 1).map(float),
    filters=st.lists(
        st.sampled_from([Filter("colour", any_of=["red"]), Filter("colour", none_of=["green"])]),
        max_size=1,
    )
    | st.just([Filter("size", at_least=1)]),
    max_per_leaf=st.integers(0, 3),
)


def outcome(call: Any) -> Any:
    """What can be compared: ages are of the moment."""
    try:
        answer = call()
    except SerendipError as error:
        return type(error), str(error)
    return replace(answer, age_s=0.0)


def asked(client: SerendipClient, query: RecommendQuery, **more: Any) -> Recommendation:
    fields = {name: getattr(query, name) for name in query.__slots__}
    return client.recommend(**fields, **more)


@settings(max_examples=150, deadline=None)
@given(query=QUERIES)
def test_one_call_and_two_stubs_give_the_same(up: Any, query: RecommendQuery) -> None:
    by_server = outcome(lambda: asked(up.client, query, via="server"))
    assert outcome(lambda: asked(up.client, query, via="client")) == by_server
    if isinstance(by_server, Recommendation):
        check(query, by_server)


def check(query: RecommendQuery, answer: Recommendation) -> None:
    """What every recommendation keeps to, whatever it was asked for."""
    own = TREE.node_of(query.context_item_id, LEVEL)
    never = set().union(*map(items_of, [own, *query.exclude_node_ids]), query.deny_item_ids)
    if not query.include_seen:
        never |= set(query.history)
    names = [c.item_id for c in answer.candidates]
    assert len(names) == len(set(names)) <= query.k
    assert not never & set(names)
    planned = [c.node_id for c in answer.plan.clusters][: query.clusters or 1]
    first = set().union(*map(items_of, planned))
    assert all(c.widened == (c.item_id not in first) for c in answer.candidates)
    assert all(c.item_id in items_of(c.node_id) for c in answer.candidates)
    widened = [c.node_id for c in answer.candidates if c.widened]
    assert list(dict.fromkeys(widened)) == list(answer.widened_to)
    of_leaf = Counter(TREE.node_of(name, LEVEL) for name in names)
    assert not query.max_per_leaf or max(of_leaf.values(), default=0) <= query.max_per_leaf
    plain = not (query.filters or query.max_per_leaf)
    assert len(names) == min(query.k, len(set(TREE.item_ids) - never)) or not plain


@settings(max_examples=25, deadline=None)
@given(queries=st.lists(QUERIES, min_size=1, max_size=12))
def test_a_batch_has_what_each_would_have_alone(up: Any, queries: list[RecommendQuery]) -> None:
    alone = [outcome(lambda q=query: asked(up.client, q)) for query in queries]

    async def at_once() -> Any:
        async with AsyncSerendipClient(up.planner.address, timeout_s=30) as client:
            return await client.recommend_batch(queries)

    for rows in (
        up.client.recommend_batch(queries),
        up.client.recommend_batch(queries, via="client"),
        asyncio.run(at_once()),
    ):
        assert [outcome(row.require) for row in rows] == alone


def test_quotas_are_turns_of_the_clusters_own_lists(up: Any) -> None:
    plan = PLANNED[LONG]
    first = [c.node_id for c in plan.clusters[:3]]
    history = TREE.item_ids[50:54]
    options: dict[str, Any] = {"tree_version": TREE.version, "k": 9}
    alone = [up.client.retrieve(history, [n], widening=False, **options).candidates for n in first]
    turns = [own[turn] for turn in range(4) for own in alone if turn < len(own)]
    answer = up.client.recommend(history, LONG, 7, clusters=3, merge="quota")
    assert list(answer.candidates) == turns[:7]
    assert min(Counter(c.node_id for c in answer.candidates).values()) >= 2
    everything = up.client.recommend(history, LONG, 60, clusters=3, merge="quota")
    assert list(everything.candidates[: len(turns)]) == turns
    assert all(c.widened for c in everything.candidates[len(turns) :])
    assert everything.widened_to[0] == plan.clusters[3].node_id
    best = up.client.recommend(history, LONG, 7, clusters=3)
    union = sorted((c for own in alone for c in own), key=lambda c: -c.score)
    assert list(best.candidates) == union[:7]


def test_the_answer_tells_of_the_plan_that_it_follows(up: Any) -> None:
    plan = PLANNED[LONG]
    answer = up.client.recommend(["unknown"], LONG, 5, min_score=plan.clusters[4].score)
    assert answer.source is PlanSource.STORE
    assert answer.age_s > 1000
    assert answer.left_out == 3
    assert answer.unknown_history_items == 1
    assert answer.plan.clusters == plan.clusters[:5]


@pytest.mark.parametrize("via", ["server", "client"])
def test_where_the_planner_has_nothing_the_fallback_is_followed_and_said(up: Any, via: Any) -> None:
    answer = up.client.recommend([], WITHOUT, 5, via=via)
    assert (answer.source, answer.age_s) == (PlanSource.FALLBACK, 0)
    assert len(answer.candidates) == 5
    # A stored plan of which nothing is left.
    planned = [c.node_id for c in PLANNED[PART].clusters]
    answer = up.client.recommend([], PART, 5, exclude_node_ids=planned, via=via)
    assert answer.source is PlanSource.FALLBACK
    (other,) = answer.plan.clusters
    assert other.node_id not in planned
    assert answer.candidates[0].node_id == other.node_id
    # Nor of the fallback; or nothing that is likely enough.
    known = [*planned, other.node_id]
    with pytest.raises(NotFound, match="no planned cluster"):
        up.client.recommend([], PART, 5, exclude_node_ids=known, via=via)
    with pytest.raises(NotFound, match="no planned cluster"):
        up.client.recommend([], PART, 5, min_score=1.0, via=via)


def test_a_plan_of_which_the_options_leave_nothing_is_the_fallback(up: Any) -> None:
    planned = [c.node_id for c in PLANNED[PART].clusters]
    (row,) = up.client.plan([PART], exclude_node_ids=planned)
    assert row.source is PlanSource.FALLBACK
    assert [c.node_id in planned for c in row.require().clusters] == [False]
    (row,) = up.client.plan([PART], min_score=1.0)
    assert (row.source, row.require().clusters) == (PlanSource.STORE, ())


def test_a_batch_is_refused_only_as_a_whole_and_may_be_large(up: Any) -> None:
    for count in (0, 129):
        for via in ("server", "client"):
            with pytest.raises(InvalidRequest, match="requests: must have 1 to 128 entries"):
                up.client.recommend_batch([RecommendQuery([], LONG, 1)] * count, via=via)
    many = [
        RecommendQuery([TREE.item_ids[n]], LONG, 3, clusters=8, merge="quota") for n in range(128)
    ]
    rows = up.client.recommend_batch(many)  # 1,152 retrievals
    assert [row.require().candidates for row in rows[::40]] == [
        asked(up.client, query).candidates for query in many[::40]
    ]


def test_a_request_that_is_wrong_is_told_by_its_field(up: Any) -> None:
    with grpc.insecure_channel(up.planner.address) as channel:
        stub = recommender_pb2_grpc.RecommenderStub(channel)
        request = recommender_pb2.RecommendRequest(context_item_id=LONG, k=1, clusters=9)
        with pytest.raises(grpc.RpcError) as error:
            stub.Recommend(request)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "clusters: must lie in 0 to 8, got 9" in error.value.details()
        rows = stub.RecommendBatch(
            recommender_pb2.RecommendBatchRequest(
                requests=[request, recommender_pb2.RecommendRequest(context_item_id=LONG, k=1)]
            )
        ).rows
        assert [row.status.code for row in rows] == [3, 0]
        assert rows[1].HasField("status")
        assert not rows[0].HasField("response")
