"""Item IDs and their ranks, as three arrays that processes share by memory map.

A dict of a million IDs takes each process a second to make and 130 MB to keep; the arrays take
neither. The first look-ups are remembered, since items that are popular are among them; what is
remembered costs no more than with a dict.
This module knows no vector, no tree and no query.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from zlib import crc32

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from serendip.core import CorruptArtifact

Int64 = npt.NDArray[np.int64]

TEXT, START, TABLE = "item_ids.npy", "item_id_start.npy", "item_id_table.npy"
FILES = (TEXT, START, TABLE)
_FREE = -1
_REMEMBERED = 1 << 16  # IDs, in each direction; about 10 MB
_PROBES = 64


class ItemIds:
    """N item IDs by rank, and ranks by item ID.

    Two processes that open the same files share their memory; methods may be called by several
    threads.
    """

    def __init__(
        self, text: npt.NDArray[np.uint8], start: Int64, table: npt.NDArray[np.int32]
    ) -> None:
        """See ``of`` and ``open``.

        Args:
            text: uint8[T], the UTF-8 of all IDs by rank, end to end.
            start: int64[N + 1]; rank r owns text[start[r]:start[r + 1]].
            table: int32[2^b], 2^b >= 4 N: open addressing with linear probing. An ID stands at or
                after the slot that its crc32 names in its low b bits, before the first -1.
        """
        # Views over the arrays: indexing them costs a tenth of what indexing an array does.
        self._text = text.data
        self._start = start.data
        self._table = table.data
        self._mask = len(table) - 1
        self._arrays = text, start
        self._ranks: dict[str, int] = {}
        self._names: dict[int, bytes] = {}

    @classmethod
    def of(cls, item_ids: Sequence[str]) -> ItemIds:
        """Makes the arrays. Raises CorruptArtifact if an ID is there twice."""
        encoded = [item_id.encode() for item_id in item_ids]
        start = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)), out=start[1:])
        text = np.frombuffer(b"".join(encoded), np.uint8)
        found = cls(text, start, _table(encoded))
        if len(set(encoded)) != len(encoded):
            raise CorruptArtifact("names an item twice", field="item_id")
        return found

    def save(self, folder: Path) -> None:
        """Writes the three files into a folder."""
        text, start = self._arrays
        np.save(folder / TEXT, text, allow_pickle=False)
        np.save(folder / START, start, allow_pickle=False)
        np.save(folder / TABLE, np.asarray(self._table), allow_pickle=False)

    def __len__(self) -> int:
        return len(self._start) - 1

    def rank(self, item_id: str) -> int | None:
        """The item's rank, None if there is none such."""
        rank = self._ranks.get(item_id)
        return self._find(item_id) if rank is None else rank

    def known(self, item_ids: Iterable[str]) -> list[int]:
        """The ranks of those that are there, in order."""
        get, find = self._ranks.get, self._find
        return [r for i in item_ids if (r := get(i)) is not None or (r := find(i)) is not None]

    def names(self, ranks: Iterable[int]) -> list[bytes]:
        """The item IDs of ranks of 0 to N - 1, in order, in UTF-8."""
        get, read = self._names.get, self._read
        return [get(rank) or read(rank) for rank in ranks]

    def array(self) -> pa.Array:
        """All N as large_string, by rank; nothing is copied."""
        text, start = self._arrays
        buffers = [None, pa.py_buffer(start), pa.py_buffer(text)]
        return pa.Array.from_buffers(pa.large_string(), len(self), buffers)

    def check(self) -> None:
        """Raises ValueError unless the arrays fit together.

        That every ID is found is tried for some: the files' hashes vouch for the rest.
        """
        text, start = self._arrays
        table = np.asarray(self._table)
        n = len(self)
        if start[0] != 0 or start[-1] != len(text) or (np.diff(start) < 1).any():
            raise ValueError(f"{START} does not cut {TEXT} into IDs")
        if len(table) < 4 * n or len(table) & self._mask:
            raise ValueError(f"{TABLE} has {len(table)} slots for {n} IDs")
        if table.min() < _FREE or table.max() >= n or int((table == _FREE).sum()) != len(table) - n:
            raise ValueError(f"{TABLE} does not name every rank once")
        self.array().validate(full=True)  # UTF-8
        for rank in range(0, n, max(1, n // _PROBES)):
            if self.rank(self._read(rank).decode()) != rank:
                raise ValueError(f"{TABLE} does not find rank {rank}")

    def _find(self, item_id: str) -> int | None:
        """Looks the rank up in the table, and remembers it."""
        encoded = item_id.encode()
        at = crc32(encoded) & self._mask
        while (rank := self._table[at]) != _FREE:
            if self._text[self._start[rank] : self._start[rank + 1]] == encoded:
                if len(self._ranks) < _REMEMBERED:
                    self._ranks[item_id] = rank
                return rank
            at = (at + 1) & self._mask
        return None

    def _read(self, rank: int) -> bytes:
        """Reads an ID, and remembers it."""
        name = bytes(self._text[self._start[rank] : self._start[rank + 1]])
        if len(self._names) < _REMEMBERED:
            self._names[rank] = name
        return name


def _table(encoded: Sequence[bytes]) -> npt.NDArray[np.int32]:
    """int32[2^b]: every rank in the first slot that is free from its own on.

    All ranks that are still without a slot try theirs at once; of those that meet, the lowest
    takes it, and the others go on to the next. So the table depends on the IDs alone.
    """
    n = len(encoded)
    mask = (1 << (4 * n).bit_length()) - 1
    table = np.full(mask + 1, _FREE, np.int32)
    slot = np.fromiter(map(crc32, encoded), np.int64, n) & mask
    waiting = np.arange(n)
    while len(waiting):
        tried = waiting[table[slot[waiting]] == _FREE][::-1]
        table[slot[tried]] = tried
        waiting = waiting[table[slot[waiting]] != waiting]
        slot[waiting] = (slot[waiting] + 1) & mask
    return table
