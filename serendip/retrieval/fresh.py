"""What the release's tree has that the export lacks, and the other way round.

A tree grows between two exports (tree/grow.py): its newer items are served from a shelf of their
own, by stand-in vectors; what it has lost is never returned. An item that lies in another leaf by
now stays where the export has it, until the next one. Reads the tree's item order alone; knows no
query.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serendip.artifacts import Artifact
from serendip.core import CorruptArtifact
from serendip.retrieval.item_ids import ItemIds
from serendip.retrieval.shelf import Shelf
from serendip.tree.cluster_tree import LEVELS, Nodes, leaf_starts

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

ITEMS = "items.parquet"  # of the tree artefact


@dataclass(frozen=True)
class Changes:
    """How a tree's items differ from an export's. F fresh items, D deleted ones, L leaves.

    Attributes:
        item_ids: of the fresh items, by leaf, in the tree's order.
        leaf_start: int64[L + 1] over them.
        deleted: int64[D], sorted: ranks of the export.
    """

    item_ids: tuple[str, ...]
    leaf_start: Int64
    deleted: Int64

    @classmethod
    def between(cls, ids: ItemIds, tree: Artifact, leaf_count: int) -> Changes:
        """From the export's IDs to the items of a tree artefact. Raises CorruptArtifact."""
        where = f"tree/{tree.version}/{ITEMS}"
        try:
            table = pq.read_table(tree.file(ITEMS), columns=["item_id", "leaf"])
            theirs = table.column("item_id").cast(pa.large_string())
            leaf = table.column("leaf").to_numpy()
            leaf_starts(leaf, leaf_count, ITEMS)
        except CorruptArtifact as e:
            raise _corrupt(where, e.message) from e
        except (OSError, ValueError, KeyError, pa.ArrowException) as e:
            raise _corrupt(where, f"cannot be read ({type(e).__name__}: {e})") from e
        ours = ids.array()
        fresh = pc.invert(pc.is_in(theirs, value_set=ours))
        kept = pc.is_in(ours, value_set=theirs.combine_chunks()).to_numpy(zero_copy_only=False)
        return cls(
            item_ids=tuple(theirs.filter(fresh).to_pylist()),
            leaf_start=leaf_starts(leaf[fresh.to_numpy()], leaf_count, ITEMS),
            deleted=np.flatnonzero(~kept),
        )


def fresh_shelf(
    changes: Changes, nodes: Nodes, leaf_start: Int64, matrix: Float32, prior: float
) -> Shelf:
    """The fresh items, each scored as its leaf's mean, for a cold user as the prior.

    Where the export has no item in the leaf, it is the mean of the lowest ancestor that has some;
    a zero vector where the export is empty.

    Args:
        leaf_start, matrix: the export's.
        prior: mean satisfaction of the log.
    """
    leaves = nodes.at_level(LEVELS)
    counts = np.diff(changes.leaf_start)
    vectors = np.zeros((len(changes.item_ids), matrix.shape[1]), np.float32)
    for leaf in np.flatnonzero(counts).tolist():
        node = leaves[leaf]
        while True:
            start, end = leaf_start[nodes.leaf_lo[node]], leaf_start[nodes.leaf_hi[node]]
            if start < end or nodes.parent[node] < 0:
                break
            node = int(nodes.parent[node])
        if start < end:
            mean = matrix[start:end].mean(axis=0, dtype=np.float64)
            vectors[changes.leaf_start[leaf] : changes.leaf_start[leaf + 1]] = mean
    return Shelf(
        nodes,
        ItemIds.of(changes.item_ids),
        changes.leaf_start,
        vectors,
        np.full(len(vectors), prior, np.float32),
        fresh=True,
    )


def _corrupt(field: str, message: str) -> CorruptArtifact:
    return CorruptArtifact(message, field=field, remedy="Publish it again (serendip tree).")
