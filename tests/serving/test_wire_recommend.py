"""Both tiers in one answer: what is asked of whom, and what becomes of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serendip import wire
from serendip.core import (
    Candidate,
    Filter,
    InvalidRequest,
    Merge,
    NotFound,
    NotReady,
    RetrievalQuery,
    SerendipError,
    Versions,
    WrongTree,
)
from serendip.v1 import common_pb2, planner_pb2, recommender_pb2, retriever_pb2
from serendip.wire_filters import filters_to_proto
from serendip.wire_recommend import (
    MAX_RETRIEVALS,
    Items,
    Plans,
    ServedTree,
    batches,
    check_recommend_request,
    composed,
    followed_by,
    in_turns,
    merge_from_proto,
    merge_to_proto,
    merged,
    rows_of,
    to_plan_request,
)

QUOTA = recommender_pb2.MERGE_QUOTA
HISTORY = [
    common_pb2.HistoryItem(item_id="a", timestamp_ms=5, satisfaction=0.5),
    common_pb2.HistoryItem(item_id="b" * 200),
]
PLANNED = Versions(tree_version="t", planner_version="p", plans_version="q")
RETRIEVED = Versions(tree_version="t", retriever_version="r", order_version="o")


def asked(**fields: Any) -> recommender_pb2.RecommendRequest:
    return recommender_pb2.RecommendRequest(**{"context_item_id": "a", "k": 5, **fields})


def row_of(nodes: Sequence[int], own: int | None = 0, tree: str = "t") -> planner_pb2.PlanRow:
    clusters = [common_pb2.PlannedCluster(node_id=node, score=-1.0) for node in nodes]
    plan = planner_pb2.Plan(clusters=clusters, own_node_id=own, tree_version=tree)
    row = planner_pb2.PlanRow(
        plan=plan,
        source=planner_pb2.PLAN_SOURCE_STORE,
        versions=wire.versions_to_proto(PLANNED),
        left_out=2,
    )
    row.age.FromSeconds(60)
    return row


def queries(request: recommender_pb2.RecommendRequest, row: planner_pb2.PlanRow) -> list[Any]:
    messages = map(retriever_pb2.RetrieveRequest.FromString, followed_by(request, row))
    return [wire.query_from_proto(message) for message in messages]


def found(
    candidates: Sequence[Candidate], widened_to: Sequence[int] = (), unknown: int = 0
) -> bytes:
    return retriever_pb2.RetrieveResponse(
        candidates=wire.candidates_to_proto(candidates),
        widened_to=widened_to,
        unknown_history_items=unknown,
        versions=wire.versions_to_proto(RETRIEVED),
    ).SerializeToString()


# --- requests ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"context_item_id": ""}, "context_item_id"),
        ({"k": 0}, "k"),
        ({"k": 1001}, "k"),
        ({"constraint": 9}, "constraint"),
        ({"deny_item_ids": [""]}, "deny_item_ids[0]"),
        ({"clusters": -1}, "clusters"),
        ({"clusters": 9}, "clusters"),
        ({"merge": 3}, "merge"),
        ({"exclude_node_ids": range(1024)}, "exclude_node_ids"),
        ({"min_score": float("nan")}, "min_score"),
        ({"filters": [retriever_pb2.Filter(attribute="x")]}, "filters[0]"),
        ({"max_per_leaf": 1001}, "max_per_leaf"),
    ],
)
def test_recommend_requests_are_checked(fields: dict[str, Any], field: str) -> None:
    check_recommend_request(asked(clusters=8, merge=QUOTA, exclude_node_ids=range(1023)))
    with pytest.raises(InvalidRequest) as caught:
        check_recommend_request(asked(**fields))
    assert caught.value.field == field


def test_a_merge_has_a_name_and_a_number() -> None:
    for merge in Merge:
        assert merge_from_proto(merge_to_proto(merge)) is merge
        assert merge_to_proto(merge.value) == merge_to_proto(merge)
    assert merge_from_proto(recommender_pb2.MERGE_UNSPECIFIED) is Merge.SCORE
    with pytest.raises(InvalidRequest, match=r"'best'.*score, quota"):
        merge_to_proto("best")


def test_the_planner_is_asked_for_all_clusters_under_the_options_of_a_plan() -> None:
    request = asked(exclude_node_ids=[3], min_score=0.0, clusters=2)
    request.constraint = planner_pb2.CONSTRAINT_SIBLINGS
    plan = to_plan_request([request, asked(context_item_id="b")])
    assert (list(plan.context_item_ids), plan.k) == (["a", "b"], 8)
    assert (plan.constraint, list(plan.exclude_node_ids)) == (request.constraint, [3])
    assert plan.HasField("min_score")
    assert not to_plan_request([asked()]).HasField("min_score")


def test_a_plan_is_followed_cluster_after_cluster_and_never_home() -> None:
    filters = [Filter("language", any_of=["en"])]
    request = asked(
        history=HISTORY,
        k=9,
        include_seen=True,
        deny_item_ids=["z"],
        exclude_node_ids=[7, 0, 7],
        filters=filters_to_proto(filters),
        max_per_leaf=3,
    )
    options: dict[str, Any] = {
        "history": ("a", "b" * 200),
        "satisfaction": (0.5, 1.0),
        "k": 9,
        "exclude_node_ids": (0, 7),
        "deny_item_ids": ("z",),
        "include_seen": True,
        "filters": tuple(filters),
        "max_per_leaf": 3,
    }
    row = row_of([4, 6, 5])
    (raw,) = followed_by(request, row)
    message = retriever_pb2.RetrieveRequest.FromString(raw)
    assert list(message.history) == HISTORY
    assert message.tree_version == "t"
    assert queries(request, row) == [
        RetrievalQuery(node_ids=(4,), widen_node_ids=(6, 5), **options)
    ]
    request.clusters = 2
    both = RetrievalQuery(node_ids=(4, 6), widen_node_ids=(5,), **options)
    assert queries(request, row) == [both]
    request.merge = QUOTA
    alone = [RetrievalQuery(node_ids=(node,), widening=False, **options) for node in (4, 6)]
    assert queries(request, row) == [*alone, both]
    request.clusters = 8  # more than the plan has: all that it has
    assert [q.node_ids for q in queries(request, row)] == [(4,), (6,), (5,), (4, 6, 5)]
    assert queries(request, row)[-1].widen_node_ids == ()


def test_the_own_cluster_is_not_followed_though_it_is_planned() -> None:
    (query,) = queries(asked(clusters=2), row_of([4, 0, 6], own=0))
    assert (query.node_ids, query.exclude_node_ids) == ((4, 6), (0,))
    (query,) = queries(asked(), row_of([4], own=None))
    assert query.exclude_node_ids == ()
    with pytest.raises(NotFound, match="no planned cluster"):
        followed_by(asked(), row_of([0], own=0))
    failed = planner_pb2.PlanRow(status={"code": 5, "message": "is unknown"})
    with pytest.raises(NotFound, match="is unknown"):
        followed_by(asked(), failed)


# --- merged ----------------------------------------------------------------------------------

SCORES = st.integers(-8, 8).map(float)


@st.composite
def retrieved(draw: st.DrawFn) -> tuple[int, list[list[Candidate]], list[Candidate]]:
    """k; the candidates of each cluster, best first; those of widening, in order."""
    lists = []
    for node in range(draw(st.integers(2, 8))):
        scores = sorted(draw(st.lists(SCORES, max_size=9)), reverse=True)
        lists.append([Candidate(f"{node}.{i}", s, node) for i, s in enumerate(scores)])
    more = draw(st.lists(SCORES, max_size=9))
    widened = [Candidate(f"w{i}", s, 50 + i // 3, widened=True) for i, s in enumerate(more)]
    return draw(st.integers(1, 40)), lists, widened


def answers(k: int, lists: list[list[Candidate]], widened: list[Candidate]) -> list[bytes]:
    """What a retriever answers: each cluster alone, then their union, widened if it must be."""
    union = sorted((c for own in lists for c in own), key=lambda c: -c.score)[:k]
    more = widened[: k - len(union)]
    to = list(dict.fromkeys(c.node_id for c in more))
    return [*(found(own[:k]) for own in lists), found([*union, *more], to, unknown=3)]


@given(retrieved())
def test_clusters_take_turns_and_what_one_lacks_the_others_fill(
    made: tuple[int, list[list[Candidate]], list[Candidate]],
) -> None:
    k, lists, widened = made
    left = [list(own) for own in lists]  # the oracle: one at a time, as MERGE_QUOTA says
    expected: list[Candidate] = []
    while any(left) and len(expected) < k:
        for own in left:
            if own and len(expected) < k:
                expected.append(own.pop(0))
    expected += widened[: k - len(expected)]

    raw = merged(asked(k=k, merge=QUOTA), row_of([4]), answers(k, lists, widened))
    response = recommender_pb2.RecommendResponse.FromString(raw)
    assert list(wire.candidates_from_proto(response.candidates)) == expected
    assert list(response.widened_to) == list(
        dict.fromkeys(c.node_id for c in expected if c.widened)
    )
    assert response.unknown_history_items == 3


@given(retrieved())
def test_by_score_the_best_of_the_union_come_as_the_retriever_has_them(
    made: tuple[int, list[list[Candidate]], list[Candidate]],
) -> None:
    raw = answers(*made)[-1]
    whole = retriever_pb2.RetrieveResponse.FromString(raw)
    response = recommender_pb2.RecommendResponse.FromString(merged(asked(), row_of([4]), [raw]))
    assert response.candidates == whole.candidates
    assert response.widened_to == whole.widened_to


@given(st.lists(st.lists(st.integers(), max_size=6), max_size=6), st.integers(0, 30))
def test_turns_have_each_once_and_every_list_its_share(lists: list[list[int]], k: int) -> None:
    of = [[(at, value) for value in values] for at, values in enumerate(lists)]
    turns = in_turns(of, k)
    assert len(turns) == min(k, sum(map(len, lists)))
    for at, values in enumerate(of):
        mine = [one for one in turns if one[0] == at]
        assert mine == values[: len(mine)]
        if len(mine) < len(values):  # it had more to give: nobody got two more than it
            assert all(
                sum(o[0] == other for o in turns) <= len(mine) + 1 for other in range(len(of))
            )


def test_an_answer_tells_the_plan_and_both_tiers_versions() -> None:
    row = row_of([4, 6])
    raw = merged(asked(), row, [found([Candidate("x", 1.5, 4, fresh=True)], [3], unknown=1)])
    response = recommender_pb2.RecommendResponse.FromString(raw)
    assert wire.versions_from_proto(response.versions) == Versions("t", "p", "q", "r", "o")
    assert wire.candidates_from_proto(response.candidates) == (Candidate("x", 1.5, 4, fresh=True),)
    assert (response.plan, response.source) == (row.plan, row.source)
    assert (list(response.widened_to), response.unknown_history_items) == ([3], 1)
    assert (response.age.seconds, response.left_out) == (60, 2)
    assert row.versions.retriever_version == "", "the planner's own answer is left as it is"
    row.ClearField("age")
    raw = merged(asked(), row, [found([])])
    assert not recommender_pb2.RecommendResponse.FromString(raw).HasField("age")


def test_a_retriever_that_writes_its_fields_in_another_order_is_read() -> None:
    head, tail = found([Candidate("x", 1.0, 4)]), found([Candidate("y", 0.5, 4)], [3])
    whole = retriever_pb2.RetrieveResponse.FromString(tail + head)
    assert [c.item_id for c in whole.candidates] == ["y", "x"]
    raw = merged(asked(), row_of([4]), [tail + head])
    assert recommender_pb2.RecommendResponse.FromString(raw).candidates == whole.candidates


@pytest.mark.parametrize("raw", [b"\n", b"\n\x05abc", b"\x1a\x02", b"\n\x01\xff" * 2 + b"\xff"])
def test_bytes_that_are_no_answer_are_the_retrievers_fault(raw: bytes) -> None:
    with pytest.raises(SerendipError, match="cannot be read") as caught:
        merged(asked(), row_of([4]), [raw])
    assert type(caught.value) is SerendipError
    with pytest.raises(SerendipError, match=r"cannot be read|1 retrievals were asked for, 0 rows"):
        rows_of(raw, 1)


# --- many at a time ----------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5), st.integers(1, 200))
def test_batches_have_every_request_once_in_order(requests: list[bytes], times: int) -> None:
    many = [retriever_pb2.RetrieveRequest(tree_version=r.hex(), k=1) for r in requests] * times
    raw = [message.SerializeToString() for message in many]
    read: list[Any] = []
    for count, batch in batches(raw):
        message = retriever_pb2.RetrieveBatchRequest.FromString(batch)
        assert 1 <= count == len(message.requests) <= MAX_RETRIEVALS
        read += message.requests
    assert read == many


def test_batches_are_small_enough_for_a_server() -> None:
    assert [count for count, _ in batches([bytes(1 << 20)] * 3 + [b"x"] * 300)] == [1, 1, 256, 45]
    assert [count for count, _ in batches([bytes(3 << 20)])] == [1], "one that is large goes alone"


def test_rows_of_a_batch_are_responses_or_errors() -> None:
    first, third = found([Candidate("x", 1.0, 4)]), found([])
    message = retriever_pb2.RetrieveBatchResponse(
        rows=[
            retriever_pb2.RetrieveRow(response=retriever_pb2.RetrieveResponse.FromString(first)),
            retriever_pb2.RetrieveRow(status={"code": 14, "message": "is away"}),
            retriever_pb2.RetrieveRow(response=retriever_pb2.RetrieveResponse.FromString(third)),
        ]
    )
    rows = rows_of(message.SerializeToString(), 3)
    assert (rows[0], rows[2]) == (first, third)
    assert isinstance(rows[1], NotReady)
    with pytest.raises(SerendipError, match="4 retrievals were asked for, 3 rows came"):
        rows_of(message.SerializeToString(), 4)


# --- the composition ---------------------------------------------------------------------------


def drive(
    requests: Sequence[recommender_pb2.RecommendRequest], script: Sequence[tuple[type, Any]]
) -> list[Any]:
    """Answers what a composition asks, which must be this, in this order."""
    composition = composed(requests)
    answer: Any = None
    for kind, then in script:
        wish = composition.send(answer)
        assert type(wish) is kind
        answer = then(wish)
    with pytest.raises(StopIteration) as done:
        composition.send(answer)
    return list(done.value.value)


def test_a_row_fails_alone_and_is_asked_no_further() -> None:
    good, unknown, invalid, refused = (
        asked(context_item_id="good", clusters=2, merge=QUOTA),
        asked(context_item_id="unknown"),
        asked(k=0),
        asked(context_item_id="refused"),
    )

    def plans(wish: Plans) -> list[Any]:
        assert [r.context_item_id for r in wish.requests] == ["good", "unknown", "refused"]
        return [row_of([4, 6]), NotFound("is unknown"), row_of([5])]

    def items(wish: Items) -> list[Any]:
        assert len(wish.requests) == 4
        own = [found([Candidate(name, 1.0, 4)]) for name in "xy"]
        return [*own, found([Candidate("x", 1.0, 4), Candidate("y", 0.5, 6)]), NotReady("is away")]

    outcomes = drive([good, unknown, invalid, refused], [(Plans, plans), (Items, items)])
    response = recommender_pb2.RecommendResponse.FromString(outcomes[0])
    assert [c.item_id for c in response.candidates] == ["x", "y"]
    assert [type(outcome) for outcome in outcomes[1:]] == [NotFound, InvalidRequest, NotReady]


STRAY = WrongTree("is not open here; open are u", field="tree_version", value="t")


def test_who_is_a_release_behind_plans_again_once_if_it_has_gone_over() -> None:
    requests = [asked(), asked(context_item_id="b")]
    again: list[tuple[type, Any]] = [
        (Plans, lambda wish: [row_of([4]), row_of([5])]),
        (Items, lambda wish: [STRAY, found([Candidate("y", 1.0, 5)])]),
        (ServedTree, lambda wish: "u"),
        (Plans, lambda wish: [row_of([8], tree="u")] * len(wish.requests)),
    ]
    outcomes = drive(requests, [*again, (Items, lambda wish: [found([Candidate("x", 1.0, 8)])])])
    read = [recommender_pb2.RecommendResponse.FromString(o).candidates[0] for o in outcomes]
    assert [c.item_id for c in read] == ["x", "y"]

    outcomes = drive(requests, [*again, (Items, lambda wish: [STRAY])])
    assert isinstance(outcomes[0], WrongTree), "once, and not for ever"
    assert isinstance(outcomes[1], bytes)


@pytest.mark.parametrize("served", ["t", None])
def test_tiers_out_of_step_are_told_with_the_trees_that_there_are(served: str | None) -> None:
    (outcome,) = drive(
        [asked()],
        [
            (Plans, lambda wish: [row_of([4])]),
            (Items, lambda wish: [STRAY]),
            (ServedTree, lambda wish: served),
        ],
    )
    assert isinstance(outcome, WrongTree)
    assert "planned under t" in str(outcome)
    assert "open are u" in str(outcome)
