"""From a log to what the model is trained on: sequences, windows, batches.

Items are ranks in item order here, 0 to N - 1; only ``Batch.ids`` and ``Batch.target`` add 1,
since 0 is the model's padding. This module knows no model and no file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

# An event to go on from, one to learn, and the one held out.
MIN_EVENTS_TO_VALIDATE = 3
_MICRO = 1_000_000


@dataclass(frozen=True)
class Sequences:
    """Every user's events in time, end to end. U users, E events.

    Attributes:
        item: int64[E], item ranks.
        satisfaction: float32[E], in [0, 1].
        start: int64[U + 1]; user u owns events [start[u], start[u + 1]).
        timestamp: int64[E], never falling within a user; None where only the order is known.
    """

    item: Int64
    satisfaction: Float32
    start: Int64
    timestamp: Int64 | None = None

    @property
    def users(self) -> int:
        return len(self.start) - 1

    @classmethod
    def from_log(cls, log: pa.Table, item_ids: Sequence[str]) -> Sequences:
        """Users' events ordered by (timestamp, item_id); those of unknown items are left out.

        Args:
            log: columns user_id, item_id, timestamp (int64 ms), satisfaction.
            item_ids: N IDs in item order.
        """
        rank = pc.index_in(log.column("item_id"), value_set=pa.array(item_ids, pa.string()))
        log = log.append_column("rank", rank).filter(pc.is_valid(rank))
        # A full key: the order of the log's rows must not matter.
        keys = ("user_id", "timestamp", "item_id", "satisfaction")
        log = log.take(pc.sort_indices(log, sort_keys=[(key, "ascending") for key in keys]))
        user = log.column("user_id").combine_chunks().dictionary_encode().indices
        counts = np.bincount(user.to_numpy().astype(np.int64))
        start = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=start[1:])
        return cls(
            item=log.column("rank").to_numpy().astype(np.int64),
            satisfaction=log.column("satisfaction").to_numpy().astype(np.float32),
            start=start,
            timestamp=log.column("timestamp").to_numpy().astype(np.int64),
        )

    @classmethod
    def in_given_order(cls, histories: Sequence[Int64]) -> Sequences:
        """Users' events in the order they come in, each fully satisfying, without timestamps.

        Args:
            histories: of each user, int64[n] item ranks.
        """
        start = np.zeros(len(histories) + 1, np.int64)
        np.cumsum([len(h) for h in histories], out=start[1:])
        item = np.concatenate([np.zeros(0, np.int64), *histories])
        return cls(item, np.ones(len(item), np.float32), start)

    def first_events(self, kept: Int64) -> Sequences:
        """The first ``kept[u]`` events of each user, int64[U]; users with none stay, empty."""
        size = np.diff(self.start)
        at = np.arange(len(self.item)) - np.repeat(self.start[:-1], size)
        there = at < np.repeat(kept, size)
        start = np.zeros(len(self.start), np.int64)
        np.cumsum(np.minimum(kept, size), out=start[1:])
        timestamp = None if self.timestamp is None else self.timestamp[there]
        return Sequences(self.item[there], self.satisfaction[there], start, timestamp)

    def training_ends(self) -> Int64:
        """int64[U]: end of each user's training events; what follows, if any, validates."""
        held_out = np.diff(self.start) >= MIN_EVENTS_TO_VALIDATE
        return self.start[1:] - held_out

    def training_targets(self) -> Int64:
        """The events to learn: all of training but each user's first, satisfaction above 0."""
        events = np.arange(len(self.item))
        user = np.repeat(np.arange(self.users), np.diff(self.start))
        inside = (events > self.start[user]) & (events < self.training_ends()[user])
        return np.flatnonzero(inside & (self.satisfaction > 0))

    def validation_users(self) -> Int64:
        """Users whose last event is for validation alone."""
        return np.flatnonzero(np.diff(self.start) >= MIN_EVENTS_TO_VALIDATE)


@dataclass(frozen=True)
class Batch:
    """B windows, padded on the right to T.

    Attributes:
        ids: int64[B, T], item ranks + 1, 0 where padded.
        length: int64[B].
        target: int64[B, T], the item that follows, rank + 1.
        weight: float32[B, T], the target's satisfaction; 0 where there is nothing to learn.
    """

    ids: Int64
    length: Int64
    target: Int64
    weight: Float32


def training_windows(sequences: Sequences, max_history: int, rng: np.random.Generator) -> Int64:
    """int64[W, 2]: windows as (first event, end), for one epoch; all but the first are targets.

    Every event but a user's first is the target of exactly one window, and no event is read
    twice but the one that ends a window and begins the next. A long history's last window has
    half to all of ``max_history`` events, drawn anew each time, so that no event is always the
    one with little before it.
    """
    windows: list[tuple[int, int]] = []
    ends = sequences.training_ends().tolist()
    for first, end in zip(sequences.start[:-1].tolist(), ends, strict=True):
        read = max_history
        if end - first > max_history + 1:
            read = int(rng.integers(max_history // 2, max_history + 1))
        while end - first > 1:
            begin = max(first, end - read - 1)
            windows.append((begin, end))
            end, read = begin + 1, max_history
    return np.asarray(windows, np.int64).reshape(-1, 2)


def training_batches(
    sequences: Sequences, max_history: int, batch_size: int, rng: np.random.Generator
) -> Iterator[Batch]:
    """One epoch in random order. Windows of like length share a batch.

    A batch holds about ``batch_size * max_history`` events, padding included, so that short
    windows come in larger batches.
    """
    windows = training_windows(sequences, max_history, rng)
    length = windows[:, 1] - windows[:, 0] - 1
    # Noise, so that a batch is not made of the same users every time.
    order = np.argsort(length + rng.integers(-8, 9, len(length)), kind="stable")
    groups: list[list[int]] = [[]]
    longest = 0
    for w in order.tolist():
        longest = max(longest, int(length[w]))
        if groups[-1] and (len(groups[-1]) + 1) * longest > batch_size * max_history:
            groups.append([])
            longest = int(length[w])
        groups[-1].append(w)
    for g in rng.permutation(len(groups)).tolist():
        if groups[g]:
            yield _batch(sequences, windows[groups[g]])


def _batch(sequences: Sequences, windows: Int64) -> Batch:
    first, end = windows.T
    length = end - first - 1
    step = np.arange(length.max())[None, :]
    there = step < length[:, None]
    event = np.where(there, first[:, None] + step, first[:, None])
    return Batch(
        ids=np.where(there, sequences.item[event] + 1, 0),
        length=length,
        target=np.where(there, sequences.item[event + 1] + 1, 0),
        weight=np.where(there, sequences.satisfaction[event + 1], np.float32(0)),
    )


def prior_satisfaction(sequences: Sequences) -> float:
    """Mean satisfaction of the whole log, in micro-units; 0 without an event."""
    micro = np.floor(sequences.satisfaction.astype(np.float64) * _MICRO + 0.5)
    return float(micro.sum()) / _MICRO / max(1, len(micro))


def shrunk_satisfaction(sequences: Sequences, items: int, shrinkage: float) -> Float32:
    """float32[N]: (sum + m * prior) / (n + m) for each item; the prior where it has no event.

    Args:
        shrinkage: m, how many observations the mean of the whole log weighs.
    """
    # Micro-units: sums of integers do not depend on the order of the rows.
    micro = np.floor(sequences.satisfaction.astype(np.float64) * _MICRO + 0.5)
    count = np.bincount(sequences.item, minlength=items)
    total = np.bincount(sequences.item, weights=micro, minlength=items) / _MICRO
    prior = prior_satisfaction(sequences)
    # Without shrinkage an item with no event still needs a number.
    m = np.where(count + shrinkage > 0, shrinkage, 1.0)
    return np.asarray((total + m * prior) / (count + m), np.float32)
