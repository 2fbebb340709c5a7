"""Histories of unlike length as one array: what the encoder reads, offline and online.

This module knows no log, no item ID and no model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]


def pad_histories(
    histories: Sequence[Sequence[int] | Int64], max_history: int
) -> tuple[Int64, Int64]:
    """(int64[B, T] ranks + 1 padded with 0 on the right, int64[B] lengths) of item ranks.

    Of a history longer than ``max_history`` the last events are kept. None may be empty.
    """
    kept = [h[-max_history:] for h in histories]
    length = np.asarray([len(h) for h in kept], np.int64)
    ids = np.zeros((len(kept), int(length.max())), np.int64)
    for row, history in zip(ids, kept, strict=True):
        row[: len(history)] = history
        row[: len(history)] += 1
    return ids, length
