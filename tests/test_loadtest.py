"""Requests for load tests, made of hand-made artefacts and a log of a few events."""

import base64
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from parts import ITEMS, publish_all
from PIL import Image

from serendip.artifacts import Artifacts
from serendip.config import Config
from serendip.core import InvalidData, InvalidRequest
from serendip.loadtest import write_data

# i7 has no plan: a user of it alone has nothing to ask with.
LOG = {"u": ["i0", "i7", "i3", "i1"], "v": ["i7"], "w": ["i5", "i2"]}


def jpeg():
    out = io.BytesIO()
    Image.new("RGB", (16, 16), (90, 20, 30)).save(out, "JPEG")
    return out.getvalue()


def write_log(folder, log):
    rows = [(user, item, at) for user, items in log.items() for at, item in enumerate(items)]
    table = {
        "user_id": [user for user, _, _ in rows],
        "item_id": [item for _, item, _ in rows],
        "timestamp": pa.array([1000 * (at + 1) for _, _, at in rows], pa.int64()),
        "satisfaction": [0.25] * len(rows),
    }
    pq.write_table(pa.table(table), folder / "data" / "interactions.parquet")


@pytest.fixture
def world(tmp_path):
    """A configuration, and artefacts of one release."""
    (tmp_path / "data").mkdir()
    items = {
        "item_id": ITEMS,
        "title": [f"about {{{{.{item}}}}}" for item in ITEMS],
        "text": [""] * len(ITEMS),
        "thumbnail": [jpeg(), b"no picture", None, *[jpeg()] * 5],
        "created_at": pa.array([0] * len(ITEMS), pa.int64()),
    }
    pq.write_table(pa.table(items), tmp_path / "data" / "items.parquet")
    write_log(tmp_path, LOG)
    config = Config.model_validate(
        {"data_dir": str(tmp_path / "data"), "artifacts_dir": str(tmp_path / "artifacts")}
    )
    artifacts = Artifacts(config.artifacts_path)
    publish_all(artifacts)
    return config, artifacts


def read(folder):
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def test_users_ask_with_what_they_had_seen_up_to_an_item_that_has_a_plan(world, tmp_path):
    config, artifacts = world
    written = write_data(config, artifacts, tmp_path / "deep" / "out", 60)
    files = read(tmp_path / "deep" / "out")
    assert {path.stem: count for path, count in written.items()} == {
        name: len(rows) for name, rows in files.items()
    }
    asked = {
        (tuple(e["item_id"] for e in r["history"]), r["context_item_id"])
        for r in files["recommend"]
    }
    assert asked == {
        (("i0",), "i0"), (("i0", "i7", "i3"), "i3"), (("i0", "i7", "i3", "i1"), "i1"),
        (("i5",), "i5"), (("i5", "i2"), "i2"),
    }  # fmt: skip
    event = files["recommend"][0]["history"][0]
    assert event == {"item_id": event["item_id"], "timestamp_ms": "1000", "satisfaction": 0.25}
    assert [r["context_item_ids"][0] for r in files["plan"]] == [
        r["context_item_id"] for r in files["recommend"]
    ]


def test_retrievals_follow_the_plans_of_the_release(world, tmp_path):
    config, artifacts = world
    write_data(config, artifacts, tmp_path / "out", 40)
    files = read(tmp_path / "out")
    release = artifacts.current("release")
    for request in files["retrieve"]:
        assert request["tree_version"] == release.inputs["tree"]
        assert (request["node_ids"], request["widen_node_ids"]) == ([5], [6])  # as publish_plans
    for name in ("recommend", "retrieve"):
        batches = files[f"{name}-batch"]
        assert [len(batch["requests"]) for batch in batches] == [32, 8]
        assert [one for batch in batches for one in batch["requests"]] == files[name]
    assert [i for r in files["plan-many"] for i in r["context_item_ids"]] == [
        r["context_item_ids"][0] for r in files["plan"]
    ]


def test_content_is_what_can_be_read(world, tmp_path):
    config, artifacts = world
    write_data(config, artifacts, tmp_path / "out", 3)
    contents = read(tmp_path / "out")["plan-content"]
    assert {content["title"] for content in contents} == {
        f"about {{{{.{item}}}}}" for item in ITEMS if item not in ("i1", "i2")
    }
    assert all(base64.b64decode(content["thumbnail"]) == jpeg() for content in contents)


def test_no_title_is_code_to_ghz(world, tmp_path):
    config, artifacts = world
    write_data(config, artifacts, tmp_path / "out", 3)
    text = (tmp_path / "out" / "plan-content.json").read_text()
    assert "{{" not in text
    assert json.loads(text)[0]["title"].startswith("about {{.")


def test_one_seed_is_one_set_of_files_and_another_another(world, tmp_path):
    config, artifacts = world
    for out in ("a", "b"):
        write_data(config, artifacts, tmp_path / out, 50)
    write_data(config.model_copy(update={"seed": 1}), artifacts, tmp_path / "c", 50)
    assert read(tmp_path / "a") == read(tmp_path / "b")
    assert read(tmp_path / "a")["resolve"] != read(tmp_path / "c")["resolve"]


def test_what_cannot_be_made_writes_nothing(world, tmp_path):
    config, artifacts = world
    write_log(tmp_path, {"v": ["i7"]})
    with pytest.raises(InvalidData, match="has no user with an item that has a plan"):
        write_data(config, artifacts, tmp_path / "out", 5)
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_named(world, tmp_path):
    config, artifacts = world
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InvalidRequest, match=r"--out: is no folder, got .*file"):
            write_data(config, artifacts, out, 5)
    assert (tmp_path / "file").read_text() == "mine"
