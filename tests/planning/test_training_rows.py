"""What a planner is trained on: no row that looks like a held-out item, and a teacher's traces.

A catalogue of twelve items, with tree and pairs made by hand: every stage takes a moment.
"""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from own_teacher import serve
from PIL import Image

from serendip.artifacts import Artifacts
from serendip.catalog import render
from serendip.catalog.items import fingerprint
from serendip.config import Config
from serendip.core import InvalidRequest
from serendip.planning import batches
from serendip.planning.examples import load_examples
from serendip.planning.finetune import publish_planner
from serendip.planning.prompt import write_answer
from serendip.planning.style import STYLES
from serendip.tree.cluster_tree import ClusterTree

BRANCHING = (1, 1, 2, 2)
NAMES = ["bread: rye", "bread: cake", "bike: hill", "bike: track"]
ITEMS = [f"i{n:02d}" for n in range(12)]  # three a cluster
HELD_OUT = "i00"
COPY, BROKEN = "i03", "i06"  # the first's picture in another size; none at all


def drawn(seed, side=render.SIDE, quality=90):
    rng = np.random.default_rng([5, seed])
    image = Image.fromarray(render.draw(render.random_scene(seed % 4, rng), rng))
    file = io.BytesIO()
    image.resize((side, side)).save(file, "JPEG", quality=quality)
    return file.getvalue()


@pytest.fixture
def world(tmp_path):
    """(config without a teacher, artefacts)."""
    pictures = {item: drawn(at) for at, item in enumerate(ITEMS)}
    pictures |= {COPY: drawn(0, 96, 75), BROKEN: b"no picture"}
    (tmp_path / "data").mkdir()
    columns = {
        "item_id": ITEMS,
        "title": [f"number {n}" for n in range(12)],
        "text": [""] * 12,
        "thumbnail": pa.array(list(pictures.values()), pa.binary()),
        "created_at": [0] * 12,
    }
    pq.write_table(pa.table(columns), tmp_path / "data" / "items.parquet")
    config = Config.model_validate(
        {
            "data_dir": str(tmp_path / "data"),
            "artifacts_dir": str(tmp_path / "artifacts"),
            "planner": {
                "frames": 0, "vocabulary": 320, "pretrain_steps": 0, "steps": 1, "batch_size": 2,
                "trace_tokens": 64,
            },
            "teacher": {"at_once": 2, "tries": 1},
        }
    )  # fmt: skip
    artifacts = Artifacts(config.artifacts_path)
    data = {"data": fingerprint(config.data_path)}
    with artifacts.publish("tree", {}, data, log_until=0) as draft:
        plain = ClusterTree.from_leaves(BRANCHING, np.repeat(range(4), 3), ITEMS, None, "")
        texts = ["", *(f"node {n}" for n in range(1, len(plain.nodes) - 4)), *NAMES]
        tree = ClusterTree.from_leaves(
            BRANCHING, np.repeat(range(4), 3), ITEMS, texts, draft.version
        )
        tree.save(draft.path)
        draft.facts["tree_version"] = draft.version
    nodes = list(tree.nodes.at_level(4))
    rows = [
        {
            "item_id": item, "own_id": nodes[at // 3], "node_id": nodes[at // 3 ^ 1],
            "support": 1.0, "satisfaction": 0.5, "rank_in_cluster": 1,
        }
        for at, item in enumerate(ITEMS)
    ]  # fmt: skip
    inputs = {"tree": tree.version, "tree_items": tree.version, **data}
    with artifacts.publish("pairs", {"level": 4, "level_gap": 1}, inputs, log_until=0) as draft:
        training = pa.Table.from_pylist([r for r in rows if r["item_id"] != HELD_OUT])
        pq.write_table(training, draft.path / "training.parquet")
        pq.write_table(pa.table({"item_id": [HELD_OUT]}), draft.path / "held_out.parquet")
    return config, artifacts


def changed(config, **planner):
    return config.model_copy(update={"planner": config.planner.model_copy(update=planner)})


def load(config, artifacts, style="video_cot"):
    tree = ClusterTree.open(artifacts.current("tree"))
    training, validation, left_out, _ = load_examples(
        config, STYLES[style], tree, artifacts.current("pairs")
    )
    return {f"i{int(e.content.title.split()[1]):02d}" for e in training + validation}, left_out


def test_what_looks_like_a_held_out_item_is_not_trained_on(world):
    rows, left_out = load(*world)
    assert rows == set(ITEMS) - {HELD_OUT, COPY, BROKEN}
    assert left_out == {"near_duplicates": 1, "unreadable": 1}


def test_every_style_is_trained_on_the_same_rows_but_for_what_cannot_be_shown(world):
    rows, left_out = load(*world, "text")
    assert rows == set(ITEMS) - {HELD_OUT, COPY}
    assert left_out == {"near_duplicates": 1, "unreadable": 0}


def test_looking_for_near_duplicates_can_be_turned_off(world):
    config, artifacts = world
    rows, left_out = load(changed(config, near_duplicate_bits=-1), artifacts)
    assert COPY in rows
    assert left_out["near_duplicates"] == 0


def test_a_planner_is_trained_on_its_teachers_traces(world, monkeypatch):
    config, artifacts = world
    config = changed(config, steps=8)
    trained_on = set()

    def spy(style, own, look, description):
        trained_on.add((description, look))
        return write_answer(style, own, look, description)

    monkeypatch.setattr(batches, "write_answer", spy)

    def script(asked, before):
        number = int(asked.words.split("Title: number ")[1].split()[0])
        return "Some cake and a track." if number % 2 else "A plain scene."

    with serve(script) as teacher:
        taught = changed(config, teacher=teacher.url)
        planner = publish_planner(taught, artifacts)
        traces = planner.facts["traces"]
        assert planner.facts["near_duplicates"] == planner.facts["unreadable"] == 1
        assert traces["rows"] == traces["asked"] == len(teacher.asked) == 9
        # Of items 1, 5, 7, 9 and 11, the labels of 1 and 7 are cake and track.
        assert (traces["kept"], traces["leaked"]) == (7, 2)
        looks = {look for label, look in trained_on if label}
        assert looks >= {"A plain scene.", "Some cake and a track.", ""}
        assert ("bread: cake", "Some cake and a track.") not in trained_on
        assert not any(NAMES[at] in a.words for a in teacher.asked for at in range(4))
        # The recipe of the traces is the planner's; how fast they were asked for is not.
        patient = taught.teacher.model_copy(update={"timeout_s": 9.0})
        assert publish_planner(taught.model_copy(update={"teacher": patient}), artifacts) == planner
        assert len(teacher.asked) == 9
    (cache,) = (config.artifacts_path / "traces").glob("*.jsonl")
    assert len([json.loads(line) for line in cache.read_text().splitlines()]) == 9


def test_a_teacher_for_a_style_without_reasoning_is_refused_before_anything_is_trained(world):
    config, artifacts = world
    with pytest.raises(InvalidRequest, match="no place for a trace"):
        publish_planner(changed(config, teacher="http://localhost:1", style="video"), artifacts)
