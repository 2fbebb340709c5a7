"""User vectors: each distinct history is encoded once, and the latest are kept."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from serendip.retrieval.users import UserVectors

MAX_HISTORY = 3


class Counted:
    """Encodes a history as its items in a row, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.encoded: list[tuple[int, ...]] = []

    def __call__(
        self, ids: npt.NDArray[np.int64], length: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        out = np.zeros((len(ids), MAX_HISTORY), np.float32)
        for row, (items, n) in enumerate(zip(ids, length, strict=True)):
            out[row, :n] = items[:n]
            self.encoded.append(tuple(items[:n].tolist()))
        return out


def expected(history: list[int]) -> list[float] | None:
    if not history:
        return None
    kept = [float(rank + 1) for rank in history[-MAX_HISTORY:]]
    return kept + [0.0] * (MAX_HISTORY - len(kept))


def as_lists(users: list[npt.NDArray[np.float32] | None]) -> list[list[float] | None]:
    return [None if user is None else user.tolist() for user in users]


batches = st.lists(st.lists(st.lists(st.integers(0, 2), max_size=4), max_size=80), max_size=5)


@settings(deadline=None)
@given(batches, st.integers(0, 4))
def test_a_cache_of_any_size_changes_no_vector(
    batches: list[list[list[int]]], entries: int
) -> None:
    users = UserVectors(Counted(), MAX_HISTORY, entries)
    asked = 0
    for batch in batches:
        assert as_lists(users.of(batch)) == [expected(history) for history in batch]
        asked += sum(bool(history) for history in batch)
    assert users.hits + users.misses == (asked if entries else 0)


def test_equal_users_of_a_batch_are_encoded_once_even_without_a_cache() -> None:
    encode = Counted()
    # What the model does not read makes no difference.
    UserVectors(encode, MAX_HISTORY).of([[1, 2, 3], [9, 1, 2, 3], [2], [1, 2, 3], []])
    assert sorted(encode.encoded) == [(2, 3, 4), (3,)]


def test_the_least_recently_used_goes_first() -> None:
    encode = Counted()
    users = UserVectors(encode, MAX_HISTORY, entries=2)
    for history in ([0], [1], [0], [2], [0], [1]):
        users.of([history])
    assert encode.encoded == [(1,), (2,), (3,), (2,)]
    assert (users.hits, users.misses) == (2, 4)


def test_order_is_part_of_a_history() -> None:
    encode = Counted()
    users = UserVectors(encode, MAX_HISTORY, entries=9)
    assert as_lists(users.of([[0, 1], [1, 0]])) == [[1, 2, 0], [2, 1, 0]]
    assert users.misses == 2


def test_a_kept_vector_keeps_nothing_else_alive() -> None:
    users = UserVectors(Counted(), MAX_HISTORY, entries=9)
    users.of([[0], [1], [2]])
    assert all(user.base is None for user in users._kept.values())


def test_threads_share_it() -> None:
    users = UserVectors(Counted(), MAX_HISTORY, entries=5)
    wrong: list[object] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(150):
            batch = [rng.integers(0, 3, rng.integers(0, 4)).tolist() for _ in range(5)]
            if as_lists(users.of(batch)) != [expected(history) for history in batch]:
                wrong.append(batch)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(users._kept) <= 5
