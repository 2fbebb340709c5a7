"""Both tiers in one answer: what the planner server does for Recommend, and a client by itself.

    requests ──> Plans ──> the retriever's requests ──> Items ──> merged responses
                   ^                                      │
                   └── another tree is served now <── WrongTree

``composed`` is a generator that yields what it wants to know and is sent it, so that there is one
composition for every kind of channel. The candidates go from the retriever's response into the
recommendation's as they lie in its bytes. Knows no channel, no servicer and no artefact.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TypeVar

from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2

from serendip.core import (
    MAX_DENIED,
    MAX_FILTERS,
    MAX_K,
    MAX_PLANNED_CLUSTERS,
    InvalidRequest,
    Merge,
    NotFound,
    SerendipError,
    WrongTree,
    check_id,
    check_length,
    check_range,
)
from serendip.v1 import common_pb2, planner_pb2, recommender_pb2, retriever_pb2
from serendip.wire import MAX_EXCLUDED, check_ids, error_from_status
from serendip.wire_bytes import LENGTH_PREFIXED, field, key, leading, length_prefixed, split
from serendip.wire_filters import filters_from_proto
from serendip.wire_plans import constraint_from_proto

MAX_RECOMMENDATIONS = 128  # of a RecommendBatch
MAX_RETRIEVALS = 256  # of a RetrieveBatch

# Of the time that a call has left, what planning may take; the rest is the retriever's.
PLANNER_SHARE = 0.75

# Servers take requests of 4 MiB; one that repeats a long history for each cluster is split before.
_BATCH_BYTES = 2 << 20

T = TypeVar("T")

_HISTORY = key("history", recommender_pb2.RecommendRequest, LENGTH_PREFIXED)
_CANDIDATE = key("candidates", recommender_pb2.RecommendResponse, LENGTH_PREFIXED)
_REQUEST = key("requests", retriever_pb2.RetrieveBatchRequest, LENGTH_PREFIXED)
_ROW = key("rows", retriever_pb2.RetrieveBatchResponse, LENGTH_PREFIXED)
_STATUS = key("status", retriever_pb2.RetrieveRow, LENGTH_PREFIXED)
_RESPONSE = key("response", retriever_pb2.RetrieveRow, LENGTH_PREFIXED)


# --- what a composition wants to know ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plans:
    """For each of these requests, what Plan answers ``to_plan_request``: a planner_pb2.PlanRow, or
    the error that it ended with.
    """

    requests: tuple[recommender_pb2.RecommendRequest, ...]


@dataclass(frozen=True, slots=True)
class Items:
    """What Retrieve answers to each: a response's bytes, or the error that it ended with.

    Attributes:
        requests: serialised serendip.v1.RetrieveRequests.
    """

    requests: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ServedTree:
    """The tree_version that is planned under now; None if that cannot be told."""


Wish = Plans | Items | ServedTree
Answer = bytes | SerendipError
Composition = Generator[Wish, object, list[Answer]]


def composed(requests: Sequence[recommender_pb2.RecommendRequest]) -> Composition:
    """Recommends; returns a serialised RecommendResponse a request, or what is wrong with it.

    A plan whose tree the retriever does not have is made once more if another tree is served by
    then.
    """
    outcomes: list[Answer] = [_checked(request) for request in requests]
    open_ = [at for at, outcome in enumerate(outcomes) if not isinstance(outcome, SerendipError)]
    tried: set[int] = set()
    while open_:
        rows: object = yield Plans(tuple([requests[at] for at in open_]))
        assert isinstance(rows, list)
        followed: list[tuple[int, planner_pb2.PlanRow, tuple[bytes, ...]]] = []
        for at, row in zip(open_, rows, strict=True):
            try:
                if isinstance(row, SerendipError):
                    raise row
                followed.append((at, row, followed_by(requests[at], row)))
            except SerendipError as error:
                outcomes[at] = error
        if not followed:
            break
        found: object = yield Items(tuple(chain.from_iterable(asked for _, _, asked in followed)))
        assert isinstance(found, list)
        answers: Iterator[Answer] = iter(found)
        astray: dict[int, str] = {}
        for at, row, asked in followed:
            of_row = list(islice(answers, len(asked)))
            try:
                outcomes[at] = merged(requests[at], row, of_row)
            except WrongTree as error:
                outcomes[at] = _out_of_step(row.plan.tree_version, error)
                astray[at] = row.plan.tree_version
            except SerendipError as error:
                outcomes[at] = error
        open_ = [at for at in astray if at not in tried]
        tried.update(open_)
        if open_:
            tree = yield ServedTree()
            open_ = [at for at in open_ if tree is not None and tree != astray[at]]
    return outcomes


def _checked(request: recommender_pb2.RecommendRequest) -> Answer:
    try:
        check_recommend_request(request)
    except SerendipError as error:
        return error
    return b""


def _out_of_step(tree_version: str, error: WrongTree) -> WrongTree:
    wrong = WrongTree(
        f"planned under {tree_version}, which the retriever does not have ({error})",
        field="tree_version",
        remedy="Try again once both servers have gone over to one release.",
    )
    wrong.__cause__ = error
    return wrong


# --- requests ------------------------------------------------------------------------------


def check_recommend_request(request: recommender_pb2.RecommendRequest) -> None:
    """Raises InvalidRequest, naming the field, for what RecommendRequest calls invalid.

    All but the history, which is long: what is wrong with it the retriever says.
    """
    check_id(request.context_item_id, "context_item_id")
    constraint_from_proto(request.constraint)
    merge_from_proto(request.merge)
    check_range(request.k, "k", 1, MAX_K)
    check_range(request.clusters, "clusters", 0, MAX_PLANNED_CLUSTERS)
    check_range(request.max_per_leaf, "max_per_leaf", 0, MAX_K)
    if math.isnan(request.min_score):
        raise InvalidRequest("must be a number", field="min_score", value=request.min_score)
    if request.exclude_node_ids:
        # With the item's own cluster they are what Retrieve takes.
        check_length(tuple(request.exclude_node_ids), "exclude_node_ids", 0, MAX_EXCLUDED - 1)
    if request.deny_item_ids:
        check_length(tuple(request.deny_item_ids), "deny_item_ids", 0, MAX_DENIED)
        check_ids(request.deny_item_ids, "deny_item_ids")
    if request.filters:
        check_length(filters_from_proto(request.filters), "filters", 0, MAX_FILTERS)


_MERGE_TO_PROTO = {
    Merge.SCORE: recommender_pb2.MERGE_SCORE,
    Merge.QUOTA: recommender_pb2.MERGE_QUOTA,
}
_MERGE_FROM_PROTO = {number: merge for merge, number in _MERGE_TO_PROTO.items()} | {
    recommender_pb2.MERGE_UNSPECIFIED: Merge.SCORE
}


def merge_to_proto(merge: Merge | str) -> recommender_pb2.Merge:
    """Raises InvalidRequest unless it is a Merge, or the value of one."""
    try:
        return _MERGE_TO_PROTO[Merge(merge)]
    except ValueError:
        raise _no_merge(merge) from None


def merge_from_proto(number: recommender_pb2.Merge) -> Merge:
    """Raises InvalidRequest for a number that is none."""
    found = _MERGE_FROM_PROTO.get(number)
    if found is None:
        raise _no_merge(number)
    return found


def _no_merge(value: object) -> InvalidRequest:
    known = ", ".join(merge.value for merge in Merge)
    return InvalidRequest(
        "is no way to merge", field="merge", value=value, remedy=f"Known are {known}."
    )


def to_plan_request(
    requests: Sequence[recommender_pb2.RecommendRequest],
) -> planner_pb2.PlanRequest:
    """What the planner is asked for requests that differ in no option of a plan."""
    first = requests[0]
    return planner_pb2.PlanRequest(
        context_item_ids=[request.context_item_id for request in requests],
        k=MAX_PLANNED_CLUSTERS,
        constraint=first.constraint,
        exclude_node_ids=first.exclude_node_ids,
        min_score=first.min_score if first.HasField("min_score") else None,
    )


def followed_by(
    request: recommender_pb2.RecommendRequest, row: planner_pb2.PlanRow
) -> tuple[bytes, ...]:
    """How a plan is followed: serialised RetrieveRequests, whose answers ``merged`` takes.

    The last one asks for the union of the first clusters, and widens: to the next ones, then
    upwards, never to the item's own nor to what is excluded. Where they take turns, each is asked
    for by itself before.

    Raises:
        SerendipError: there is no plan.
        NotFound: the plan has no cluster.
    """
    error = error_from_status(row.status)
    if error is not None:
        raise error
    plan = row.plan
    own = [plan.own_node_id] if plan.HasField("own_node_id") else []
    planned = [c.node_id for c in plan.clusters if c.node_id not in own]
    if not planned:
        raise NotFound(
            "has no planned cluster",
            field="context_item_id",
            value=request.context_item_id,
            remedy="Ask with another constraint, a lower min_score, or fewer exclude_node_ids.",
        )
    count = request.clusters or 1
    first, rest = planned[:count], planned[count:]
    of_all = _history(request) + _serialised(
        retriever_pb2.RetrieveRequest(
            exclude_node_ids=dict.fromkeys([*own, *request.exclude_node_ids]),
            tree_version=plan.tree_version,
            k=request.k,
            include_seen=request.include_seen,
            deny_item_ids=request.deny_item_ids,
            filters=request.filters,
            max_per_leaf=request.max_per_leaf,
        )
    )
    asked = [retriever_pb2.RetrieveRequest(node_ids=first, widen_node_ids=rest)]
    if len(first) > 1 and merge_from_proto(request.merge) is Merge.QUOTA:
        alone = [retriever_pb2.RetrieveRequest(node_ids=[node], no_widening=True) for node in first]
        asked = alone + asked
    return tuple([of_all + _serialised(own_part) for own_part in asked])


def _history(request: recommender_pb2.RecommendRequest) -> bytes:
    """The history as it lies: the first field of this message, and of RetrieveRequest."""
    raw = _serialised(request)
    count, end = leading(raw, _HISTORY)
    if count == len(request.history):
        return raw[:end]
    # Where messages are not written in the order of their fields' numbers.
    return _serialised(retriever_pb2.RetrieveRequest(history=request.history))


def _serialised(message: Message) -> bytes:
    data: bytes = message.SerializeToString()
    return data


# --- many in one call ------------------------------------------------------------------------


def batches(requests: Sequence[bytes]) -> Iterator[tuple[int, bytes]]:
    """Serialised RetrieveBatchRequests of all requests in order, each with how many it has."""
    fields: list[bytes] = []
    size = 0
    for request in requests:
        one = field(_REQUEST, request)
        if fields and (len(fields) == MAX_RETRIEVALS or size + len(one) > _BATCH_BYTES):
            yield len(fields), b"".join(fields)
            fields, size = [], 0
        fields.append(one)
        size += len(one)
    if fields:
        yield len(fields), b"".join(fields)


def rows_of(raw: bytes, count: int) -> list[Answer]:
    """The rows of a serialised RetrieveBatchResponse that should have so many.

    Raises SerendipError if they are not, or if it is no such message.
    """
    try:
        rows = [length_prefixed(one)[_ROW] for one in split(raw, _ROW)]
        answers = [_answer(length_prefixed(row)) for row in rows]
    except (ValueError, DecodeError) as error:
        raise _unreadable() from error
    if len(answers) != count:
        raise SerendipError(f"{count} retrievals were asked for, {len(answers)} rows came")
    return answers


def _answer(row: dict[int, bytes]) -> Answer:
    error = error_from_status(status_pb2.Status.FromString(row.get(_STATUS, b"")))
    return row.get(_RESPONSE, b"") if error is None else error


# --- responses -------------------------------------------------------------------------------


def merged(
    request: recommender_pb2.RecommendRequest, row: planner_pb2.PlanRow, answers: Sequence[Answer]
) -> bytes:
    """A serialised RecommendResponse of a plan and the answers to ``followed_by``.

    Raises SerendipError: one of the answers is that error, or cannot be read.
    """
    read = []
    for answer in answers:
        if isinstance(answer, SerendipError):
            raise answer
        read.append(answer)
    *alone, last = read
    whole = _Retrieved.of(last)
    candidates = whole.candidates
    widened_to: Sequence[int] = whole.rest.widened_to
    if alone:
        turns = in_turns([_candidates(one) for one in alone], request.k)
        more: list[bytes] = []
        if len(turns) < request.k:
            parts = _candidates(whole.candidates)
            more = list(islice(filter(_widened, parts), request.k - len(turns)))
        candidates = b"".join(turns + more)
        widened_to = widened_to if more else ()
    return candidates + _without_candidates(row, whole.rest, widened_to)


def in_turns(lists: Sequence[Iterable[T]], k: int) -> list[T]:
    """The first of each list, then the second of each that has one, until there are k.

    Clusters of one level have no item in common, so neither have their lists, which are read no
    further than they are needed.
    """
    found: list[T] = []
    left = [iter(one) for one in lists]
    while left and len(found) < k:
        having = []
        for one in left:
            for value in islice(one, 1):
                found.append(value)
                having.append(one)
        left = having
    return found[:k]


def _candidates(raw: bytes) -> Iterator[bytes]:
    """The candidates of a serialised RetrieveResponse one by one, as fields."""
    try:
        if raw and raw[0] != _CANDIDATE:  # it has none, or they stand elsewhere
            raw = _in_order(raw)
        yield from split(raw, _CANDIDATE)
    except (ValueError, DecodeError) as error:
        raise _unreadable() from error


def _in_order(raw: bytes) -> bytes:
    """A RetrieveResponse whose candidates stand first, as this project's servers write them."""
    return _serialised(retriever_pb2.RetrieveResponse.FromString(raw))


@dataclass(frozen=True, slots=True)
class _Retrieved:
    """A retrieval as it came.

    Attributes:
        candidates: the fields of the response that are candidates, one after the other.
        rest: the response without them.
    """

    candidates: bytes
    rest: retriever_pb2.RetrieveResponse

    @classmethod
    def of(cls, raw: bytes) -> _Retrieved:
        try:
            _, end = leading(raw, _CANDIDATE)
            rest = retriever_pb2.RetrieveResponse.FromString(raw[end:])
            if not rest.candidates:
                return cls(raw[:end], rest)
            # Of a server that writes its fields in another order: in ours there are none after it.
            ordered = _in_order(raw)
        except (ValueError, DecodeError) as error:
            raise _unreadable() from error
        return cls.of(ordered)


def _widened(candidate: bytes) -> bool:
    (value,) = length_prefixed(candidate).values()
    try:
        return common_pb2.Candidate.FromString(value).widened
    except DecodeError as error:
        raise _unreadable() from error


def _without_candidates(
    row: planner_pb2.PlanRow,
    retrieved: retriever_pb2.RetrieveResponse,
    widened_to: Iterable[int],
) -> bytes:
    """The rest of the response; versions are the planner's, with the retriever's own."""
    versions = common_pb2.Versions()
    versions.CopyFrom(row.versions)
    versions.tree_version = retrieved.versions.tree_version
    versions.retriever_version = retrieved.versions.retriever_version
    versions.order_version = retrieved.versions.order_version
    rest: bytes = recommender_pb2.RecommendResponse(
        plan=row.plan,
        source=row.source,
        widened_to=widened_to,
        versions=versions,
        age=row.age if row.HasField("age") else None,
        left_out=row.left_out,
        unknown_history_items=retrieved.unknown_history_items,
    ).SerializeToString()
    return rest


def _unreadable() -> SerendipError:
    return SerendipError("the retriever's answer cannot be read")
