"""Between the protos and the border types of core: both directions, and every request check.

Servers and clients import this one module, so that a field has one meaning on both sides; how both
tiers become one answer is wire_recommend.py's. Knows no channel, no servicer and no artefact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from serendip.core import (
    MAX_PLANNED_CLUSTERS,
    Candidate,
    DeadlineSpent,
    InvalidRequest,
    NotFound,
    NotReady,
    Overloaded,
    Retrieval,
    RetrievalQuery,
    SerendipError,
    Unauthenticated,
    Versions,
    WrongTree,
    check_id,
    check_length,
    check_range,
)
from serendip.v1 import common_pb2, planner_pb2, retriever_pb2
from serendip.wire_filters import filters_from_proto, filters_to_proto
from serendip.wire_plans import constraint_from_proto

MAX_HISTORY = 10_000
MAX_EXCLUDED = 1024
MAX_CONTEXT_ITEMS = 256
DETAILS_KEY = "grpc-status-details-bin"

# UTF-8 takes at most 4 bytes a character: text up to this length needs no encoding to be checked.
_SURELY_SHORT = 64


# --- checks ------------------------------------------------------------------------------


def check_ids(ids: Sequence[str], field: str, *, part: str = "") -> None:
    """Raises InvalidRequest naming ``field[index]part`` unless every ID is 1 to 256 bytes."""
    lengths = set(map(len, ids))
    if not lengths or (min(lengths) > 0 and max(lengths) <= _SURELY_SHORT):
        return
    for index, value in enumerate(ids):
        if not 0 < len(value) <= _SURELY_SHORT:
            check_id(value, f"{field}[{index}]{part}")


def check_plan_request(request: planner_pb2.PlanRequest) -> None:
    """Raises InvalidRequest, naming the field, for what PlanRequest says is INVALID_ARGUMENT."""
    check_length(tuple(request.context_item_ids), "context_item_ids", 1, MAX_CONTEXT_ITEMS)
    check_ids(request.context_item_ids, "context_item_ids")
    check_range(request.k, "k", 1, MAX_PLANNED_CLUSTERS)
    check_length(tuple(request.exclude_node_ids), "exclude_node_ids", 0, MAX_EXCLUDED)
    if math.isnan(request.min_score):
        raise InvalidRequest("must be a number", field="min_score", value=request.min_score)
    constraint_from_proto(request.constraint)


# --- versions, history -------------------------------------------------------------------


def versions_to_proto(versions: Versions) -> common_pb2.Versions:
    return common_pb2.Versions(
        tree_version=versions.tree_version,
        planner_version=versions.planner_version,
        plans_version=versions.plans_version,
        retriever_version=versions.retriever_version,
        order_version=versions.order_version,
    )


def versions_from_proto(message: common_pb2.Versions) -> Versions:
    return Versions(
        tree_version=message.tree_version,
        planner_version=message.planner_version,
        plans_version=message.plans_version,
        retriever_version=message.retriever_version,
        order_version=message.order_version,
    )


def history_to_proto(
    item_ids: Sequence[str],
    satisfaction: Sequence[float | None] = (),
    timestamps_ms: Sequence[int] = (),
) -> list[common_pb2.HistoryItem]:
    """Builds a request's history, oldest first.

    Args:
        satisfaction: one number or None an event, or empty: none is set.
        timestamps_ms: one Unix time in milliseconds an event, or empty: none is known.
    """
    events = [common_pb2.HistoryItem(item_id=item_id) for item_id in item_ids]
    for event, value in zip(events, satisfaction, strict=bool(satisfaction)):
        if value is not None:
            event.satisfaction = value
    for event, timestamp in zip(events, timestamps_ms, strict=bool(timestamps_ms)):
        event.timestamp_ms = timestamp
    return events


def history_from_proto(
    history: Sequence[common_pb2.HistoryItem],
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Reads a history into item IDs and satisfactions (empty if no event has one).

    Raises:
        InvalidRequest: too many events, an item ID that is none, a falling timestamp. The range
            of satisfaction is checked by RetrievalQuery.
    """
    events = list(history)  # once: every walk over the field itself makes the events anew
    item_ids = tuple([event.item_id for event in events])
    check_history(item_ids)
    timestamps = [event.timestamp_ms for event in events]
    if any(timestamps):
        _check_order(timestamps)
    given = [event.HasField("satisfaction") for event in events]
    if True not in given:
        return item_ids, ()
    satisfaction = [e.satisfaction if has else 1.0 for e, has in zip(events, given, strict=True)]
    return item_ids, tuple(satisfaction)


def check_history(item_ids: Sequence[str]) -> None:
    """Raises InvalidRequest: too many events, or an item ID that is none."""
    check_length(tuple(item_ids), "history", 0, MAX_HISTORY)
    check_ids(item_ids, "history", part=".item_id")


def _check_order(timestamps_ms: Sequence[int]) -> None:
    latest: int | None = None
    for index, timestamp in enumerate(timestamps_ms):
        if timestamp == 0:  # unknown: compares with nothing
            continue
        if latest is not None and timestamp < latest:
            raise InvalidRequest(
                f"must not fall below the {latest} of an event before it",
                field=f"history[{index}].timestamp_ms",
                value=timestamp,
                remedy="Send the history oldest first.",
            )
        latest = timestamp


# --- retrieval ---------------------------------------------------------------------------


def query_from_proto(
    request: retriever_pb2.RetrieveRequest,
    read_history: Callable[[Any], tuple[tuple[str, ...], tuple[float, ...]]] = history_from_proto,
) -> RetrievalQuery:
    """Checks and reads a request; whether its nodes and its tree exist is the server's to say.

    Args:
        read_history: reads the field ``history`` as ``history_from_proto`` does.

    Raises:
        InvalidRequest: naming the field, for everything that RetrieveRequest's comments call
            INVALID_ARGUMENT, an empty tree_version included.
    """
    if not request.tree_version:
        raise InvalidRequest(
            "is required", field="tree_version", remedy="Send the tree_version of the plan."
        )
    history, satisfaction = read_history(request.history)
    query = RetrievalQuery(
        history=history,
        node_ids=tuple(request.node_ids),
        k=request.k,
        exclude_node_ids=tuple(request.exclude_node_ids),
        widen_node_ids=tuple(request.widen_node_ids),
        satisfaction=satisfaction,
        deny_item_ids=tuple(request.deny_item_ids),
        include_seen=request.include_seen,
        widening=not request.no_widening,
        filters=filters_from_proto(request.filters) if request.filters else (),
        allow_item_ids=tuple(request.allow_item_ids) or None,
        max_per_leaf=request.max_per_leaf,
        require_known_history=request.require_known_history,
    )
    check_ids(query.deny_item_ids, "deny_item_ids")
    check_ids(query.allow_item_ids or (), "allow_item_ids")
    return query


def query_to_proto(
    query: RetrievalQuery, *, tree_version: str, timestamps_ms: Sequence[int] = ()
) -> retriever_pb2.RetrieveRequest:
    """Builds a request; ``timestamps_ms`` is empty, or has one entry an event of the history."""
    return retriever_pb2.RetrieveRequest(
        history=history_to_proto(query.history, query.satisfaction, timestamps_ms),
        node_ids=query.node_ids,
        exclude_node_ids=query.exclude_node_ids,
        widen_node_ids=query.widen_node_ids,
        tree_version=tree_version,
        k=query.k,
        include_seen=query.include_seen,
        deny_item_ids=query.deny_item_ids,
        no_widening=not query.widening,
        filters=filters_to_proto(query.filters),
        allow_item_ids=query.allow_item_ids,
        max_per_leaf=query.max_per_leaf,
        require_known_history=query.require_known_history,
    )


def candidates_to_proto(candidates: Iterable[Candidate]) -> list[common_pb2.Candidate]:
    return [
        common_pb2.Candidate(
            item_id=c.item_id, score=c.score, node_id=c.node_id, widened=c.widened, fresh=c.fresh
        )
        for c in candidates
    ]


def candidates_from_proto(messages: Iterable[common_pb2.Candidate]) -> tuple[Candidate, ...]:
    return tuple([Candidate(m.item_id, m.score, m.node_id, m.widened, m.fresh) for m in messages])


def retrieval_to_proto(retrieval: Retrieval, versions: Versions) -> retriever_pb2.RetrieveResponse:
    """Scores become 32-bit floats on the way."""
    return retriever_pb2.RetrieveResponse(
        candidates=candidates_to_proto(retrieval.candidates),
        widened_to=retrieval.widened_to,
        unknown_history_items=retrieval.unknown_history_items,
        versions=versions_to_proto(versions),
    )


def retrieval_from_proto(message: retriever_pb2.RetrieveResponse) -> tuple[Retrieval, Versions]:
    retrieval = Retrieval(
        candidates=candidates_from_proto(message.candidates),
        widened_to=tuple(message.widened_to),
        unknown_history_items=message.unknown_history_items,
    )
    return retrieval, versions_from_proto(message.versions)


# --- errors, as they arrive --------------------------------------------------------------


def error_from_status(status: status_pb2.Status) -> SerendipError | None:
    """The typed error that a status stands for, None if it is OK.

    A code that no typed error has becomes a plain SerendipError that names it.
    """
    if status.code == 0:
        return None
    message, field, retry_after_s = status.message, "", 1.0
    for detail in status.details:
        if detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            if bad.field_violations:
                field = bad.field_violations[0].field
                message = bad.field_violations[0].description
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    match status.code:
        case 3:
            return InvalidRequest(message, field=field)
        case 4:
            return DeadlineSpent(message)
        case 5:
            return NotFound(message)
        case 8:
            return _overloaded(message, retry_after_s)
        case 9:
            return WrongTree(message)
        case 14:
            return NotReady(message)
        case 16:
            return Unauthenticated(message)
    return SerendipError(f"{message or 'the call failed'} (gRPC code {status.code})")


def _overloaded(message: str, retry_after_s: float) -> Overloaded:
    # The remedy travelled as part of the message, and the class adds it again.
    return Overloaded(message.partition(". Try again in ")[0], retry_after_s=retry_after_s)


def error_from_rpc(
    code: int, details: str, trailing_metadata: Iterable[tuple[str, str | bytes]]
) -> SerendipError:
    """The typed error of a failed call, from what any gRPC error of any stack can tell.

    Args:
        code: the numeric status code; not 0.
        details: the status message.
        trailing_metadata: searched for the rich status; may be empty.
    """
    status = status_pb2.Status(code=code, message=details)
    for key, value in trailing_metadata:
        if key == DETAILS_KEY and isinstance(value, bytes):
            rich = status_pb2.Status()
            try:
                rich.ParseFromString(value)
            except DecodeError:  # a proxy's or another stack's: the plain status still holds
                continue
            if rich.code == code:
                status = rich
    error = error_from_status(status)
    return error if error is not None else SerendipError(details, field="status", value=code)
