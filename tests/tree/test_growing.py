"""A catalogue that changes: the tree grows under the same tree_version, until it has drifted."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import word_catalogue
from word_catalogue import LEAVES, items

from serendip.artifacts import Artifacts
from serendip.core import InvalidData
from serendip.tree.build import publish_tree
from serendip.tree.cluster_tree import ROOT, ClusterTree
from serendip.tree.node_map import NodeMap, map_nodes

EVERY_LEAF = [leaf for leaf in range(LEAVES) for _ in range(12)]


@pytest.fixture
def built(tmp_path):
    """(folder, config, artifacts, tree artefact) of 12 items of each interest."""
    word_catalogue.write(tmp_path / "data", items(EVERY_LEAF))
    config = word_catalogue.config(tmp_path)
    artifacts = Artifacts(config.artifacts_path)
    return tmp_path, config, artifacts, publish_tree(config, artifacts)


def bring(built, titles, **tree):
    """Publishes the tree of another catalogue: (its artefact, the tree)."""
    folder, config, artifacts, _ = built
    word_catalogue.write(folder / "data", titles)
    artifact = publish_tree(word_catalogue.config(folder, **tree) if tree else config, artifacts)
    return artifact, ClusterTree.open(artifact)


def neighbours(tree, item_id):
    """The items that lie in an item's leaf, the item left out."""
    start, end = tree.slice(tree.node_of(item_id, 4))
    return set(tree.item_ids[start:end]) - {item_id}


def test_further_items_go_to_the_leaf_of_their_like_and_no_node_changes(built):
    before = ClusterTree.open(built[3])
    old = items(EVERY_LEAF)
    more = items(range(LEAVES), first=500)
    artifact, after = bring(built, {**old, **more})
    assert artifact.version != built[3].version
    assert artifact.tree_version == built[3].tree_version == after.version
    assert after.nodes.description == before.nodes.description
    assert all(after.node_of(i, 4) == before.node_of(i, 4) for i in old)
    for n, item_id in enumerate(more):
        like = {f"i{n * 12 + j:04d}" for j in range(12)}
        assert len(neighbours(after, item_id) & like) > 6
    assert artifact.facts["made"] == "grown"
    assert artifact.facts["placed"] == LEAVES
    assert artifact.facts["drift"]["share"] == pytest.approx(LEAVES / (LEAVES * 13))
    assert artifact.facts["drift"]["cosine_loss"] < 0.15


def test_a_grown_tree_is_reused_and_grows_on(built):
    old = items(EVERY_LEAF)
    first, _ = bring(built, {**old, **items(range(8), first=500)})
    again, _ = bring(built, {**old, **items(range(8), first=500)})
    assert again.version == first.version
    both = {**old, **items(range(8), first=500), **items(range(8), first=600)}
    second, tree = bring(built, both)
    assert second.tree_version == built[3].tree_version
    assert second.facts["placed"] == 8
    assert second.facts["drift"]["share"] == pytest.approx(16 / len(tree.item_ids))


def test_an_item_that_has_changed_moves_and_one_that_is_gone_leaves(built):
    old = items(EVERY_LEAF)
    before = ClusterTree.open(built[3])
    changed = {**old, "i0000": old["i0191"]}
    del changed["i0100"]
    artifact, after = bring(built, changed)
    assert artifact.facts["placed"] == artifact.facts["removed"] == 1
    assert after.node_of("i0000", 4) == before.node_of("i0191", 4) != before.node_of("i0000", 4)
    assert after.node_of("i0100", 4) is None


def test_an_item_without_a_known_word_goes_where_there_is_room(built):
    old = items(EVERY_LEAF)
    before = ClusterTree.open(built[3])
    _, after = bring(built, {**old, "new": "unheard"})
    sizes = np.diff(before.leaf_start)
    assert sizes[after.nodes.leaf_lo[after.node_of("new", 4)]] == sizes.min()


def test_too_many_new_items_rebuild_the_tree_and_map_its_nodes(built):
    before = ClusterTree.open(built[3])
    old = items(EVERY_LEAF)
    artifact, after = bring(built, {**old, **items(EVERY_LEAF, first=500)})
    assert artifact.facts["made"] == "rebuilt"
    assert artifact.facts["rebuilt_because"] == "share 0.500 is above 0.3"
    assert artifact.tree_version == artifact.version != built[3].tree_version
    mapped = NodeMap.load(artifact.file("node_map.parquet"))
    assert artifact.facts["nodes_that_survive"][3] >= 14
    for node in before.nodes.at_level(4):
        start, end = before.slice(node)
        held = [after.node_of(i, 4) for i in before.item_ids[start:end]]
        assert mapped.node[node] == max(set(held), key=held.count)


def test_items_that_fit_badly_rebuild_the_tree(built):
    mixed = {f"m{i}": "ibex keeper noisea tugboat gentian manta" for i in range(20)}
    artifact, _ = bring(built, {**items(EVERY_LEAF), **mixed})
    assert artifact.facts["made"] == "rebuilt"
    assert "cosine_loss" in artifact.facts["rebuilt_because"]


def test_one_leaf_that_takes_all_rebuilds_the_tree(built):
    artifact, _ = bring(built, {**items(EVERY_LEAF), **items([3] * 30, first=700)})
    assert "imbalance" in artifact.facts["rebuilt_because"]


def test_other_settings_rebuild_the_tree(built):
    artifact, _ = bring(built, items(EVERY_LEAF), words=1)
    assert artifact.facts["rebuilt_because"] == "the settings have changed"
    assert artifact.facts["nodes_that_survive"] == [2, 4, 8, 16]


def test_rebuilding_can_be_asked_for(built):
    folder, config, artifacts, _ = built
    word_catalogue.write(folder / "data", {**items(EVERY_LEAF), **items([0], first=500)})
    artifact = publish_tree(config, artifacts, rebuild=True)
    assert artifact.facts["rebuilt_because"] == "asked to"


def test_what_the_same_data_have_built_is_not_built_again(built):
    _, config, artifacts, tree = built
    made = tree.path.stat().st_mtime_ns
    assert publish_tree(config, artifacts, rebuild=True).version == tree.version
    assert tree.path.stat().st_mtime_ns == made


def test_growing_back_and_forth_finds_the_trees_that_there_are(built):
    first, _ = bring(built, {**items(EVERY_LEAF), **items([0], first=500)})
    assert bring(built, items(EVERY_LEAF))[0].version == built[3].version
    again, _ = bring(built, {**items(EVERY_LEAF), **items([0], first=500)})
    assert again.version == first.version


def test_a_current_tree_that_is_broken_is_built_anew_and_said(built, capfd):
    built[3].file("centroids.npy").write_bytes(b"broken")
    artifact, _ = bring(built, {**items(EVERY_LEAF), **items([0], first=500)})
    assert artifact.facts["made"] == "built"
    assert "differs from its sha256" in capfd.readouterr().err


def test_bounds_of_drift_are_no_part_of_the_tree(built):
    artifact, _ = bring(built, items(EVERY_LEAF), grow_share=0.9)
    assert artifact.version == built[3].version


def test_a_tree_maps_onto_itself(built):
    tree = ClusterTree.open(built[3])
    mapped = map_nodes(tree, tree)
    assert mapped.node.tolist() == list(range(len(tree.nodes)))
    assert mapped.overlap == pytest.approx(1)


def test_trees_without_a_common_item_map_onto_nothing(built):
    tree = ClusterTree.open(built[3])
    renamed = ClusterTree(tree.nodes, tuple(f"x{i}" for i in tree.item_ids), tree.leaf_start)
    mapped = map_nodes(tree, renamed)
    assert set(mapped.node[1:]) == {-1}
    assert not any(mapped.survives(node) for node in range(ROOT, len(tree.nodes)))


def test_ready_made_vectors_are_placed_too_and_a_zero_one_is_named(tmp_path):
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((LEAVES, 8))

    def vectors(leaves):
        return [centres[leaf] + 0.1 * rng.standard_normal(8) for leaf in leaves]

    old, made = items(EVERY_LEAF), vectors(EVERY_LEAF)
    config = word_catalogue.config(tmp_path, vectors="column")
    artifacts = Artifacts(config.artifacts_path)
    word_catalogue.write(tmp_path / "data", old, made)
    built = publish_tree(config, artifacts)
    more = {**old, **items([5], first=500)}
    word_catalogue.write(tmp_path / "data", more, [*made, centres[5]])
    grown = publish_tree(config, artifacts)
    assert grown.tree_version == built.tree_version
    like = {f"i{60 + j:04d}" for j in range(12)}
    assert len(neighbours(ClusterTree.open(grown), "i0500") & like) > 6
    word_catalogue.write(tmp_path / "data", more, [*made, np.zeros(8)])
    with pytest.raises(InvalidData, match=r"items\.parquet:vector: row 192: .*i0500 is zero"):
        publish_tree(config, artifacts)
    assert artifacts.current_version("tree") == grown.version
    word_catalogue.write(tmp_path / "data", more, [row[:4] for row in [*made, centres[5]]])
    config = word_catalogue.config(tmp_path, vectors="column", grow_share=1)
    assert "another length" in publish_tree(config, artifacts).facts["rebuilt_because"]


def test_a_tree_keeps_what_growing_needs_without_pickles(built):
    files = set(built[3].files)
    assert {"centroids.npy", "placement.parquet", "text_model.npz", "balance.svg"} <= files
    assert len(pq.read_table(built[3].file("placement.parquet"))) == len(EVERY_LEAF)
    with np.load(built[3].file("text_model.npz"), allow_pickle=False) as file:
        assert set(file.files) == {"words", "idf", "components"}
    assert [level["nodes"] for level in built[3].facts["levels"]] == [2, 4, 8, 16]
    assert built[3].facts["cosine_vs_plain"] > 0.9


def test_fewer_items_than_leaves_are_refused_and_current_stays(built):
    folder, config, artifacts, tree = built
    word_catalogue.write(folder / "data", items(range(10), first=900))
    with pytest.raises(InvalidData, match="needs at least one item a leaf"):
        publish_tree(config, artifacts)
    assert artifacts.current_version("tree") == tree.version
