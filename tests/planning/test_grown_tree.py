"""A catalogue that grows: what was made under the tree stays valid; only what is new is done."""

import shutil
from contextlib import closing

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from serendip.artifacts import Artifacts
from serendip.core import InvalidRequest, Plan, PlannedCluster
from serendip.curation.curate import publish_pairs
from serendip.planning.bulk import publish_plans
from serendip.planning.lmdb_store import FILE, LmdbStore
from serendip.planning.survival import survives, surviving_plans
from serendip.release import publish_release
from serendip.retrieval.ranker import ClusterRanker
from serendip.retrieval.train import publish_retriever
from serendip.tree.build import publish_tree
from serendip.tree.cluster_tree import ClusterTree
from serendip.tree.node_map import NodeMap

NEW = 6  # items that join the catalogue, each like one of the most watched ones


@pytest.fixture(scope="module")
def grown(small_world, tmp_path_factory):
    """(config, artifacts, new item -> the one it is like) of a catalogue that items joined."""
    folder = tmp_path_factory.mktemp("grown")
    config = small_world.config.model_copy(
        update={"data_dir": str(folder / "data"), "artifacts_dir": str(folder / "artifacts")}
    )
    shutil.copytree(small_world.config.data_path, config.data_path)
    shutil.copytree(small_world.config.artifacts_path, config.artifacts_path)
    shown = pq.read_table(config.data_path / "impressions.parquet")
    counted = pc.value_counts(shown.column("item_id")).to_pylist()
    watched = sorted(counted, key=lambda row: (-row["counts"], row["values"]))
    like = {f"new{n}": watched[n]["values"] for n in range(NEW)}
    for name in ("items", "impressions", "interactions"):
        path = config.data_path / f"{name}.parquet"
        table = pq.read_table(path)
        added = [table]
        for new, old in like.items():
            rows = table.filter(pc.equal(table.column("item_id"), old))
            ids = pa.array([new] * len(rows), table.schema.field("item_id").type)
            added.append(rows.set_column(table.column_names.index("item_id"), "item_id", ids))
        pq.write_table(pa.concat_tables(added), path)
    artifacts = Artifacts(config.artifacts_path)
    publish_tree(config, artifacts)
    return config, artifacts, like


def test_nodes_stay_and_new_items_lie_with_their_like(small_world, grown):
    _, artifacts, like = grown
    before = ClusterTree.open(small_world.artifacts.current("tree"))
    artifact = artifacts.current("tree")
    after = ClusterTree.open(artifact)
    assert artifact.facts["made"] == "grown"
    assert after.version == before.version != artifact.version
    assert after.nodes.description == before.nodes.description
    assert all(after.node_of(i, 4) == before.node_of(i, 4) for i in before.item_ids)
    same = [after.node_of(new, 4) == after.node_of(old, 4) for new, old in like.items()]
    assert sum(same) >= NEW - 1


def test_pairs_of_the_items_before_are_refused_until_curated_again(grown):
    config, artifacts, _ = grown
    if artifacts.current("pairs").inputs["tree_items"] != artifacts.current_version("tree"):
        with pytest.raises(InvalidRequest, match="serendip curate"):
            publish_plans(config, artifacts)
    assert publish_pairs(config, artifacts).tree_version == artifacts.current("tree").tree_version


def test_old_plans_are_taken_over_and_new_items_planned_by_the_same_planner(small_world, grown):
    config, artifacts, like = grown
    publish_pairs(config, artifacts)
    earlier = small_world.artifacts.current("plans")
    plans = publish_plans(config, artifacts)
    assert plans.inputs["planner"] == earlier.inputs["planner"]
    assert plans.facts["reused"] >= 0.9 * earlier.facts["corpus"]
    assert plans.facts["planned"] + plans.facts["reused"] == plans.facts["corpus"]
    assert plans.facts["planned"] <= NEW + 0.1 * earlier.facts["corpus"]
    with closing(LmdbStore(plans.file(FILE))) as store:
        assert all(plan is not None for plan in store.get_many(list(like)))


def test_a_release_takes_the_old_retriever_or_one_that_has_the_new_order(small_world, grown):
    config, artifacts, like = grown
    publish_pairs(config, artifacts)
    publish_plans(config, artifacts)
    with_old = publish_release(artifacts)
    assert with_old.inputs["retriever"] == small_world.artifacts.current_version("retriever")
    assert with_old.tree_version == small_world.artifacts.current("tree").tree_version
    retriever = publish_retriever(config, artifacts)
    assert publish_release(artifacts).inputs["retriever"] == retriever.version
    ranker = ClusterRanker.open(retriever)
    before = ClusterRanker.open(small_world.artifacts.current("retriever"))
    assert ranker.versions.tree_version == before.versions.tree_version
    assert ranker.versions.order_version != before.versions.order_version
    assert ranker.item_count == before.item_count + len(like)


def test_a_rebuild_says_how_many_plans_would_keep_their_meaning(grown):
    config, artifacts, _ = grown
    grown_tree = artifacts.current_version("tree")
    publish_pairs(config, artifacts)
    total = publish_plans(config, artifacts).rows[FILE]
    try:
        rebuilt = publish_tree(config, artifacts, rebuild=True)
        assert rebuilt.facts["rebuilt_from"] == grown_tree
        kept, of = surviving_plans(artifacts, rebuilt)
        assert of == total
        assert 0.5 * total < kept <= total
    finally:
        artifacts.make_current("tree", grown_tree)


def test_a_plan_survives_with_both_of_its_clusters_and_apart():
    mapped = NodeMap(
        pa.array([0, 5, 6, 6, -1]).to_numpy(), pa.array([1, 0.9, 0.8, 0.6, 0.0]).to_numpy()
    )

    def plan(own, best):
        return Plan("i", (PlannedCluster(best, "x", 0.0, True),), own, "", "t", "p", 0)

    assert survives(plan(1, 2), mapped)
    assert survives(plan(None, 2), mapped)
    assert not survives(plan(2, 3), mapped)  # merged into one
    assert not survives(plan(1, 4), mapped)
    assert not survives(plan(4, 1), mapped)
