"""Every method of the client, once: which calls it makes, and what it makes of the answers.

An operation is a generator that yields calls and is sent their responses; SerendipClient drives
it with a blocking channel, AsyncSerendipClient with an asyncio one. Knows neither.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from serendip.core import (
    MAX_PLANNED_CLUSTERS,
    InvalidRequest,
    PlanSource,
    RetrievalQuery,
    SerendipError,
)
from serendip.v1 import planner_pb2, recommender_pb2, retriever_pb2
from serendip.wire import (
    candidates_from_proto,
    error_from_status,
    history_to_proto,
    plan_from_proto,
    query_to_proto,
    retrieval_from_proto,
    source_from_proto,
    to_recommend_response,
    to_retrieve_request,
    versions_from_proto,
)
from serendip_client.types import (
    Cluster,
    History,
    HistoryItem,
    PlanRow,
    Recommendation,
    Resolution,
    Retrieved,
    RetrievedRow,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """One gRPC call that an operation wants made.

    Attributes:
        new_deadline: whether it gets the whole timeout, and not what is left of it.
    """

    service: Literal["planner", "recommender", "retriever"]
    method: str
    request: Any
    new_deadline: bool = False


Operation = Generator[Call, Any, T]


def plan(
    context_item_ids: Sequence[str],
    k: int = MAX_PLANNED_CLUSTERS,
    *,
    siblings_only: bool = False,
    tree_version: str = "",
) -> Operation[list[PlanRow]]:
    """Plans for context items: one row an item, in order.

    Args:
        context_item_ids: 1 to 256 catalogue IDs.
        k: clusters a plan, 1 to 8.
        siblings_only: only clusters that are serendipitous for the context item.
        tree_version: the tree expected; empty takes whichever is served.

    Raises:
        InvalidRequest, WrongTree, Overloaded, DeadlineSpent, NotReady: for the call as a whole;
            what concerns one item is its row's ``error``.
    """
    with _building():
        request = planner_pb2.PlanRequest(
            context_item_ids=_listed(context_item_ids, "context_item_ids"),
            k=k,
            tree_version=tree_version,
            siblings_only=siblings_only,
        )
    response: planner_pb2.PlanResponse = yield Call("planner", "Plan", request)
    return [_plan_row(row) for row in response.rows]


def plan_content(
    title: str,
    *,
    text: str = "",
    thumbnail: bytes = b"",
    frames: Sequence[bytes] = (),
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
        k: clusters wanted, 1 to 8.
        exclude_node_ids: clusters of the planning level that may not be planned.
        tree_version: the tree expected; empty takes whichever is served.

    Raises:
        InvalidRequest, NotFound, WrongTree, Overloaded, DeadlineSpent, NotReady.
    """
    with _building():
        request = planner_pb2.PlanContentRequest(
            title=title,
            text=text,
            thumbnail=thumbnail,
            frames=frames,
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
    with _building():
        request = planner_pb2.ResolveRequest(
            texts=_listed(texts, "texts"), tree_version=tree_version
        )
    response: planner_pb2.ResolveResponse = yield Call("planner", "Resolve", request)
    return Resolution(
        node_ids=tuple([None if row.status.code else row.node_id for row in response.rows]),
        match_rate=response.match_rate,
        tree_version=response.tree_version,
    )


def list_clusters(
    level: int | None = None, parent_node_id: int | None = None, *, page_size: int = 1000
) -> Operation[list[Cluster]]:
    """The tree's nodes by node ID, all pages of them; each page has the whole timeout.

    Args:
        level: 0 (the root) to 4 (the leaves); None for every level.
        parent_node_id: only children of this node; None for no such limit.
        page_size: clusters a call, 1 to 1,000.

    Raises:
        InvalidRequest, NotFound, Overloaded, DeadlineSpent, NotReady.
        SerendipError: the server went over to another tree between two pages.
    """
    clusters: list[Cluster] = []
    token = ""
    while True:
        with _building():
            request = planner_pb2.ListClustersRequest(
                level=level, parent_node_id=parent_node_id, page_size=page_size, page_token=token
            )
        response: planner_pb2.ListClustersResponse = yield Call(
            "planner", "ListClusters", request, new_deadline=True
        )
        if clusters and response.tree_version != clusters[0].tree_version:
            raise SerendipError(
                "the server went over to another tree between two pages", remedy="List again."
            )
        clusters += [_cluster(c, response.tree_version) for c in response.clusters]
        token = response.next_page_token
        if not token:
            return clusters


def get_cluster(node_id: int) -> Operation[Cluster]:
    """One node of the tree; 0 is the root.

    Raises:
        NotFound, Overloaded, DeadlineSpent, NotReady.
    """
    with _building():
        request = planner_pb2.GetClusterRequest(node_id=node_id)
    response: planner_pb2.GetClusterResponse = yield Call("planner", "GetCluster", request)
    return _cluster(response.cluster, response.tree_version)


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

    Raises:
        InvalidRequest, NotFound, WrongTree, Overloaded, DeadlineSpent, NotReady.
    """
    events = _events(history)
    with _building():
        request = retriever_pb2.RetrieveRequest(
            history=_history(events),
            node_ids=node_ids,
            exclude_node_ids=exclude_node_ids,
            widen_node_ids=widen_node_ids,
            tree_version=tree_version,
            k=k,
            include_seen=include_seen,
            deny_item_ids=_listed(deny_item_ids, "deny_item_ids"),
            no_widening=not widening,
        )
    response: retriever_pb2.RetrieveResponse = yield Call("retriever", "Retrieve", request)
    return _retrieved(response)


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
    with _building():
        request = retriever_pb2.RetrieveBatchRequest(
            requests=[query_to_proto(query, tree_version=tree_version) for query in queries]
        )
    response: retriever_pb2.RetrieveBatchResponse = yield Call(
        "retriever", "RetrieveBatch", request
    )
    return [
        RetrievedRow(_retrieved(row.response))
        if row.status.code == 0
        else RetrievedRow(None, error_from_status(row.status))
        for row in response.rows
    ]


def recommend(
    history: History,
    context_item_id: str,
    k: int = 50,
    *,
    siblings_only: bool = False,
    include_seen: bool = False,
    deny_item_ids: Sequence[str] = (),
    via: Literal["server", "client"] = "server",
) -> Operation[Recommendation]:
    """Serendipitous items for a user who has just enjoyed a context item.

    Args:
        history: oldest first, at most 10,000 events; empty for a cold user.
        context_item_id: the catalogue's ID.
        k: candidates wanted, 1 to 1,000.
        siblings_only: only clusters that are serendipitous for the context item.
        include_seen: return items of the history as well.
        deny_item_ids: items never to return, at most 10,000.
        via: "server" asks the planner server for both tiers; "client" asks the planner, then the
            retriever, and needs the address of both. The answer is the same.

    Raises:
        InvalidRequest, NotFound, WrongTree, Overloaded, DeadlineSpent, NotReady.
    """
    if via not in ("server", "client"):
        raise InvalidRequest('must be "server" or "client"', field="via", value=via)
    events = _events(history)
    with _building():
        request = recommender_pb2.RecommendRequest(
            history=_history(events),
            context_item_id=context_item_id,
            k=k,
            siblings_only=siblings_only,
            include_seen=include_seen,
            deny_item_ids=_listed(deny_item_ids, "deny_item_ids"),
        )
    response: recommender_pb2.RecommendResponse
    if via == "server":
        response = yield Call("recommender", "Recommend", request)
    else:
        response = yield from _composed(request)
    return Recommendation(
        candidates=candidates_from_proto(response.candidates),
        plan=plan_from_proto(response.plan),
        source=source_from_proto(response.source),
        widened_to=tuple(response.widened_to),
        versions=versions_from_proto(response.versions),
    )


def _composed(
    request: recommender_pb2.RecommendRequest,
) -> Operation[recommender_pb2.RecommendResponse]:
    planned: planner_pb2.PlanResponse = yield Call(
        "planner",
        "Plan",
        planner_pb2.PlanRequest(
            context_item_ids=[request.context_item_id],
            k=MAX_PLANNED_CLUSTERS,
            siblings_only=request.siblings_only,
        ),
    )
    if len(planned.rows) != 1:
        raise SerendipError(f"one item was asked for, {len(planned.rows)} rows came")
    (row,) = planned.rows
    error = error_from_status(row.status)
    if error is not None:
        raise error
    retrieved: retriever_pb2.RetrieveResponse = yield Call(
        "retriever", "Retrieve", to_retrieve_request(request, row.plan)
    )
    return to_recommend_response(row, retrieved)


# --- requests ----------------------------------------------------------------------------


@contextlib.contextmanager
def _building() -> Iterator[None]:
    """What cannot even be put into a message (a wrong type, an int too large) is the caller's."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"the request cannot be built: {error}") from error


def _listed(values: Sequence[str], field: str) -> Sequence[str]:
    if isinstance(values, str):  # a sequence of its letters otherwise
        raise InvalidRequest(
            "must be a list", field=field, value=values, remedy=f"Send [{values!r}]."
        )
    return values


def _events(history: History) -> list[HistoryItem]:
    if isinstance(history, str):
        raise InvalidRequest("must be a list", field="history", value=history)
    events = []
    for index, event in enumerate(history):
        if isinstance(event, HistoryItem):
            events.append(event)
        elif isinstance(event, str):
            events.append(HistoryItem(event))
        elif isinstance(event, tuple) and len(event) == 3:
            events.append(HistoryItem(*event))
        else:
            raise InvalidRequest(
                "must be an item_id, an (item_id, timestamp_ms, satisfaction) or a HistoryItem",
                field=f"history[{index}]",
                value=event,
            )
    return events


def _history(events: list[HistoryItem]) -> list[Any]:
    return list(
        history_to_proto(
            [event.item_id for event in events],
            [event.satisfaction for event in events],
            [event.timestamp_ms for event in events],
        )
    )


# --- responses ---------------------------------------------------------------------------


def _plan_row(row: planner_pb2.PlanRow) -> PlanRow:
    error = error_from_status(row.status)
    return PlanRow(
        plan=plan_from_proto(row.plan) if error is None else None,
        source=source_from_proto(row.source),
        age_s=row.age.ToNanoseconds() / 1e9,
        versions=versions_from_proto(row.versions),
        error=error,
    )


def _cluster(message: planner_pb2.Cluster, tree_version: str) -> Cluster:
    return Cluster(
        node_id=message.node_id,
        level=message.level,
        parent_node_id=message.parent_node_id if message.parent_node_id >= 0 else None,
        description=message.description,
        item_count=message.item_count,
        tree_version=tree_version,
    )


def _retrieved(response: retriever_pb2.RetrieveResponse) -> Retrieved:
    retrieval, versions = retrieval_from_proto(response)
    return Retrieved(
        candidates=retrieval.candidates,
        widened_to=retrieval.widened_to,
        unknown_history_items=retrieval.unknown_history_items,
        versions=versions,
    )
