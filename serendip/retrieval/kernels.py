"""The scan, compiled: one pass over the slices of a request gives its top k.

An item that may be among them is a key: its score above, its rank below, so that the smallest of
64-bit integers are the best, and equal scores stand in item order. This module needs numba (extra
``fast``); compiled.py says when it is used.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numba as nb
import numpy as np

from serendip.retrieval import lanes
from serendip.retrieval.codes import code_width

_MOST_CODE = 127
_MOST_WHOLE = 32767
_LARGE = 1e18  # bounds hold for vectors that are shorter, and longer than its inverse
_NO_OVERFLOW = 1e37
_ROUNDING = 2.0**-24  # of one operation in float32, relative
_SMALLEST = 2.0**-126  # what a product may lose that is too small for float32
_AHEAD, _AHEAD_CODED = 8, 48  # rows, 2 and 3 KB: what takes as long to read as memory to answer
_MAYBE = 512  # rows that bounds do not rule out, before they are looked at again

_OPTIONS = {"boundscheck": False, "nogil": True, "error_model": "numpy"}
# Of what only kernels call; no wrapper for Python, which takes as long to compile as the rest.
_jit = nb.njit(**_OPTIONS, no_cpython_wrapper=True, no_cfunc_wrapper=True)

_u32, _u64, _i64, _f32 = np.uint32, np.uint64, np.int64, np.float32
_SIGN, _ALL_BUT_SIGN, _LOW = _u64(1 << 31), _u64((1 << 31) - 1), _u64((1 << 32) - 1)
_32 = _u64(32)


def _key_of(score: Any, rank: Any) -> Any:
    """Of float32 and a rank below 2^32. A score of -0 would be told from 0; none is -0."""
    word = _u64(lanes.bits(score))
    if word < _SIGN:
        word ^= _ALL_BUT_SIGN
    return (word << _32) | _u64(rank)


def _score_of(key: Any) -> Any:
    word = key >> _32
    if word < _SIGN:
        word ^= _ALL_BUT_SIGN
    return lanes.from_bits(_u32(word))


def _rank_of(key: Any) -> Any:
    return _i64(key & _LOW)


def _select(keys: Any, n: Any, k: Any) -> Any:
    """Brings the k smallest of the first n to the front; returns the k-th (Hoare's quickselect)."""
    low, high, at = 0, n - 1, k - 1
    while low < high:
        first, pivot, last = keys[low], keys[(low + high) >> 1], keys[high]
        if first > pivot:
            first, pivot = pivot, first
        if pivot > last:
            pivot = max(first, last)
        i, j = low, high
        while i <= j:
            while keys[i] < pivot:
                i += 1
            while keys[j] > pivot:
                j -= 1
            if i <= j:
                keys[i], keys[j] = keys[j], keys[i]
                i += 1
                j -= 1
        if at <= j:
            high = j
        elif at >= i:
            low = i
        else:
            break
    return keys[at]


def _sort(keys: Any, n: Any) -> None:
    """Sorts the first n (Shell's sort: they are few)."""
    gap = n
    while gap > 1:
        gap = max(1, gap * 5 // 11)
        for i in range(gap, n):
            key, j = keys[i], i
            while j >= gap and keys[j - gap] > key:
                keys[j] = keys[j - gap]
                j -= gap
            keys[j] = key


def _answer(keys: Any, n: Any, k: Any, ranks: Any, scores: Any) -> Any:
    """Writes the best k of n keys, best first; returns how many there are."""
    if n > k:
        _select(keys, n, k)
        n = k
    _sort(keys, n)
    for i in range(n):
        ranks[i], scores[i] = _rank_of(keys[i]), _score_of(keys[i])
    return n


def _place(ranks: Any, rank: Any) -> Any:
    """How many of sorted ranks are below one."""
    low, high = 0, len(ranks)
    while low < high:
        middle = (low + high) >> 1
        if ranks[middle] < rank:
            low = middle + 1
        else:
            high = middle
    return low


_key_of, _score_of, _rank_of = _jit(_key_of), _jit(_score_of), _jit(_rank_of)
_select, _sort, _place = _jit(_select), _jit(_sort), _jit(_place)
_answer = _jit(_answer)


def plain(columns: int) -> Any:
    """(matrix float32[N, columns], user float32[columns], slices int64[S, 2], gone int64[G], k,
    ranks int64[k], scores float32[k]): how many of ranks and scores it has written.

    Slices are sorted and disjoint, gone is sorted. Every row is scored, once.
    """
    score_four, fetch = lanes.scores_of_four(columns), lanes.prefetch(4 * 4 * columns)

    def best(
        matrix: Any, user: Any, slices: Any, gone: Any, k: Any, ranks: Any, scores: Any
    ) -> Any:
        keys = np.empty(2 * k + 64, np.uint64)
        n = 0
        floor = _f32(-np.inf)  # the k-th score, as it was when the keys were last full
        for s in range(len(slices)):
            start, end = slices[s, 0], slices[s, 1]
            g = _place(gone, start)
            for row in range(start, end, 4):
                fetch(matrix, row + _AHEAD)
                last = end - 1
                four = score_four(
                    matrix, row, min(row + 1, last), min(row + 2, last), min(row + 3, last), user
                )
                # Ranks rise, so that an equal score comes too late. NaN is above nothing.
                if four[0] > floor or four[1] > floor or four[2] > floor or four[3] > floor:
                    for i in range(min(4, end - row)):
                        if not four[i] > floor:
                            continue
                        while g < len(gone) and gone[g] < row + i:
                            g += 1
                        if g < len(gone) and gone[g] == row + i:
                            continue
                        keys[n] = _key_of(four[i], row + i)
                        n += 1
                        if n == len(keys):
                            floor = _score_of(_select(keys, n, k))
                            n = k
        return _answer(keys, n, k, ranks, scores)

    return _compiled(best, nb.int64, *_ASKED)


def coded(columns: int) -> Any:
    """As ``plain``, with (codes int8[N, w], scales float32[N, 2], worst, longest_codes, longest) of
    serendip.retrieval.codes before the user. N is at least 4.

    Rows whose bound does not rule them out are kept until they are 512 (or 4 k). Then the k with
    the highest bounds say, by their bounds from below, which of the others cannot matter. What is
    kept at the end is scored: first the k with the highest bounds, then those of the rest that
    the k-th score does not rule out. Where no bound holds (products near the end of float32) that
    is every row.
    """
    width = code_width(columns)
    score_four, bound_four = lanes.scores_of_four(columns), lanes.bounds_of_four(width)
    fetch_codes, fetch_scales = lanes.prefetch(4 * width), lanes.prefetch(4 * 8)
    fetch_row = lanes.prefetch(4 * columns)
    whole_of = _quantiser(columns)

    def score(matrix: Any, user: Any, maybe: Any, low: Any, high: Any, keys: Any, n: Any) -> Any:
        """Appends to n keys those of maybe[low:high], by their scores."""
        for at in range(low, min(low + _AHEAD, high)):
            fetch_row(matrix, _rank_of(maybe[at]))
        for at in range(low, high, 4):
            for later in range(at + _AHEAD, min(at + _AHEAD + 4, high)):
                fetch_row(matrix, _rank_of(maybe[later]))
            last = high - 1
            r0, r1 = _rank_of(maybe[at]), _rank_of(maybe[min(at + 1, last)])
            r2, r3 = _rank_of(maybe[min(at + 2, last)]), _rank_of(maybe[min(at + 3, last)])
            four = score_four(matrix, r0, r1, r2, r3, user)
            for i in range(min(4, high - at)):
                if four[i] > -np.inf:
                    keys[n] = _key_of(four[i], _rank_of(maybe[at + i]))
                    n += 1
        return n

    def floor_of(keys: Any, n: Any, k: Any, slack: Any) -> Any:
        """(how many keys are left, what a bound must reach)."""
        if n < k:
            return n, _f32(-np.inf)
        return k, _f32(_score_of(_select(keys, n, k)) - slack)

    def narrow(
        scales: Any, error: Any, slack: Any, maybe: Any, many: Any, k: Any, floor: Any
    ) -> Any:
        """Drops of ``many`` rows those that k others are above, whatever they score; returns how
        many are left, and what a bound must reach."""
        _select(maybe, many, k)
        lowest = _f32(np.inf)
        for at in range(k):
            # A score is as far below its bound as the error takes it, twice.
            below = 2 * error * scales[_rank_of(maybe[at]), 0]
            lowest = min(lowest, _f32(_score_of(maybe[at]) - below))
        floor = max(floor, _f32(lowest - 2 * slack))
        left = k
        for at in range(k, many):
            if not _score_of(maybe[at]) < floor:
                maybe[left] = maybe[at]
                left += 1
        return left, floor

    score, floor_of, narrow = _jit(score), _jit(floor_of), _jit(narrow)

    def settle(
        matrix: Any, user: Any, maybe: Any, many: Any, keys: Any, n: Any, k: Any, slack: Any
    ) -> Any:
        """Scores what of ``many`` rows matters; returns as ``floor_of``."""
        first = min(many, k)
        if many > k:
            _select(maybe, many, k)
        low, high, floor = 0, first, _f32(-np.inf)
        while low < high:
            n = score(matrix, user, maybe, low, high, keys, n)
            n, floor = floor_of(keys, n, k, slack)
            low = high
            if low == first:
                for at in range(first, many):
                    if not _score_of(maybe[at]) < floor:
                        maybe[high] = maybe[at]
                        high += 1
        return n, floor

    settle = _jit(settle)

    def best(
        matrix: Any, codes: Any, scales: Any, worst: Any, longest_codes: Any, longest: Any,
        user: Any, slices: Any, gone: Any, k: Any, ranks: Any, scores: Any,
    ) -> Any:  # fmt: skip
        whole = np.empty(width, np.int16)
        step, error, slack = whole_of(user, worst, longest_codes, longest, whole)
        u_last = user[columns - 1]
        room = max(_MAYBE, 4 * k)
        maybe = np.empty(room + 4, np.uint64)
        keys = np.empty(k + len(maybe), np.uint64)
        n = many = 0
        floor = _f32(-np.inf)
        for s in range(len(slices)):
            start, end = slices[s, 0], slices[s, 1]
            g = _place(gone, start)
            for at in range(start, end, 4):
                # The last four may begin with rows that have been looked at, or are not asked for.
                row = max(0, min(at, end - 4))
                fetch_codes(codes, row + _AHEAD_CODED)
                fetch_scales(scales, row + _AHEAD_CODED)
                four = bound_four(codes, scales, row, whole, step, error, u_last)
                # In this form NaN is not ruled out.
                if four[0] < floor and four[1] < floor and four[2] < floor and four[3] < floor:
                    continue
                for i in range(at - row, min(4, end - row)):
                    if four[i] < floor:
                        continue
                    while g < len(gone) and gone[g] < row + i:
                        g += 1
                    if g < len(gone) and gone[g] == row + i:
                        continue
                    maybe[many] = _key_of(four[i], row + i)
                    many += 1
                if many < room:
                    continue
                if error < np.inf:
                    many, floor = narrow(scales, error, slack, maybe, many, k, floor)
                if many > room // 2:  # bounds alone are too loose
                    n, floor = settle(matrix, user, maybe, many, keys, n, k, slack)
                    many = 0
        n, floor = settle(matrix, user, maybe, many, keys, n, k, slack)
        return _answer(keys, n, k, ranks, scores)

    of_codes = (_read(nb.int8, 2), _read(nb.float32, 2), nb.float64, nb.float64, nb.float64)
    return _compiled(best, nb.int64, _ASKED[0], *of_codes, *_ASKED[1:])


@functools.cache
def bounds(columns: int) -> Any:
    """(codes, scales, worst, longest_codes, longest, user, start, out float32[n]): the slack.

    Writes the bounds of n rows from ``start`` on, 4 or more: for tests, and for looking at how
    tight they are.
    """
    width = code_width(columns)
    bound_four, whole_of = lanes.bounds_of_four(width), _quantiser(columns)

    def write(
        codes: Any, scales: Any, worst: Any, longest_codes: Any, longest: Any,
        user: Any, start: Any, out: Any,
    ) -> Any:  # fmt: skip
        whole = np.empty(width, np.int16)
        step, error, slack = whole_of(user, worst, longest_codes, longest, whole)
        for each in range(0, len(out), 4):
            at = min(each, len(out) - 4)
            four = bound_four(codes, scales, start + at, whole, step, error, user[columns - 1])
            for i in range(4):
                out[at + i] = four[i]
        return slack

    f8 = nb.float64
    of_codes = (_read(nb.int8, 2), _read(nb.float32, 2), f8, f8, f8)
    return _compiled(write, f8, *of_codes, _read(nb.float32, 1), nb.int64, nb.float32[::1])


def _quantiser(columns: int) -> Any:
    """(user, worst, longest_codes, longest, whole int16[w]): (t, e, slack) of
    serendip.retrieval.codes; ``whole`` gets v. Where no bound holds e is infinite: nothing is ruled
    out.
    """
    width = code_width(columns)
    # The largest whole numbers whose sum of products with any codes fits 32 bits.
    most = float(min(_MOST_WHOLE, (2**31 - 1) // (_MOST_CODE * width)))

    def whole_of(user: Any, worst: Any, longest_codes: Any, longest: Any, whole: Any) -> Any:
        whole[:] = 0
        largest = squares = lost = 0.0
        for j in range(columns - 1):
            u = float(user[j])
            largest = max(largest, abs(u))
            squares += u * u
        u_last = float(user[columns - 1])
        length = 1.001 * math.sqrt(squares + u_last * u_last)
        reach = longest * length  # no score is further from 0
        if not (1 / _LARGE < length < _LARGE and longest < _LARGE and reach < _NO_OVERFLOW):
            return _f32(0), _f32(np.inf), 0.0
        step = float(_f32(largest / most))
        if step == 0:
            step = 1.0
        for j in range(columns - 1):
            v = min(max(np.rint(user[j] / step), -most), most)
            whole[j] = np.int16(v)
            lost += (user[j] - step * v) ** 2
        error = 1.000001 * (worst * math.sqrt(squares) + longest_codes * math.sqrt(lost))
        # Between a bound and a score: what float32 loses on the way to both.
        slack = 4 * (columns + 8) * _ROUNDING * reach + columns * _SMALLEST
        return _f32(step), _f32(error), slack

    return _jit(whole_of)


def _read(of: Any, dimensions: int) -> Any:
    """The type of an array that is only read: a memory map is not writable."""
    return nb.types.Array(of, dimensions, "C", readonly=True)


_ASKED = (
    _read(nb.float32, 2), _read(nb.float32, 1), _read(nb.int64, 2), _read(nb.int64, 1),
    nb.int64, nb.int64[::1], nb.float32[::1],
)  # fmt: skip


def _compiled(function: Any, returns: Any, *arguments: Any) -> Any:
    return nb.njit(returns(*arguments), **_OPTIONS)(function)
