"""What a retrieval found, as columns: candidates are made of them for who wants candidates.

A server writes fifty candidates a call from the columns, without an object for each. This module
knows no ranker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat

from serendip.core import Candidate, Retrieval


@dataclass(frozen=True, slots=True)
class Found:
    """M candidates, best first, and where the retrieval had to look.

    Attributes:
        item_ids: M, in UTF-8.
        scores: M numbers that float32 can hold.
        node_ids: M nodes that the candidates were taken from.
        own: the first so many lie in the requested nodes, the others were widened to.
        fresh: M, whether each is newer than the export; empty: none is.
        widened_to: nodes that the others were taken from, in order.
        unknown_history_items: items of the history that the export does not have.
    """

    item_ids: Sequence[bytes]
    scores: Sequence[float]
    node_ids: Sequence[int]
    own: int
    fresh: Sequence[bool] = ()
    widened_to: tuple[int, ...] = ()
    unknown_history_items: int = 0

    def __len__(self) -> int:
        return len(self.item_ids)

    @property
    def widened(self) -> list[bool]:
        """M, whether each lies in none of the requested nodes."""
        return [False] * self.own + [True] * (len(self) - self.own)

    def retrieval(self) -> Retrieval:
        """The same, with a candidate for each."""
        return Retrieval(
            candidates=tuple(
                map(
                    Candidate,
                    map(bytes.decode, self.item_ids),
                    self.scores,
                    self.node_ids,
                    self.widened,
                    self.fresh or repeat(False),
                )
            ),
            widened_to=self.widened_to,
            unknown_history_items=self.unknown_history_items,
        )
