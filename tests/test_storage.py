"""A full or a read-only disk: one typed error that says where and what to do, nothing half."""

import json
import subprocess
import sys

import full_disk
import pytest
from full_disk import WRITERS, outcome, run_on_disk

from serendip.core import MediaError, StorageError
from serendip.storage import storage_errors

SOUND = {"corrupt": [], "drafts": [], "current": 0}


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """What comes of each library's writing on a disk that fills up."""
    disk = tmp_path_factory.mktemp("small") / "disk"
    return disk, outcome(disk, "full", "anew", *WRITERS)


@pytest.mark.parametrize("library", WRITERS)
def test_a_disk_that_fills_up_is_named_whichever_library_wrote(filled, library):
    disk, found = filled[0], filled[1][library]
    error = found["error"]
    assert error["type"] == "StorageError", error
    assert error["field"] == str(disk / library)
    for text in (
        "No space left on device (", "bytes free)", "Free space there", "artifacts_dir",
        "run serendip plan again",
    ):  # fmt: skip
        assert text in error["said"]
    assert found["after"] == SOUND
    assert found["again"] == {**SOUND, "current": 1}


def test_a_draft_that_can_be_resumed_stays_as_a_draft(tmp_path):
    found = outcome(tmp_path / "disk", "full", "resume", "plain")["plain"]
    assert found["error"]["said"].endswith("it goes on where it stopped.")
    assert found["after"]["current"] == 0
    assert found["after"]["corrupt"] == []
    assert len(found["after"]["drafts"]) == 1
    assert found["again"] == {**SOUND, "current": 1}


def test_a_disk_that_is_full_when_the_manifest_is_written_leaves_current_where_it_was(tmp_path):
    found = outcome(tmp_path / "disk", "full_at_the_pointer")
    assert found["error"]["type"] == "StorageError"
    assert "(0 bytes free)" in found["error"]["said"]
    assert found["after"] == SOUND


def test_a_read_only_disk_refuses_to_publish_and_goes_on_serving(tmp_path):
    found = outcome(tmp_path / "disk", "read_only")
    for refused in (found["error"], found["prune"]):
        assert refused["type"] == "StorageError"
        assert "Read-only file system" in refused["said"]
        assert "Make it writable" in refused["said"]
    assert found["reused"]
    assert found["after"] == SOUND


def test_a_limit_on_file_sizes_is_named_like_a_full_disk(tmp_path):
    run = subprocess.run(
        [sys.executable, full_disk.__file__, "limited", str(tmp_path)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    found = json.loads(run.stdout)
    assert found["error"]["type"] == "StorageError"
    assert "File too large" in found["error"]["said"]
    assert found["after"] == SOUND


def test_a_stage_on_a_full_disk_is_one_line_for_its_user(tmp_path):
    (tmp_path / "data").mkdir()
    disk = tmp_path / "artifacts"
    settings = 'source = "files"\ndata_dir = "data"\n[tree]\nbranching = [1, 1, 2, 2]\nmin_df = 1\n'
    (tmp_path / "mine.toml").write_text(settings)
    make = """
import pyarrow as pa, pyarrow.parquet as pq
n = 12
words = ["oven rye bread", "oven cake sugar", "bike hill mud", "bike track speed"]
none = pa.array([None] * n, pa.string())
pq.write_table(pa.table({
    "item_id": [f"i{k}" for k in range(n)], "title": [words[k % 4] for k in range(n)],
    "text": [""] * n, "thumbnail": none, "video": none, "created_at": [0] * n,
}), "data/items.parquet")
pq.write_table(pa.table({
    "user_id": ["u"] * n, "item_id": [f"i{k}" for k in range(n)],
    "timestamp": list(range(n)), "satisfaction": [0.5] * n,
}), "data/interactions.parquet")
from serendip.cli import main
import sys
sys.argv = ["serendip", "tree", "--config", "mine.toml"]
main()
"""
    run = run_on_disk(disk, sys.executable, "-c", make, size=4096, cwd=tmp_path)
    assert run.returncode == 2, run.stderr
    assert "No space left on device" in run.stderr
    assert "run serendip tree again" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file or directory", "elsewhere"),
        PermissionError(13, "Permission denied", "/media/film.mp4"),
        OSError("Can't load the model"),
        MediaError("No space left on device, says the film"),
        ValueError("shape"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_an_error_that_is_not_the_place_s_stays_what_it_is(tmp_path, error):
    with pytest.raises(type(error)) as caught, storage_errors(tmp_path, "again."):
        raise error
    assert caught.value is error


def test_a_folder_that_one_may_not_write_is_named(tmp_path):
    with (
        pytest.raises(
            StorageError, match=r"Permission denied \(.* bytes free\)\. Make it writable"
        ),
        storage_errors(tmp_path, "again."),
    ):
        raise PermissionError(13, "Permission denied", str(tmp_path / "tree" / "0"))


def test_another_full_place_is_the_one_that_is_named(tmp_path):
    elsewhere = tmp_path / "spill"
    with (
        pytest.raises(StorageError, match="spill: No space left on device"),
        storage_errors(tmp_path / "artifacts", "again."),
    ):
        raise OSError(28, "No space left on device", str(elsewhere / "run.0"))
