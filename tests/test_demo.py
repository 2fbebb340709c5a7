"""The main job, end to end, as a newcomer runs it: what is learnt, served and shown."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from serendip.evaluation.metrics import wilson_interval

ROOT = Path(__file__).parents[1]


def run(*command, cwd):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    made = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stdout[-3000:] + made.stderr[-3000:]
    return made.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The whole demo on the tiny world, in an empty folder; several minutes."""
    folder = tmp_path_factory.mktemp("demo")
    screen = run(str(ROOT / "examples" / "demo.py"), cwd=folder)
    return folder, screen, json.loads((folder / "artifacts" / "demo.json").read_text())


def test_the_planner_has_learnt_what_text_cannot_tell(demo):
    _, _, figures = demo
    low, _ = wilson_interval(
        round(figures["recall_at_1"] * figures["held_out"]), figures["held_out"]
    )
    assert figures["recall_at_1"] >= 0.75
    assert figures["recall_at_1"] >= 1.5 * figures["recall_text_ceiling"]
    assert low > figures["recall_text_ceiling"]
    assert low > figures["sibling_chance"]
    assert figures["match_rate"] >= 0.98


def test_plans_are_serendipitous_without_being_made_to(demo):
    _, _, figures = demo
    assert figures["serendipitous_share"] >= 0.9
    assert figures["serendipitous_share_siblings"] == 1.0


def test_plans_follow_the_frames(demo):
    assert demo[2]["follows_frames"] >= 0.8


def test_the_tree_finds_the_planted_topics(demo):
    assert demo[2]["leaf_purity"] >= 0.93


def test_serendipitous_pairs_of_the_log_satisfy_as_planted(demo):
    comparison = demo[2]["comparison"]
    assert comparison["serendipitous"]["satisfaction"] > comparison["other"]["satisfaction"] + 0.1


def test_every_candidate_is_inside_its_planned_cluster_and_none_was_seen(demo):
    _, _, figures = demo
    assert figures["recommend_calls"] == 20
    assert figures["inside_planned_cluster"] == 1.0
    assert figures["already_seen"] == 0
    assert 0 < figures["recommend_p50_ms"] <= figures["recommend_p99_ms"]


def test_the_screen_and_the_sheet_show_it(demo):
    folder, screen, figures = demo
    for text in ("Look:", "Next:", "recall@1", "/metrics", "demo.json", "demo.png"):
        assert text in screen
    assert f"{figures['recall_at_1']:.3f}" in screen
    with Image.open(folder / "artifacts" / "demo.png") as sheet:
        assert sheet.width > 600


def test_a_second_demo_reuses_what_is_current(demo):
    folder, _, first = demo

    def published():
        manifests = (folder / "artifacts").glob("*/*/manifest.json")
        return {str(path): path.stat().st_mtime_ns for path in manifests}

    before = published()
    run(str(ROOT / "examples" / "demo.py"), cwd=folder)
    assert published() == before
    second = json.loads((folder / "artifacts" / "demo.json").read_text())
    assert second["recall_at_1"] == first["recall_at_1"]


@pytest.mark.full
def test_over_three_seeds_with_a_text_arm_and_a_null_world(tmp_path):
    """The claim itself; about half an hour."""
    result = json.loads(run(str(ROOT / "benchmarks" / "world.py"), cwd=tmp_path).splitlines()[-1])
    for name, figures in result["figures"].items():
        ceiling = figures["recall_text_ceiling"]
        if name.startswith("video"):
            assert figures["recall_at_1"] >= max(0.75, 1.5 * ceiling), name
            assert figures["recall_at_1_interval"][0] > max(ceiling, figures["sibling_chance"])
            assert figures["follows_frames"] >= 0.8
            assert figures["match_rate"] >= 0.98
            assert figures["leaf_purity"] >= 0.93
            assert figures["serendipitous_share"] >= 0.9
        elif name.startswith("text"):
            assert figures["recall_at_1"] <= ceiling + 0.05, name
        else:
            assert figures["recall_at_1_interval"][0] <= ceiling, name
