"""Both clients against real servers: one suite, so that they cannot differ."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
import serendip_client
import toy_tiers
from running import in_thread
from serendip_client import AsyncSerendipClient, HistoryItem, RecommendQuery, SerendipClient
from toy_tiers import NODES, PLANNER_VERSIONS, RETRIEVER_VERSIONS, TREE, Tiers

from serendip import wire
from serendip.core import (
    AttributeType,
    Candidate,
    DeadlineSpent,
    Filter,
    InvalidRequest,
    NotFound,
    NotReady,
    Overloaded,
    PlanSource,
    RetrievalQuery,
    SerendipError,
    Versions,
    WrongTree,
)
from serendip.v1 import planner_pb2

METHODS = (
    "plan",
    "plan_content",
    "planner_info",
    "resolve",
    "list_clusters",
    "get_cluster",
    "retrieve",
    "retrieve_batch",
    "retriever_info",
    "recommend",
    "recommend_batch",
)


class Both:
    """The two servers' addresses, and a client of one kind made for every call."""

    def __init__(self, kind: str, tiers: Tiers, planner: str, retriever: str) -> None:
        self.kind = kind
        self.tiers = tiers
        self.planner = planner
        self.retriever: str | None = retriever
        self.options: dict[str, Any] = {}

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.kind == "sync":
                with SerendipClient(self.planner, self.retriever, **self.options) as client:
                    return getattr(client, method)(*args, **kwargs)

            async def main() -> Any:
                async with AsyncSerendipClient(
                    self.planner, self.retriever, **self.options
                ) as client:
                    return await getattr(client, method)(*args, **kwargs)

            return asyncio.run(main())

        return call


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Tiers, str, str]]:
    tiers = Tiers()
    with (
        in_thread(tiers.planner_services, name="planner") as planner,
        in_thread(tiers.retriever_services, name="retriever") as retriever,
    ):
        yield tiers, planner.address, retriever.address


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest, servers: tuple[Tiers, str, str]) -> Iterator[Both]:
    tiers, planner, retriever = servers
    yield Both(request.param, tiers, planner, retriever)
    tiers.planner.failures.clear()


def test_plan(client: Both) -> None:
    good, bad = client.plan(["a", "unknown"], k=2, constraint="siblings", tree_version=TREE)
    assert good.plan == toy_tiers.plan_of("a", 2)
    assert (good.source, good.age_s, good.error) == (PlanSource.STORE, 1.5, None)
    assert good.versions == PLANNER_VERSIONS
    assert good.require() is good.plan
    assert (bad.plan, bad.source) == (None, None)
    assert isinstance(bad.error, NotFound)
    with pytest.raises(NotFound, match="unknown"):
        bad.require()
    request = client.tiers.planner.requests[-1]
    assert (request.k, request.tree_version) == (2, TREE)
    assert request.constraint == planner_pb2.CONSTRAINT_SIBLINGS


def test_plan_content(client: Both) -> None:
    row = client.plan_content(
        "title", text="text", thumbnail=b"jpeg", frames=[b"1", b"2"], k=3, exclude_node_ids=[7]
    )
    assert row.require().own_node_id is None
    assert (row.source, row.age_s, row.versions) == (PlanSource.LIVE, 0.0, PLANNER_VERSIONS)
    request = client.tiers.planner.requests[-1]
    assert (request.title, request.text, request.thumbnail) == ("title", "text", b"jpeg")
    assert (list(request.frames), list(request.exclude_node_ids)) == ([b"1", b"2"], [7])
    assert not request.video
    client.plan_content("title", video=b"mp4")
    assert client.tiers.planner.requests[-1].video == b"mp4"


def test_resolve(client: Both) -> None:
    resolution = client.resolve(["cluster 4", "nothing like it", "cluster 0"])
    assert resolution.node_ids == (4, None, 0)
    assert (resolution.match_rate, resolution.tree_version) == (0.5, TREE)


def test_list_clusters_walks_all_pages(client: Both) -> None:
    before = len(client.tiers.planner.requests)
    clusters = client.list_clusters(page_size=10)
    assert [c.node_id for c in clusters] == list(range(NODES))
    assert (clusters[0].parent_node_id, clusters[4].parent_node_id) == (None, 0)
    requests = client.tiers.planner.requests[before:]
    assert [r.page_token for r in requests] == ["", "10", "20"]
    assert not requests[0].HasField("level")
    client.list_clusters(level=0, parent_node_id=0)
    request = client.tiers.planner.requests[-1]
    assert request.HasField("level"), "level 0 is the root, not every level"
    assert request.HasField("parent_node_id")
    assert [c.node_id for c in client.list_clusters(query="r 1")][:3] == [1, 10, 11]


def test_get_cluster(client: Both) -> None:
    cluster = client.get_cluster(4)
    assert (cluster.node_id, cluster.description, cluster.item_count) == (4, "cluster 4", 400)
    assert cluster.tree_version == TREE
    with pytest.raises(NotFound) as caught:
        client.get_cluster(NODES)
    assert isinstance(caught.value.__cause__, grpc.RpcError)


def test_planner_info(client: Both) -> None:
    info = client.planner_info()
    assert (info.versions, info.level, info.level_gap) == (PLANNER_VERSIONS, 4, 1)
    assert (info.plan_count, info.cluster_count, info.recommends) == (7, NODES, True)
    assert info.prompt_style == "video_cot"
    assert info.limits is not None
    assert (info.limits.context_items, info.limits.video_seconds) == (256, 60.0)


def test_retrieve(client: Both) -> None:
    history = ["a", ("b", 5, None), ("c", 6, 0.5), HistoryItem("d", 7)]
    result = client.retrieve(
        history,
        [4],
        tree_version=TREE,
        k=2,
        exclude_node_ids=[3],
        widen_node_ids=[6, 5],
        deny_item_ids=["z"],
        include_seen=True,
        widening=False,
    )
    assert result.candidates == (Candidate("item-0", 1.0, 4), Candidate("item-1", 1 - 1 / 1024, 4))
    assert (result.widened_to, result.unknown_history_items) == ((6,), 4)
    assert result.versions == RETRIEVER_VERSIONS
    request = client.tiers.retriever.requests[-1]
    assert [(e.item_id, e.timestamp_ms) for e in request.history] == [
        *(("a", 0), ("b", 5), ("c", 6), ("d", 7))
    ]
    assert [e.HasField("satisfaction") for e in request.history] == [False, False, True, False]
    assert request.history[2].satisfaction == 0.5
    assert (list(request.exclude_node_ids), list(request.deny_item_ids)) == ([3], ["z"])
    assert (request.include_seen, request.no_widening) == (True, True)


def test_what_a_retrieval_may_ask_for_arrives(client: Both) -> None:
    filters = [
        Filter("language", any_of=["en", "de"]),
        Filter("age", at_least=6, at_most=12.5),
        Filter("kids", none_of=[False]),
    ]
    client.retrieve(
        ["a"],
        [4],
        tree_version=TREE,
        filters=filters,
        allow_item_ids=["x", "y"],
        max_per_leaf=2,
        require_known_history=True,
    )
    query = wire.query_from_proto(client.tiers.retriever.requests[-1])
    assert query.filters == tuple(filters)
    assert query.filters[2].none_of[0] is False
    assert query.allow_item_ids == ("x", "y")
    assert (query.max_per_leaf, query.require_known_history) == (2, True)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"allow_item_ids": []}, "allow_item_ids"),
        ({"allow_item_ids": "xy"}, "allow_item_ids"),
        ({"max_per_leaf": -1}, "max_per_leaf"),
    ],
)
def test_what_would_be_misread_is_refused(
    client: Both, options: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.retrieve([], [4], tree_version=TREE, **options)
    assert caught.value.field == field
    with pytest.raises(InvalidRequest, match="must be a list"):
        Filter("language", any_of="en")


def test_retriever_info(client: Both) -> None:
    info = client.retriever_info()
    assert (info.versions, info.tree_versions) == (RETRIEVER_VERSIONS, (TREE,))
    assert (info.item_count, info.max_history, info.dimensions) == (1000, 50, 65)
    assert info.attributes == {"age": AttributeType.INTEGER}
    counts = info.fresh_item_count, info.deleted_item_count, info.withheld_item_count
    assert counts == (3, 2, 1)


def test_retrieve_batch(client: Both) -> None:
    queries = [RetrievalQuery(("a",), (node,), 1) for node in (4, 99, 5)]
    first, second, third = client.retrieve_batch(queries, tree_version=TREE)
    assert first.require().candidates[0].node_id == 4
    assert third.require().candidates[0].node_id == 5
    assert second.result is None
    with pytest.raises(InvalidRequest) as caught:
        second.require()
    assert caught.value.field == "node_ids"


def test_recommend_is_the_same_on_both_ways(client: Both) -> None:
    history = [("a", 5, 0.5), ("b", 6, None)]
    arguments = {"deny_item_ids": ["z"], "include_seen": True, "constraint": "siblings"}
    by_server = client.recommend(history, "a", 3, **arguments, via="server")
    asked_by_server = client.tiers.retriever.requests[-1]
    by_client = client.recommend(history, "a", 3, **arguments, via="client")
    assert client.tiers.retriever.requests[-1] == asked_by_server
    asked_planner = client.tiers.planner.requests[-2:]
    assert asked_planner[0] == asked_planner[1]
    assert asked_planner[1].constraint == planner_pb2.CONSTRAINT_SIBLINGS
    assert by_client == by_server
    assert list(asked_by_server.node_ids) == [4]
    assert list(asked_by_server.widen_node_ids) == [6, 5]
    assert list(asked_by_server.exclude_node_ids) == [3]
    assert asked_by_server.tree_version == TREE
    assert len(by_server.candidates) == 3
    assert by_server.plan == toy_tiers.plan_of("a", 8)
    assert by_server.source is PlanSource.STORE
    assert by_server.widened_to == (6,)
    assert by_server.versions == Versions(TREE, "p", "q", "r", "o")


@pytest.mark.parametrize("via", ["server", "client"])
def test_what_a_recommendation_may_ask_for_arrives(client: Both, via: str) -> None:
    filters = [Filter("age", at_least=6)]
    answer = client.recommend(
        [],
        "a",
        4,
        clusters=2,
        exclude_node_ids=[9],
        min_score=-7.5,
        filters=filters,
        max_per_leaf=3,
        via=via,
    )
    assert (answer.age_s, answer.left_out, answer.unknown_history_items) == (1.5, 0, 0)
    query = wire.query_from_proto(client.tiers.retriever.requests[-1])
    assert (query.node_ids, query.widen_node_ids) == ((4, 6), (5,))
    assert (query.exclude_node_ids, query.filters) == ((3, 9), tuple(filters))
    assert query.max_per_leaf == 3
    asked = client.tiers.planner.requests[-1]
    assert (list(asked.exclude_node_ids), asked.min_score) == ([9], -7.5)


@pytest.mark.parametrize("via", ["server", "client"])
def test_recommend_batch(client: Both, via: str) -> None:
    queries = [
        RecommendQuery(["x"], "a", 2, clusters=2, merge="quota"),
        RecommendQuery([], "unknown"),
        RecommendQuery([], "a", 0),
        RecommendQuery([], "b", 1, exclude_node_ids=[9]),
    ]
    good, unknown, invalid, last = client.recommend_batch(queries, via=via)
    assert [(c.item_id, c.node_id) for c in good.require().candidates] == [
        ("item-0", 4),
        ("item-0", 6),
    ]
    assert last.require().plan.context_item_id == "b"
    assert isinstance(unknown.error, NotFound)
    with pytest.raises(InvalidRequest) as caught:
        invalid.require()
    assert caught.value.field == "k"
    assert client.recommend_batch(queries[:1], via=via)[0] == good
    for bad in (RecommendQuery([], "a", merge="best"), RecommendQuery("ab", "a")):
        with pytest.raises(InvalidRequest):
            client.recommend_batch([bad], via=via)


@pytest.mark.parametrize("via", ["server", "client"])
def test_recommend_fails_alike_on_both_ways(client: Both, via: str) -> None:
    with pytest.raises(NotFound, match="unknown"):
        client.recommend([], "unknown", via=via)
    with pytest.raises(NotFound, match="no planned cluster"):
        client.recommend([], "empty", via=via)
    with pytest.raises(InvalidRequest) as caught:
        client.recommend([], "a", 0, via=via)
    assert caught.value.field == "k"


def test_errors_are_cores(client: Both) -> None:
    with pytest.raises(InvalidRequest) as invalid:
        client.plan(["a"], k=9)
    assert invalid.value.field == "k"
    assert str(invalid.value) == "k: must lie in 1 to 8, got 9. Set k to 1 to 8."
    assert isinstance(invalid.value.__cause__, grpc.RpcError)
    with pytest.raises(WrongTree, match=TREE):
        client.plan(["a"], tree_version="another")
    client.options = {"timeout_s": 0.2}  # less than the server wants to be left alone for
    client.tiers.planner.failures = [toy_tiers.FULL]
    with pytest.raises(Overloaded) as full:
        client.plan(["a"])
    assert full.value.retry_after_s == 0.25
    client.options = {}
    client.tiers.planner.failures = [ZeroDivisionError("secret")]
    with pytest.raises(SerendipError, match=r"internal error [0-9a-f]{12}") as fault:
        client.plan(["a"])
    assert type(fault.value) is SerendipError
    assert "secret" not in str(fault.value)


def test_nobody_there_is_told_at_once(client: Both) -> None:
    client.planner = "127.0.0.1:1"
    began = time.monotonic()
    with pytest.raises(NotReady):
        client.plan(["a"])
    assert time.monotonic() - began < 3


def test_a_timeout_is_a_spent_deadline(client: Both) -> None:
    client.options = {"timeout_s": 0.1}
    began = time.monotonic()
    with pytest.raises(DeadlineSpent):
        client.plan(["slow"])
    assert time.monotonic() - began < 2


def test_a_token_is_sent(client: Both) -> None:
    client.options = {"token": "abc"}
    client.plan(["a"])
    assert client.tiers.planner.metadata[-1]["authorization"] == "Bearer abc"
    client.options = {}
    client.plan(["a"])
    assert "authorization" not in client.tiers.planner.metadata[-1]


def test_a_call_that_cannot_be_built_is_the_callers(client: Both) -> None:
    wrong: list[Callable[[], Any]] = [
        lambda: client.plan("a"),
        lambda: client.plan([3]),
        lambda: client.plan(["a"], k=2**40),
        lambda: client.get_cluster("x"),
        lambda: client.retrieve("abc", [4], tree_version=TREE),
        lambda: client.retrieve([("a", 3)], [4], tree_version=TREE),
        lambda: client.retrieve(["a"], [4], tree_version=TREE, deny_item_ids="z"),
        lambda: client.resolve("text"),
        lambda: client.recommend([], "a", via="magic"),
    ]
    for call in wrong:
        with pytest.raises(InvalidRequest):
            call()


def test_without_a_retriever_its_methods_say_so(client: Both) -> None:
    client.retriever = None
    assert client.recommend([], "a", 1).candidates
    for call in (
        lambda: client.retrieve([], [4], tree_version=TREE),
        lambda: client.recommend([], "a", 1, via="client"),
        lambda: client.recommend_batch([RecommendQuery([], "a", 1)], via="client")[0].require(),
    ):
        with pytest.raises(InvalidRequest) as caught:
            call()
        assert caught.value.field == "retriever"


def test_the_two_clients_show_the_same_methods() -> None:
    for name in METHODS:
        sync, asynchronous = getattr(SerendipClient, name), getattr(AsyncSerendipClient, name)
        assert inspect.signature(sync) == inspect.signature(asynchronous)
        assert sync.__doc__
    shown = inspect.signature(SerendipClient("127.0.0.1:1").plan)
    assert list(shown.parameters) == [
        *("context_item_ids", "k", "constraint", "exclude_node_ids"),
        *("min_score", "reasoning", "tree_version"),
    ]
    assert shown.return_annotation == "list[PlanRow]"
    public = {n for n in dir(SerendipClient) if not n.startswith("_")}
    assert public == {n for n in dir(AsyncSerendipClient) if not n.startswith("_")}
    assert public == {*METHODS, "close"}
    for name in serendip_client.__all__:
        assert hasattr(serendip_client, name)


def test_many_calls_share_one_async_client(servers: tuple[Tiers, str, str]) -> None:
    _, planner, retriever = servers

    async def main() -> None:
        async with AsyncSerendipClient(planner, retriever) as client:
            with contextlib.suppress(NotFound):
                await client.get_cluster(-1)
            rows = await asyncio.gather(*[client.plan([f"item-{i}"]) for i in range(20)])
        assert [row[0].require().context_item_id for row in rows] == [
            f"item-{i}" for i in range(20)
        ]

    asyncio.run(main())


def test_what_is_wrong_on_this_side_is_said_as_such_under_a_hedge() -> None:
    with (
        SerendipClient("127.0.0.1:1", hedge=True) as client,
        pytest.raises(InvalidRequest, match="retriever"),
    ):
        client.retriever_info()

    async def body() -> None:
        async with AsyncSerendipClient("127.0.0.1:1", hedge=True) as client:
            with pytest.raises(InvalidRequest, match="retriever"):
                await client.retriever_info()

    asyncio.run(body())
