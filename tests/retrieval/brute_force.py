"""What a retrieval must find, by loops over all items: the oracle of the ranker and the server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from serendip.core import Candidate, Filter, Retrieval, RetrievalQuery
from serendip.tree.cluster_tree import LEVELS, Nodes

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Catalogue:
    """Items in item order, the fresh ones last.

    Attributes:
        leaf: the leaf rank of each item.
        attributes: of the items that are not fresh, in item order.
        user: the user vector float32[d] of ranks, oldest first, not empty.
        matrix, satisfaction: of the items that are not fresh.
        prior: a fresh item's satisfaction.
    """

    nodes: Nodes
    leaf: Mapping[str, int]
    attributes: Mapping[str, Sequence[Any]]
    user: Callable[[list[int]], Float32]
    matrix: Float32
    satisfaction: Float32
    prior: float
    fresh: Sequence[str] = ()
    deleted: Sequence[str] = ()
    rank: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        known = [item_id for item_id in self.leaf if item_id not in self.fresh]
        object.__setattr__(self, "rank", {item_id: rank for rank, item_id in enumerate(known)})

    def holds(self, node: int, item_id: str) -> bool:
        leaf = self.leaf[item_id]
        return bool(self.nodes.leaf_lo[node] <= leaf < self.nodes.leaf_hi[node])

    def stand_in(self, item_id: str) -> Float32:
        """float32[d]: the mean of the leaf's vectors, or of the lowest ancestor's with some."""
        node = self.nodes.at_level(LEVELS)[self.leaf[item_id]]
        while not (rows := [r for i, r in self.rank.items() if self.holds(node, i)]):
            node = int(self.nodes.parent[node])
        return self.matrix[rows].mean(axis=0, dtype=np.float64).astype(np.float32)

    def scores(self, known: list[int]) -> dict[str, float]:
        """The score of every item for a history of these ranks."""
        if not known:
            seen = dict(zip(self.rank, self.satisfaction.tolist(), strict=True))
            return seen | dict.fromkeys(self.fresh, self.prior)
        user = self.user(known)
        rows = [*self.matrix, *(self.stand_in(item_id) for item_id in self.fresh)]
        return {i: float(np.dot(row, user)) for i, row in zip(self.leaf, rows, strict=True)}

    def matches(self, item_id: str, given: Filter) -> bool:
        """Straight from the comments of Filter in the proto."""
        if item_id in self.fresh:
            return False
        value = self.attributes[given.attribute][self.rank[item_id]]
        if value is None or value != value:
            return False
        return (
            (not given.any_of or value in given.any_of)
            and (not given.none_of or value not in given.none_of)
            and (given.at_least is None or value >= given.at_least)
            and (given.at_most is None or value <= given.at_most)
        )

    def never(self, query: RetrievalQuery, item_id: str) -> bool:
        return (
            item_id in self.deleted
            or any(self.holds(node, item_id) for node in query.exclude_node_ids)
            or item_id in query.deny_item_ids
            or (item_id in query.history and not query.include_seen)
            or (query.allow_item_ids is not None and item_id not in query.allow_item_ids)
            or not all(self.matches(item_id, given) for given in query.filters)
        )


def brute_force(
    catalogue: Catalogue, query: RetrievalQuery, withheld: Sequence[str] = ()
) -> Retrieval:
    """The answer to a query that is sound."""
    nodes = catalogue.nodes
    known = [catalogue.rank[i] for i in query.history if i in catalogue.rank]
    score = catalogue.scores(known)
    gone = {i for i in catalogue.leaf if i in withheld or catalogue.never(query, i)}
    stages: list[list[int]] = [list(query.node_ids)]
    if query.widening:
        stages += [[node] for node in query.widen_node_ids]
        for level in range(LEVELS - 1, -1, -1):
            for node in query.node_ids:
                if nodes.level[node] > level:
                    stages.append([nodes.ancestor(node, level)])
    candidates: list[Candidate] = []
    widened_to: list[int] = []
    taken: set[str] = set()
    of_leaf: Counter[int] = Counter()
    for number, stage in enumerate(stages):
        here = []
        for place, item_id in enumerate(catalogue.leaf):
            holders = [node for node in stage if catalogue.holds(node, item_id)]
            if holders and item_id not in taken:
                taken.add(item_id)
                if item_id not in gone:
                    deepest = max(holders, key=lambda n: nodes.level[n])
                    here.append((-score[item_id], place, deepest, item_id))
        before = len(candidates)
        for negated, _, node, item_id in sorted(here):
            leaf = catalogue.leaf[item_id]
            if len(candidates) == query.k:
                break
            if query.max_per_leaf and of_leaf[leaf] == query.max_per_leaf:
                continue
            of_leaf[leaf] += 1
            fresh = item_id in catalogue.fresh
            candidates.append(Candidate(item_id, -negated, node, number > 0, fresh))
        if len(candidates) > before and number:
            widened_to.append(stage[0])
    return Retrieval(tuple(candidates), tuple(widened_to), len(query.history) - len(known))


def same(got: object, expected: Retrieval) -> None:
    """Equal but for rounding: items whose scores differ by less than 1e-5 may change places."""
    assert isinstance(got, Retrieval)
    assert len(got.candidates) == len(expected.candidates)
    assert got.widened_to == expected.widened_to
    assert got.unknown_history_items == expected.unknown_history_items
    wanted = {c.item_id: c for c in expected.candidates}
    for mine, theirs in zip(got.candidates, expected.candidates, strict=True):
        assert abs(mine.score - theirs.score) <= 1e-5 * max(1.0, abs(theirs.score))
        if mine.item_id in wanted:
            theirs = wanted[mine.item_id]
            assert abs(mine.score - theirs.score) <= 1e-5 * max(1.0, abs(theirs.score))
            assert mine == theirs._replace(score=mine.score)
        else:  # the last place, shared by equals
            assert abs(mine.score - expected.candidates[-1].score) <= 1e-5
