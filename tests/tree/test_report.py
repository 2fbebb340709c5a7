"""The report of a tree's levels: figures that a loop finds too, and a plot that can be opened."""

from xml.etree import ElementTree

import numpy as np
import pytest

from serendip.tree.report import level_figures, mean_cosine, node_sums, plot_levels

BRANCHING = (2, 3)


@pytest.fixture
def made():
    """(unit vectors, leaves of which one is empty, weights) of 40 items."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 5)).astype(np.float32)
    leaf = rng.choice([0, 1, 3, 4, 5], 40)
    return x / np.linalg.norm(x, axis=1, keepdims=True), leaf, rng.random(40)


def test_figures_are_those_of_a_loop(made):
    x, leaf, weights = made
    for of, nodes in zip(level_figures(BRANCHING, leaf, weights, x, leaf), (2, 6), strict=True):
        node = leaf // (6 // nodes)
        held = [np.flatnonzero(node == j) for j in range(nodes)]
        load = [weights[h].sum() * nodes / weights.sum() for h in held]
        cosines = []
        for h in filter(len, held):
            centroid = x[h].sum(0) / np.linalg.norm(x[h].sum(0))
            cosines += (x[h] @ centroid).tolist()
        assert of.nodes == nodes
        assert (of.heaviest, of.lightest) == pytest.approx((max(load), min(load)))
        assert (of.largest, of.smallest) == (max(map(len, held)), min(map(len, held)))
        assert of.cosine == of.plain_cosine == pytest.approx(np.mean(cosines), abs=1e-6)


def test_an_empty_node_sums_to_zero(made):
    x, leaf, _ = made
    sums = node_sums(x, leaf, 8)
    assert not sums[[2, 6, 7]].any()
    assert sums.sum(0) == pytest.approx(x.sum(0), abs=1e-5)
    assert mean_cosine(x[:1], np.array([3])) == pytest.approx(1)


@pytest.mark.parametrize("compared", [True, False])
def test_the_plot_is_an_svg_with_every_level(made, tmp_path, compared):
    x, leaf, weights = made
    levels = level_figures(BRANCHING, leaf, weights, *([x, leaf] if compared else []))
    plot_levels(tmp_path / "a.svg", BRANCHING, leaf, weights, levels)
    plot_levels(tmp_path / "b.svg", BRANCHING, leaf, weights, levels)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert ElementTree.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")
