"""The bench on films: what it needs, and that it goes through where it has it."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


def bench(*arguments, cwd):
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "ml1m_planner.py"), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_the_films_it_says_what_to_bring_and_writes_nothing(tmp_path):
    done = bench("--data", "films", cwd=tmp_path)
    assert done.returncode == 1
    assert "no items.parquet in films" in done.stderr
    assert "--data" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def jpeg(seed):
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def films(folder, count=400):
    """Films of made-up words, one in eight without a poster, and ratings at random."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    words = [
        f"{a}{b}" for a in ("bal", "cor", "dun", "fer", "gim") for b in ("do", "ka", "lu", "mi")
    ]
    bare = [n % 8 == 0 for n in range(count)]
    pq.write_table(
        pa.table(
            {
                "item_id": range(count),
                "title_raw": [f"{' '.join(rng.choice(words, 2))} (1995)" for _ in range(count)],
                "genres": [["Drama", "Comedy", "Crime"][n % 3] for n in range(count)],
                "plot": [" ".join(rng.choice(words, 8)) for _ in range(count)],
                "year": [1995] * count,
                "image_jpeg": [None if none else jpeg(n) for n, none in enumerate(bare)],
                "image_is_placeholder": [False] * count,
            }
        ),
        folder / "items.parquet",
    )
    users, each = 300, 60
    pq.write_table(
        pa.table(
            {
                "user_id": np.repeat(np.arange(users), each),
                "item_id": rng.integers(0, count, users * each),
                "timestamp": np.tile(np.arange(each) * 60, users),
                "satisfaction": rng.integers(0, 5, users * each) / 4,
            }
        ),
        folder / "interactions.parquet",
    )


@pytest.mark.full
def test_it_compares_the_arms_on_the_films_that_have_a_poster(tmp_path):
    films(tmp_path / "films")
    done = bench("--quick", "--data", "films", "--seeds", "0", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    arms = result["figures"]["arms"]
    planners = result["figures"]["planners"]["0"]
    assert planners["text"]["held_out"] > planners["video_cot"]["held_out"]
    assert result["figures"]["films"][0] == planners["video_cot"]["held_out"]
    for name in ("video_cot", "text, siblings", "popular_siblings", "following"):
        assert arms[name]["recall_at_1"] <= arms[name]["recall_at_5"] <= arms[name]["recall_at_10"]
        assert arms[name]["recall_at_10_se"] >= 0
    assert "video_cot, siblings - following" in result["figures"]["differences"]
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "artifacts").rglob("manifest.json")}
    again = bench("--quick", "--data", "films", "--seeds", "0", "1", cwd=tmp_path)
    assert json.loads(again.stdout.splitlines()[-1])["figures"]["arms"] == arms
    assert {p: p.stat().st_mtime_ns for p in before} == before
