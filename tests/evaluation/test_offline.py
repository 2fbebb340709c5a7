"""Evaluation judges a planner on its own held-out items, or refuses."""

import json

import pytest
from small import small_config
from typer.testing import CliRunner

from serendip.artifacts import Artifacts
from serendip.catalog.synth import synthesise
from serendip.cli import app
from serendip.core import InvalidData, InvalidRequest
from serendip.curation.curate import publish_pairs
from serendip.evaluation.offline import publish_report
from serendip.planning.finetune import publish_planner
from serendip.tree.build import publish_tree


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
