"""Which node of a rebuilt tree is which of the one before, by the items that both hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.sparse import csr_matrix

from serendip.tree.cluster_tree import ROOT, ClusterTree

Int = npt.NDArray[np.int32]

FILE = "node_map.parquet"
SURVIVES = 0.5  # overlap from which two clusters are taken to be the same interest


@dataclass(frozen=True)
class NodeMap:
    """For each of the M nodes of the tree before, its likeliest successor.

    Attributes:
        node: int32[M], node of the new tree at the same level; -1: no item is in both.
        overlap: float32[M], items in both over items in either, of the items that both trees have.
    """

    node: Int
    overlap: npt.NDArray[np.float32]

    def survives(self, node_id: int) -> bool:
        """Whether an old node has a successor that shares most items with it."""
        return bool(self.overlap[node_id] > SURVIVES)

    def save(self, folder: Path) -> None:
        """Writes node_map.parquet: one row a node of the tree before, in node order."""
        before = np.arange(len(self.node), dtype=np.int32)
        table = pa.table({"before": before, "node_id": self.node, "overlap": self.overlap})
        pq.write_table(table, folder / FILE)

    @classmethod
    def load(cls, path: Path) -> NodeMap:
        """Reads what ``save`` wrote."""
        table = pq.read_table(path)
        return cls(table.column("node_id").to_numpy(), table.column("overlap").to_numpy())


def map_nodes(old: ClusterTree, new: ClusterTree) -> NodeMap:
    """Maps every node by the largest overlap within its level; of equals to the first."""
    rank = {item_id: i for i, item_id in enumerate(new.item_ids)}
    shared = np.array([rank.get(item_id, -1) for item_id in old.item_ids])
    kept = np.flatnonzero(shared >= 0)
    node = np.full(len(old.nodes), -1, np.int32)
    overlap = np.zeros(len(old.nodes), np.float32)
    levels = min(int(old.nodes.level.max()), int(new.nodes.level.max()))
    for level in range(levels + 1):
        a = old.nodes.leaf_rank_to_node(level)[old.leaf_of_rank[kept]]
        b = new.nodes.leaf_rank_to_node(level)[new.leaf_of_rank[shared[kept]]]
        both = csr_matrix((np.ones(len(kept)), (a, b)), (len(old.nodes), len(new.nodes))).tocoo()
        either = (
            np.bincount(a, minlength=len(old.nodes))[both.row]
            + np.bincount(b, minlength=len(new.nodes))[both.col]
            - both.data
        )
        share = both.data / either
        order = np.lexsort((both.col, -share, both.row))
        first = order[np.unique(both.row[order], return_index=True)[1]]
        node[both.row[first]] = both.col[first]
        overlap[both.row[first]] = share[first]
    node[ROOT], overlap[ROOT] = ROOT, max(overlap[ROOT], 0)
    return NodeMap(node, overlap)
