"""A shelf: items ordered by leaf, with what they are scored by, and what a query may have of it.

The ranker has one of the export's items and, where the release's tree has newer ones, one of
those. This module knows no item but its rank, and no ONNX.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serendip.retrieval.attributes import Bool, Condition, Ranks
from serendip.retrieval.codes import Codes
from serendip.retrieval.intervals import Covered
from serendip.retrieval.item_ids import ItemIds
from serendip.retrieval.scan import Scan, Top, best_of_scores, best_of_values
from serendip.tree.cluster_tree import Nodes

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

# The items [start, end) that a candidate may come from, and the node that it then names.
Segment = tuple[int, int, int]

# Of the ranks of the slices, at most this share is left: they are gathered one by one.
_FEW = 0.25


class Shelf:
    """N items in the order of their leaves.

    Attributes:
        ids: item IDs by rank.
        leaf_start: int64[L + 1], first item of each leaf.
        fresh: whether they are newer than the export.
    """

    def __init__(
        self,
        nodes: Nodes,
        ids: ItemIds,
        leaf_start: Int64,
        matrix: Float32,
        satisfaction: Float32,
        codes: Codes | None = None,
        *,
        fresh: bool,
    ):
        """See the class.

        Args:
            matrix: float32[N, d], C-contiguous.
            satisfaction: float32[N], what a cold user's items are ranked by.
            codes: of the matrix.
        """
        self.ids = ids
        self.leaf_start = leaf_start
        self.fresh = fresh
        self._scan = Scan(matrix, codes)
        self._satisfaction = satisfaction
        # Plain lists: one element of an array costs more than all else that is done with it.
        self._start: list[int] = leaf_start[nodes.leaf_lo].tolist()
        self._end: list[int] = leaf_start[nodes.leaf_hi].tolist()

    def best(
        self, user: Float32 | None, slices: Sequence[tuple[int, int]], gone: Int64, k: int
    ) -> Top:
        """The top k of the slices, less what is gone, for a user vector; None: by satisfaction."""
        if user is None:
            return best_of_values(self._satisfaction, slices, gone, k)
        return self._scan.best(user, slices, gone, k)

    def best_of_ranks(self, user: Float32 | None, ranks: Int64, k: int) -> Top:
        """The top k of sorted ranks int64[n], as ``best``."""
        scores = self._satisfaction[ranks] if user is None else self._scan.scores(ranks, user)
        return best_of_scores(ranks, scores, k)

    def claim(self, covered: Covered, node: int) -> list[Segment]:
        """What of a node was not covered yet; now it is."""
        left = covered.claim(self._start[node], self._end[node])
        return [(start, end, node) for start, end in left]

    def leaves(self, ranks: Sequence[int]) -> Int64:
        """int64[n]: the leaf rank of each item."""
        return np.searchsorted(self.leaf_start, ranks, side="right") - 1


@dataclass(frozen=True)
class Wanted:
    """What one query may have of one shelf.

    Attributes:
        user: float32[d], or None for a cold user.
        gone: sorted arrays int64[G] of ranks that are never returned, each of unlike ones.
        only: sorted int64[A], the ranks that alone may be; None: any.
        conditions: all must hold.
    """

    shelf: Shelf
    user: Float32 | None
    gone: tuple[Int64, ...]
    only: Int64 | None
    conditions: tuple[Condition, ...]

    def best(self, segments: Sequence[Segment], k: int) -> Top:
        """The top k of what may be returned of sorted segments."""
        ranks, gone = self._narrow(segments)
        if ranks is not None:
            return self.shelf.best_of_ranks(self.user, ranks, k)
        slices = [(start, end) for start, end, _ in segments]
        return self.shelf.best(self.user, slices, _union(gone), k)

    def _narrow(self, segments: Sequence[Segment]) -> tuple[Int64 | None, tuple[Int64, ...]]:
        """What may be returned of sorted segments, as (ranks, gone).

        Either int64[n], sorted ranks, where they are few; or None: all of the segments but what is
        gone, of which there may be more now.
        """
        if self.only is not None:
            cuts = [np.searchsorted(self.only, (start, end)) for start, end, _ in segments]
            ranks = np.concatenate([self.only[lo:hi] for lo, hi in cuts])
            if self.conditions:
                ranks = ranks[self._matches(ranks)]
            return self._less_gone(ranks), ()
        if not self.conditions:
            return None, self.gone
        starts = [start for start, _, _ in segments]
        kept = [self._matches(slice(start, end)) for start, end, _ in segments]
        if sum(np.count_nonzero(k) for k in kept) <= _FEW * sum(len(k) for k in kept):
            ranks = np.concatenate(
                [np.flatnonzero(k) + s for k, s in zip(kept, starts, strict=True)]
            )
            return self._less_gone(ranks), ()
        lost = np.concatenate([np.flatnonzero(~k) + s for k, s in zip(kept, starts, strict=True)])
        return None, (*self.gone, lost)

    def _matches(self, ranks: Ranks) -> Bool:
        return np.asarray(np.logical_and.reduce([holds(ranks) for holds in self.conditions]))

    def _less_gone(self, ranks: Int64) -> Int64:
        for gone in self.gone:
            ranks = ranks[~np.isin(ranks, gone)]
        return ranks


def _union(sets: Sequence[Int64]) -> Int64:
    """Of sorted sets, sorted."""
    if len(sets) == 1:
        return sets[0]
    return np.unique(np.concatenate([np.empty(0, np.int64), *sets]))
