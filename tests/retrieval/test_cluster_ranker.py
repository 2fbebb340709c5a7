"""The ClusterRanker against an oracle of masks and loops, over every option at once."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from brute_force import Catalogue, brute_force, same
from hypothesis import given, settings
from hypothesis import strategies as st

from serendip.core import (
    Filter,
    InvalidRequest,
    NotFound,
    Retrieval,
    RetrievalQuery,
    Versions,
)
from serendip.retrieval.attributes import Attributes
from serendip.retrieval.fresh import Changes
from serendip.retrieval.item_ids import ItemIds
from serendip.retrieval.ranker import ClusterRanker
from serendip.tree.cluster_tree import LEVELS, ClusterTree

N = 60
MAX_HISTORY = 4
UNKNOWN = ("gone", "newer")
EMPTY_LEAF = 5


def small_tree() -> ClusterTree:
    leaf = np.random.default_rng(3).integers(0, 16, N)
    leaf[leaf == EMPTY_LEAF] = 6  # a leaf without items
    return ClusterTree.from_leaves((2, 2, 2, 2), leaf, [f"i{n}" for n in range(N)], None, "a" * 12)


TREE = small_tree()
NODES = len(TREE.nodes)
# Small whole numbers: sums are exact in any order, and equal scores are common.
MATRIX = np.random.default_rng(4).integers(-2, 3, (N, 4)).astype(np.float32)
SATISFACTION = (np.random.default_rng(5).integers(0, 8, N) / 8).astype(np.float32)
PRIOR = 0.4375

# Three fresh items in one leaf, one in the empty one; every seventh item is deleted.
FRESH = {"f0": 2, "f1": 2, "f2": 2, "f3": EMPTY_LEAF, "f4": 11}
DELETED = TREE.item_ids[::7]
ATTRIBUTES: dict[str, list[Any]] = {
    "language": [["en", "de", None, "fr"][n % 4] for n in range(N)],
    "age": [None if n % 5 == 0 else n % 18 for n in range(N)],
    "score": [None if n % 11 == 0 else math.nan if n % 11 == 1 else n / 8 for n in range(N)],
    "kids": [[True, False, None][n % 3] for n in range(N)],
    "made": [n * 1000 for n in range(N)],
}
TYPES = {"made": pa.timestamp("ms", "UTC"), "age": pa.int16()}
TABLE = pa.table({k: pa.array(v, TYPES.get(k)) for k, v in ATTRIBUTES.items()})


def encode(ids: npt.NDArray[np.int64], length: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Stands in for the graph: the sum of the vectors of the items, and a 1."""
    assert ids.shape[1] <= MAX_HISTORY
    user = np.zeros((len(ids), 4), np.float32)
    for row, n in enumerate(length):
        user[row] = MATRIX[ids[row, :n] - 1].sum(axis=0)
    user[:, -1] = 1
    return user


def ranker(**changes: Any) -> ClusterRanker:
    fields = {
        "versions": Versions(tree_version=TREE.version),
        "nodes": TREE.nodes,
        "ids": ItemIds.of(TREE.item_ids),
        "leaf_start": TREE.leaf_start,
        "matrix": MATRIX,
        "satisfaction": SATISFACTION,
        "encode": encode,
        "max_history": MAX_HISTORY,
        "attributes": Attributes(TABLE),
        "prior": PRIOR,
    }
    return ClusterRanker(**{**fields, **changes})


def changes_of(fresh: dict[str, int], deleted: tuple[str, ...]) -> Changes:
    start = np.zeros(17, np.int64)
    np.cumsum(np.bincount(list(fresh.values()), minlength=16), out=start[1:])
    ranks = sorted(TREE.item_ids.index(i) for i in deleted)
    return Changes(tuple(fresh), start, np.asarray(ranks, np.int64))


PLAIN = ranker()
GROWN = ranker(changes=changes_of(FRESH, DELETED), user_cache=3)


LEAVES = dict(zip(TREE.item_ids, TREE.leaf_of_rank.tolist(), strict=True))


def user_of(known: list[int]) -> npt.NDArray[np.float32]:
    last = known[-MAX_HISTORY:]
    return encode(np.asarray([last]) + 1, np.asarray([len(last)]))[0]


EXPORTED = Catalogue(TREE.nodes, LEAVES, ATTRIBUTES, user_of, MATRIX, SATISFACTION, PRIOR)
RELEASED = dataclasses.replace(
    EXPORTED, leaf={**LEAVES, **FRESH}, fresh=tuple(FRESH), deleted=DELETED
)


def oracle(query: RetrievalQuery) -> Retrieval:
    return brute_force(EXPORTED, query)


item_lists = st.lists(st.sampled_from((*TREE.item_ids, *FRESH, *UNKNOWN)), max_size=9).map(tuple)
nodes = st.integers(0, NODES - 1)
bounds = st.none() | st.integers(-3, 20) | st.floats(-3, 20)
texts = st.lists(st.sampled_from(["en", "de", "fr", "xx"]), max_size=3).map(tuple)
numbers = st.lists(st.integers(-1, 18), max_size=12).map(tuple)


@st.composite
def filters(draw: st.DrawFn) -> Filter:
    name = draw(st.sampled_from(sorted(ATTRIBUTES)))
    if name in ("language", "kids"):
        values = texts if name == "language" else st.lists(st.booleans(), max_size=2).map(tuple)
        any_of, none_of, low, high = draw(values), draw(values), None, None
    else:
        scale = 1000 if name == "made" else 1
        low, high = (None if b is None else b * scale for b in (draw(bounds), draw(bounds)))
        any_of, none_of = (tuple(v * scale for v in draw(numbers)) for _ in range(2))
    if not any_of and not none_of and low is None and high is None:
        return Filter("made", at_least=0)
    return Filter(name, any_of, none_of, low, high)


queries = st.builds(
    RetrievalQuery,
    history=item_lists,
    node_ids=st.lists(nodes, min_size=1, max_size=5).map(tuple),
    k=st.integers(1, N + 5),
    exclude_node_ids=st.lists(nodes.filter(bool), max_size=4).map(tuple),
    widen_node_ids=st.lists(nodes, max_size=4).map(tuple),
    deny_item_ids=item_lists,
    include_seen=st.booleans(),
    widening=st.booleans(),
    filters=st.lists(filters(), max_size=2).map(tuple),
    allow_item_ids=st.none()
    | st.lists(st.sampled_from((*TREE.item_ids, *FRESH, *UNKNOWN)), min_size=1, max_size=40).map(
        tuple
    ),
    max_per_leaf=st.sampled_from([0, 0, 1, 2, 5]),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(queries, min_size=1, max_size=4))
def test_it_finds_what_the_oracle_finds(batch: list[RetrievalQuery]) -> None:
    assert PLAIN.retrieve(batch) == [oracle(query) for query in batch]


@settings(max_examples=150, deadline=None)
@given(st.lists(queries, min_size=1, max_size=4), item_lists)
def test_so_it_does_with_fresh_deleted_and_withheld_items(
    batch: list[RetrievalQuery], withheld: tuple[str, ...]
) -> None:
    GROWN.withhold(withheld)
    for query, got in zip(batch, GROWN.retrieve(batch), strict=True):
        same(got, brute_force(RELEASED, query, withheld))
    GROWN.withhold(())


def found(query: RetrievalQuery) -> Retrieval:
    (result,) = PLAIN.retrieve([query])
    assert isinstance(result, Retrieval)
    return result


def leaf_with_items() -> int:
    return next(n for n in TREE.nodes.at_level(LEVELS) if np.diff(TREE.slice(n))[0] >= 2)


def test_without_widening_it_returns_fewer_and_only_the_cluster() -> None:
    leaf = leaf_with_items()
    start, end = TREE.slice(leaf)
    result = found(RetrievalQuery(history=(), node_ids=(leaf,), k=50, widening=False))
    assert {c.item_id for c in result.candidates} == set(TREE.item_ids[start:end])
    assert result.widened_to == ()
    assert not any(c.widened for c in result.candidates)


def test_it_widens_to_the_plan_first_and_never_into_what_is_excluded() -> None:
    leaf = leaf_with_items()
    parent = int(TREE.nodes.parent[leaf])
    far = TREE.nodes.at_level(1)[1]
    own = TREE.nodes.at_level(2)[-1]
    query = RetrievalQuery(
        history=(), node_ids=(leaf,), k=N, exclude_node_ids=(own,), widen_node_ids=(far,)
    )
    result = found(query)
    assert result.widened_to[0] == far
    assert set(result.widened_to[1:]) <= {parent, *(TREE.nodes.ancestor(leaf, n) for n in range(3))}
    start, end = TREE.slice(own)
    excluded = set(TREE.item_ids[start:end])
    assert excluded
    assert {c.item_id for c in result.candidates} == set(TREE.item_ids) - excluded


def test_a_history_of_unknown_items_is_a_cold_user() -> None:
    cold = found(RetrievalQuery(history=(), node_ids=(0,), k=10))
    unknown = found(RetrievalQuery(history=UNKNOWN, node_ids=(0,), k=10))
    assert [c.score for c in cold.candidates] == sorted(SATISFACTION.tolist(), reverse=True)[:10]
    assert unknown.candidates == cold.candidates
    assert unknown.unknown_history_items == 2


@pytest.mark.parametrize("field", ["node_ids", "exclude_node_ids", "widen_node_ids"])
@pytest.mark.parametrize("node", [-1, NODES])
def test_an_unknown_node_fails_its_row_alone(field: str, node: int) -> None:
    good = RetrievalQuery(history=("i1",), node_ids=(0,), k=3)
    bad = dataclasses.replace(good, **{field: (node,)})
    first, second, third = PLAIN.retrieve([good, bad, good])
    assert isinstance(second, NotFound)
    assert second.field == field
    assert first == third == oracle(good)


def test_many_rows_are_encoded_in_their_own_order() -> None:
    batch = [
        RetrievalQuery(history=TREE.item_ids[n : n + 1 + n % 5], node_ids=(0,), k=5)
        for n in range(50)
    ] * 3
    assert PLAIN.retrieve(batch) == [oracle(query) for query in batch[:50]] * 3


# --- what a request may ask for, one by one -------------------------------------------------


def ids(result: Retrieval) -> list[str]:
    return [c.item_id for c in result.candidates]


def test_repeated_nodes_count_once_and_an_empty_leaf_gives_nothing() -> None:
    leaf = leaf_with_items()
    once = RetrievalQuery(history=("i1",), node_ids=(leaf,), k=N, widening=False)
    empty = TREE.nodes.at_level(LEVELS)[EMPTY_LEAF]
    many = dataclasses.replace(once, node_ids=(leaf, empty, leaf, leaf))
    assert found(many).candidates == found(once).candidates
    assert ids(found(dataclasses.replace(once, node_ids=(empty,)))) == []


def test_64_nodes_of_every_level_are_one_union() -> None:
    every = tuple(range(NODES)) * 3
    query = RetrievalQuery(history=("i1",), node_ids=every[:64], k=N)
    result = found(query)
    assert result == oracle(query)
    assert len(result.candidates) == N - 1
    assert {TREE.nodes.level[c.node_id] for c in result.candidates} == {LEVELS}


def test_where_all_is_filtered_out_widening_ends_at_the_root_with_nothing() -> None:
    nobody = Filter("language", any_of=("klingon",))
    query = RetrievalQuery(history=("i1",), node_ids=(7,), k=3, filters=(nobody,))
    assert found(query) == Retrieval((), (), 0)


def test_widening_keeps_to_filters_quota_and_allowed_set() -> None:
    leaf = leaf_with_items()
    query = RetrievalQuery(
        history=(),
        node_ids=(leaf,),
        k=N,
        filters=(Filter("language", any_of=("en", "de")),),
        allow_item_ids=TREE.item_ids[10:50],
        max_per_leaf=1,
    )
    result = found(query)
    assert result.widened_to
    assert result.candidates == oracle(query).candidates
    leaves = [LEAVES[item_id] for item_id in ids(result)]
    assert len(set(leaves)) == len(leaves) > 3


def test_an_allowed_set_reaches_no_further_than_the_clusters() -> None:
    leaf = leaf_with_items()
    start, end = TREE.slice(leaf)
    inside, outside = TREE.item_ids[start], TREE.item_ids[(end + 5) % N]
    query = RetrievalQuery(
        history=(), node_ids=(leaf,), k=9, widening=False, allow_item_ids=(inside, outside, "gone")
    )
    assert ids(found(query)) == [inside]
    assert ids(found(dataclasses.replace(query, allow_item_ids=("gone",)))) == []


def test_denied_is_stronger_than_allowed() -> None:
    item = TREE.item_ids[3]
    query = RetrievalQuery(
        history=(), node_ids=(0,), k=9, allow_item_ids=(item,), deny_item_ids=(item,)
    )
    assert ids(found(query)) == []


def test_a_quota_gives_each_leaf_its_best() -> None:
    every = found(RetrievalQuery(history=("i1",), node_ids=(0,), k=N, include_seen=True))
    result = found(
        RetrievalQuery(history=("i1",), node_ids=(0,), k=N, include_seen=True, max_per_leaf=2)
    )
    by_leaf: dict[int, list[str]] = {}
    for item_id in ids(every):
        by_leaf.setdefault(LEAVES[item_id], []).append(item_id)
    best = {item_id for items in by_leaf.values() for item_id in items[:2]}
    assert ids(result) == [item_id for item_id in ids(every) if item_id in best]


def test_a_quota_looks_past_a_leaf_that_fills_the_top() -> None:
    # One leaf's 500 items are better than the two of another, and those than the third's one.
    leaf = np.repeat([0, 1, 2], [500, 2, 1])
    ids_ = [f"x{n}" for n in range(503)]
    tree = ClusterTree.from_leaves((2, 2, 2, 2), leaf, ids_, None, "a" * 12)
    falling = np.arange(503, 0, -1, dtype=np.float32)
    one = ranker(
        nodes=tree.nodes,
        ids=ItemIds.of(ids_),
        leaf_start=tree.leaf_start,
        matrix=np.zeros((503, 4), np.float32),
        satisfaction=falling,
        attributes=None,
    )
    for k, most, expected in (
        (2, 1, ["x0", "x500"]),
        (9, 1, ["x0", "x500", "x502"]),
        (9, 2, ["x0", "x1", "x500", "x501", "x502"]),
        (2, 2, ["x0", "x1"]),
    ):
        query = RetrievalQuery(history=(), node_ids=(0,), k=k, max_per_leaf=most)
        (result,) = one.retrieve([query])
        assert isinstance(result, Retrieval)
        assert ids(result) == expected


def test_a_history_may_have_to_be_known() -> None:
    query = RetrievalQuery(
        history=("i1", "i2", "f0"), node_ids=(0,), k=3, require_known_history=True
    )
    first, second = GROWN.retrieve([query, dataclasses.replace(query, history=("i1",))])
    assert isinstance(first, InvalidRequest)  # the model knows no fresh item
    assert (first.field, first.value) == ("history[2].item_id", "f0")
    assert isinstance(second, Retrieval)


def test_fresh_items_are_found_by_their_leaf_and_every_ancestor() -> None:
    leaf = TREE.nodes.at_level(LEVELS)[EMPTY_LEAF]
    for level in range(LEVELS, -1, -1):
        node = TREE.nodes.ancestor(leaf, level)
        query = RetrievalQuery(history=("i1",), node_ids=(node,), k=100, widening=False)
        (result,) = GROWN.retrieve([query])
        assert isinstance(result, Retrieval)
        (candidate,) = [c for c in result.candidates if c.item_id == "f3"]
        assert (candidate.node_id, candidate.fresh) == (node, True)
        assert candidate.score == pytest.approx(
            float(np.dot(RELEASED.stand_in("f3"), user_of([TREE.item_ids.index("i1")]))), abs=1e-5
        )
    assert {c.item_id for c in result.candidates if c.fresh} == set(FRESH)


def test_a_fresh_item_of_the_history_is_unknown_to_the_model_and_seen_all_the_same() -> None:
    query = RetrievalQuery(history=("f0", "f4"), node_ids=(0,), k=100)
    (result,) = GROWN.retrieve([query])
    assert isinstance(result, Retrieval)
    assert result.unknown_history_items == 2
    assert [c.item_id for c in result.candidates if c.fresh] == ["f1", "f2", "f3"]
    assert {c.score for c in result.candidates if c.fresh} == {PRIOR}  # a cold user's


def test_a_deleted_item_is_never_returned_and_still_read() -> None:
    deleted = DELETED[1]
    query = RetrievalQuery(
        history=(deleted,), node_ids=(0,), k=100, include_seen=True, allow_item_ids=DELETED
    )
    (result,) = GROWN.retrieve([query])
    assert result == Retrieval((), (), 0)
    (read,) = GROWN.retrieve([dataclasses.replace(query, allow_item_ids=None, k=5)])
    (cold,) = GROWN.retrieve([RetrievalQuery(history=(), node_ids=(0,), k=5)])
    assert isinstance(read, Retrieval)
    assert isinstance(cold, Retrieval)
    assert read.candidates != cold.candidates
    assert (GROWN.deleted_count, GROWN.fresh_count) == (len(DELETED), len(FRESH))


def test_what_is_withheld_is_replaced_as_a_whole() -> None:
    one = ranker(changes=changes_of(FRESH, DELETED))
    query = RetrievalQuery(history=("i1",), node_ids=(0,), k=100, include_seen=True)

    def returned() -> set[str]:
        (result,) = one.retrieve([query])
        assert isinstance(result, Retrieval)
        return set(ids(result))

    every = returned()
    one.withhold(["i1", "f2", "nobody", "i1", DELETED[0]])
    assert every - returned() == {"i1", "f2"}
    assert one.withheld_count == 3
    one.withhold(["i2"])
    assert every - returned() == {"i2"}
    one.withhold([])
    assert returned() == every


def test_a_query_never_sees_some_of_the_old_set_and_some_of_the_new(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = ranker(changes=changes_of(FRESH, ()))
    sets = ({"i1", "f0"}, {"i2", "f1"})  # each with an item of either shelf
    query = RetrievalQuery(
        history=(), node_ids=(0,), k=100, allow_item_ids=("i1", "i2", "f0", "f1")
    )
    seen: list[set[str]] = []

    def stepped(self: ClusterRanker, name: str, value: object) -> None:
        """After every single step of a swap, a query runs, as another thread's might."""
        object.__setattr__(self, name, value)
        (result,) = self.retrieve([query])
        assert isinstance(result, Retrieval)
        seen.append(set(ids(result)))

    one.withhold(sets[0])
    monkeypatch.setattr(ClusterRanker, "__setattr__", stepped)
    one.withhold(sets[1])
    assert seen[-1] == sets[0]
    assert all(found in sets for found in seen)


@pytest.mark.parametrize(
    ("given", "field", "says"),
    [
        (Filter("colour", any_of=("red",)), "filters[1].attribute", "language (text)"),
        (Filter("language", any_of=("en", 3)), "filters[1].any_of", "text"),
        (Filter("language", at_least=3), "filters[1].at_least", "order"),
        (Filter("kids", at_most=1), "filters[1].at_most", "order"),
        (Filter("kids", any_of=(1,)), "filters[1].any_of", "flag"),
        (Filter("age", none_of=(True,)), "filters[1].none_of", "integer"),
        (Filter("age", any_of=(1.5,)), "filters[1].any_of", "integer"),
        (Filter("made", any_of=("1970",)), "filters[1].any_of", "timestamp"),
        (Filter("score", any_of=("1",)), "filters[1].any_of", "number"),
    ],
)
def test_a_filter_that_does_not_fit_fails_its_row_alone(
    given: Filter, field: str, says: str
) -> None:
    good = RetrievalQuery(history=("i1",), node_ids=(0,), k=3)
    bad = dataclasses.replace(good, filters=(Filter("age", at_least=1), given))
    for one in (PLAIN, GROWN):
        first, second, third = one.retrieve([good, bad, good])
        assert isinstance(second, InvalidRequest)
        assert second.field == field
        assert says in str(second)
        assert first == third


def test_a_ranker_without_attributes_says_so() -> None:
    query = RetrievalQuery(history=(), node_ids=(0,), k=3, filters=(Filter("age", at_least=1),))
    (error,) = ranker(attributes=None).retrieve([query])
    assert isinstance(error, InvalidRequest)
    assert "has none" in str(error)
