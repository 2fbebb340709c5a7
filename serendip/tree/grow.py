"""Growing a tree: further items go to the leaves that are there, and no node is renumbered.

The tree artefact keeps what this needs: the leaves' centroids, and of each item what it was placed
by and how well it fits. Drift says when placing no longer does, and the tree is to be rebuilt.
Knows no text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from serendip.artifacts import Artifact
from serendip.config import TreeConfig
from serendip.core import CorruptArtifact
from serendip.tree.cluster_tree import ClusterTree
from serendip.tree.report import node_sums

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

PLACEMENT = "placement.parquet"
CENTROIDS = "centroids.npy"
_BLOCK = 4096  # items scored against all leaves at a time


@dataclass(frozen=True)
class Placement:
    """How each item came to its leaf. N items, in the order of the tree's items, L leaves.

    Attributes:
        content: uint64[N], hash of what the item's vector is made from.
        cosine: float32[N], of the vector to the leaf's centroid.
        grown: bool[N], put into its leaf after the tree was built.
        centroids: float32[L, d] of unit length; zero for a leaf that was built empty.
    """

    content: npt.NDArray[np.uint64]
    cosine: Floats
    grown: npt.NDArray[np.bool_]
    centroids: Floats

    @classmethod
    def built(
        cls, content: npt.NDArray[np.uint64], vectors: Floats, leaf: Ints, leaves: int
    ) -> Placement:
        """Of a tree just built: float32[N, d] unit vectors and int64[N] leaf ranks."""
        sums = node_sums(vectors, leaf, leaves)
        centroids = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
        cosine = np.einsum("nd,nd->n", vectors, centroids[leaf])
        return cls(content, cosine, np.zeros(len(leaf), bool), centroids)

    def save(self, folder: Path) -> None:
        """Writes placement.parquet and centroids.npy into a folder."""
        columns = {"content": self.content, "cosine": self.cosine, "grown": self.grown}
        pq.write_table(pa.table(columns), folder / PLACEMENT)
        np.save(folder / CENTROIDS, self.centroids)

    @classmethod
    def open(cls, artifact: Artifact) -> Placement:
        """Reads what ``save`` wrote. Raises CorruptArtifact."""
        table = pq.read_table(artifact.file(PLACEMENT))
        try:
            centroids = np.load(artifact.file(CENTROIDS), allow_pickle=False)
        except ValueError as e:
            raise CorruptArtifact(f"is no array ({e})", field=f"tree/{CENTROIDS}") from e
        if len(table) != artifact.rows["items.parquet"]:
            raise CorruptArtifact("items and placement disagree", field=f"tree/{PLACEMENT}")
        content, cosine, grown = (table.column(c).to_numpy() for c in table.column_names)
        return cls(content, cosine, grown, centroids)

    def nearest(self, vectors: Floats) -> tuple[Ints, Floats]:
        """(int64[n] nearest leaf, float32[n] cosine to its centroid) of unit vectors [n, d]."""
        leaf, cosine = np.empty(len(vectors), np.int64), np.empty(len(vectors), np.float32)
        empty = ~self.centroids.any(axis=1)
        for at in range(0, len(vectors), _BLOCK):
            scores = vectors[at : at + _BLOCK] @ self.centroids.T
            scores[:, empty] = -np.inf
            best = scores.argmax(axis=1)
            leaf[at : at + _BLOCK] = best
            cosine[at : at + _BLOCK] = scores[np.arange(len(best)), best]
        return leaf, cosine


@dataclass(frozen=True)
class Grown:
    """A tree after its catalogue has changed: the nodes as they were, the items in a new order.

    Attributes:
        leaf: int64[N], leaf rank of each item, in catalogue order.
        placed: items that came, or came back changed.
        removed: items that are no longer there.
        placement: of the N items, in the new tree's order.
    """

    tree: ClusterTree
    leaf: Ints
    placement: Placement
    placed: int
    removed: int


def unchanged(
    tree: ClusterTree,
    placement: Placement,
    item_ids: Sequence[str],
    content: npt.NDArray[np.uint64],
) -> Ints:
    """int64[N]: rank in the tree of each item of a catalogue; -1 where it is new or has changed.

    Args:
        item_ids, content: the catalogue as it is now; uint64[N], the hash of what a vector is of.
    """
    rank_of = {item_id: rank for rank, item_id in enumerate(tree.item_ids)}
    rank = np.array([rank_of.get(item_id, -1) for item_id in item_ids], np.int64)
    same = (rank >= 0) & (placement.content[rank] == content)
    return np.where(same, rank, -1)


def grow(
    tree: ClusterTree,
    placement: Placement,
    item_ids: Sequence[str],
    content: npt.NDArray[np.uint64],
    embed: Callable[[Ints], Floats],
) -> Grown:
    """Puts what is new in a catalogue of N items to the nearest leaf; the rest stays where it is.

    An item whose vector is zero goes to the leaf with the fewest items.

    Args:
        item_ids, content: as for ``unchanged``.
        embed: unit vectors float32[n, d] of rows int64[n] of the catalogue.
    """
    rank = unchanged(tree, placement, item_ids, content)
    stays, new = rank >= 0, np.flatnonzero(rank < 0)
    leaf = np.where(stays, tree.leaf_of_rank[rank], 0).astype(np.int64)
    cosine = np.where(stays, placement.cosine[rank], 0).astype(np.float32)
    grown = ~stays | placement.grown[rank]
    if len(new):
        vectors = embed(new)
        leaf[new], cosine[new] = placement.nearest(vectors)
        count = np.bincount(leaf[stays], minlength=tree.nodes.leaf_count)
        for row in new[~vectors.any(axis=1)]:
            leaf[row] = count.argmin()
            count[leaf[row]] += 1
    order = np.argsort(leaf, kind="stable")
    start = np.zeros(tree.nodes.leaf_count + 1, np.int64)
    np.cumsum(np.bincount(leaf, minlength=tree.nodes.leaf_count), out=start[1:])
    return Grown(
        tree=ClusterTree(tree.nodes, tuple(item_ids[i] for i in order), start),
        leaf=leaf,
        placement=Placement(content[order], cosine[order], grown[order], placement.centroids),
        placed=len(new),
        removed=len(set(tree.item_ids).difference(item_ids)),
    )


@dataclass(frozen=True)
class Drift:
    """How far a grown tree is from one built of the same items.

    Attributes:
        share: of the items, those placed since the tree was built.
        cosine_loss: 1 - (mean cosine of placed items / that of built ones); 0 without placed ones.
        imbalance: weight of the heaviest leaf over the mean, as a multiple of what it was when
            the tree was built.
    """

    share: float
    cosine_loss: float
    imbalance: float

    @classmethod
    def of(cls, placement: Placement, heaviest: float, heaviest_built: float) -> Drift:
        """Of a placement, and the heaviest leaf's weight over the mean now and when built."""
        grown = placement.grown
        loss = 0.0
        if grown.any() and not grown.all():
            built = float(placement.cosine[~grown].mean())
            loss = 1 - float(placement.cosine[grown].mean()) / max(built, 1e-9)
        return cls(float(grown.mean()), loss, heaviest / max(heaviest_built, 1e-9))

    def beyond(self, config: TreeConfig) -> str:
        """Why the tree is to be rebuilt; "" where it is not."""
        bounds = {
            "share": config.grow_share,
            "cosine_loss": config.grow_cosine_loss,
            "imbalance": config.grow_imbalance,
        }
        return ", ".join(
            f"{name} {value:.3f} is above {bounds[name]:g}"
            for name, value in asdict(self).items()
            if value > bounds[name]
        )
