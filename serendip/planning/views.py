"""Views of a trie: which of its descriptions a row may still choose, without a rebuild.

A view removes descriptions and touches no score. Everything is in ranks of the trie, of which
each state owns a range [lo, hi). Knows neither trie nor tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Int = npt.NDArray[np.int32]
Bool = npt.NDArray[np.bool_]
_NONE = np.empty(0, np.int32)


@dataclass(frozen=True)
class Mask:
    """A bitmask of descriptions, summed up so that a range is counted by one subtraction.

    Attributes:
        kept: int32[D + 1]; kept[hi] - kept[lo] descriptions of ranks [lo, hi) are allowed.
    """

    kept: Int


@dataclass(frozen=True)
class View:
    """Which descriptions a row may choose: those of ``only`` or ``mask``, less ``without``.

    Attributes:
        size: D, how many descriptions the trie has.
        only: int32[m] or None, ascending ranks; nothing else is allowed.
        without: int32[m], ascending ranks that are not allowed, out of those otherwise allowed.
        mask: None, or what is allowed where ``only`` is None.
    """

    size: int
    only: Int | None = None
    without: Int = field(default_factory=lambda: _NONE)
    mask: Mask | None = None

    @property
    def count(self) -> int:
        """How many descriptions are allowed."""
        if self.only is not None:
            return len(self.only)
        allowed = self.size if self.mask is None else int(self.mask.kept[-1])
        return allowed - len(self.without)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is removed."""
        return self.count == self.size

    def live(self, lo: Int, hi: Int) -> Bool:
        """bool[...]: whether a description of ranks [lo, hi) is allowed."""
        if self.only is not None:
            return _within(self.only, lo, hi) > 0
        allowed = hi - lo if self.mask is None else self.mask.kept[hi] - self.mask.kept[lo]
        if len(self.without):
            allowed = allowed - _within(self.without, lo, hi)
        result: Bool = allowed > 0
        return result

    def live_children(self, lo: Int, hi: Int) -> Bool:
        """bool[U]: ``live`` of the U children of one state, looking only at what the view names.

        Args:
            lo, hi: int32[U], of contiguous children: hi[i] == lo[i + 1].
        """
        if self.mask is not None:
            return self.live(lo, hi)
        named = self.without if self.only is None else self.only
        named = named[np.searchsorted(named, lo[0]) : np.searchsorted(named, hi[-1])]
        at = np.searchsorted(lo, named, side="right") - 1
        if self.only is not None:
            result = np.zeros(len(lo), bool)
            result[at] = True
            return result
        result = np.ones(len(lo), bool)
        child, gone = np.unique(at, return_counts=True)
        result[child[gone == hi[child] - lo[child]]] = False
        return result


class Views:
    """R views looked at together, one vectorised question for edges of all rows."""

    def __init__(self, views: Sequence[View]) -> None:
        self._stride = max((v.size for v in views), default=0) + 1
        self._limited = np.array([v.only is not None for v in views], bool)
        self._only = self._keys([_NONE if v.only is None else v.only for v in views])
        self._without = self._keys([v.without for v in views])
        masks = [None if v.only is not None else v.mask for v in views]
        self._masks = {id(mask): mask for mask in masks if mask is not None}
        self._mask_of = np.array([0 if m is None else id(m) for m in masks], np.int64)

    def live(self, row: npt.NDArray[np.int64], lo: Int, hi: Int) -> Bool:
        """bool[E]: whether ranks [lo, hi) hold a description that the view of ``row`` allows."""
        allowed = hi - lo
        base = row * self._stride
        if len(self._only) or self._limited.any():
            allowed = np.where(
                self._limited[row], _within(self._only, base + lo, base + hi), allowed
            )
        for key, mask in self._masks.items():
            mine = np.flatnonzero(self._mask_of[row] == key)
            allowed[mine] = mask.kept[hi[mine]] - mask.kept[lo[mine]]
        if len(self._without):
            allowed = allowed - _within(self._without, base + lo, base + hi)
        result: Bool = allowed > 0
        return result

    def _keys(self, ranks: Sequence[Int]) -> npt.NDArray[np.int64]:
        return np.concatenate(
            [r.astype(np.int64) + i * self._stride for i, r in enumerate(ranks)]
            or [np.empty(0, np.int64)]
        )


def _within(
    ranks: npt.NDArray[np.integer], lo: npt.NDArray[np.integer], hi: npt.NDArray[np.integer]
) -> npt.NDArray[np.int64]:
    """How many of the ascending ``ranks`` lie in each [lo, hi)."""
    return np.searchsorted(ranks, hi) - np.searchsorted(ranks, lo)
