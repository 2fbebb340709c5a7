"""Pairs of 24 items over a tree of four leaves, made by hand: what fine-tuning reads."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from serendip.artifacts import Artifacts
from serendip.catalog.items import fingerprint
from serendip.config import Config
from serendip.tree.cluster_tree import ClusterTree, tree_inputs

DESCRIPTIONS = ["bread: rye", "bread: rye and oats", "bike: hill", "bike: hill and mud"]
ITEMS = [f"i{n:02}" for n in range(24)]
PAIR_COLUMNS = {
    "item_id": pa.string(), "own_id": pa.int32(), "node_id": pa.int32(),
    "satisfaction": pa.float64(),
}  # fmt: skip


def pair_config(folder: Path, checkpoint: Path | str, **planner) -> Config:
    values = {
        "checkpoint": str(checkpoint), "steps": 3, "log_every": 2, "batch_size": 4, "frames": 0,
        "lr": 1e-3, "vocabulary": 340, "pretrain_steps": 2,
    }  # fmt: skip
    return Config.model_validate(
        {
            "data_dir": str(folder / "data"),
            "artifacts_dir": str(folder / "artifacts"),
            "planner": {**values, **planner},
            "plans": {"max_reasoning_tokens": 4, "clusters": 2, "beams": 3},
        }
    )


def four_clusters() -> ClusterTree:
    """A tree with one item a leaf, described by DESCRIPTIONS."""
    texts = ["", "all", "all of it", "bread", "bike", *DESCRIPTIONS]
    return ClusterTree.from_leaves((1, 1, 2, 2), [0, 1, 2, 3], list("abcd"), texts, "")


def make_pairs(config: Config, label: int | None = None) -> Artifacts:
    """Catalogue, thumbnails, tree and pairs; ``label`` instead of each pair's true one."""
    data = config.data_path
    data.mkdir(parents=True)
    for n, item in enumerate(ITEMS):
        pixels = np.random.default_rng(n).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(data / f"{item}.png")
    words = [DESCRIPTIONS[n % 4] for n in range(len(ITEMS))]
    columns = {
        "item_id": ITEMS,
        "title": [f"{word} {n}" for n, word in enumerate(words)],
        "text": [""] * len(ITEMS),
        "thumbnail": [f"{item}.png" for item in ITEMS],
        "created_at": pa.array([0] * len(ITEMS), pa.int64()),
    }
    pq.write_table(pa.table(columns), data / "items.parquet")
    artifacts = Artifacts(config.artifacts_path)
    version = fingerprint(data)
    with artifacts.publish("tree", {}, {"data": version}, log_until=1) as draft:
        above = ["", "all", "all of it", "bread", "bike"]
        leaves = [n % 4 for n in range(len(ITEMS))]
        tree = ClusterTree.from_leaves(
            (1, 1, 2, 2), leaves, ITEMS, above + DESCRIPTIONS, draft.version
        )
        tree.save(draft.path)
        draft.facts["tree_version"] = draft.version
    clusters = tree.nodes.at_level(4)
    own = [clusters[n % 4] for n in range(len(ITEMS))]
    target = [clusters[(n + 1) % 4] if label is None else label for n in range(len(ITEMS))]
    inputs = {**tree_inputs(artifacts.current("tree")), "data": version}
    settings = {"level": config.level, "level_gap": config.level_gap}
    with artifacts.publish("pairs", settings, inputs, log_until=1) as draft:
        rows = dict(zip(PAIR_COLUMNS, (ITEMS, own, target, [1.0] * len(ITEMS)), strict=True))
        table = pa.table(rows, schema=pa.schema(list(PAIR_COLUMNS.items())))
        pq.write_table(table, draft.path / "training.parquet")
        pq.write_table(table.slice(0, 0), draft.path / "held_out.parquet")
    return artifacts
