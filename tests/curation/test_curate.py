"""Curation: consecutive pairs, weighted where time ties, shrunk, ranked, cut."""

import hashlib
import itertools
from collections import defaultdict

import pyarrow as pa
import pytest
from curated import CONFIG, PLACED, corpus_of, curated, table
from hypothesis import given, settings
from hypothesis import strategies as st

from serendip.core import InvalidData, InvalidRequest
from serendip.curation.curate import narrow, publish_pairs, read_pairs
from serendip.curation.engine import open_engine


def oracle(events):
    """{(v, cluster): (support, satisfaction sum)} of serendipitous pairs, in plain Python."""
    sets = defaultdict(lambda: defaultdict(list))
    for user, item, time, satisfaction in dict.fromkeys(e for e in events if e[1] in PLACED):
        sets[user][time].append((item, satisfaction))
    found = defaultdict(lambda: [0.0, 0.0])
    for by_time in sets.values():
        times = sorted(by_time)
        for now, then in itertools.pairwise(times):
            if then - now > CONFIG.session_gap_s * 1000:
                continue
            weight = 1 / (len(by_time[now]) * len(by_time[then]))
            for v, _ in by_time[now]:
                for n, satisfaction in by_time[then]:
                    (a, base), (b, other) = PLACED[v], PLACED[n]
                    if v != n and a != b and base == other:
                        found[v, b][0] += weight
                        found[v, b][1] += weight * satisfaction
    return found


event = st.tuples(
    st.sampled_from(["u", "w"]),
    st.sampled_from([*PLACED, "ghost"]),
    st.integers(0, 6).map(lambda t: t * 40_000),
    st.integers(0, 100).map(lambda s: s / 100),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(event, max_size=25).flatmap(lambda e: st.permutations(e + e[:3])))
def test_scores_are_those_of_the_recipe(events):
    expected = {k: v for k, v in oracle(events).items() if v[0] >= CONFIG.min_support}
    if not any(not held_out(v) for v, _ in expected):
        with pytest.raises(InvalidData, match="no serendipitous pair"):
            curated(events)
        return
    tables, repaired = curated(events)
    scores = tables["scores"].to_pylist()
    catalogued = [e for e in events if e[1] in PLACED]
    assert repaired["duplicates"] == len(catalogued) - len(set(catalogued))
    everything = oracle(events)
    prior = sum(s for _, s in everything.values()) / sum(n for n, _ in everything.values())
    assert {(r["item_id"], r["node_id"]) for r in scores} == set(expected)
    for row in scores:
        n, s = expected[row["item_id"], row["node_id"]]
        assert row["support"] == pytest.approx(n, abs=1e-4)
        assert row["satisfaction"] == pytest.approx((s + 2 * prior) / (n + 2), abs=1e-4)


def held_out(item_id):
    return hashlib.md5(item_id.encode()).hexdigest()[:8] < f"{round(0.15 * 2**32):08x}"


def test_equal_times_form_a_set_and_pairs_sum_to_one():
    events = [("u", "a0", 0, 1.0), ("u", "b0", 50, 1.0), ("u", "b1", 50, 0.0)]
    (row,) = curated(events)[0]["scores"].to_pylist()
    assert row["support"] == pytest.approx(1.0)
    # One observation of mean .5, shrunk towards a prior that is .5 as well.
    assert row["satisfaction"] == pytest.approx(0.5)


def test_a_session_gap_ends_a_pair():
    with pytest.raises(InvalidData):
        curated([("u", "a0", 0, 1.0), ("u", "b0", 100_001, 1.0)])
    assert curated([("u", "a0", 0, 1.0), ("u", "b0", 100_000, 1.0)])


def test_no_gap_is_so_long_that_two_users_make_a_pair():
    # All users that share a bucket follow one another in the window: enough of them to share one.
    config = CONFIG.model_copy(update={"session_gap_s": 10**12})
    events = [(f"u{k}", "a0" if k % 2 else "b0", k, 0.5) for k in range(10_000)]
    with pytest.raises(InvalidData, match="no serendipitous pair"):
        curated(events, config)
    pair = [("u0", "a0", 10_000, 0.5)]
    assert len(curated(events + pair, config)[0]["scores"]) == 1


def test_more_items_and_clusters_than_63_bits_tell_apart_are_refused(tmp_path):
    with open_engine(CONFIG, tmp_path) as engine:
        far = {"item_id": ["x"], "item_no": [2**22], "node_id": [2**20], "base_id": [2**20]}
        engine.view("items", pa.table(far))
        engine.view("interactions", table([]))
        with pytest.raises(InvalidRequest, match="63 together"):
            narrow(engine)


def test_held_out_items_are_never_trained_on_and_have_labels(small_world):
    pairs = small_world.artifacts.current("pairs")
    held = set(read_pairs(pairs, "held_out").column("item_id").to_pylist())
    training = read_pairs(pairs, "training").to_pylist()
    labels = read_pairs(pairs, "labels").to_pylist()
    assert held == {i for i in held if held_out(i)}
    assert not held & {r["item_id"] for r in training}
    assert {r["item_id"] for r in labels} <= held
    best = {
        r["item_id"]: r["node_id"]
        for r in read_pairs(pairs, "scores").to_pylist()
        if r["rank_in_item"] == 1
    }
    assert all(best[r["item_id"]] == r["node_id"] for r in labels)


def test_folds_share_no_item_and_together_hold_all_out():
    events = [("u", "a0", 0, 1.0), ("u", "b0", 50, 1.0), ("w", "a1", 0, 1.0), ("w", "b1", 50, 1.0)]
    folds = []
    for fold in (0, 1):
        config = CONFIG.model_copy(update={"held_out_share": 0.5, "held_out_fold": fold})
        tables, _ = curated(events, config)
        held = set(tables["held_out"].column("item_id").to_pylist())
        assert held.isdisjoint(tables["training"].column("item_id").to_pylist())
        folds.append(held)
    assert all(folds)
    assert folds[0] | folds[1] == set(PLACED)
    assert folds[0].isdisjoint(folds[1])


def test_each_cluster_has_its_best_contexts_with_full_order(small_world):
    pairs = small_world.artifacts.current("pairs")
    cut = small_world.config.curation.contexts_per_cluster
    by_cluster = defaultdict(list)
    for row in read_pairs(pairs, "scores").to_pylist():
        if not row["held_out"]:
            key = (-row["satisfaction"], -row["support"], row["item_id"])
            by_cluster[row["node_id"]].append(key)
    taken = defaultdict(list)
    for row in read_pairs(pairs, "training").to_pylist():
        taken[row["node_id"]].append((-row["satisfaction"], -row["support"], row["item_id"]))
    for node, rows in by_cluster.items():
        assert taken[node] == sorted(rows)[:cut]


def test_the_log_s_order_of_rows_does_not_matter():
    events = [
        (u, i, t, s)
        for u in ("u", "w")
        for t, (i, s) in enumerate([("a0", 0.1), ("b0", 0.9), ("a1", 0.3), ("b1", 0.7)] * 3)
    ]
    assert curated(events) == curated(events[::-1])


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.sampled_from([0.2, 0.8, 1.0]))
@settings(max_examples=30, deadline=None)
def test_the_corpus_is_the_fewest_items_that_cover(counts, coverage):
    corpus = corpus_of({f"i{n:02d}": c for n, c in enumerate(counts)}, coverage)
    ordered = sorted(counts, reverse=True)
    need = next(
        k for k in range(1, len(counts) + 1) if sum(ordered[:k]) >= coverage * sum(counts) - 1e-9
    )
    assert len(corpus) == need
    assert [r["impressions"] for r in corpus] == ordered[:need]


def test_similar_and_serendipitous_pairs_are_compared(small_world):
    facts = small_world.artifacts.current("pairs").facts
    assert set(facts["comparison"]) == {"similar", "serendipitous", "other"}
    assert publish_pairs(small_world.config, small_world.artifacts).facts == facts
