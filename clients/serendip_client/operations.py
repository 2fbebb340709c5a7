"""The client's methods of one tier: which calls they make, and what they make of the answers.

Those of both tiers are recommending.py's. Knows no channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from serendip.core import (
    MAX_PLANNED_CLUSTERS,
    Constraint,
    Filter,
    InvalidRequest,
    PlanSource,
    RetrievalQuery,
    SerendipError,
)
from serendip.v1 import planner_pb2, retriever_pb2
from serendip.wire import error_from_status, query_to_proto, versions_from_proto
from serendip.wire_filters import attributes_from_proto, filters_to_proto
from serendip.wire_plans import constraint_to_proto, plan_from_proto
from serendip_client.calls import Call, Operation
from serendip_client.messages import (
    building,
    cluster,
    events_of,
    history_messages,
    listed,
    plan_row,
    retrieved,
)
from serendip_client.types import (
    Cluster,
    ConstraintName,
    History,
    PlannerInfo,
    PlannerLimits,
    PlanRow,
    Resolution,
    Retrieved,
    RetrievedRow,
    RetrieverInfo,
)


def plan(
    context_item_ids: Sequence[str],
    k: int = MAX_PLANNED_CLUSTERS,
    *,
    constraint: Constraint | ConstraintName = "not_own",
    exclude_node_ids: Sequence[int] = (),
    min_score: float | None = None,
    reasoning: bool = True,
    tree_version: str = "",
) -> Operation[list[PlanRow]]:
    """Plans for context items: one row an item, in order.

    Args:
        context_item_ids: 1 to 256 catalogue IDs.
        k: clusters a plan, 1 to 8.
        constraint: which clusters may be planned: every one but the item's own ("not_own"), only
            those that are serendipitous for it ("siblings"), every one ("none").
        exclude_node_ids: nodes whose clusters may not be planned, at most 1,024.
        min_score: clusters with a lower score are left out.
        reasoning: False leaves out what the MLLM wrote before its answer.
        tree_version: the tree expected; empty takes whichever is served.

    Raises:
        InvalidRequest, WrongTree, Overloaded, DeadlineSpent, NotReady: for the call as a whole;
            what concerns one item is its row's ``error``.
    """
    with building():
        request = planner_pb2.PlanRequest(
            context_item_ids=listed(context_item_ids, "context_item_ids"),
            k=k,
            tree_version=tree_version,
            constraint=constraint_to_proto(constraint),
            exclude_node_ids=exclude_node_ids,
            min_score=min_score,
            no_reasoning=not reasoning,
        )
    response: planner_pb2.PlanResponse = yield Call("planner", "Plan", request)
    return [plan_row(row) for row in response.rows]


def plan_content(
    title: str,
    *,
    text: str = "",
    thumbnail: bytes = b"",
    frames: Sequence[bytes] = (),
    video: bytes = b"",
    k: int = MAX_PLANNED_CLUSTERS,
    exclude_node_ids: Sequence[int] = (),
    tree_version: str = "",
) -> Operation[PlanRow]:
    """A live plan for an item that the catalogue does not have; its own_node_id is None.

    Args:
        title: 1 to 2,000 bytes of UTF-8.
        text: at most 20,000 bytes of UTF-8.
        thumbnail: an encoded JPEG or PNG, at most 8 MiB and 40 megapixels.
        frames: at most 32 such images, in the order of the video.
        video: an MP4 or WebM that frames are sampled from, in place of frames; at most 16 MiB
            and 60 seconds.
        k: clusters wanted, 1 to 8.
        exclude_node_ids: clusters of the planning level that may not be planned.
        tree_version: the tree expected; empty takes whichever is served.

    Raises:
        InvalidRequest, NotFound, WrongTree, Overloaded, DeadlineSpent, NotReady.
    """
    with building():
        request = planner_pb2.PlanContentRequest(
            title=title,
            text=text,
            thumbnail=thumbnail,
            frames=frames,
            video=video,
            k=k,
            tree_version=tree_version,
            exclude_node_ids=exclude_node_ids,
        )
    response: planner_pb2.PlanContentResponse = yield Call("planner", "PlanContent", request)
    return PlanRow(
        plan=plan_from_proto(response.plan),
        source=PlanSource.LIVE,
        age_s=0.0,
        versions=versions_from_proto(response.versions),
    )


def resolve(texts: Sequence[str], *, tree_version: str = "") -> Operation[Resolution]:
    """Texts of any model to nodes of the planning level, by equality with a description.

    Args:
        texts: 1 to 1,024 texts of at most 2,000 bytes.
        tree_version: the tree expected; empty takes whichever is served.

    Raises:
        InvalidRequest, WrongTree, Overloaded, DeadlineSpent, NotReady.
    """
    with building():
        request = planner_pb2.ResolveRequest(
            texts=listed(texts, "texts"), tree_version=tree_version
        )
    response: planner_pb2.ResolveResponse = yield Call("planner", "Resolve", request)
    return Resolution(
        node_ids=tuple([None if row.status.code else row.node_id for row in response.rows]),
        match_rate=response.match_rate,
        tree_version=response.tree_version,
    )


def list_clusters(
    level: int | None = None,
    parent_node_id: int | None = None,
    *,
    query: str = "",
    page_size: int = 1000,
) -> Operation[list[Cluster]]:
    """The tree's nodes by node ID, all pages of them; each page has the whole timeout.

    Args:
        level: 0 (the root) to 4 (the leaves); None for every level.
        parent_node_id: only children of this node; None for no such limit.
        query: only clusters whose description has each of these words, as a part of one of its
            own, in upper or lower case; at most 200 bytes.
        page_size: clusters a call, 1 to 1,000.

    Raises:
        InvalidRequest, NotFound, Overloaded, DeadlineSpent, NotReady.
        SerendipError: the server went over to another tree between two pages.
    """
    clusters: list[Cluster] = []
    token = ""
    while True:
        with building():
            request = planner_pb2.ListClustersRequest(
                level=level,
                parent_node_id=parent_node_id,
                page_size=page_size,
                page_token=token,
                query=query,
            )
        response: planner_pb2.ListClustersResponse = yield Call(
            "planner", "ListClusters", request, new_deadline=True
        )
        if clusters and response.tree_version != clusters[0].tree_version:
            raise SerendipError(
                "the server went over to another tree between two pages", remedy="List again."
            )
        clusters += [cluster(c, response.tree_version) for c in response.clusters]
        token = response.next_page_token
        if not token:
            return clusters


def get_cluster(node_id: int) -> Operation[Cluster]:
    """One node of the tree; 0 is the root.

    Raises:
        NotFound, Overloaded, DeadlineSpent, NotReady.
    """
    with building():
        request = planner_pb2.GetClusterRequest(node_id=node_id)
    response: planner_pb2.GetClusterResponse = yield Call("planner", "GetCluster", request)
    return cluster(response.cluster, response.tree_version)


def planner_info() -> Operation[PlannerInfo]:
    """What the planner server serves: versions, planning level, sizes, and its limits.

    Raises:
        Overloaded, DeadlineSpent, NotReady.
    """
    response: planner_pb2.PlannerGetInfoResponse = yield Call(
        "planner", "GetInfo", planner_pb2.PlannerGetInfoRequest()
    )
    limits = response.limits
    return PlannerInfo(
        versions=versions_from_proto(response.versions),
        level=response.level,
        level_gap=response.level_gap,
        prompt_style=response.prompt_style,
        plan_count=response.plan_count,
        cluster_count=response.cluster_count,
        recommends=response.recommends,
        limits=PlannerLimits(**{f.name: getattr(limits, f.name) for f in fields(PlannerLimits)})
        if response.HasField("limits")
        else None,
    )


def retrieve(
    history: History,
    node_ids: Sequence[int],
    *,
    tree_version: str,
    k: int = 50,
    exclude_node_ids: Sequence[int] = (),
    widen_node_ids: Sequence[int] = (),
    deny_item_ids: Sequence[str] = (),
    include_seen: bool = False,
    widening: bool = True,
    filters: Sequence[Filter] = (),
    allow_item_ids: Sequence[str] | None = None,
    max_per_leaf: int = 0,
    require_known_history: bool = False,
) -> Operation[Retrieved]:
    """Candidates for one user out of clusters.

    Args:
        history: oldest first, at most 10,000 events; empty for a cold user.
        node_ids: 1 to 64 clusters at any level; the answer is the top k of their union.
        tree_version: the tree that node IDs refer to: the plan's.
        k: candidates wanted, 1 to 1,000.
        exclude_node_ids: nodes whose items are never returned.
        widen_node_ids: where to widen first when fewer than k are left.
        deny_item_ids: items never to return, at most 10,000.
        include_seen: return items of the history as well.
        widening: False returns fewer than k rather than look beyond node_ids.
        filters: conditions on the items' attributes, at most 16; all must hold.
            ``retriever_info`` names the attributes.
        allow_item_ids: return only these, at most 10,000, and only where the clusters have them;
            None for no such limit. An empty list, which would allow nothing, is refused.
        max_per_leaf: most candidates of one leaf, 1 to 1,000; 0 for no limit.
        require_known_history: raise InvalidRequest for a history with an item that the export
            does not have, rather than count it.

    Raises:
        InvalidRequest, NotFound, WrongTree, Overloaded, DeadlineSpent, NotReady.
    """
    events = events_of(history)
    if allow_item_ids is not None and not len(allow_item_ids):
        raise InvalidRequest(
            "allows nothing",
            field="allow_item_ids",
            value=allow_item_ids,
            remedy="Leave it out to allow every item.",
        )
    with building():
        request = retriever_pb2.RetrieveRequest(
            history=history_messages(events),
            node_ids=node_ids,
            exclude_node_ids=exclude_node_ids,
            widen_node_ids=widen_node_ids,
            tree_version=tree_version,
            k=k,
            include_seen=include_seen,
            deny_item_ids=listed(deny_item_ids, "deny_item_ids"),
            no_widening=not widening,
            filters=filters_to_proto(filters),
            allow_item_ids=listed(allow_item_ids or (), "allow_item_ids"),
            max_per_leaf=max_per_leaf,
            require_known_history=require_known_history,
        )
    response: retriever_pb2.RetrieveResponse = yield Call("retriever", "Retrieve", request)
    return retrieved(response)


def retrieve_batch(
    queries: Sequence[RetrievalQuery], *, tree_version: str
) -> Operation[list[RetrievedRow]]:
    """Candidates for many users in one call: one row a query, in order.

    Args:
        queries: 1 to 256.
        tree_version: the tree that their node IDs refer to.

    Raises:
        InvalidRequest, Overloaded, DeadlineSpent, NotReady: for the call as a whole; what
            concerns one query is its row's ``error``.
    """
    with building():
        request = retriever_pb2.RetrieveBatchRequest(
            requests=[query_to_proto(query, tree_version=tree_version) for query in queries]
        )
    response: retriever_pb2.RetrieveBatchResponse = yield Call(
        "retriever", "RetrieveBatch", request
    )
    return [
        RetrievedRow(retrieved(row.response))
        if row.status.code == 0
        else RetrievedRow(None, error_from_status(row.status))
        for row in response.rows
    ]


def retriever_info() -> Operation[RetrieverInfo]:
    """What the retriever serves: versions, size, and what filters may name.

    Raises:
        Overloaded, DeadlineSpent, NotReady.
    """
    response: retriever_pb2.RetrieverGetInfoResponse = yield Call(
        "retriever", "GetInfo", retriever_pb2.RetrieverGetInfoRequest()
    )
    return RetrieverInfo(
        versions=versions_from_proto(response.versions),
        tree_versions=tuple(response.tree_versions),
        item_count=response.item_count,
        fresh_item_count=response.fresh_item_count,
        deleted_item_count=response.deleted_item_count,
        withheld_item_count=response.withheld_item_count,
        max_history=response.max_history,
        dimensions=response.dimensions,
        attributes=attributes_from_proto(response.attributes),
    )
