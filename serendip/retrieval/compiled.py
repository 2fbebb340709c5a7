"""What numpy cannot do at the speed of memory, compiled by numba (extra ``fast``).

A function is compiled for its types when it is first asked for, in less than a second, and not
cached on disk: where a server may write is not this module's to know. Without numba the retriever
does the same in numpy. This module knows no tree and no item ID.
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

# (codes int8[n, w], v int16[w], scale and last float32[n, 2], t, e, u_last, out float32[n])
BoundsKernel = Callable[[Int8, Int16, Float32, float, float, float, Float32], None]


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


def _read(of: Any, dimensions: int) -> Any:
    """The type of an array that is only read: a memory map is not writable."""
    import numba as nb

    return nb.types.Array(of, dimensions, "C", readonly=True)
