"""Baselines know clusters and training items alone."""

import itertools

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serendip.evaluation.baselines import AT, chance, fit_baselines, rank_all, recalls

CLUSTERS = range(10, 34)  # three bases of eight


def siblings(own):
    return [n for n in CLUSTERS if n != own and (n - 10) // 8 == (own - 10) // 8]


def scores(rows):
    names = ("item_id", "own_id", "node_id", "support", "satisfaction", "held_out")
    ranks = {}
    made = []
    for row in sorted(rows, key=lambda r: -r[4]):
        ranks[row[0]] = ranks.get(row[0], 0) + 1
        made.append({**dict(zip(names, row, strict=True)), "rank_in_item": ranks[row[0]]})
    return pa.Table.from_pylist(made)


row = st.tuples(
    st.integers(0, 30),
    st.sampled_from(CLUSTERS),
    st.integers(0, 6),
    st.integers(1, 40).map(lambda n: n / 4),
    st.integers(0, 20).map(lambda s: s / 20),
).map(lambda r: (f"i{r[0]}", r[1], siblings(r[1])[r[2]], r[3], r[4], r[0] % 3 == 0))
rows = st.lists(row, max_size=40).map(lambda rs: [("i1", 10, 11, 1.0, 0.5, False), *rs])


@given(rows)
def test_every_cluster_is_ranked_once_and_the_own_never(found):
    for name, rank in fit_baselines(scores(found), CLUSTERS, siblings).items():
        among = siblings if name not in ("popular", "satisfying") else others
        for own in CLUSTERS:
            assert sorted(rank(own)) == among(own), name


def others(own):
    return [n for n in CLUSTERS if n != own]


@given(rows)
def test_what_started_from_a_held_out_item_counts_for_nothing(found):
    with_all = fit_baselines(scores(found), CLUSTERS, siblings)
    without = fit_baselines(scores([r for r in found if not r[5]]), CLUSTERS, siblings)
    assert rank_all(with_all, CLUSTERS) == rank_all(without, CLUSTERS)


def test_a_cluster_of_which_nothing_is_known_takes_the_popular_siblings():
    known = [("a", 11, 14, 1.0, 0.9, False), ("b", 12, 14, 1.0, 0.9, False)]
    fitted = fit_baselines(scores([*known, ("c", 11, 13, 1.0, 0.9, False)]), CLUSTERS, siblings)
    for name in ("following", "following_labels", "following_satisfying"):
        assert list(fitted[name](10)) == [14, 13, 11, 12, 15, 16, 17]
        assert list(fitted[name](12))[:2] == [14, 13]


def test_chance_is_the_mean_recall_of_all_orders():
    orders = list(itertools.permutations(range(7)))
    found = recalls(orders, [3] * len(orders))
    assert [found[f"recall_at_{k}"][0] for k in AT] == pytest.approx(
        [chance([7])[f"recall_at_{k}"][0] for k in AT]
    )
