"""Evaluation judges a planner on its own held-out items, or refuses."""

import json

import pyarrow.parquet as pq
import pytest
from small import small_config
from typer.testing import CliRunner

from serendip.artifacts import Artifacts
from serendip.catalog.synth import synthesise
from serendip.cli import app
from serendip.core import InvalidData, InvalidRequest
from serendip.curation.curate import publish_pairs
from serendip.evaluation.offline import load_held_out, publish_report
from serendip.planning.finetune import publish_planner
from serendip.planning.planner import Planner
from serendip.tree.build import publish_tree
from serendip.tree.cluster_tree import ClusterTree


def test_a_report_has_every_figure_and_says_that_it_is_simulated(small_world):
    report = publish_report(small_world.config, small_world.artifacts)
    figures = json.loads(report.file("figures.json").read_text())
    assert figures["simulated"] is True
    assert figures["held_out"] > 50
    low, high = figures["recall_at_1_interval"]
    assert low <= figures["recall_at_1"] <= high
    assert figures["recall_at_1"] <= figures["recall_at_4"] <= figures["recall_at_8"]
    assert figures["serendipitous_share_siblings"] == 1.0
    assert figures["sibling_chance"] == pytest.approx(1 / 3)
    assert 0.4 < figures["recall_text_ceiling_planted"] < 0.7
    # Four steps of training: nothing can have been learnt.
    assert figures["recall_at_1"] < 0.3
    assert publish_report(small_world.config, small_world.artifacts).version == report.version


def test_the_verb_alone_judges_though_it_has_a_verb_below_it():
    run = CliRunner().invoke(app, ["evaluate", "--config", "none.toml"])
    assert isinstance(run.exception, InvalidRequest)
    assert "none.toml" in str(run.exception)


def test_the_arms_are_judged_on_the_rankings_that_the_report_holds(small_world):
    report = publish_report(small_world.config, small_world.artifacts)
    arms = report.facts["arms"]
    found = pq.read_table(report.file("rankings.parquet")).to_pydict()
    assert len(found["item_id"]) == report.facts["held_out"]
    rankings = {name: found[name] for name in arms if name in found}
    assert len(rankings) == 9
    for name, ranked in rankings.items():
        for k in (1, 5, 10):
            hits = [label in r[:k] for r, label in zip(ranked, found["label"], strict=True)]
            assert arms[name][f"recall_at_{k}"][0] == pytest.approx(sum(hits) / len(hits))
        assert not any(o in r for r, o in zip(ranked, found["own_id"], strict=True)), name
    # More than a plan holds; of siblings there are three.
    assert {len(r) for r in rankings["planner"]} == {10}
    assert {len(r) for r in rankings["planner_siblings"]} == {3}
    assert arms["chance_siblings"]["recall_at_1"][0] == report.facts["sibling_chance"]
    for k in (1, 5, 10):
        assert arms["planner"][f"recall_at_{k}"][0] == report.facts[f"recall_at_{k}"]


def test_a_ranking_begins_as_the_plan_does(small_world):
    config, artifacts = small_world.config, small_world.artifacts
    tree = ClusterTree.open(artifacts.current("tree"))
    planner = Planner.open(artifacts.current("planner"), tree.nodes, config.plans)
    held_out = load_held_out(config, planner, tree, artifacts.current("pairs"))
    contents, own = held_out.contents[:4], held_out.own[:4]
    plans = planner.plan(contents, own)
    ranked = planner.rank(contents, own, clusters=20)
    assert [len(r) for r in ranked] == [20] * 4
    # 20 clusters widen the beam, which then may find a better first one, never a worse.
    for plan, more in zip(plans, ranked, strict=True):
        assert more[0].score >= plan.clusters[0].score - 1e-6
    assert [p.clusters for p in plans] == planner.rank(contents, own, clusters=8)


def test_what_is_read_must_belong_together(small_world):
    other_levels = small_world.config.model_copy(update={"level_gap": 2})
    with pytest.raises(InvalidRequest, match=r"level_gap: current pairs are of level_gap 1"):
        publish_report(other_levels, small_world.artifacts)


def test_another_seed_s_data_is_refused(small_world, tmp_path):
    other = small_config(tmp_path, seed=5).model_copy(
        update={"artifacts_dir": small_world.config.artifacts_dir}
    )
    synthesise(other)
    for stage in (publish_pairs, publish_planner, publish_report):
        with pytest.raises(InvalidRequest, match=r"was made from data .* current is"):
            stage(other, small_world.artifacts)


def test_a_catalogue_without_readable_media_is_refused_before_training(tmp_path):
    config = small_config(tmp_path)
    artifacts = Artifacts(config.artifacts_path)
    data = synthesise(config)
    for thumbnail in (data / "thumbnails").iterdir():
        thumbnail.write_bytes(b"")
    publish_tree(config, artifacts)
    publish_pairs(config, artifacts)
    with pytest.raises(InvalidData, match=r"planner\.style = 'text'"):
        publish_planner(config, artifacts)
    assert artifacts.current_version("planner") is None
