"""Which events train, validate and test, by either split."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serendip.core import InvalidData
from serendip.retrieval.sequences import Sequences
from serendip.retrieval.splits import global_temporal, leave_one_out


def timed(*users: list[int]) -> Sequences:
    """Users with events at these times; items are numbered like events."""
    start = np.concatenate([[0], np.cumsum([len(u) for u in users])]).astype(np.int64)
    events = int(start[-1])
    time = np.array([t for u in users for t in u], np.int64)
    return Sequences(np.arange(events), np.ones(events, np.float32), start, time)


def test_the_last_event_tests_the_one_before_validates() -> None:
    given_order = Sequences.in_given_order([np.array([7, 8, 9, 5, 6]), np.array([1, 2, 3])])
    split = leave_one_out(given_order)
    assert split.users.tolist() == [0]
    assert split.training.item.tolist() == [7, 8, 9, 5, 1, 2, 3]
    assert split.training.start.tolist() == [0, 4, 7]
    assert split.test is given_order
    # What fit holds out of the training log.
    assert split.training.training_ends().tolist() == [3, 6]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.booleans())
def test_leave_one_out_never_trains_on_what_it_tests(sizes: list[int], with_times: bool) -> None:
    log = timed(*[list(range(n)) for n in sizes])
    if not with_times:
        log = Sequences.in_given_order([np.arange(a, b) for a, b in spans(log)])
    if max(sizes) < 4:
        with pytest.raises(InvalidData, match="no user has 4 events"):
            leave_one_out(log)
        return
    split = leave_one_out(log)
    targets = split.test.start[split.users + 1] - 1
    assert not set(split.training.item) & set(split.test.item[targets])
    assert len(split.training.item) == len(log.item) - len(split.users)
    assert (split.training.timestamp is not None) == with_times


def spans(log: Sequences) -> list[tuple[int, int]]:
    return list(zip(log.start[:-1].tolist(), log.start[1:].tolist(), strict=True))


def test_training_ends_at_one_moment_and_the_first_event_after_it_tests() -> None:
    log = timed([1, 2, 3, 8, 9], [1, 2, 3, 4], [5, 8, 9], [1, 1, 1, 9], [])
    split = global_temporal(log, test_share=0.35)  # 5 of 16 events are at 8 or later
    assert split.users.tolist() == [0, 3]
    assert split.training.timestamp is not None
    assert split.training.timestamp.max() == 5
    assert [split.test.item[a:b].tolist() for a, b in spans(split.test)] == [
        [0, 1, 2, 3], [5, 6, 7, 8], [9], [12, 13, 14, 15], [],
    ]  # fmt: skip


times = st.lists(st.lists(st.integers(0, 30), max_size=12).map(sorted), min_size=1, max_size=6)


@given(times, st.floats(0.05, 0.6))
def test_no_event_of_training_is_later_than_a_target(users: list[list[int]], share: float) -> None:
    log = timed(*users)
    try:
        split = global_temporal(log, share)
    except InvalidData:
        return
    assert split.training.timestamp is not None
    assert split.test.timestamp is not None
    last = split.test.start[split.users + 1] - 1
    assert split.training.timestamp.max() < split.test.timestamp[last].min()
    later = (log.timestamp > split.training.timestamp.max()).sum()
    assert later <= share * len(log.item)
    assert (np.diff(split.training.start)[split.users] >= 3).all()


def test_what_cannot_be_split_by_time_says_why() -> None:
    with pytest.raises(InvalidData, match="timestamp: the order of events is known"):
        global_temporal(Sequences.in_given_order([np.arange(9)]))
    with pytest.raises(InvalidData, match="no user has 3 events before the moment"):
        global_temporal(timed([1], [2], [3]))
    with pytest.raises(InvalidData, match="no user has 3 events before the moment"):
        global_temporal(timed([1, 1, 1], [1, 1]))
