"""Ways to the top k of slices: ours, and the plain ones in numpy that they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from retrieval.world import Float32, Request, World
from serendip.retrieval.codes import Codes
from serendip.retrieval.scan import Scan

# The ranks that each request of a batch gets: int64[m] each, best first.
Answers = list[npt.NDArray[np.int64]]
Way = Callable[[Sequence[Request]], Answers]

NONE = np.empty(0, np.int64)


def compiled(matrix: Float32, codes: Codes | None = None) -> Scan:
    """The scan of a server that has run for a while."""
    scan = Scan(matrix, codes)
    if not scan.compile():
        raise SystemExit("numba cannot be used")
    return scan


def ours(world: World, k: int, codes: Codes | None = None, *, only_numpy: bool = False) -> Way:
    """The retriever's own scan."""
    scan = Scan(world.matrix, only_numpy=True) if only_numpy else compiled(world.matrix, codes)

    def way(batch: Sequence[Request]) -> Answers:
        return [scan.best(r.user, r.slices, NONE, k).ranks for r in batch]

    return way


def full_scan(world: World, k: int) -> Way:
    """Scores of all items, a mask over what was not asked for, and a partial sort."""
    # A few users at a time, or the scores would not fit.
    at_once = max(1, (1 << 26) // len(world.matrix))

    def way(batch: Sequence[Request]) -> Answers:
        found: Answers = []
        for at in range(0, len(batch), at_once):
            part = batch[at : at + at_once]
            if len(part) == 1:  # a matrix product of one row is slower
                scores = (world.matrix @ part[0].user)[None]
            else:
                scores = np.stack([r.user for r in part]) @ world.matrix.T
            for row, request in zip(scores, part, strict=True):
                mask = np.ones(len(row), bool)
                for start, end in request.slices:
                    mask[start:end] = False
                row[mask] = -np.inf
                top = np.argpartition(row, len(row) - k)[-k:]
                found.append(top[np.argsort(-row[top], kind="stable")])
        return found

    return way


def brute_force(world: World, request: Request, k: int) -> npt.NDArray[np.int64]:
    """The definition: every score by itself, and a whole sort."""
    ranks = np.concatenate([np.arange(start, end) for start, end in request.slices])
    scores = np.add.reduce(world.matrix[ranks] * request.user, axis=1)
    return ranks[np.argsort(-scores, kind="stable")[:k]]


def agreement(way: Way, batch: Sequence[Request], right: Answers) -> float:
    """Share of the requests that get the very items of ``right``, in any order."""
    same = [
        set(one.tolist()) == set(other.tolist())
        for one, other in zip(way(batch), right, strict=True)
    ]
    return sum(same) / len(same)


def gemv_gb_per_s(matrix: Float32, user: Float32, rows: int = 1 << 20) -> Callable[[], object]:
    """A plain matrix-vector product of so many rows, other ones each time."""
    rows = min(rows, len(matrix) // 2)
    out = np.empty(rows, np.float32)
    at = 0

    def call() -> object:
        nonlocal at
        at = at + rows if at + 2 * rows <= len(matrix) else 0
        return np.dot(matrix[at : at + rows], user, out=out)

    return call
