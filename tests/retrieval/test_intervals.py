from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serendip.retrieval.intervals import Covered

slices = st.tuples(st.integers(0, 40), st.integers(0, 40))


@given(st.lists(slices, max_size=12))
def test_claims_are_what_a_set_of_ranks_says(claims: list[tuple[int, int]]) -> None:
    covered, expected = Covered(), set[int]()
    for start, end in claims:
        fresh = covered.claim(start, end)
        ranks = [rank for s, e in fresh for rank in range(s, e)]
        assert ranks == sorted(set(range(start, end)) - expected)
        assert all(s < e for s, e in fresh)
        expected |= set(range(start, end))


def test_neighbours_become_one_slice() -> None:
    covered = Covered()
    covered.claim(0, 3)
    covered.claim(3, 5)
    covered.claim(8, 9)
    assert covered.claim(2, 10) == [(5, 8), (9, 10)]
    assert covered.claim(0, 10) == []
