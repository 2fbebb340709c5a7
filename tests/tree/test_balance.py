"""The balanced clustering where it is large, skewed or hopeless."""

import numpy as np
import pytest

from serendip.tree import balance
from serendip.tree.balance import balance_weights, cluster_leaves


def themes(rng, n, d=16, groups=40):
    """n unit vectors around Zipf-sized themes: what plain k-means splits unevenly."""
    share = 1 / np.arange(1, groups + 1)
    theme = rng.choice(groups, n, p=share / share.sum())
    x = rng.standard_normal((groups, d))[theme] + 0.6 * rng.standard_normal((n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def cosine(x, leaf):
    """Mean cosine of the vectors to their leaf's centroid."""
    sums = np.zeros((leaf.max() + 1, x.shape[1]))
    np.add.at(sums, leaf, x)
    return np.linalg.norm(sums, axis=1).sum() / len(x)


def cluster(x, weights, branching, **changes):
    arguments = {"tolerance": 0.02, "restarts": 1, "rng": np.random.default_rng(0), **changes}
    return cluster_leaves(x, weights, branching, **arguments)


def test_leaves_share_zipf_traffic_and_stay_nearly_as_coherent_as_without_balance():
    rng = np.random.default_rng(0)
    x = themes(rng, 6000)
    traffic = rng.permutation(1 / np.arange(1, 6001))
    weights = balance_weights(traffic, 0.5, 64, 0.25)
    leaf = cluster(x, weights, (4, 4, 4))
    free = cluster(x, weights, (4, 4, 4), tolerance=1e9)
    assert np.bincount(leaf, weights, 64).max() * 64 < 1.15
    assert np.bincount(free, weights, 64).max() * 64 > 2
    assert cosine(x, leaf) > 0.97 * cosine(x, free)


def test_a_node_fitted_on_a_sample_is_balanced_over_all_its_items(monkeypatch):
    x = themes(np.random.default_rng(1), 4000)
    weights = np.full(4000, 1 / 4000)
    whole = cluster(x, weights, (8,))
    monkeypatch.setattr(balance, "_SAMPLE", 1000)
    sampled = cluster(x, weights, (8,))
    assert np.bincount(sampled, minlength=8).max() <= 1.02 * 500 + 1
    assert cosine(x, sampled) > 0.97 * cosine(x, whole)


@pytest.mark.parametrize("children", [5, 200])  # more than an int8 holds
def test_the_best_child_is_the_first_of_equals(children):
    rng = np.random.default_rng(2)
    scores = rng.integers(0, 4, (children, 20_000)).astype(np.float32)
    prices = rng.integers(0, 2, children).astype(np.float32)
    expected = (scores - prices[:, None]).argmax(axis=0)
    assert (balance._argmax(scores, prices) == expected).all()


def test_vectors_that_are_all_equal_are_shared_out_evenly():
    x = np.ones((640, 8), np.float32) / np.sqrt(8).astype(np.float32)
    leaf = cluster(x, np.full(640, 1 / 640), (4, 4))
    count = np.bincount(leaf, minlength=16)
    assert count.min() >= 30
    assert count.max() <= 45


def test_an_item_with_half_the_traffic_leaves_the_others_balanced():
    rng = np.random.default_rng(3)
    traffic = np.ones(800)
    traffic[17] = 800
    weights = balance_weights(traffic, 1.0, 16, 0.25)
    assert weights[17] == pytest.approx(0.25 / 16, rel=0.02)
    leaf = cluster(themes(rng, 800), weights, (4, 4))
    count = np.bincount(leaf, minlength=16)
    assert count.max() < 1.2 * 50
    assert count.min() > 30


def test_heavy_items_leave_no_leaf_far_above_the_tolerance():
    rng = np.random.default_rng(5)
    x = themes(rng, 2400, groups=6)
    traffic = 1 / np.arange(1, 2401) ** 1.2  # the heaviest are alike as well
    weights = balance_weights(traffic, 1.0, 24, 0.4)
    leaf = cluster(x, weights, (24,))
    assert np.bincount(leaf, weights, 24).max() * 24 < 1.02 * 1.02 + 1e-6


def test_every_split_is_told():
    told = []
    cluster(
        themes(np.random.default_rng(4), 200), np.full(200, 1 / 200), (2, 3, 2),
        tick=lambda n=1, note="": told.append(n),
    )  # fmt: skip
    assert sum(told) == 1 + 2 + 6
