"""The paper's figures: the rule of a verdict, what a result is keyed by, and a real small run."""

import doctest
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from serendip.config import Config
from serendip.core import CorruptArtifact, InvalidRequest
from serendip.evaluation import figures_verdict
from serendip.evaluation.figures import POINTS, TABLE, make_figures, read_result
from serendip.evaluation.figures_plot import draw_figures
from serendip.evaluation.figures_run import hits_of
from serendip.evaluation.figures_study import (
    ARMS,
    CAPTIONED,
    CLAIMS,
    FIGURES,
    MEASURES,
    SCRATCH,
    Ground,
    Run,
    full_study,
)
from serendip.evaluation.figures_verdict import NOISE, Result, judge, judge_claim, write_table
from serendip.planning.embedded import build_embedded
from serendip.planning.planner import Planner
from serendip.planning.prompt import Content
from serendip.planning.style import STYLES
from serendip.tree.cluster_tree import ClusterTree

STUDY = full_study(3)
COVER = FIGURES[5][1]
CLAIM = next(c for c in CLAIMS if c.figure == 5)


def results(study, level):
    """A result a run; the share of hits after step s is level(arm, seed, s), on random items."""
    for run in study.runs():
        rng = np.random.default_rng(run.ground.seed)
        drawn = rng.random(study.judged)  # the same for all arms
        shares = np.array([level(run.arm.name, run.ground.seed, step) for step in study.looks])
        hits = drawn < shares[:, None]
        yield Result(
            run.ground.world, run.start, run.arm.name, run.ground.seed,
            np.array(study.looks), np.ones(len(study.looks)), dict.fromkeys(MEASURES, hits),
        )  # fmt: skip


def test_the_examples_of_the_rule_hold():
    failed, tried = doctest.testmod(figures_verdict)
    assert (failed, tried) == (0, 4)


def test_a_difference_of_two_standard_errors_is_needed():
    # 100 paired items: 16 for, 4 against: mean .12, standard error .0433.
    paired = np.array([1.0] * 16 + [-1.0] * 4 + [0.0] * 80)
    verdict = judge([paired], [np.zeros(100)])
    assert verdict.difference == pytest.approx(0.12)
    assert verdict.error == pytest.approx(paired.std(ddof=1) / 10)
    assert verdict.said == "reproduced"
    fewer = np.array([1.0] * 12 + [-1.0] * 6 + [0.0] * 82)
    assert judge([fewer], [np.zeros(100)]).said == NOISE


def test_seeds_that_disagree_are_noise_however_many_the_items():
    ahead, level = np.ones(10_000), np.zeros(10_000)
    assert judge([ahead, level, level], [level, level, level]).said == NOISE
    assert judge([ahead, ahead, ahead], [level, level, level]).said == "reproduced"


def test_seeds_are_paired_whatever_their_order():
    study = replace(STUDY, worlds={"easy": {}}, starts={CAPTIONED: COVER})
    made = list(results(study, lambda arm, seed, step: 0.2 + 0.3 * seed))
    made.sort(key=lambda r: r.seed if r.arm == "thumbnail" else -r.seed)
    assert judge_claim(CLAIM, "recall", made).difference == 0
    missing = [r for r in made if (r.arm, r.seed) != ("1 frame", 1)]
    assert judge_claim(CLAIM, "recall", missing).difference == 0
    assert judge_claim(CLAIM, "recall", [r for r in made if r.arm != "thumbnail"]) is None


def test_who_was_faster_is_told_by_all_looks():
    claim = next(c for c in CLAIMS if c.course)
    study = replace(STUDY, worlds={"easy": {}}, starts={CAPTIONED: (claim.better, claim.worse)})

    def level(arm, seed, step):
        return 1.0 if step == study.steps or arm == claim.better else 0.0

    made = list(results(study, level))
    assert judge_claim(claim, "match_rate", made).said == "reproduced"
    at_the_end = replace(claim, course=False)
    assert judge_claim(at_the_end, "match_rate", made).said == NOISE


def test_arms_show_what_their_names_say():
    assert {c.better for c in CLAIMS} | {c.worse for c in CLAIMS} <= set(ARMS)
    for claim in CLAIMS:
        assert {claim.better, claim.worse} <= set(FIGURES[claim.figure][1])
    for name, arm in ARMS.items():
        shown = arm.style.slots - {"text"}
        assert ("title" in shown) == (name not in ("cluster", "video"))
        assert arm.style.reasons == ("reasoning" in name)
        assert bool(arm.frames) == arm.style.frames
    assert ARMS["cluster"].style.slots == {"cluster"}
    assert not ARMS["title"].style.looks
    for frames in FIGURES[4][1]:
        assert not ARMS[frames].style.thumbnail
        assert f"{ARMS[frames].frames} " in frames
    assert not ARMS["thumbnail"].style.frames


def test_a_result_is_keyed_by_all_that_it_depends_on():
    ground = Ground(STUDY, "easy", 0)
    run = Run(ground, SCRATCH, ARMS["video"])
    others = [
        replace(run, start=CAPTIONED),
        replace(run, arm=ARMS["title"]),
        replace(run, arm=replace(run.arm, frames=3)),
        replace(run, ground=replace(ground, seed=1)),
        replace(run, ground=replace(ground, world="harder")),
        *(
            replace(run, ground=replace(ground, study=replace(STUDY, **change)))
            for change in ({"looks": (20, 220)}, {"judged": 9}, {"batch_size": 8},
                           {"pretrain_steps": 9}, {"sizes": {"users": 300}}, {"code": "other"})
        ),
    ]  # fmt: skip
    assert len({r.key for r in (run, *others)}) == 1 + len(others)


def test_a_world_is_not_made_again_for_longer_training():
    keys = [
        Ground(replace(STUDY, **change), "easy", 0).key
        for change in ({}, {"looks": (20, 400)}, {"judged": 9}, {"batch_size": 8}, {"seeds": 5},
                       {"pretrain_steps": 9}, {"sizes": {"users": 300}}, {"code": "other"})
    ]  # fmt: skip
    assert len(set(keys[:5])) == 1
    assert len(set(keys)) == 4


def test_the_table_says_what_came_out_and_leaves_out_what_was_not_run(tmp_path):
    def level(arm, seed, step):
        return 0.9 if "frame" not in arm else 0.1 + 0.2 * (arm == "2 frames")

    made = list(results(STUDY, level))
    table = write_table(STUDY, made, "the command")
    assert "`the command`: 90 runs" in table
    rows = [line for line in table.splitlines() if line.startswith("| thumbnail above one frame")]
    assert len(rows) == 2  # recall_at_1 and recall
    assert all(row.count("**reproduced** +") == 2 for row in rows)  # two worlds, one start
    (row,) = (r for r in table.splitlines() if r.startswith("| 4 frames above 2 | recall,"))
    assert row.count("**not reproduced** -") == 2
    assert sum(r.startswith("| 1 frame | 0.") for r in table.splitlines()) == 2
    few = [r for r in made if r.arm in ("video", "cluster") and r.world == "easy"]
    table = write_table(STUDY, few, "the command")
    assert "Figure 4" not in table
    assert "harder" not in table
    assert "reasoning" not in table


def test_the_figures_are_small_enough_for_a_page(tmp_path):
    made = list(results(STUDY, lambda arm, seed, step: (len(arm) + seed) * step / 5400))
    paths = draw_figures(STUDY, made, tmp_path)
    assert [p.name for p in paths] == ["figure3.png", "figure4.png", "figure5.png"]
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert 10_000 < path.stat().st_size < 150_000


TEXTS = ["rye", "cake", "hill", "track"]  # the first token decides


def planner_of(style):
    mllm = build_embedded([f" {text}" for text in TEXTS] * 40, 330, seed=0)
    tree = ClusterTree.from_leaves(
        (1, 1, 2, 2), range(4), list("abcd"), ["", "all", "all of it", "bread", "bike", *TEXTS], ""
    )
    plans = {"clusters": 1, "max_reasoning_tokens": 2}
    config = Config.model_validate({"level": 4, "plans": plans})
    return Planner.build(mllm, tree, config, "", style)


def test_each_look_judges_the_model_as_it_is_then():
    planner = planner_of(ARMS["title"].style)
    contents = [Content(f"{text} {n}") for n, text in enumerate(TEXTS * 2)]
    own = [planner.nodes.at_level(4)[3]] * len(contents)

    def planned():
        return [p.clusters[0].node_id for p in replace(planner).plan(contents, own)]

    before = planned()
    assert all(hits_of(planner, contents, own, before)["recall_at_1"])
    with torch.no_grad():
        planner.mllm.model.get_output_embeddings().weight.mul_(-1)
    after = planned()
    assert after != before
    assert all(hits_of(planner, contents, own, after)["recall_at_1"])


def test_no_arm_is_told_a_topic_beside_what_it_is_shown(monkeypatch):
    planner = planner_of(STYLES["text"])
    mllm, own = planner.mllm, planner.nodes.at_level(4)[0]
    begun, encode = [], mllm.encode

    def seen(prompts):
        begun.extend(prompt.opening for prompt in prompts)
        return encode(prompts)

    monkeypatch.setattr(mllm, "encode", seen)
    hits_of(planner, [Content("rye")], [own], [own])
    assert begun == ["", ""]


@pytest.mark.parametrize("text", ["", "{}", '{"looks": [{"step": 1}]}', "[]"])
def test_a_file_that_is_no_result_is_named(tmp_path, text):
    file = tmp_path / "easy-0-123.json"
    file.write_text(text)
    with pytest.raises(CorruptArtifact, match=r"easy-0-123\.json: holds no result.*Remove it"):
        read_result(file)


@pytest.mark.parametrize(("out", "docs"), [("file", "docs"), ("file/in", "docs"), ("out", "file")])
def test_a_place_that_is_a_file_is_refused_before_anything_is_made(tmp_path, out, docs):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidRequest, match=r"--(out|docs): cannot be a folder.*file"):
        make_figures(STUDY, tmp_path / out, "the command", docs=tmp_path / docs)
    assert not list(tmp_path.rglob("*.parquet"))


def test_what_is_missing_is_trained_and_what_is_there_is_kept(tmp_path):
    study = replace(
        STUDY,
        worlds={"harder": {"second_theme": "shift"}},
        starts={SCRATCH: ("cluster",), CAPTIONED: ("video",)},
        seeds=1,
        looks=(2, 3),
        batch_size=2,
        judged=6,
        pretrain_steps=1,
        sizes={"items_per_topic": 8, "interactions": 20_000, "users": 100, "captions": 100},
    )
    there, missing = study.runs()
    out, docs = tmp_path / "out", tmp_path / "docs"
    file = out / "runs" / f"{there.key}.json"
    file.parent.mkdir(parents=True)
    look = {"loss": 1.0, "recall_at_1": "010000", "recall": "000000", "match_rate": "011111"}
    about = {"world": "harder", "start": SCRATCH, "arm": "cluster", "seed": 0}
    file.write_text(json.dumps({**about, "looks": [{"step": s, **look} for s in study.looks]}))
    kept = file.stat().st_mtime_ns

    written = make_figures(study, out, "the command", workers=1, docs=docs)
    assert [p.relative_to(tmp_path).as_posix() for p in written] == [
        "out/figures.jsonl", "out/table.md", "out/figure3.png", "docs/table.md", "docs/figure3.png",
    ]  # fmt: skip
    assert file.stat().st_mtime_ns == kept
    result = read_result(out / "runs" / f"{missing.key}.json")
    assert result.steps.tolist() == [2, 3]
    assert all(result.hits[m].shape == (2, 6) for m in MEASURES)
    assert not result.hits["match_rate"].any(), "a description that nobody has taught it"
    points = [json.loads(line) for line in (out / POINTS).read_text().splitlines()]
    assert [(p["start"], p["arm"], p["step"]) for p in points] == [
        (SCRATCH, "cluster", 2), (SCRATCH, "cluster", 3),
        (CAPTIONED, "video", 2), (CAPTIONED, "video", 3),
    ]  # fmt: skip
    assert points[0]["match_rate"] == pytest.approx(5 / 6)
    assert "Made by `the command`" in (docs / TABLE).read_text()
    # All is there now: no worker is needed, of which there cannot be so few.
    make_figures(study, out, "the command", workers=-1)
