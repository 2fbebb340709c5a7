"""The client's methods of both tiers: by the planner server, or by the client itself.

How two tiers make one answer is serendip.wire_recommend's, which the planner server follows as
well. Knows no channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from serendip.core import (
    Constraint,
    Filter,
    InvalidRequest,
    Merge,
    NotFound,
    SerendipError,
    check_length,
)
from serendip.v1 import planner_pb2, recommender_pb2
from serendip.wire import error_from_status
from serendip.wire_recommend import (
    MAX_RECOMMENDATIONS,
    PLANNER_SHARE,
    Answer,
    Items,
    Plans,
    batches,
    composed,
    rows_of,
    to_plan_request,
)
from serendip_client.calls import Call, Operation
from serendip_client.messages import recommend_message, recommendation
from serendip_client.types import (
    ConstraintName,
    History,
    MergeName,
    Recommendation,
    RecommendationRow,
    RecommendQuery,
)

Via = Literal["server", "client"]
Request = recommender_pb2.RecommendRequest


def recommend(
    history: History,
    context_item_id: str,
    k: int = 50,
    *,
    constraint: Constraint | ConstraintName = "not_own",
    include_seen: bool = False,
    deny_item_ids: Sequence[str] = (),
    clusters: int = 1,
    merge: Merge | MergeName = "score",
    exclude_node_ids: Sequence[int] = (),
    min_score: float | None = None,
    filters: Sequence[Filter] = (),
    max_per_leaf: int = 0,
    via: Via = "server",
) -> Operation[Recommendation]:
    """Serendipitous items for a user who has just enjoyed a context item.

    Args:
        history: oldest first, at most 10,000 events; empty for a cold user.
        context_item_id: the catalogue's ID.
        k: candidates wanted, 1 to 1,000.
        constraint: which clusters may be planned, as ``plan``'s.
        include_seen: return items of the history as well.
        deny_item_ids: items never to return, at most 10,000.
        clusters: planned clusters that candidates are taken from before any widening, 1 to 8.
        merge: the best of their union ("score"), or the clusters take turns ("quota").
        exclude_node_ids: nodes whose clusters may not be planned, and whose items are never
            returned; at most 1,023.
        min_score: clusters with a lower score are left out of the plan.
        filters: conditions on the items' attributes, as ``retrieve``'s.
        max_per_leaf: most candidates of one leaf, 1 to 1,000; 0 for no limit.
        via: "server" asks the planner server for both tiers; "client" asks the planner, then the
            retriever, and needs the address of both. The answer is the same.

    Raises:
        InvalidRequest, NotFound, WrongTree, Overloaded, DeadlineSpent, NotReady.
    """
    _check_via(via)
    request = recommend_message(
        RecommendQuery(
            history=history,
            context_item_id=context_item_id,
            k=k,
            constraint=constraint,
            include_seen=include_seen,
            deny_item_ids=deny_item_ids,
            clusters=clusters,
            merge=merge,
            exclude_node_ids=exclude_node_ids,
            min_score=min_score,
            filters=filters,
            max_per_leaf=max_per_leaf,
        )
    )
    if via == "server":
        response: recommender_pb2.RecommendResponse = yield Call(
            "recommender", "Recommend", request
        )
        return recommendation(response)
    (outcome,) = yield from _composed([request])
    return _row(outcome).require()


def recommend_batch(
    queries: Sequence[RecommendQuery], *, via: Via = "server"
) -> Operation[list[RecommendationRow]]:
    """Recommendations for many users in one call: one row a query, in order.

    Args:
        queries: 1 to 128.
        via: as ``recommend``'s.

    Raises:
        InvalidRequest, Overloaded, DeadlineSpent, NotReady: for the call as a whole; what
            concerns one query is its row's ``error``.
    """
    _check_via(via)
    requests = [recommend_message(query) for query in queries]
    if via == "server":
        response: recommender_pb2.RecommendBatchResponse = yield Call(
            "recommender",
            "RecommendBatch",
            recommender_pb2.RecommendBatchRequest(requests=requests),
        )
        return [
            RecommendationRow(recommendation(row.response))
            if row.status.code == 0
            else RecommendationRow(None, error_from_status(row.status))
            for row in response.rows
        ]
    check_length(tuple(requests), "requests", 1, MAX_RECOMMENDATIONS)
    outcomes = yield from _composed(requests)
    return [_row(outcome) for outcome in outcomes]


def _check_via(via: str) -> None:
    if via not in ("server", "client"):
        raise InvalidRequest('must be "server" or "client"', field="via", value=via)


def _row(outcome: Answer) -> RecommendationRow:
    if isinstance(outcome, SerendipError):
        return RecommendationRow(None, outcome)
    return RecommendationRow(recommendation(recommender_pb2.RecommendResponse.FromString(outcome)))


# --- by the client itself ------------------------------------------------------------------


def _composed(requests: Sequence[Request]) -> Operation[list[Answer]]:
    composition = composed(requests)
    answer: Any = None
    while True:
        try:
            wish = composition.send(answer)
        except StopIteration as done:
            outcomes: list[Answer] = done.value
            return outcomes
        if isinstance(wish, Plans):
            answer = yield from _plans(wish.requests)
        elif isinstance(wish, Items):
            answer = yield from _items(wish.requests)
        else:
            answer = yield from _served_tree()


def _plans(requests: Sequence[Request]) -> Operation[list[planner_pb2.PlanRow | SerendipError]]:
    """One Plan call for all that ask for the same of a plan."""
    alike: dict[Any, list[int]] = {}
    for at, request in enumerate(requests):
        least = request.min_score if request.HasField("min_score") else None
        options = (request.constraint, tuple(request.exclude_node_ids), least)
        alike.setdefault(options, []).append(at)
    found: dict[int, planner_pb2.PlanRow | SerendipError] = {}
    for places in alike.values():
        asked = to_plan_request([requests[at] for at in places])
        try:
            response: planner_pb2.PlanResponse = yield Call(
                "planner", "Plan", asked, share=PLANNER_SHARE
            )
        except (InvalidRequest, NotFound) as error:  # of these options: no matter of the others
            found.update((at, error) for at in places)
            continue
        if len(response.rows) != len(places):
            raise SerendipError(f"{len(places)} plans were asked for, {len(response.rows)} came")
        found.update(zip(places, response.rows, strict=True))
    return [found[at] for at in range(len(requests))]


def _items(requests: Sequence[bytes]) -> Operation[list[Answer]]:
    if len(requests) == 1:
        try:
            response: bytes = yield Call("retriever", "Retrieve", requests[0], raw=True)
        except SerendipError as error:
            return [error]
        return [response]
    answers: list[Answer] = []
    for count, batch in batches(requests):
        try:
            rows: bytes = yield Call("retriever", "RetrieveBatch", batch, raw=True)
            answers += rows_of(rows, count)
        except SerendipError as error:
            answers += [error] * count
    return answers


def _served_tree() -> Operation[str | None]:
    try:
        info: planner_pb2.PlannerGetInfoResponse = yield Call(
            "planner", "GetInfo", planner_pb2.PlannerGetInfoRequest()
        )
    except SerendipError:
        return None
    return info.versions.tree_version
