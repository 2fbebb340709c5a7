"""Curation of a handful of events: what goes in, and every table that comes out."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow as pa

from serendip.config import CurationConfig
from serendip.curation.curate import choose_corpus, curate, narrow
from serendip.curation.engine import open_engine

# Items a0 a1 | b0 b1 | c0: clusters a and b meet at base 1, c lies elsewhere.
PLACED = {"a0": (10, 1), "a1": (10, 1), "b0": (11, 1), "b1": (11, 1), "c0": (20, 2)}
CONFIG = CurationConfig(
    session_gap_s=100,
    min_support=0.1,
    shrinkage=2,
    contexts_per_cluster=1,
    held_out_share=0.15,
    threads=1,
)
OF_PAIRS = ("held_out", "scores", "training", "labels", "transitions", "comparison")
ORDER = {
    "scores": "item_id, rank_in_item",
    "training": "node_id, rank_in_cluster",
    "transitions": "own_id, node_id",
    "comparison": "kind",
}


def table(events):
    names = ("user_id", "item_id", "timestamp", "satisfaction")
    columns = list(zip(*events, strict=True)) if events else [()] * 4
    types = (pa.string(), pa.string(), pa.int64(), pa.float64())
    return pa.table({n: pa.array(c, t) for n, c, t in zip(names, columns, types, strict=True)})


def placed():
    return pa.table(
        {
            "item_id": list(PLACED),
            "item_no": pa.array(range(len(PLACED)), pa.int32()),
            "node_id": pa.array([n for n, _ in PLACED.values()], pa.int32()),
            "base_id": pa.array([b for _, b in PLACED.values()], pa.int32()),
        }
    )


def curated(events, config=CONFIG):
    """{name: table} of the curated pairs, and {what: count} of what was repaired."""
    with tempfile.TemporaryDirectory() as folder, open_engine(config, Path(folder)) as engine:
        engine.view("interactions", table(events))
        engine.view("items", placed())
        narrow(engine)
        repaired = curate(engine, config)
        found = {
            name: engine.fetch(f"SELECT * FROM {name} ORDER BY {ORDER.get(name, 'item_id')}")
            for name in OF_PAIRS
        }
    return found, repaired


def corpus_of(counts, coverage, config=CONFIG):
    """Rows of the corpus of {item_id: impressions}."""
    traffic = pa.table({"item_id": list(counts), "impressions": list(counts.values())})
    with tempfile.TemporaryDirectory() as folder, open_engine(config, Path(folder)) as engine:
        engine.view("traffic", traffic)
        choose_corpus(engine, coverage)
        ordered = "SELECT * FROM corpus ORDER BY impressions DESC, item_id"
        return engine.fetch(ordered).to_pylist()
