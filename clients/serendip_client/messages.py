"""Between what the client's methods take and return, and messages; a part of operations.py.

Knows no call and no channel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from serendip.core import InvalidRequest
from serendip.v1 import planner_pb2, recommender_pb2, retriever_pb2
from serendip.wire import (
    candidates_from_proto,
    error_from_status,
    history_to_proto,
    retrieval_from_proto,
    versions_from_proto,
)
from serendip.wire_filters import filters_to_proto
from serendip.wire_plans import constraint_to_proto, plan_from_proto, source_from_proto
from serendip.wire_recommend import merge_to_proto
from serendip_client.types import (
    Cluster,
    History,
    HistoryItem,
    PlanRow,
    Recommendation,
    RecommendQuery,
    Retrieved,
)

# --- requests ----------------------------------------------------------------------------


@contextlib.contextmanager
def building() -> Iterator[None]:
    """What cannot even be put into a message (a wrong type, an int too large) is the caller's."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"the request cannot be built: {error}") from error


def listed(values: Sequence[str], field: str) -> Sequence[str]:
    if isinstance(values, str):  # a sequence of its letters otherwise
        raise InvalidRequest(
            "must be a list", field=field, value=values, remedy=f"Send [{values!r}]."
        )
    return values


def events_of(history: History) -> list[HistoryItem]:
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


def history_messages(events: list[HistoryItem]) -> list[Any]:
    return list(
        history_to_proto(
            [event.item_id for event in events],
            [event.satisfaction for event in events],
            [event.timestamp_ms for event in events],
        )
    )


def recommend_message(query: RecommendQuery) -> recommender_pb2.RecommendRequest:
    events = events_of(query.history)
    with building():
        return recommender_pb2.RecommendRequest(
            history=history_messages(events),
            context_item_id=query.context_item_id,
            k=query.k,
            constraint=constraint_to_proto(query.constraint),
            include_seen=query.include_seen,
            deny_item_ids=listed(query.deny_item_ids, "deny_item_ids"),
            clusters=query.clusters,
            merge=merge_to_proto(query.merge),
            exclude_node_ids=query.exclude_node_ids,
            min_score=query.min_score,
            filters=filters_to_proto(query.filters),
            max_per_leaf=query.max_per_leaf,
        )


# --- responses ---------------------------------------------------------------------------


def plan_row(row: planner_pb2.PlanRow) -> PlanRow:
    error = error_from_status(row.status)
    return PlanRow(
        plan=plan_from_proto(row.plan) if error is None else None,
        source=source_from_proto(row.source),
        age_s=row.age.ToNanoseconds() / 1e9,
        versions=versions_from_proto(row.versions),
        error=error,
        left_out=row.left_out,
    )


def cluster(message: planner_pb2.Cluster, tree_version: str) -> Cluster:
    return Cluster(
        node_id=message.node_id,
        level=message.level,
        parent_node_id=message.parent_node_id if message.parent_node_id >= 0 else None,
        description=message.description,
        item_count=message.item_count,
        tree_version=tree_version,
    )


def retrieved(response: retriever_pb2.RetrieveResponse) -> Retrieved:
    retrieval, versions = retrieval_from_proto(response)
    return Retrieved(
        candidates=retrieval.candidates,
        widened_to=retrieval.widened_to,
        unknown_history_items=retrieval.unknown_history_items,
        versions=versions,
    )


def recommendation(response: recommender_pb2.RecommendResponse) -> Recommendation:
    return Recommendation(
        candidates=candidates_from_proto(response.candidates),
        plan=plan_from_proto(response.plan),
        source=source_from_proto(response.source),
        widened_to=tuple(response.widened_to),
        versions=versions_from_proto(response.versions),
        age_s=response.age.ToNanoseconds() / 1e9,
        left_out=response.left_out,
        unknown_history_items=response.unknown_history_items,
    )
