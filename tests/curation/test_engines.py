"""The same SQL files on DuckDB and on Spark: values and schema of every table are equal."""

import random
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curated import CONFIG, PLACED, table

from serendip.config import Config
from serendip.core import InvalidRequest
from serendip.curation.curate import TABLES, compare_corpus, make_tables
from serendip.curation.engine import open_engine, read_parts

ITEMS = {f"{name}{k}": place for name, place in PLACED.items() for k in range(8)}


def write_log(folder):
    """Impressions and interactions in daily partitions: ties, duplicates, an unknown item."""
    rng = random.Random(5)
    events = []
    for user in range(40):
        time = 0
        for _ in range(60):
            time += rng.choice([0, 7_000, 20_000, 120_000])
            events.append((f"u{user}", rng.choice([*ITEMS]), time, rng.random()))
    events += [*events[:30], ("u1", "gone", 5, 0.5)]
    rng.shuffle(events)
    for day in range(3):
        part = table(events[day::3])
        write_part(folder / "interactions" / f"day={day}", part)
        shown = pa.table(
            {
                "request_id": [f"r{rng.randrange(700)}" for _ in range(len(part))],
                "user_id": part["user_id"],
                "item_id": part["item_id"],
                "timestamp": part["timestamp"],
                "position": pa.array([rng.randrange(3) for _ in range(len(part))], pa.int64()),
                "nominated_by": ["x"] * len(part),
                "propensity": pa.nulls(len(part), pa.float64()),
                "satisfaction": part["satisfaction"],
            }
        )
        write_part(folder / "impressions" / f"day={day}", shown)


def write_part(folder, part):
    folder.mkdir(parents=True)
    pq.write_table(part, folder / "part-0.parquet")


def items():
    nodes, bases = zip(*ITEMS.values(), strict=True)
    return pa.table(
        {
            "item_id": [*ITEMS],
            "item_no": pa.array(range(len(ITEMS)), pa.int32()),
            "node_id": pa.array(nodes, pa.int32()),
            "base_id": pa.array(bases, pa.int32()),
        }
    )


def run(engine_name, data, scratch):
    """({table: its rows, as written}, facts) of a data folder."""
    config = Config.model_validate(
        {
            "data_dir": str(data),
            "curation": {**CONFIG.recipe(), "engine": engine_name, "threads": 2},
        }
    )
    scratch.mkdir()
    with open_engine(config.curation, scratch) as engine:
        engine.view("items", items())
        facts, until = make_tables(engine, config, lambda n=1, note="": None)
        facts |= compare_corpus(engine, None) | {"until": until}
        found = {}
        for name, query in TABLES.items():
            path = scratch / f"{name}.parquet"
            rows = engine.write(query, path)
            found[name] = read_parts([path] if path.is_file() else list(path.iterdir()))
            assert len(found[name]) == rows
    assert not [path for path in scratch.iterdir() if path.name.startswith(".")]
    return found, facts


def test_duckdb_and_spark_give_the_same_tables(tmp_path):
    pytest.importorskip("pyspark", reason="the extra `spark` is not installed")
    if shutil.which("java") is None:
        pytest.skip("there is no java for Spark")
    # A folder's name is no pattern of names.
    data = tmp_path / "data[1]"
    write_log(data)
    ours, facts = run("duckdb", data, tmp_path / "duck*")
    spark, its_facts = run("spark", data, tmp_path / "spark{2}")
    assert facts == its_facts
    assert facts["interactions"]["duplicates"] == 30
    for name in TABLES:
        assert spark[name].schema == ours[name].schema, name
        assert spark[name].equals(ours[name]), name
        assert len(ours[name]) or name == "labels"


def test_partitions_give_what_one_file_gives(tmp_path):
    write_log(tmp_path / "parts")
    day = tmp_path / "parts" / "interactions" / "day=1"
    day.symlink_to(day.rename(tmp_path / "elsewhere[1]"))
    whole = tmp_path / "whole?"
    whole.mkdir()
    for log in ("interactions", "impressions"):
        parts = sorted((tmp_path / "parts" / log).glob("*/*.parquet"))
        # What ParquetFile reads has no column made of the folder's name.
        pq.write_table(
            pa.concat_tables([pq.ParquetFile(p).read() for p in parts]), whole / f"{log}.parquet"
        )
    first, second = (run("duckdb", d, d / "scratch") for d in (tmp_path / "parts", whole))
    assert first == second


def test_spark_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyspark.sql", None)
    config = CONFIG.model_copy(update={"engine": "spark"})
    with pytest.raises(InvalidRequest, match=r"serendip\[spark\]"), open_engine(config, tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_scratch_folder_that_is_not_there_is_named(tmp_path):
    config = CONFIG.model_copy(update={"temp_dir": str(tmp_path / "none")})
    with pytest.raises(InvalidRequest, match=r"curation\.temp_dir"), open_engine(config, Path()):
        pass


def test_too_little_memory_is_one_error_that_names_the_setting(tmp_path):
    config = CONFIG.model_copy(update={"memory_limit": "10MB"})
    heavy = "SELECT LIST(i ORDER BY i DESC) AS x FROM range(20000000) t(i)"
    with (
        pytest.raises(InvalidRequest, match=r"curation\.memory_limit"),
        open_engine(config, tmp_path) as engine,
    ):
        engine.table("heavy", heavy)
    assert not list(tmp_path.iterdir())
