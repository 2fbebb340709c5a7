"""The tree: every node a slice, balanced, and described in words of its own."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import small_config

from serendip.config import TreeConfig
from serendip.core import CorruptArtifact, InvalidData, NotFound
from serendip.evaluation.metrics import purity
from serendip.tree.balance import balance_weights, cluster_leaves
from serendip.tree.build import publish_tree
from serendip.tree.cluster_tree import ROOT, ClusterTree, Nodes, read_nodes
from serendip.tree.describe import describe
from serendip.tree.embed import TextModel
from serendip.tree.words import count_words

BRANCHING = (2, 2, 3, 2)
LEAVES = 24


def make_tree(leaf):
    ids = [f"i{n}" for n in range(len(leaf))]
    return ClusterTree.from_leaves(BRANCHING, np.asarray(leaf), ids, None, "0" * 12)


leaves = st.lists(st.integers(0, LEAVES - 1), min_size=1, max_size=80)


@given(leaves)
def test_every_node_owns_one_slice_and_children_share_it_out(leaf):
    tree = make_tree(leaf)
    assert tree.slice(ROOT) == (0, len(leaf))
    for node in range(len(tree.nodes)):
        start, end = tree.slice(node)
        inside = {
            i
            for i in range(len(leaf))
            if tree.nodes.leaf_lo[node] <= leaf[i] < tree.nodes.leaf_hi[node]
        }
        assert set(tree.item_ids[start:end]) == {f"i{i}" for i in inside}
        if children := tree.nodes.children(node):
            slices = [tree.slice(c) for c in children]
            assert slices[0][0] == start
            assert slices[-1][1] == end
            assert all(a[1] == b[0] for a, b in itertools.pairwise(slices))


@given(leaves)
def test_an_item_is_found_in_its_node_at_every_level(leaf):
    tree = make_tree(leaf)
    for level in range(5):
        node = tree.node_of("i0", level)
        start, end = tree.slice(node)
        assert tree.nodes.level[node] == level
        assert "i0" in tree.item_ids[start:end]
    assert tree.node_of("nobody", 4) is None


def test_ancestors_and_serendipity():
    nodes = make_tree([0]).nodes
    first, second, third = nodes.at_level(4)[:3]
    assert nodes.is_serendipitous(first, second, 1)
    assert not nodes.is_serendipitous(first, first, 1)
    assert not nodes.is_serendipitous(first, third, 1)
    assert nodes.is_serendipitous(first, third, 2)
    assert nodes.ancestor(first, 0) == ROOT
    with pytest.raises(NotFound, match="ListClusters"):
        nodes.check(len(nodes))


def test_what_lies_under_a_node_are_those_that_it_is_an_ancestor_of():
    nodes = make_tree([0]).nodes
    for node in range(len(nodes)):
        for level in range(5):
            own = nodes.level[node]
            below = [
                n for n in nodes.at_level(level) if own <= level and nodes.ancestor(n, own) == node
            ]
            assert list(nodes.under(node, level)) == below


def test_a_tree_survives_its_files(tmp_path):
    tree = make_tree([3, 1, 1, 23])
    tree.save(tmp_path)
    nodes = read_nodes(tmp_path / "nodes.parquet", tree.version)
    assert nodes.description == tree.nodes.description
    assert (nodes.parent == tree.nodes.parent).all()


def broken(**changes):
    nodes = make_tree([0]).nodes
    columns = {
        name: getattr(nodes, name)
        for name in ("tree_version", "level", "parent", "leaf_lo", "leaf_hi", "description")
    }
    return lambda: Nodes(**{**columns, **changes})


def test_nodes_that_are_no_tree_are_refused():
    nodes = make_tree([0]).nodes
    with pytest.raises(CorruptArtifact, match="breadth-first"):
        broken(parent=nodes.parent[::-1].copy())()
    with pytest.raises(CorruptArtifact, match="differ in length"):
        broken(level=nodes.level[:-1])()
    alike = list(nodes.description)
    alike[1:3] = "Rye  bread", "rye bread"
    with pytest.raises(CorruptArtifact, match="unique"):
        broken(description=tuple(alike))()
    twice = ("", *("same" for _ in nodes.description[1:]))
    with pytest.raises(CorruptArtifact, match="unique"):
        broken(description=twice)()


def blobs(rng, groups, per, spread):
    centres = rng.standard_normal((groups, 16))
    x = np.repeat(centres, per, axis=0) + spread * rng.standard_normal((groups * per, 16))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x.astype(np.float32), np.repeat(np.arange(groups), per)


@pytest.mark.parametrize("seed", range(3))
def test_planted_clusters_are_found(seed):
    rng = np.random.default_rng(seed)
    x, planted = blobs(rng, 8, 30, 0.1)
    leaf = cluster_leaves(x, np.ones(240) / 240, (8,), tolerance=0.15, restarts=4, rng=rng)
    assert purity(leaf.tolist(), planted.tolist()) > 0.95


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(2, 2), (4,), (3, 2, 2)]), st.booleans())
def test_no_leaf_is_empty_and_none_is_far_above_its_share(seed, branching, skewed):
    rng = np.random.default_rng(seed)
    n, k = 240, int(np.prod(branching))
    x = rng.standard_normal((n, 8)) + (5 * rng.standard_normal(8) if skewed else 0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    weights = balance_weights(np.ones(n), 0.0, k)
    leaf = cluster_leaves(
        x.astype(np.float32), weights, branching, tolerance=0.1, restarts=1, rng=rng
    )
    load = np.bincount(leaf, weights, k) * k
    assert np.bincount(leaf, minlength=k).min() >= 1
    assert load.max() <= 1.1 ** len(branching) * 1.05 + k / n


def test_traffic_is_clipped_where_one_item_outweighs_a_leaf():
    weights = balance_weights(np.array([1e9, *np.ones(99)]), 1.0, 10)
    assert weights.sum() == pytest.approx(1)
    assert weights[0] < 0.1


def test_fewer_items_than_leaves_is_an_error():
    with pytest.raises(InvalidData, match=r"at least one item a leaf \(8\), got 3"):
        cluster_leaves(
            np.eye(3, dtype=np.float32), np.ones(3), (2, 4), tolerance=0.1, restarts=1,
            rng=np.random.default_rng(0),
        )  # fmt: skip


def test_descriptions_are_the_words_that_tell_a_cluster_apart():
    texts = ["oven bread rye"] * 4 + ["oven cake sugar"] * 4 + ["bike gravel hill"] * 4
    texts += ["bike track speed"] * 4
    counts, words = count_words(texts, 1, 0.9)
    leaf = np.repeat([0, 1, 2, 3], 4)
    tree = ClusterTree.from_leaves((2, 2), leaf, [str(i) for i in range(16)], None, "0" * 12)
    text = describe(tree.nodes, leaf, counts, words, 2).texts
    assert text[0] == ""
    assert "oven" in text[1]
    assert "bike" in text[2]
    heads, leaf_words = text[3].split(": ")
    assert heads in text[1]
    assert set(leaf_words.split(" and ")) <= {"bread", "rye", "oven"}
    assert "bread" in text[3] or "rye" in text[3]


def test_clusters_of_the_same_words_still_get_names_of_their_own():
    texts = ["oven bread"] * 16
    counts, words = count_words(texts, 1, 1.0)
    leaf = np.repeat([0, 1, 2, 3], 4)
    tree = ClusterTree.from_leaves((2, 2), leaf, [str(i) for i in range(16)], None, "0" * 12)
    text = describe(tree.nodes, leaf, counts, words, 2).texts
    assert len(set(text[3:])) == 4
    assert len(set(text[1:3])) == 2


def test_texts_without_words_are_an_error_that_names_the_remedy():
    with pytest.raises(InvalidData, match=r"items\.parquet:title,text.*tree\.min_df"):
        count_words(["", ""], 1, 0.5)


def test_vectors_are_of_unit_length():
    texts = ["oven bread", "oven cake", "bike hill", "bike gravel"]
    counts, words = count_words(texts, 1, 0.9)
    model, vectors = TextModel.fit(counts, words, 3, 0)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert model.embed(texts) == pytest.approx(vectors, abs=1e-5)
    assert not model.embed(["nothing known"]).any()


def test_a_published_tree_is_sound_and_is_reused(small_world):
    tree = ClusterTree.open(small_world.artifacts.current("tree"))
    assert len(tree.nodes.at_level(4)) == 64
    assert min(np.diff(tree.leaf_start)) >= 1
    again = publish_tree(small_world.config, small_world.artifacts)
    assert again.version == tree.version


def test_a_missing_vector_column_is_named(small_world, tmp_path):
    config = small_config(tmp_path, tree=TreeConfig(vectors="column").model_dump())
    config = config.model_copy(update={"data_dir": small_world.config.data_dir})
    with pytest.raises(InvalidData, match=r"items\.parquet:vector: no such column"):
        publish_tree(config, type(small_world.artifacts)(tmp_path / "artifacts"))


@pytest.mark.parametrize("seed", range(5))
def test_clumps_that_leave_an_inner_node_nearly_empty_are_split_all_the_same(seed):
    rng = np.random.default_rng(seed)
    x, _ = blobs(rng, 5, 60, 0.001)
    leaf = cluster_leaves(x, np.ones(300) / 300, (8, 8, 2, 2), tolerance=0.1, restarts=1, rng=rng)
    assert leaf.max() < 256
