"""A catalogue of 16 planted interests, told by their words: small enough for each test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serendip.config import Config

# Broad words of two halves, of two quarters each, and so on: 2 x 2 x 2 x 2 leaves.
WORDS = (
    ("alpine", "marine"), ("granite", "glacier", "coral", "harbour"),
    ("ridge", "summit", "icefall", "moraine", "reef", "lagoon", "pier", "lantern"),
    ("ibex", "marmot", "gentian", "edelweiss", "serac", "crevasse", "boulder", "tarn", "parrotfish",
     "urchin", "manta", "turtle", "tugboat", "trawler", "foghorn", "keeper"),
)  # fmt: skip
LEAVES = 16


def title(leaf: int, rng: np.random.Generator) -> str:
    """Words of a leaf and those above it, in any order, and a noise word."""
    words = [level[leaf * len(level) // LEAVES] for level in WORDS]
    words += [words[-1] + "s", f"noise{'abcdefgh'[rng.integers(8)]}"]
    return " ".join(rng.permutation(words))


def items(leaves: Sequence[int], first: int = 0, seed: int = 0) -> dict[str, str]:
    """Titles by item ID: one item for each leaf rank given."""
    rng = np.random.default_rng([seed, first])
    return {f"i{first + n:04d}": title(leaf, rng) for n, leaf in enumerate(leaves)}


def write(
    folder: Path,
    titles: Mapping[str, str],
    vectors: Sequence[Sequence[float]] | None = None,
    views: int = 1,
) -> None:
    """items.parquet, and interactions.parquet in which every item is seen ``views`` times."""
    folder.mkdir(parents=True, exist_ok=True)
    n = len(titles)
    table = {
        "item_id": pa.array(titles, pa.string()),
        "title": pa.array(titles.values(), pa.string()),
        "text": pa.array([""] * n, pa.string()),
        "thumbnail": pa.array([None] * n, pa.string()),
        "created_at": pa.array([0] * n, pa.int64()),
    }
    if vectors is not None:
        table["vector"] = pa.array(list(map(list, vectors)), pa.list_(pa.float32()))
    pq.write_table(pa.table(table), folder / "items.parquet")
    log = {
        "user_id": pa.array(["u"] * n * views, pa.string()),
        "item_id": pa.array(list(titles) * views, pa.string()),
        "timestamp": pa.array(range(n * views), pa.int64()),
        "satisfaction": pa.array([0.5] * n * views, pa.float64()),
    }
    pq.write_table(pa.table(log), folder / "interactions.parquet")


def config(folder: Path, **tree) -> Config:
    """Settings for a catalogue in ``folder``/data."""
    return Config(
        source="files",
        data_dir=str(folder / "data"),
        artifacts_dir=str(folder / "artifacts"),
        tree={"branching": (2, 2, 2, 2), "dimensions": 24, **tree},
    )
