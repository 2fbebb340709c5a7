"""User vectors by history: each distinct one is encoded once, and the latest are kept.

This module knows no item, no tree and no query.
"""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from serendip.retrieval.padding import pad_histories

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Encode = Callable[[Int64, Int64], Float32]

_ROWS_A_RUN = 64  # more rows a run gain no time, and attention's memory grows with them


class UserVectors:
    """Encodes histories, with a cache of the least recently used kind.

    Its key is what the model reads: the last ``max_history`` known items, in order. Methods may be
    called by several threads.

    Attributes:
        hits, misses: histories that the cache had, and had not; both stay 0 without a cache.
    """

    def __init__(self, encode: Encode, max_history: int, entries: int = 0):
        """See ``of``.

        Args:
            encode: (int64[B, T] ranks + 1 padded with 0, int64[B]) -> float32[B, d].
            entries: vectors kept, each about 4 d + 4 max_history bytes and 300 more; 0: none.
        """
        self._encode = encode
        self._max_history = max_history
        self._entries = entries
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, Float32] = OrderedDict()
        self.hits = 0
        self.misses = 0

    def of(self, histories: Sequence[list[int]]) -> list[Float32 | None]:
        """User vectors float32[d] of item ranks, oldest first; None where there is no history."""
        users: list[Float32 | None] = [None] * len(histories)
        rows: dict[bytes, list[int]] = {}  # of each distinct history
        for row, history in enumerate(histories):
            if history:
                key = array("q", history[-self._max_history :]).tobytes()
                rows.setdefault(key, []).append(row)
        if self._entries and rows:
            with self._lock:
                for key in list(rows):
                    user = self._kept.get(key)
                    if user is None:
                        self.misses += len(rows[key])
                        continue
                    self._kept.move_to_end(key)
                    self.hits += len(rows[key])
                    for row in rows.pop(key):
                        users[row] = user
        made = self._encoded(rows, histories, users)
        if self._entries and made:
            with self._lock:
                self._kept.update(made)
                while len(self._kept) > self._entries:
                    self._kept.popitem(last=False)
        return users

    def _encoded(
        self,
        rows: dict[bytes, list[int]],
        histories: Sequence[list[int]],
        users: list[Float32 | None],
    ) -> dict[bytes, Float32]:
        """Fills in the users of the rows; returns the vectors by key, to be kept."""
        made: dict[bytes, Float32] = {}
        # Rows of like length share a run, so that little of it is padding.
        keys = sorted(rows, key=len)
        for at in range(0, len(keys), _ROWS_A_RUN):
            run = keys[at : at + _ROWS_A_RUN]
            ids, length = pad_histories([histories[rows[key][0]] for key in run], self._max_history)
            for key, user in zip(run, self._encode(ids, length), strict=True):
                for row in rows[key]:
                    users[row] = user
                if self._entries:
                    made[key] = user.copy()  # a view would keep the whole run alive
        return made
