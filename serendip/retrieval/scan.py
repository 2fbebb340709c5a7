"""Exact top-k by dot product over slices of the item matrix, and only over them.

Every way here has two steps. The first makes a bound for each item of the slices: a matrix-vector
product in float32, or one of 8-bit codes (serendip/retrieval/codes.py), whichever its costs say is
sooner. The second takes every item whose bound reaches the k-th best score and makes its score
anew, each row in the same order of operations, whatever stands around it. So items and scores do
not depend on how the slices are cut, which way was taken, which BLAS is there, or who else asked,
and rows that are equal have equal scores.

This module knows no tree, no item ID and no model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serendip.retrieval.codes import Codes

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Slice = tuple[int, int]

_ROUNDING = 2.0**-24  # of one operation in float32, relative
_SMALLEST = 2.0**-126  # what a product may lose that is too small for float32
_LOWEST = float(np.finfo(np.float32).min)
_NO_OVERFLOW = 1e37  # scores that are bounded by this stay finite on the way
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


@dataclass(frozen=True)
class Costs:
    """What the two ways cost on one machine, in seconds; ``./build.sh bench retrieve`` measures it.

    A row costs ``plain_row`` in float32 and ``coded_row`` by codes, which cost ``coded_start`` more
    to begin with, and ``rescored`` for each row that is scored anew, about 1.5 k.

    The defaults are of 2 busy cores of an AMD EPYC (Zen 3, AVX2), one thread, 65 columns and 10M
    items that are not in the cache.
    """

    plain_row: float = 33e-9
    coded_start: float = 74e-6
    coded_row: float = 13e-9
    rescored: float = 0.26e-6

    def codes_pay(self, rows: int, k: int) -> bool:
        """Whether codes are the sooner way for so many rows."""
        return self.coded_start + _first_look(k) * self.rescored < rows * (
            self.plain_row - self.coded_row
        )


class Scan:
    """An item matrix to be asked; its methods may be called by several threads."""

    def __init__(
        self,
        matrix: Float32,
        codes: Codes | None = None,
        costs: Costs | None = None,
    ):
        """
        Args:
            matrix: float32[N, d], C-contiguous, in item order, all finite.
            codes: of the same rows; without them every slice is scanned in float32.
            costs: by which a way is chosen.
        """
        self._matrix = matrix
        self._codes = codes
        self._costs = costs or Costs()
        # Of the longest row: by it, and the user's length, every rounding error is bounded.
        self._longest = _longest(matrix) if codes is None else codes.longest

    def best(self, user: Float32, slices: Sequence[Slice], gone: Int64, k: int) -> Top:
        """The top k of the items of the slices, less those that are gone.

        A score is the float32 sum of the float32 products of a row and the user vector. Where a
        sum overflows to -inf or to no number, the item is never among them.

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
        wide = user.astype(np.float64)
        length = 1.001 * math.sqrt(wide.dot(wide))
        reach = self._longest * length  # no score is further from 0
        # Between a bound of the first step and the score that the second makes.
        slack = 4 * (len(user) + 8) * _ROUNDING * reach + len(user) * _SMALLEST
        codes = self._codes
        if not reach < _NO_OVERFLOW:
            return self._best_of_all(user, slices, gone, k)
        if codes is not None and codes.hold_for(length) and self._costs.codes_pay(rows, k):
            return self._best_by_codes(codes, user, slices, gone, k, slack)
        return self._best_by_numpy(user, slices, gone, k, slack)

    def _best_by_codes(
        self, codes: Codes, user: Float32, slices: list[Slice], gone: Int64, k: int, slack: float
    ) -> Top:
        rows = sum(end - start for start, end in slices)
        bound = codes.bounds(user)
        bounds = np.empty(rows, np.float32)
        at = 0
        for start, end in slices:
            bound(start, end, bounds[at : at + end - start])
            at += end - start
        _leave_out(bounds, slices, gone)
        floor = floor_of(bounds, _first_look(k))
        # Who has a bound below the floor must be proven to lie below the k-th score.
        ranks = _ranks(reaching(bounds, floor), slices)
        scores = self.scores(ranks, user)
        if floor > _LOWEST:
            needed = float(np.partition(scores, len(scores) - k)[len(scores) - k]) - slack
            if needed < floor:
                ranks = _ranks(reaching(bounds, needed), slices)
                scores = self.scores(ranks, user)
        return _ordered(ranks, scores, k)

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
        """As ``best``, where no bound holds: every row is scored by the second step."""
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


def _first_look(k: int) -> int:
    """How many are scored anew before the k-th score is known, where bounds are by codes."""
    return k + k // 2 + 16


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
