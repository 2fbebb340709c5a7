"""What numpy cannot do at the speed of memory, compiled by numba (extra ``fast``).

Functions are compiled for their types when they are first asked for, bounds in less than a second,
the whole scan in several, and not cached on disk: where a server may write is not this module's to
know. Without numba the retriever does the same in numpy. This module knows no tree and no item ID.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Int8 = npt.NDArray[np.int8]
Int16 = npt.NDArray[np.int16]
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

# (codes int8[n, w], v int16[w], scale and last float32[n, 2], t, e, u_last, out float32[n])
BoundsKernel = Callable[[Int8, Int16, Float32, float, float, float, Float32], None]
# B asks at once: (matrix float32[N, d], users float32[B, d], slices int64[S, 2] and the first of
# each ask int64[B + 1], gone int64[G] and the same of them, slack float64[B], k int64[B],
# bounds float32[rows of the largest ask], ranks int64[B, K], scores float32[B, K],
# found int64[B]: how many ranks and scores it wrote)
BestKernel = Callable[
    [Float32, Float32, Int64, Int64, Int64, Int64, Float64, Int64, Float32, Int64, Float32, Int64],
    None,
]


def has_numba() -> bool:
    """Whether the functions of this module can be called."""
    return importlib.util.find_spec("numba") is not None


@functools.cache
def compiled_bounds(width: int) -> BoundsKernel:
    """Bounds of rows by their codes: what serendip.retrieval.codes.numpy_bounds does."""
    import numba as nb

    f4, i32, f32 = nb.float32, np.int32, np.float32

    def bounds(codes: Any, v: Any, scales: Any, t: Any, e: Any, last: Any, out: Any) -> None:
        for i in range(codes.shape[0]):
            total = i32(0)
            for j in range(width):
                # Every cast counts: numba's product of two int32 is an int64, and then the loop
                # is not made of 16-bit multiply-adds.
                total = i32(total + i32(i32(codes[i, j]) * i32(v[j])))
            out[i] = scales[i, 0] * (t * f32(total) + e) + scales[i, 1] * last

    arguments = (_read(nb.int8, 2), _read(nb.int16, 1), _read(f4, 2), f4, f4, f4, f4[::1])
    done: BoundsKernel = nb.njit(nb.void(*arguments), boundscheck=False)(bounds)
    return done


@functools.cache
def compiled_best() -> BestKernel:
    """The two steps of serendip.retrieval.scan in one call, for bounds by float32."""
    import numba as nb

    njit: Any = functools.partial(nb.njit, boundscheck=False)
    f4, i8, f8, f32 = nb.float32, nb.int64, nb.float64, np.float32

    # The order of the sums is left to the compiler here, and here alone. Four rows at once: the
    # memory then waits for no sum.
    @njit(fastmath={"reassoc", "contract"})
    def dots(matrix: Any, start: Any, end: Any, user: Any, out: Any, n: Any) -> None:
        fours = end - (end - start) % 4
        for rank in range(start, fours, 4):
            a, b, c, d = f32(0), f32(0), f32(0), f32(0)
            for j in range(user.shape[0]):
                a += matrix[rank, j] * user[j]
                b += matrix[rank + 1, j] * user[j]
                c += matrix[rank + 2, j] * user[j]
                d += matrix[rank + 3, j] * user[j]
            out[n], out[n + 1], out[n + 2], out[n + 3] = a, b, c, d
            n += 4
        for rank in range(fours, end):
            a = f32(0)
            for j in range(user.shape[0]):
                a += matrix[rank, j] * user[j]
            out[n] = a
            n += 1

    @njit(f4(_read(f4, 2), i8, _read(f4, 1), i8, i8))
    def score(matrix: Any, rank: Any, user: Any, at: Any, n: Any) -> Any:
        # numpy's sum, operation by operation: eight sums side by side, halves above 128.
        if n < 8:
            total = f32(-0.0)
            for j in range(at, at + n):
                total += matrix[rank, j] * user[j]
            return total
        if n > 128:
            half = n // 2
            half -= half % 8
            return score(matrix, rank, user, at, half) + score(
                matrix, rank, user, at + half, n - half
            )
        r0, r1 = matrix[rank, at] * user[at], matrix[rank, at + 1] * user[at + 1]
        r2, r3 = matrix[rank, at + 2] * user[at + 2], matrix[rank, at + 3] * user[at + 3]
        r4, r5 = matrix[rank, at + 4] * user[at + 4], matrix[rank, at + 5] * user[at + 5]
        r6, r7 = matrix[rank, at + 6] * user[at + 6], matrix[rank, at + 7] * user[at + 7]
        whole = at + n - n % 8
        for j in range(at + 8, whole, 8):
            r0 += matrix[rank, j] * user[j]
            r1 += matrix[rank, j + 1] * user[j + 1]
            r2 += matrix[rank, j + 2] * user[j + 2]
            r3 += matrix[rank, j + 3] * user[j + 3]
            r4 += matrix[rank, j + 4] * user[j + 4]
            r5 += matrix[rank, j + 5] * user[j + 5]
            r6 += matrix[rank, j + 6] * user[j + 6]
            r7 += matrix[rank, j + 7] * user[j + 7]
        total = ((r0 + r1) + (r2 + r3)) + ((r4 + r5) + (r6 + r7))
        for j in range(whole, at + n):
            total += matrix[rank, j] * user[j]
        return total

    # The worst of so many stands at 0: the lowest score, of equal ones the last rank.
    @njit
    def sink(scores: Any, ranks: Any, size: Any, new_score: Any, new_rank: Any) -> None:
        at = 0
        while True:
            below = 2 * at + 1
            if below >= size:
                break
            other = below + 1
            if other < size and (
                scores[other] < scores[below]
                or (scores[other] == scores[below] and ranks[other] > ranks[below])
            ):
                below = other
            if scores[below] > new_score or (
                scores[below] == new_score and ranks[below] < new_rank
            ):
                break
            scores[at], ranks[at] = scores[below], ranks[below]
            at = below
        scores[at], ranks[at] = new_score, new_rank

    @njit
    def offer(scores: Any, ranks: Any, size: Any, new_score: Any, new_rank: Any) -> Any:
        if size == len(scores):
            # What comes later has the higher rank: equal is not enough.
            if new_score > scores[0]:
                sink(scores, ranks, size, new_score, new_rank)
            return size
        at = size
        while at > 0:
            above = (at - 1) // 2
            if scores[above] < new_score or (
                scores[above] == new_score and ranks[above] > new_rank
            ):
                break
            scores[at], ranks[at] = scores[above], ranks[above]
            at = above
        scores[at], ranks[at] = new_score, new_rank
        return size + 1

    @njit
    def best(
        matrix: Any, user: Any, slices: Any, gone: Any, slack: Any, bounds: Any, ranks: Any,
        scores: Any,
    ) -> Any:  # fmt: skip
        n = size = 0
        for s in range(slices.shape[0]):
            start, end = slices[s, 0], slices[s, 1]
            dots(matrix, start, end, user, bounds, n)
            for at in range(np.searchsorted(gone, start), len(gone)):
                if gone[at] >= end:
                    break
                bounds[n + gone[at] - start] = -np.inf
            for rank in range(start, end):
                if bounds[n] > -np.inf:
                    size = offer(scores, ranks, size, bounds[n], rank)
                n += 1
        floor = np.float64(-np.inf)
        if size == len(scores):
            floor = scores[0] - 2 * slack
        n = size = 0
        for s in range(slices.shape[0]):
            for rank in range(slices[s, 0], slices[s, 1]):
                if bounds[n] >= floor and bounds[n] > -np.inf:
                    new = score(matrix, rank, user, 0, user.shape[0])
                    size = offer(scores, ranks, size, new, rank)
                n += 1
        for left in range(size - 1, 0, -1):
            worst_score, worst_rank = scores[0], ranks[0]
            sink(scores, ranks, left, scores[left], ranks[left])
            scores[left], ranks[left] = worst_score, worst_rank
        return size

    def best_of_each(
        matrix: Any, users: Any, slices: Any, slice_of: Any, gone: Any, gone_of: Any, slack: Any,
        k: Any, bounds: Any, ranks: Any, scores: Any, found: Any,
    ) -> None:  # fmt: skip
        for b in range(users.shape[0]):
            found[b] = best(
                matrix, users[b], slices[slice_of[b] : slice_of[b + 1]],
                gone[gone_of[b] : gone_of[b + 1]], slack[b], bounds, ranks[b, : k[b]],
                scores[b, : k[b]],
            )  # fmt: skip

    whole = _read(i8, 1)
    arguments = (
        _read(f4, 2), _read(f4, 2), _read(i8, 2), whole, whole, whole, _read(f8, 1), whole,
        f4[::1], i8[:, ::1], f4[:, ::1], i8[::1],
    )  # fmt: skip
    done: BestKernel = njit(nb.void(*arguments))(best_of_each)
    return done


def _read(of: Any, dimensions: int) -> Any:
    """The type of an array that is only read: a memory map is not writable."""
    import numba as nb

    return nb.types.Array(of, dimensions, "C", readonly=True)
