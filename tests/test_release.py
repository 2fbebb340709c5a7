"""A release is published only of parts that fit, and a refusal says which part to make again."""

import pytest
from parts import (
    ITEMS,
    LEVEL,
    grow_tree,
    plan_of,
    publish_all,
    publish_planner,
    publish_plans,
    publish_retriever,
    publish_tree,
)

from serendip.artifacts import Artifacts
from serendip.core import CorruptArtifact, InvalidRequest, NotFound
from serendip.release import PARTS, publish_release
from serendip.tree.cluster_tree import ClusterTree


@pytest.fixture
def artifacts(tmp_path):
    return Artifacts(tmp_path)


@pytest.fixture
def tree(artifacts):
    return publish_tree(artifacts)


def refused(artifacts, error, *said):
    """Releases, expects a refusal that says all that, and that current stays as it was."""
    before = artifacts.current_version("release")
    with pytest.raises(error) as caught:
        publish_release(artifacts)
    for text in said:
        assert text in str(caught.value)
    assert artifacts.current_version("release") == before


def test_parts_that_fit_are_released_and_the_same_parts_are_the_same_release(artifacts):
    release = publish_all(artifacts)
    assert release.inputs == {kind: artifacts.current_version(kind) for kind in PARTS}
    assert publish_release(artifacts).version == release.version
    assert publish_all(artifacts, seed=1).version != release.version
    assert artifacts.previous_version("release") == release.version


def test_a_part_that_was_never_published_is_named_with_its_verb(artifacts, tree):
    publish_planner(artifacts, tree)
    refused(artifacts, NotFound, "plans: nothing published yet", "serendip plan")


def test_after_a_new_tree_the_planner_lags_and_all_that_must_run_is_named(artifacts):
    publish_all(artifacts)
    old = artifacts.current("planner")
    new = publish_tree(artifacts, seed=1)
    refused(
        artifacts,
        InvalidRequest,
        f"planner/{old.version}: was made of tree {old.inputs['tree']}, current is {new.version}",
        "Run serendip finetune, serendip plan, serendip retriever again, then serendip release",
    )


def test_after_a_new_planner_its_plans_lag(artifacts):
    publish_all(artifacts)
    plans = artifacts.current("plans")
    tree_version = plans.inputs["tree"]
    new = publish_planner(artifacts, ClusterTree.open(artifacts.current("tree")), seed=7)
    assert new.inputs["tree"] == tree_version
    refused(
        artifacts,
        InvalidRequest,
        f"plans/{plans.version}: was made of planner {plans.inputs['planner']}, "
        f"current is {new.version}",
        "Run serendip plan again",
    )


def test_a_retriever_of_another_tree_lags(artifacts):
    old = publish_retriever(artifacts, publish_tree(artifacts, seed=1))
    tree = publish_tree(artifacts)
    publish_plans(artifacts, tree, publish_planner(artifacts, tree))
    refused(
        artifacts,
        InvalidRequest,
        f"retriever/{old.version}: was made of tree {old.inputs['tree']}, "
        f"current is {tree.version}",
        "Run serendip retriever again",
    )


def test_a_tree_that_has_grown_fits_its_plans_and_a_retriever_of_fewer_items(artifacts, tree):
    publish_plans(artifacts, tree, publish_planner(artifacts, tree))
    publish_retriever(artifacts, tree, tree_items=tree.version)
    grown, larger = grow_tree(artifacts, tree)
    before, after = len(tree.item_ids), len(larger.item_ids)
    release = publish_release(artifacts)
    assert release.inputs["tree"] == grown
    assert (release.facts["items"], release.facts["items_of_the_retriever"]) == (after, before)
    publish_retriever(artifacts, larger, tree_items=grown)
    assert publish_release(artifacts).facts["items_of_the_retriever"] == after


def test_a_trie_that_describes_something_else_is_refused(artifacts, tree):
    leaves = [tree.nodes.description[n] for n in tree.nodes.at_level(LEVEL)]
    planner = publish_planner(artifacts, tree, texts=[*leaves[:-1], leaves[-1][::-1]])
    publish_plans(artifacts, tree, planner)
    publish_retriever(artifacts, tree)
    refused(
        artifacts, CorruptArtifact, f"planner/{planner.version}: its trie",
        f"tree {tree.version}", "serendip finetune",
    )  # fmt: skip


@pytest.mark.parametrize("node", [0, 3, 99], ids=["the root", "another level", "none"])
def test_a_plan_of_a_node_that_cannot_be_planned_is_refused(artifacts, tree, node):
    planner = publish_planner(artifacts, tree)
    bad = plan_of(ITEMS[0], [node], tree.version, planner.version)
    plans = publish_plans(artifacts, tree, planner, [bad])
    publish_retriever(artifacts, tree)
    refused(
        artifacts, CorruptArtifact, f"plans/{plans.version}", f"names node {node}", "'i0'",
        "serendip plan",
    )  # fmt: skip


@pytest.mark.parametrize("stranger", ["tree", "planner"])
def test_a_plan_of_another_making_among_the_others_is_refused(artifacts, tree, stranger):
    planner = publish_planner(artifacts, tree)
    made = {"tree": tree.version, "planner": planner.version, stranger: "0" * 12}
    node = tree.nodes.at_level(LEVEL)[0]
    publish_plans(
        artifacts, tree, planner, [plan_of(ITEMS[0], [node], made["tree"], made["planner"])]
    )
    publish_retriever(artifacts, tree)
    refused(artifacts, CorruptArtifact, "'i0'", f"{stranger} {'0' * 12}", "serendip plan")


def test_a_retriever_whose_items_stand_in_another_order_is_refused(artifacts, tree):
    publish_plans(artifacts, tree, publish_planner(artifacts, tree))
    retriever = publish_retriever(artifacts, tree, items=tree.item_ids[::-1])
    refused(
        artifacts, CorruptArtifact, f"retriever/{retriever.version}: its item_order.parquet",
        f"tree/{tree.version}", "serendip retriever",
    )  # fmt: skip


def test_a_damaged_part_is_refused_by_its_hash(artifacts):
    publish_all(artifacts)
    artifacts.current("planner").file("weights").write_text("other")
    refused(artifacts, CorruptArtifact, "weights: differs from its sha256", "serendip finetune")


def test_a_part_that_is_removed_while_it_is_released_ends_the_release(artifacts, monkeypatch):
    publish_all(artifacts)
    tree = publish_tree(artifacts)
    publish_retriever(artifacts, tree, seed=1)
    retriever = artifacts.current("retriever")
    reuse = artifacts.reuse

    def removed_meanwhile(*args):
        (retriever.path / "manifest.json").unlink()
        return reuse(*args)

    monkeypatch.setattr(artifacts, "reuse", removed_meanwhile)
    refused(artifacts, NotFound, f"retriever/{retriever.version}: was removed")
