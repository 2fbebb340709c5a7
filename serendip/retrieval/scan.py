"""Exact top-k by dot product over slices of the item matrix, and only over them.

A score is the float32 sum of the float32 products of a row and the user vector, in the order of
``np.add.reduce``. There are two ways to it. Compiled (kernels.py, with numba) it is one pass over
the slices, or over their 8-bit codes and few rows (codes.py). By numpy it is two: a
matrix-vector product bounds every score, and what a bound does not rule out is scored, each row in
the same order of operations whatever stands around it. So items and scores do not depend on how the
slices are cut, which way was taken, which BLAS is there, or who else asked, and rows that are
equal have equal scores.

This module knows no tree, no item ID and no model.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serendip.retrieval.codes import Codes
from serendip.retrieval.compiled import Best, compiled_best, is_compiled

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Slice = tuple[int, int]

_ROUNDING = 2.0**-24  # of one operation in float32, relative
_SMALLEST = 2.0**-126  # what a product may lose that is too small for float32
_LOWEST = float(np.finfo(np.float32).min)
_NO_OVERFLOW = 1e37  # scores that are bounded by this stay finite on the way
_COMPILED_AT = 1000  # asks
_FOLD = 64
_FEW = 2048
_ROWS_A_PASS = 1 << 16


@dataclass(frozen=True)
class Top:
    """Items with the highest scores, best first; equal scores in item order.

    Attributes:
        ranks: int64[m].
        scores: float32[m].
    """

    ranks: Int64
    scores: Float32


class Scan:
    """An item matrix to be asked; its methods may be called by several threads."""

    def __init__(self, matrix: Float32, codes: Codes | None = None, *, only_numpy: bool = False):
        """
        Args:
            matrix: float32[N, d], C-contiguous, in item order, all finite.
            codes: of the same rows, for the compiled way; without them it reads all in float32.
            only_numpy: never compiled.
        """
        self._matrix = matrix
        self._codes = codes
        # Of the longest row: by it, and the user's length, every rounding error is bounded.
        self._longest = _longest(matrix) if codes is None else codes.longest
        self._asks = itertools.count(1)
        self._only_numpy = only_numpy
        self._compiled: Best | None = None
        if is_compiled(matrix, codes):  # for another matrix with as many columns
            self.compile()

    def compile(self) -> bool:
        """Compiles the scan now, in a second or two; False: there is no numba that can be used.

        Otherwise a thread does so at the 1,000th ask, and numpy answers until then: a script that
        asks a few times does not wait for it, nor does a server that starts.
        """
        if self._compiled is None and not self._only_numpy:
            self._compiled = compiled_best(self._matrix, self._codes)
        return self._compiled is not None

    def best(self, user: Float32, slices: Sequence[Slice], gone: Int64, k: int) -> Top:
        """The top k of the items of the slices, less those that are gone.

        Where a sum overflows to -inf or to no number, the item is never among them.

        Args:
            user: float32[d], finite.
            slices: [start, end) each, disjoint, in any order; empty ones are allowed.
            gone: int64[G], sorted.
            k: 1 or more.
        """
        slices = sorted(s for s in slices if s[0] < s[1])
        rows = sum(end - start for start, end in slices)
        if not rows:
            return Top(np.empty(0, np.int64), np.empty(0, np.float32))
        if self._compiled is not None:
            return Top(*self._compiled(user, slices, gone, min(k, rows)))
        if next(self._asks) == _COMPILED_AT:
            threading.Thread(target=self.compile, name="compile-scan").start()
        wide = user.astype(np.float64)
        length = 1.001 * math.sqrt(wide.dot(wide))
        reach = self._longest * length  # no score is further from 0
        if not reach < _NO_OVERFLOW:
            return self._best_of_all(user, slices, gone, k)
        # Between a product of BLAS and a score.
        slack = 4 * (len(user) + 8) * _ROUNDING * reach + len(user) * _SMALLEST
        return self._best_by_numpy(user, slices, gone, k, slack)

    def _best_by_numpy(
        self, user: Float32, slices: list[Slice], gone: Int64, k: int, slack: float
    ) -> Top:
        bounds = np.empty(sum(end - start for start, end in slices), np.float32)
        at = 0
        for start, end in slices:
            np.dot(self._matrix[start:end], user, out=bounds[at : at + end - start])
            at += end - start
        _leave_out(bounds, slices, gone)
        # At least k scores are above this floor by a slack, and all bounds below it by one.
        ranks = _ranks(reaching(bounds, floor_of(bounds, k) - 2 * slack), slices)
        return _ordered(ranks, self.scores(ranks, user), k)

    def _best_of_all(self, user: Float32, slices: list[Slice], gone: Int64, k: int) -> Top:
        """As ``best``, where no bound holds: every row is scored."""
        ranks = np.concatenate([np.arange(start, end) for start, end in slices])
        ranks = ranks[~np.isin(ranks, gone)]
        with np.errstate(all="ignore"):
            parts = [
                self.scores(ranks[at : at + _ROWS_A_PASS], user)
                for at in range(0, len(ranks), _ROWS_A_PASS)
            ]
        scores = np.concatenate([np.empty(0, np.float32), *parts])
        kept = scores > -np.inf
        return _ordered(ranks[kept], scores[kept], k)

    def scores(self, ranks: Int64, user: Float32) -> Float32:
        """float32[m] scores of the rows: the same for a row wherever it stands in them."""
        rows = self._matrix.take(ranks, axis=0)
        rows *= user
        scores: Float32 = np.add.reduce(rows, axis=1)
        return scores


def best_of_values(values: Float32, slices: Sequence[Slice], gone: Int64, k: int) -> Top:
    """As ``Scan.best``, for items that have their score already: float32[N]."""
    slices = sorted(s for s in slices if s[0] < s[1])
    if not slices:
        return Top(np.empty(0, np.int64), np.empty(0, np.float32))
    scores = np.concatenate([values[start:end] for start, end in slices])
    _leave_out(scores, slices, gone)
    at = reaching(scores, floor_of(scores, k))
    return _ordered(_ranks(at, slices), scores[at], k)


def best_of_scores(ranks: Int64, scores: Float32, k: int) -> Top:
    """As ``Scan.best``, for sorted ranks int64[n] that have their scores already."""
    at = reaching(scores, floor_of(scores, k))
    return _ordered(ranks[at], scores[at], k)


def floor_of(values: Float32, count: int) -> float:
    """A value that at least ``count`` of float32[n] reach, and not many more; else -inf."""
    n = len(values)
    if count >= n:
        return -np.inf
    fold = min(_FOLD, n // (8 * count))
    if fold >= 4:
        # The best of each of many groups: most of the highest values are alone in theirs.
        n = n // fold
        values = values[: n * fold].reshape(fold, n).max(axis=0)
    values = values.copy()
    values.partition(n - count)
    return float(values[n - count])


def reaching(values: Float32, floor: float) -> Int64:
    """Where float32[n] is at least ``floor`` and not -inf, in order."""
    mask = values >= max(floor, _LOWEST)
    n = len(values)
    if n < _FEW:
        return mask.nonzero()[0]
    # Few do: find the columns of a folded mask that have any before looking for the places.
    width = n // _FOLD
    folded = mask[: width * _FOLD].reshape(_FOLD, width)
    columns = np.flatnonzero(np.logical_or.reduce(folded, axis=0))
    if len(columns) > width // 2:
        return np.flatnonzero(mask)
    row, column = np.nonzero(folded[:, columns])
    rest = np.flatnonzero(mask[width * _FOLD :]) + width * _FOLD
    return np.concatenate([row * width + columns[column], rest])


def _leave_out(bounds: Float32, slices: Sequence[Slice], gone: Int64) -> None:
    if not len(gone):
        return
    at = 0
    cuts = gone.searchsorted([place for own in slices for place in own]).tolist()
    for (start, end), lo, hi in zip(slices, cuts[::2], cuts[1::2], strict=True):
        if lo < hi:
            bounds[gone[lo:hi] - (start - at)] = -np.inf
        at += end - start


def _ranks(at: Int64, slices: Sequence[Slice]) -> Int64:
    """Item ranks of places in what was made of the slices, one after the other."""
    if len(slices) == 1:
        return at + slices[0][0]
    bounds, shifts, end_of = [], [], 0
    for start, end in slices:
        shifts.append(start - end_of)
        end_of += end - start
        bounds.append(end_of)
    shift: Int64 = np.array(shifts, np.int64)
    return at + shift[np.array(bounds, np.int64).searchsorted(at, side="right")]


def _ordered(ranks: Int64, scores: Float32, k: int) -> Top:
    order = (-scores).argsort(kind="stable")[:k]
    return Top(ranks[order], scores[order])


def _longest(matrix: Float32) -> float:
    """The largest Euclidean length of a row, rounded up."""
    most = 0.0
    for at in range(0, len(matrix), _ROWS_A_PASS):
        part = matrix[at : at + _ROWS_A_PASS].astype(np.float64)
        most = max(most, float(np.einsum("nd,nd->n", part, part).max()))
    return 1.001 * float(np.sqrt(most))
