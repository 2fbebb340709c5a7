"""The scan by numba (extra ``fast``), where it is there and gives what numpy gives.

A kernel is compiled for a number of columns, once a process, in one or two CPU seconds, and not
cached on disk: where a server may write is not this module's to know, and a cache that others
may write to is code that they may run. This module knows no tree and no item ID.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from serendip.retrieval.codes import Codes

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
# (user float32[d], slices [start, end) sorted, gone int64[G] sorted, k): ranks and scores.
Best = Callable[[Float32, Sequence[tuple[int, int]], Int64, int], tuple[Int64, Float32]]

_log = logging.getLogger(__name__)

_MOST_COLUMNS = 1024  # a row's operations are written out one after another
_MOST_ROWS = 1 << 32  # a rank has 32 bits of a key
_FEWEST_CODED = 4
_CHECKED = 512
_compiling = threading.Lock()
_kernels: dict[tuple[int, bool], Any] = {}


def has_numba() -> bool:
    """Whether numba is installed."""
    return importlib.util.find_spec("numba") is not None


def is_compiled(matrix: Float32, codes: Codes | None) -> bool:
    """Whether ``compiled_best`` has nothing to compile any more."""
    return _kind(matrix, codes) in _kernels


def compiled_best(matrix: Float32, codes: Codes | None) -> Best | None:
    """The best k of slices of a matrix float32[N, d], compiled; None where numpy must do it.

    It is compared with numpy on some rows of the matrix, bit by bit: another numpy may sum in
    another order.
    """
    if not (has_numba() and len(matrix) <= _MOST_ROWS and matrix.shape[1] <= _MOST_COLUMNS):
        return None
    kind = columns, coded = _kind(matrix, codes)
    with _compiling:
        if kind not in _kernels:
            try:
                from serendip.retrieval import kernels
            except ImportError as e:  # as for a numpy that it does not know
                _log.warning("numba cannot be used, numpy scans: %s", e)
                return None
            _kernels[kind] = kernels.coded(columns) if coded else kernels.plain(columns)
    best = _of(_kernels[kind], matrix, codes if coded else None)
    if not _agrees(best, matrix):
        _log.warning("this numpy sums in an order of its own, and scans alone")
        return None
    return best


def write_bounds(codes: Codes, user: Float32, start: int, out: Float32) -> float:
    """Upper bounds of the scores of rows from ``start`` on, by codes; needs numba.

    Args:
        out: float32[n], n 4 or more.

    Returns:
        By how much a score may be above its bound.
    """
    with _compiling:
        from serendip.retrieval import kernels

        write = kernels.bounds(len(user))
    slack: float = write(
        codes.codes, codes.scales, codes.worst, codes.longest_codes, codes.longest,
        user, start, out,
    )  # fmt: skip
    return slack


def _kind(matrix: Float32, codes: Codes | None) -> tuple[int, bool]:
    """What a kernel is compiled for: columns, and whether it reads codes."""
    return matrix.shape[1], codes is not None and len(matrix) >= _FEWEST_CODED


def _of(kernel: Any, matrix: Float32, codes: Codes | None) -> Best:
    of: tuple[Any, ...] = (matrix,)
    if codes is not None:
        of += (codes.codes, codes.scales, codes.worst, codes.longest_codes, codes.longest)

    def best(
        user: Float32, slices: Sequence[tuple[int, int]], gone: Int64, k: int
    ) -> tuple[Int64, Float32]:
        ranks, scores = np.empty(k, np.int64), np.empty(k, np.float32)
        n = kernel(*of, user, np.array(slices, np.int64), gone, k, ranks, scores)
        return ranks[:n], scores[:n]

    return best


def _agrees(best: Best, matrix: Float32) -> bool:
    """Whether the scores of some rows are numpy's, bit by bit."""
    rows = matrix[:_CHECKED]
    user: Float32 = np.random.default_rng(0).standard_normal((rows.shape[1],), np.float32)
    with np.errstate(all="ignore"):
        right: Float32 = np.add.reduce(rows * user, axis=1)
    none = np.empty(0, np.int64)
    ranks, scores = best(user, [(0, len(rows))], none, len(rows))
    counted = len(ranks) == np.count_nonzero(right > -np.inf)
    return counted and np.array_equal(right[ranks].view(np.uint32), scores.view(np.uint32))
