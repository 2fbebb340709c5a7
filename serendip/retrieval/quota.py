"""At most so many candidates of one leaf: what is picked, cut to the quota.

This module knows no score and no item.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


class Quota:
    """What each leaf has given so far, over all stages of one retrieval."""

    def __init__(self, most: int):
        self.most = most
        self._given: Counter[int] = Counter()

    def cut(self, picks: Iterable[T], leaves: Iterable[int], k: int) -> list[T]:
        """The first k of the picks that their leaves still may give, in order; nothing is noted."""
        given = self._given.copy()

        def allowed() -> Iterable[T]:
            for pick, leaf in zip(picks, leaves, strict=True):
                if given[leaf] < self.most:
                    given[leaf] += 1
                    yield pick

        return list(islice(allowed(), k))

    def note(self, leaves: Iterable[int]) -> None:
        """Notes one candidate of each leaf named."""
        self._given.update(leaves)
