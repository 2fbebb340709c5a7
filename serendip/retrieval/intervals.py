"""Sets of item ranks as disjoint slices: unions and differences without a mask over the items.

This module knows no tree and no score.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

Slice = tuple[int, int]


class Covered:
    """A growing set of ranks, kept as sorted, disjoint slices [start, end) that do not touch."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def claim(self, start: int, end: int) -> list[Slice]:
        """Adds [start, end); returns, in order, the slices of it that were not covered yet."""
        if start >= end:
            return []
        # Those that overlap or touch it: they become one with it.
        lo = bisect_left(self._ends, start)
        hi = bisect_right(self._starts, end)
        fresh: list[Slice] = []
        at = start
        for i in range(lo, hi):
            if at < self._starts[i]:
                fresh.append((at, self._starts[i]))
            at = max(at, self._ends[i])
        if at < end:
            fresh.append((at, end))
        if lo < hi:
            start = min(start, self._starts[lo])
            end = max(end, self._ends[hi - 1])
        self._starts[lo:hi] = [start]
        self._ends[lo:hi] = [end]
        return fresh
