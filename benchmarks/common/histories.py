"""Interactions for the bench of next-item prediction, from the files that they come in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from serendip.core import InvalidData, InvalidRequest
from serendip.retrieval.sequences import Sequences

# Where a clone that stands beside its data finds them: the published split, MovieLens's own file.
DEFAULT = (
    Path("../shared/data/ml1m_posters/leave_one_out.parquet"),
    Path("data/ml-1m/ratings.dat"),
)
_FEWEST_EVENTS = 5  # of a user and of an item, as in SASRec's preparation

_REMEDY = (
    "Name a file by --data: MovieLens-1M's ratings.dat (grouplens.org/datasets/movielens/1m), or a "
    "parquet file with the columns user_id, item_id, timestamp or history, target."
)


@dataclass(frozen=True)
class Histories:
    """What was read.

    Attributes:
        sequences: every user's events in order, the last one being the test item.
        items: N; ranks are 0 to N - 1.
        source: the file's name.
    """

    sequences: Sequences
    items: int
    source: str


def read_histories(path: Path | None) -> Histories:
    """Reads the file that the user names, or the first of DEFAULT that is there.

    A log's events are ordered by time and, within a user's equal times, as they stand in the
    file; users and items with fewer than five events are left out. Of a file of histories
    nothing is.

    Raises:
        InvalidRequest: there is no such file.
        InvalidData: it has other columns, or nothing is left.
    """
    found = [p for p in ([path] if path else DEFAULT) if p.is_file()]
    if not found:
        looked = ", ".join(map(str, [path] if path else DEFAULT))
        raise InvalidRequest("no such file", field="--data", value=looked, remedy=_REMEDY)
    (path, *_) = found
    if path.suffix == ".dat":
        return _from_log(_read_dat(path), path)
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as e:
        raise InvalidData(f"no parquet file ({e})", field=str(path), remedy=_REMEDY) from e
    if {"history", "target"} <= set(table.column_names):
        return _from_lists(table, path)
    if {"user_id", "item_id", "timestamp"} <= set(table.column_names):
        return _from_log(table, path)
    raise InvalidData(
        "has neither a log's columns nor those of histories", field=str(path),
        value=table.column_names, remedy=_REMEDY,
    )  # fmt: skip


def _read_dat(path: Path) -> pa.Table:
    """ratings.dat: UserID::MovieID::Rating::Timestamp."""
    names = ["user_id", "a", "item_id", "b", "rating", "c", "timestamp"]
    try:
        return pa.csv.read_csv(
            path,
            read_options=pa.csv.ReadOptions(column_names=names),
            parse_options=pa.csv.ParseOptions(delimiter=":"),
            convert_options=pa.csv.ConvertOptions(
                include_columns=["user_id", "item_id", "timestamp"],
                column_types=dict.fromkeys(["user_id", "item_id", "timestamp"], pa.int64()),
            ),
        )
    except pa.ArrowInvalid as e:
        raise InvalidData(f"no ratings.dat ({e})", field=str(path), remedy=_REMEDY) from e


def _from_log(table: pa.Table, path: Path) -> Histories:
    time = pc.cast(table["timestamp"], pa.int64()).to_numpy()
    user, item = (_number(table[name].combine_chunks()) for name in ("user_id", "item_id"))
    kept = np.arange(len(user))
    while True:  # what is left out of the one may leave too little of the other
        enough = np.bincount(item[kept])[item[kept]] >= _FEWEST_EVENTS
        enough &= np.bincount(user[kept])[user[kept]] >= _FEWEST_EVENTS
        if enough.all():
            break
        kept = kept[enough]
    if not len(kept):
        raise InvalidData("no user has five events of items that have five", field=str(path))
    order = kept[np.lexsort((kept, time[kept], user[kept]))]
    _, size = np.unique(user[order], return_counts=True)
    start = np.concatenate([[0], np.cumsum(size)]).astype(np.int64)
    items, rank = np.unique(item[order], return_inverse=True)
    ones = np.ones(len(rank), np.float32)
    sequences = Sequences(rank.astype(np.int64), ones, start, time[order])
    return Histories(sequences, len(items), path.name)


def _from_lists(table: pa.Table, path: Path) -> Histories:
    history = table["history"].combine_chunks()
    size = pc.list_value_length(history).to_numpy()
    target = table["target"].combine_chunks()
    flat = history.flatten()
    if flat.null_count or target.null_count or len(flat) != size.sum():
        raise InvalidData("has nulls", field=f"{path}:history", remedy="Leave those users out.")
    both = _number(pa.concat_arrays([flat, target.cast(flat.type)]))
    events = np.split(both[: len(flat)], np.cumsum(size)[:-1])
    whole = [np.append(h, t) for h, t in zip(events, both[len(flat) :], strict=True)]
    return Histories(Sequences.in_given_order(whole), int(both.max()) + 1, path.name)


def _number(values: pa.Array) -> np.ndarray:
    """int64[n]: each value's place among the distinct ones, in their order."""
    _, number = np.unique(values.to_numpy(zero_copy_only=False), return_inverse=True)
    return number.astype(np.int64)
