"""Rows sorted by key in bounded memory: sorted in runs, the runs spilled and merged.

Knows nothing of what keys and values mean.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

Row = tuple[bytes, bytes]  # key, value

RUN_BYTES = 256 << 20

_ROW_BYTES = 170  # what a tuple and two bytes objects take beside what they hold
_BUFFER_BYTES = 64 << 10
_HEAD = struct.Struct("<HI")  # bytes of the key, of the value


def sort_rows(rows: Iterable[Row], folder: Path, *, run_bytes: int = RUN_BYTES) -> Iterator[Row]:
    """Reads all rows, and gives them back sorted by key; equal keys follow one another.

    Takes about ``run_bytes`` of memory and, where that does not hold all rows, as much disk as
    they are long. Each run is an open file while they are merged: with the usual limit of 1,024
    files, 1,000 times ``run_bytes`` is about the most.

    Args:
        rows: keys of up to 65,535 bytes, values of up to 4 GiB.
        folder: for the runs, made where they are needed; the caller's to remove at the end.
    """
    rows = iter(rows)
    run, more = _take(rows, run_bytes)
    if not more:
        return iter(run)
    folder.mkdir()
    paths: list[Path] = []
    while run:
        paths.append(folder / f"{len(paths):06d}")
        _spill(run, paths[-1])
        run.clear()  # before the next one grows beside it
        run, more = _take(rows, run_bytes) if more else ([], False)
    return heapq.merge(*map(_read, paths))


def _take(rows: Iterator[Row], run_bytes: int) -> tuple[list[Row], bool]:
    """The next rows, sorted, of at least ``run_bytes`` in memory; and whether more may follow."""
    run: list[Row] = []
    size = 0
    for row in rows:
        run.append(row)
        size += len(row[0]) + len(row[1]) + _ROW_BYTES
        if size >= run_bytes:
            run.sort()
            return run, True
    run.sort()
    return run, False


def _spill(run: list[Row], path: Path) -> None:
    with path.open("wb", buffering=1 << 20) as f:
        for key, value in run:
            f.write(_HEAD.pack(len(key), len(value)) + key + value)


def _read(path: Path) -> Iterator[Row]:
    with path.open("rb", buffering=_BUFFER_BYTES) as f:
        while head := f.read(_HEAD.size):
            key_bytes, value_bytes = _HEAD.unpack(head)
            yield f.read(key_bytes), f.read(value_bytes)
