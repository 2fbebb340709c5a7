"""A log whose next item is certain, and a retriever trained on it: made once, used by many."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from serendip.artifacts import Artifact, Artifacts
from serendip.config import Config, RetrieverConfig
from serendip.tree.cluster_tree import ClusterTree

ITEMS = 120
USERS = 250
EVENTS = 24
BRANCHING = (2, 2, 2, 2)
RETRIEVER = RetrieverConfig(
    dimensions=24,
    blocks=2,
    heads=2,
    max_history=10,
    epochs=10,
    batch_size=32,
    lr=1e-2,
    dropout=0.0,
    threads=1,
    attributes=("language", "age", "created_at"),
)
# Of item-0, item-1, ...: nulls among them.
ATTRIBUTES: dict[str, list[Any]] = {
    "language": [("en", "de", None)[i % 3] for i in range(ITEMS)],
    "age": [None if i % 7 == 0 else i % 18 for i in range(ITEMS)],
    "created_at": [i * 1000 for i in range(ITEMS)],
}


@dataclass(frozen=True)
class World:
    """Data, artefacts and the config that made them."""

    config: Config
    artifacts: Artifacts
    retriever: Artifact
    tree: ClusterTree


def cycle(user: int) -> npt.NDArray[np.int64]:
    """Items of one user: from anywhere on one fixed tour of all items, step by step."""
    tour = np.random.default_rng(7).permutation(ITEMS)
    return tour[(user * 13 + np.arange(EVENTS)) % ITEMS]


def write_data(folder: Path) -> None:
    """Writes items.parquet and interactions.parquet."""
    folder.mkdir(parents=True)
    names = [f"item-{i}" for i in range(ITEMS)]
    items = {
        "item_id": pa.array(names, pa.string()),
        "title": pa.array(names, pa.string()),
        "text": pa.array([""] * ITEMS, pa.string()),
        "thumbnail": pa.array([None] * ITEMS, pa.string()),
        **{name: pa.array(values) for name, values in ATTRIBUTES.items()},
    }
    pq.write_table(pa.table(items), folder / "items.parquet")
    rng = np.random.default_rng(1)
    log = {
        "user_id": pa.array([f"u{u}" for u in range(USERS) for _ in range(EVENTS)], pa.string()),
        "item_id": pa.array([names[i] for u in range(USERS) for i in cycle(u)], pa.string()),
        "timestamp": pa.array([1000 + t for _ in range(USERS) for t in range(EVENTS)], pa.int64()),
        "satisfaction": pa.array(rng.uniform(0.2, 1.0, USERS * EVENTS), pa.float64()),
    }
    pq.write_table(pa.table(log), folder / "interactions.parquet")


def publish_tree(artifacts: Artifacts) -> ClusterTree:
    """Publishes a tree of 16 leaves that know nothing of the tour."""
    leaf = np.random.default_rng(2).integers(0, 16, ITEMS)
    with artifacts.publish("tree", {"made": "for tests"}, {}) as draft:
        tree = ClusterTree.from_leaves(
            BRANCHING, leaf, [f"item-{i}" for i in range(ITEMS)], None, draft.version
        )
        tree.save(draft.path)
        draft.facts["tree_version"] = draft.version
    return ClusterTree.open(artifacts.current("tree"))


_made: list[World] = []


def world(folder: Path) -> World:
    """The world, in the first folder that anyone asked with."""
    if not _made:
        from serendip.retrieval.train import publish_retriever

        config = Config(
            source="files",
            data_dir=str(folder / "data"),
            artifacts_dir=str(folder / "artifacts"),
            retriever=RETRIEVER,
        )
        write_data(config.data_path)
        artifacts = Artifacts(config.artifacts_path)
        tree = publish_tree(artifacts)
        _made.append(World(config, artifacts, publish_retriever(config, artifacts), tree))
    return _made[0]
