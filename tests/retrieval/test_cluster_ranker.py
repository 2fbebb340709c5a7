"""The ClusterRanker against an oracle of masks and loops."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serendip.core import Candidate, NotFound, Retrieval, RetrievalQuery, Versions
from serendip.retrieval.ranker import ClusterRanker
from serendip.tree.cluster_tree import LEVELS, ClusterTree

N = 60
MAX_HISTORY = 4
UNKNOWN = ("gone", "newer")


def small_tree() -> ClusterTree:
    leaf = np.random.default_rng(3).integers(0, 16, N)
    leaf[leaf == 5] = 6  # a leaf without items
    return ClusterTree.from_leaves((2, 2, 2, 2), leaf, [f"i{n}" for n in range(N)], None, "a" * 12)


TREE = small_tree()
NODES = len(TREE.nodes)
# Small whole numbers: sums are exact in any order, and equal scores are common.
MATRIX = np.random.default_rng(4).integers(-2, 3, (N, 4)).astype(np.float32)
SATISFACTION = (np.random.default_rng(5).integers(0, 8, N) / 8).astype(np.float32)


def encode(ids: npt.NDArray[np.int64], length: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Stands in for the graph: the sum of the vectors of the items, and a 1."""
    assert ids.shape[1] <= MAX_HISTORY
    user = np.zeros((len(ids), 4), np.float32)
    for row, n in enumerate(length):
        user[row] = MATRIX[ids[row, :n] - 1].sum(axis=0)
    user[:, -1] = 1
    return user


RANKER = ClusterRanker(
    versions=Versions(tree_version=TREE.version),
    nodes=TREE.nodes,
    item_ids=TREE.item_ids,
    leaf_start=TREE.leaf_start,
    matrix=MATRIX,
    satisfaction=SATISFACTION,
    encode=encode,
    max_history=MAX_HISTORY,
)


@functools.cache
def holds(node: int, rank: int) -> bool:
    return TREE.node_of(TREE.item_ids[rank], int(TREE.nodes.level[node])) == node


def oracle(query: RetrievalQuery) -> Retrieval:
    known = [TREE.item_ids.index(i) for i in query.history if i in TREE.item_ids]
    if known:
        user = [float(MATRIX[known[-MAX_HISTORY:], c].sum()) for c in range(3)] + [1.0]
        score = [sum(float(a) * b for a, b in zip(MATRIX[r], user, strict=True)) for r in range(N)]
    else:
        score = [float(s) for s in SATISFACTION]
    gone = [
        any(holds(node, rank) for node in query.exclude_node_ids)
        or item_id in query.deny_item_ids
        or (item_id in query.history and not query.include_seen)
        for rank, item_id in enumerate(TREE.item_ids)
    ]
    stages: list[list[int]] = [list(query.node_ids)]
    if query.widening:
        stages += [[node] for node in query.widen_node_ids]
        for level in range(LEVELS - 1, -1, -1):
            for node in query.node_ids:
                if TREE.nodes.level[node] > level:
                    stages.append([TREE.nodes.ancestor(node, level)])
    candidates: list[Candidate] = []
    widened_to: list[int] = []
    taken = [False] * N
    for number, stage in enumerate(stages):
        here = []
        for rank in range(N):
            holders = [node for node in stage if holds(node, rank)]
            if holders and not taken[rank]:
                taken[rank] = True
                if not gone[rank]:
                    deepest = max(holders, key=lambda n: TREE.nodes.level[n])
                    here.append((-score[rank], rank, deepest))
        here = sorted(here)[: query.k - len(candidates)]
        candidates += [Candidate(TREE.item_ids[r], -s, node, number > 0) for s, r, node in here]
        if here and number:
            widened_to.append(stage[0])
    return Retrieval(tuple(candidates), tuple(widened_to), len(query.history) - len(known))


item_lists = st.lists(st.sampled_from((*TREE.item_ids, *UNKNOWN)), max_size=9).map(tuple)
nodes = st.integers(0, NODES - 1)
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
)


@settings(max_examples=150, deadline=None)
@given(st.lists(queries, min_size=1, max_size=4))
def test_it_finds_what_the_oracle_finds(batch: list[RetrievalQuery]) -> None:
    assert RANKER.retrieve(batch) == [oracle(query) for query in batch]


def found(query: RetrievalQuery) -> Retrieval:
    (result,) = RANKER.retrieve([query])
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
    first, second, third = RANKER.retrieve([good, bad, good])
    assert isinstance(second, NotFound)
    assert second.field == field
    assert first == third == oracle(good)


def test_many_rows_are_encoded_in_their_own_order() -> None:
    batch = [
        RetrievalQuery(history=TREE.item_ids[n : n + 1 + n % 5], node_ids=(0,), k=5)
        for n in range(50)
    ] * 3
    assert RANKER.retrieve(batch) == [oracle(query) for query in batch[:50]] * 3
