"""One query's search over the shelves: what it has looked at, and the best of what it has not.

This module knows no item ID and no request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serendip.retrieval.intervals import Covered
from serendip.retrieval.shelf import Segment, Wanted

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

_FIRST_LOOK = 4  # times k: how far the best of each leaf are looked for at first, and then
_FURTHER = 8  # times as far


@dataclass(frozen=True, slots=True)
class Picks:
    """M items, best first; equal scores in item order, those of later shelves last.

    Attributes:
        scores: float32[M].
        ranks: int64[M], on their shelves.
        nodes: int64[M], what each was taken from.
        shelf: int64[M], the number of its shelf.
    """

    scores: Float32
    ranks: Int64
    nodes: Int64
    shelf: Int64

    def __len__(self) -> int:
        return len(self.ranks)

    def at(self, places: Sequence[int] | Int64 | slice) -> Picks:
        """Some of them, in the order of the places."""
        return Picks(
            self.scores[places], self.ranks[places], self.nodes[places], self.shelf[places]
        )

    @classmethod
    def joined(cls, parts: Sequence[Picks]) -> Picks:
        """One after the other."""
        return cls(
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.ranks for part in parts]),
            np.concatenate([part.nodes for part in parts]),
            np.concatenate([part.shelf for part in parts]),
        )


@dataclass(frozen=True, slots=True)
class Search:
    """One query on its way: what it may have, and what it has looked at, by shelf."""

    wanted: list[Wanted]
    covered: list[Covered]
    max_per_leaf: int

    def claim(self, nodes: Iterable[int]) -> list[list[Segment]]:
        """What of the nodes was not covered yet, by shelf; now it is."""
        return [
            [segment for node in nodes for segment in wanted.shelf.claim(covered, node)]
            for wanted, covered in zip(self.wanted, self.covered, strict=True)
        ]

    def best(self, claimed: list[list[Segment]], k: int) -> Picks:
        """The top k of what was claimed, at most max_per_leaf of one leaf; 0: any."""
        most = self.max_per_leaf
        if not most:
            return self._merged(claimed, k)
        # The best of each leaf lie somewhere among the best of all: so far down the list until they
        # are k, or all that the leaves may give, or the list ends. Nodes are whole leaves, so that
        # no leaf gives to two stages.
        room = min(k, most * self._leaves(claimed))
        ask = _FIRST_LOOK * k
        while True:
            picks = self._merged(claimed, ask)
            given: Counter[int] = Counter()
            kept = []
            for place, leaf in enumerate(self._leaf_of(picks)):
                if given[leaf] < most:
                    given[leaf] += 1
                    kept.append(place)
            if len(kept) >= room or len(picks) < ask:
                return picks.at(kept[:k])
            ask *= _FURTHER

    def _merged(self, claimed: list[list[Segment]], k: int) -> Picks:
        parts = [
            _best(wanted, segments, k, number)
            for number, (wanted, segments) in enumerate(zip(self.wanted, claimed, strict=True))
        ]
        if len(parts) == 1:
            return parts[0]
        picks = Picks.joined(parts)
        # Stable, and each part is sorted: equal scores stay in the order of shelves and items.
        return picks.at((-picks.scores).argsort(kind="stable")[:k])

    def _leaves(self, claimed: list[list[Segment]]) -> int:
        """At least as many leaves as the segments lie in."""
        total = 0
        for wanted, segments in zip(self.wanted, claimed, strict=True):
            ends = [rank for start, end, _ in segments for rank in (start, end - 1)]
            first_and_last = wanted.shelf.leaves(ends)
            total += int((first_and_last[1::2] - first_and_last[::2] + 1).sum())
        return total

    def _leaf_of(self, picks: Picks) -> list[int]:
        leaf = np.empty(len(picks), np.int64)
        for number, wanted in enumerate(self.wanted):
            here = picks.shelf == number
            leaf[here] = wanted.shelf.leaves(picks.ranks[here])
        leaves: list[int] = leaf.tolist()
        return leaves


def _best(wanted: Wanted, segments: list[Segment], k: int, number: int) -> Picks:
    """The top k of what is wanted of the segments of shelf ``number``."""
    if not segments:
        none = np.empty(0, np.int64)
        return Picks(np.empty(0, np.float32), none, none, none)
    segments.sort()
    top = wanted.best(segments, k)
    starts = np.array([start for start, _, _ in segments])
    nodes = np.array([node for _, _, node in segments])
    of = starts.searchsorted(top.ranks, side="right") - 1
    return Picks(top.scores, top.ranks, nodes[of], np.full(len(of), number))
