"""Rows of the item matrix in 8 bits, and a proven bound on what each scores.

A row x is kept as codes c, int8, with a scale s, so that x is about s c; its last column, the
bias, is kept as it is. With a user vector u, quantised to whole numbers v in the same manner,
u = t v + du, the score of the row is at most

    s (t c.v + e) + x_last u_last,   e = worst |u| + longest_codes |du|

where ``worst`` is the largest |x - s c| / s of all rows and ``longest_codes`` the largest |c|
(Cauchy-Schwarz, without the last columns). A quarter of the bytes of float32 are read. What is lost
in float32 on the way is the caller's slack.

The product of 8-bit codes needs a kernel that numpy does not have (compiled.py).
This module knows no tree, no item ID and no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serendip.core import CorruptArtifact

Float32 = npt.NDArray[np.float32]
Int8 = npt.NDArray[np.int8]

CODES, SCALES = "items8.npy", "items8_scales.npy"
CODED_FROM = 50_000  # items: no slice of a smaller matrix is worth them

_MOST = 127
_SMALLEST = np.float32(2.0**-126)
_WIDTH = 16  # codes a row are a multiple of it, the rest 0: one register
_ROWS_A_PASS = 1 << 16


@dataclass(frozen=True)
class Codes:
    """Coded rows, checked against the matrix that they stand for.

    Attributes:
        codes: int8[N, w], C-contiguous; w is d - 1 rounded up to a multiple of 16.
        scales: float32[N, 2], C-contiguous: the scale, above 0, and the row's last column.
        worst: see the module; rounded up.
        longest_codes: see the module; rounded up.
        longest: the largest Euclidean length of a row of the matrix, rounded up.
    """

    codes: Int8
    scales: Float32
    worst: float
    longest_codes: float
    longest: float

    @classmethod
    def of(cls, codes: Int8, scales: Float32, matrix: Float32) -> Codes:
        """Codes of a matrix float32[N, d]. All rows of both are read: the error is not
        believed but measured.

        Raises:
            CorruptArtifact: shapes or types are others, or codes and matrix disagree.
        """
        n, d = matrix.shape
        width = code_width(d)
        if codes.dtype != np.int8 or codes.shape != (n, width) or not codes.flags.c_contiguous:
            raise _corrupt(CODES, f"must be int8[{n}, {width}], C-contiguous")
        if scales.dtype != np.float32 or scales.shape != (n, 2) or not scales.flags.c_contiguous:
            raise _corrupt(SCALES, f"must be float32[{n}, 2], C-contiguous")
        worst = longest_codes = longest = 0.0
        for at in range(0, n, _ROWS_A_PASS):
            part = slice(at, at + _ROWS_A_PASS)
            rows, coded = matrix[part].astype(np.float64), codes[part].astype(np.float64)
            scale = scales[part, 0].astype(np.float64)
            if not (scale >= _SMALLEST).all() or not np.isfinite(scale).all():
                raise _corrupt(SCALES, "must hold scales above 0")
            if not np.array_equal(scales[part, 1], matrix[part, -1]):
                raise _corrupt(SCALES, "must hold the last column of the matrix")
            longest = max(longest, _longest(rows))
            longest_codes = max(longest_codes, _longest(coded))
            coded[:, : d - 1] -= rows[:, :-1] / scale[:, None]
            worst = max(worst, _longest(coded))
        # Half a step in each column is what rounding loses; more is another matrix's codes.
        if worst > 0.51 * np.sqrt(width):
            raise _corrupt(CODES, "are not the codes of the matrix")
        up = 1.000001
        return cls(codes, scales, up * worst, up * longest_codes, up * longest)

    @classmethod
    def open(cls, folder: Path, matrix: Float32) -> Codes:
        """Memory-maps the codes of a retriever artefact. Raises CorruptArtifact; see ``of``."""
        try:
            codes, scales = (
                np.asarray(np.load(folder / name, mmap_mode="r", allow_pickle=False))
                for name in (CODES, SCALES)
            )
        except (OSError, EOFError, ValueError) as e:
            raise _corrupt(CODES, f"cannot be read ({type(e).__name__}: {e})") from e
        return cls.of(codes, scales, matrix)


def encode(matrix: Float32) -> tuple[Int8, Float32]:
    """(codes int8[N, w], scales float32[N, 2]) of a finite matrix float32[N, d]."""
    n, d = matrix.shape
    codes = np.zeros((n, code_width(d)), np.int8)
    scales = np.empty((n, 2), np.float32)
    for at in range(0, n, _ROWS_A_PASS):
        part = slice(at, at + _ROWS_A_PASS)
        rows = matrix[part, :-1].astype(np.float64)
        largest = np.abs(rows).max(axis=1, initial=0.0)
        scales[part, 0] = np.maximum((largest / _MOST).astype(np.float32), _SMALLEST)
        scales[part, 1] = matrix[part, -1]
        rows /= scales[part, :1]
        codes[part, : d - 1] = np.rint(rows).clip(-_MOST, _MOST)
    return codes, scales


def write_codes(folder: Path, matrix: Float32) -> None:
    """Writes items8.npy and items8_scales.npy."""
    codes, scales = encode(matrix)
    np.save(folder / CODES, codes, allow_pickle=False)
    np.save(folder / SCALES, scales, allow_pickle=False)


def code_width(d: int) -> int:
    """Codes of a row of d numbers."""
    return max(1, -(-(d - 1) // _WIDTH)) * _WIDTH


def _longest(rows: npt.NDArray[np.float64]) -> float:
    return float(np.sqrt(np.einsum("nd,nd->n", rows, rows).max(initial=0.0)))


def _corrupt(name: str, message: str) -> CorruptArtifact:
    return CorruptArtifact(
        message, field=f"retriever/{name}", remedy="Publish it again (serendip retriever)."
    )
