from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from serendip.retrieval.padding import pad_histories
from serendip.retrieval.sequences import (
    MIN_EVENTS_TO_VALIDATE,
    Sequences,
    shrunk_satisfaction,
    training_batches,
    training_windows,
)

ITEMS = ("a", "b", "c", "d")


def log_of(rows: list[tuple[str, str, int, float]]) -> pa.Table:
    user, item, timestamp, satisfaction = zip(*rows, strict=True)
    return pa.table(
        {
            "user_id": pa.array(user, pa.string()),
            "item_id": pa.array(item, pa.string()),
            "timestamp": pa.array(timestamp, pa.int64()),
            "satisfaction": pa.array(satisfaction, pa.float64()),
        }
    )


ROWS = [
    ("u2", "d", 5, 0.5),
    ("u1", "c", 9, 0.25),
    ("u1", "b", 3, 1.0),
    ("u1", "a", 3, 0.0),
    ("u2", "gone", 6, 1.0),
    ("u2", "a", 7, 0.75),
]


def test_events_stand_by_time_then_item_and_unknown_items_are_left_out() -> None:
    sequences = Sequences.from_log(log_of(ROWS), ITEMS)
    assert sequences.start.tolist() == [0, 3, 5]
    assert sequences.item.tolist() == [0, 1, 2, 3, 0]
    assert sequences.satisfaction.tolist() == [0.0, 1.0, 0.25, 0.5, 0.75]


@given(st.permutations(ROWS))
def test_the_order_of_the_rows_does_not_matter(rows: list[tuple[str, str, int, float]]) -> None:
    one, other = Sequences.from_log(log_of(ROWS), ITEMS), Sequences.from_log(log_of(rows), ITEMS)
    assert one.item.tolist() == other.item.tolist()
    assert one.satisfaction.tolist() == other.satisfaction.tolist()


def sequences_of(lengths: list[int]) -> Sequences:
    start = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    events = int(start[-1])
    weight = np.linspace(0.1, 1, events, dtype=np.float32) if events else np.zeros(0, np.float32)
    return Sequences(np.arange(events, dtype=np.int64), weight, start)


def wanted_targets(sequences: Sequences, lengths: list[int]) -> list[int]:
    wanted = []
    for first, n in zip(sequences.start[:-1].tolist(), lengths, strict=True):
        last = n - 1 if n >= MIN_EVENTS_TO_VALIDATE else n
        wanted += range(first + 1, first + last)
    return wanted


lengths_of_users = st.lists(st.integers(1, 40), min_size=1, max_size=6)


@given(lengths_of_users, st.integers(2, 9), st.integers(0, 99))
def test_every_training_event_is_a_target_once_and_no_held_out_one(
    lengths: list[int], max_history: int, seed: int
) -> None:
    sequences = sequences_of(lengths)
    windows = training_windows(sequences, max_history, np.random.default_rng(seed))
    targets = [t for first, end in windows.tolist() for t in range(first + 1, end)]
    assert sorted(targets) == wanted_targets(sequences, lengths)
    for first, end in windows.tolist():
        assert 1 <= end - first - 1 <= max_history
        user = np.searchsorted(sequences.start, first, side="right")
        assert end <= sequences.start[user]


@given(lengths_of_users)
def test_training_targets_are_what_the_windows_teach(lengths: list[int]) -> None:
    sequences = sequences_of(lengths)
    assert sequences.training_targets().tolist() == wanted_targets(sequences, lengths)


def test_what_did_not_satisfy_at_all_is_no_target() -> None:
    none = dataclasses.replace(sequences_of([4]), satisfaction=np.array([1, 0, 1, 1], np.float32))
    assert none.training_targets().tolist() == [2]


def test_a_long_history_is_cut_elsewhere_each_time() -> None:
    sequences = sequences_of([40])
    cuts = set()
    for seed in range(40):
        windows = training_windows(sequences, 10, np.random.default_rng(seed))
        cuts |= set(windows[:, 0].tolist())
    assert len(cuts) > 20


@given(lengths_of_users, st.integers(2, 9), st.integers(1, 4))
def test_batches_teach_each_target_with_its_own_past_and_weight(
    lengths: list[int], max_history: int, batch_size: int
) -> None:
    sequences = sequences_of(lengths)
    rng = np.random.default_rng(0)
    learnt = []
    for batch in training_batches(sequences, max_history, batch_size, rng):
        assert batch.ids.size <= max(batch_size * max_history, batch.ids.shape[1])
        for row in range(len(batch.ids)):
            n = batch.length[row]
            assert (batch.ids[row, :n] > 0).all()
            assert not batch.ids[row, n:].any()
            assert not batch.weight[row, n:].any()
            # Items are numbered like events here, so what follows an item is the next number.
            assert (batch.target[row, :n] == batch.ids[row, :n] + 1).all()
        at = batch.weight > 0
        events = batch.target[at] - 1
        assert np.allclose(batch.weight[at], sequences.satisfaction[events])
        learnt += events.tolist()
    assert sorted(learnt) == wanted_targets(sequences, lengths)


def test_histories_keep_their_last_events() -> None:
    ids, length = pad_histories([[0, 1, 2, 3], [5]], 3)
    assert ids.tolist() == [[2, 3, 4], [6, 0, 0]]
    assert length.tolist() == [3, 1]


def test_satisfaction_is_shrunk_to_the_mean_of_the_log() -> None:
    sequences = Sequences.from_log(log_of(ROWS), ITEMS)
    prior = (0.5 + 0.25 + 1.0 + 0.0 + 0.75) / 5
    shrunk = shrunk_satisfaction(sequences, 5, 2.0)
    expected = [
        (0.75 + 2 * prior) / 4,
        (1.0 + 2 * prior) / 3,
        (0.25 + 2 * prior) / 3,
        (0.5 + 2 * prior) / 3,
        prior,
    ]
    assert np.allclose(shrunk, expected)
    assert np.isfinite(shrunk_satisfaction(sequences, 5, 0.0)).all()
