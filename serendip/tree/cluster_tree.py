"""The ClusterTree: nodes, descriptions, and every node's slice of the item order.

Nodes are numbered breadth-first, children of one node side by side; leaves are therefore
ordered by their path, and items are ordered by leaf. So every node, at any level, owns one
contiguous slice ``[start, end)`` of the item order. Knows no vectors and no model.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from serendip.artifacts import Artifact
from serendip.core import CorruptArtifact, InvalidRequest, NotFound

ROOT = 0
LEVELS = 4  # levels below the root; leaves lie at this one

Int = npt.NDArray[np.int32]


def tree_inputs(artifact: Artifact) -> dict[str, str]:
    """What a stage that reads item -> leaf names among its inputs.

    ``tree`` is the tree_version, which every stage names; ``tree_items`` the tree artefact's own
    version, which is another one whenever items came or went.
    """
    return {"tree": artifact.tree_version, "tree_items": artifact.version}


def normal_form(text: str) -> str:
    """The form in which descriptions must differ: NFKC, case folded, white space one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


@dataclass(frozen=True)
class Nodes:
    """The tree's nodes without its items. M nodes, L leaves.

    Attributes:
        tree_version: identifies node IDs and descriptions.
        level: int32[M], 0 (root) to 4 (leaf).
        parent: int32[M], -1 for the root.
        leaf_lo, leaf_hi: int32[M], the node's leaves as ranks [lo, hi) in path order.
        description: M texts, unique within a level in their normal form; empty for the root.
    """

    tree_version: str
    level: Int
    parent: Int
    leaf_lo: Int
    leaf_hi: Int
    description: tuple[str, ...]

    def __post_init__(self) -> None:
        m = len(self.level)
        if not m or any(
            len(a) != m for a in (self.parent, self.leaf_lo, self.leaf_hi, self.description)
        ):
            raise CorruptArtifact("node columns differ in length", field="tree/nodes.parquet")
        sound = (
            self.level[0] == 0
            and self.parent[0] == -1
            and bool((self.parent[1:] >= 0).all() and (self.parent[1:] < np.arange(1, m)).all())
            and bool((self.level[1:] == self.level[self.parent[1:]] + 1).all())
            and bool((np.diff(self.parent) >= 0).all())
            and bool((self.leaf_lo <= self.leaf_hi).all())
        )
        if not sound:
            raise CorruptArtifact(
                "nodes are not in breadth-first order", field="tree/nodes.parquet"
            )
        for at in range(1, int(self.level.max()) + 1):
            texts = [normal_form(self.description[n]) for n in self.at_level(at)]
            if len(set(texts)) != len(texts) or not all(texts):
                raise CorruptArtifact(
                    "descriptions must be unique and not empty within a level",
                    field="tree/nodes.parquet",
                    value=at,
                )

    def __len__(self) -> int:
        return len(self.level)

    @property
    def leaf_count(self) -> int:
        return int(self.leaf_hi[ROOT])

    def check(self, node_id: int, name: str = "node_id") -> int:
        """Returns ``node_id``; raises NotFound if the tree has no such node."""
        if not 0 <= node_id < len(self):
            raise NotFound(
                f"no such node in tree {self.tree_version}",
                field=name,
                value=node_id,
                remedy="ListClusters names the nodes that there are.",
            )
        return node_id

    def at_level(self, level: int) -> range:
        """Node IDs at a level, in path order."""
        find = self.level.searchsorted
        return range(int(find(level)), int(find(level + 1)))

    def children(self, node_id: int) -> range:
        """Node IDs of a node's children; empty for a leaf."""
        lo, hi = np.searchsorted(self.parent, [node_id, node_id + 1])
        return range(int(lo), int(hi))

    def under(self, node_id: int, level: int) -> range:
        """Node IDs at ``level`` that lie under the node, in path order; the node itself at its own.

        Empty for a level above the node's.
        """
        at = self.at_level(level)
        if self.level[node_id] > level:
            return range(at.start, at.start)
        first = self.leaf_lo[at.start : at.stop]
        lo, hi = np.searchsorted(first, [self.leaf_lo[node_id], self.leaf_hi[node_id]])
        return at[int(lo) : int(hi)]

    def ancestor(self, node_id: int, level: int) -> int:
        """The node itself or the one above it that lies at ``level``."""
        while self.level[node_id] > level:
            node_id = int(self.parent[node_id])
        if self.level[node_id] != level:
            raise InvalidRequest("node lies above the level", field="node_id", value=node_id)
        return node_id

    def over(self, leaf_rank: int, level: int) -> int:
        """The node at ``level`` that a leaf lies under, or is."""
        at = self.at_level(level)
        first = self.leaf_lo[at.start : at.stop]
        return at[int(first.searchsorted(leaf_rank, side="right")) - 1]

    def leaf_rank_to_node(self, level: int) -> Int:
        """int32[L]: for each leaf, in path order, its ancestor at ``level``."""
        nodes = np.arange(len(self), dtype=np.int32)[self.at_level(level)]
        return np.repeat(nodes, self.leaf_hi[nodes] - self.leaf_lo[nodes])

    def is_serendipitous(self, a: int, b: int, level_gap: int) -> bool:
        """Different nodes at their level, the same ``level_gap`` levels above."""
        above = int(self.level[a]) - level_gap
        return a != b and self.ancestor(a, above) == self.ancestor(b, above)


@dataclass(frozen=True)
class ClusterTree:
    """Nodes, and the items under them. N items, L leaves.

    Attributes:
        item_ids: N item IDs in item order.
        leaf_start: int64[L + 1]; leaf r owns items [leaf_start[r], leaf_start[r + 1]).
    """

    nodes: Nodes
    item_ids: tuple[str, ...]
    leaf_start: npt.NDArray[np.int64]
    _rank: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.leaf_start) != self.nodes.leaf_count + 1 or self.leaf_start[-1] != len(
            self.item_ids
        ):
            raise CorruptArtifact("items and leaves disagree", field="tree/items.parquet")
        rank = {item_id: i for i, item_id in enumerate(self.item_ids)}
        if len(rank) != len(self.item_ids):
            raise CorruptArtifact("an item lies in two leaves", field="tree/items.parquet")
        object.__setattr__(self, "_rank", rank)

    @property
    def version(self) -> str:
        return self.nodes.tree_version

    @cached_property
    def leaf_of_rank(self) -> Int:
        """int32[N]: leaf rank of each item in item order."""
        return np.repeat(np.arange(self.nodes.leaf_count, dtype=np.int32), np.diff(self.leaf_start))

    def slice(self, node_id: int) -> tuple[int, int]:
        """The node's items as [start, end) of the item order. Raises NotFound."""
        self.nodes.check(node_id)
        return (
            int(self.leaf_start[self.nodes.leaf_lo[node_id]]),
            int(self.leaf_start[self.nodes.leaf_hi[node_id]]),
        )

    def node_of(self, item_id: str, level: int) -> int | None:
        """The node at ``level`` that holds the item; None if the tree has no such item."""
        rank = self._rank.get(item_id)
        if rank is None:
            return None
        leaf = int(self.leaf_start.searchsorted(rank, side="right")) - 1
        return self.nodes.over(leaf, level)

    def save(self, path: Path) -> None:
        """Writes nodes.parquet and items.parquet into a folder."""
        write_nodes(self.nodes, path / "nodes.parquet")
        pq.write_table(
            pa.table(
                {
                    "item_id": pa.array(self.item_ids, pa.string()),
                    "leaf": pa.array(self.leaf_of_rank, pa.int32()),
                }
            ),
            path / "items.parquet",
        )

    @classmethod
    def open(cls, artifact: Artifact) -> ClusterTree:
        """Opens a tree artefact. Raises CorruptArtifact."""
        nodes = read_nodes(artifact.file("nodes.parquet"), artifact.tree_version)
        item_ids, leaf_start = read_item_order(artifact.file("items.parquet"), nodes.leaf_count)
        return cls(nodes, item_ids, leaf_start)

    @classmethod
    def from_leaves(
        cls,
        branching: Sequence[int],
        leaf: npt.NDArray[np.integer],
        item_ids: Sequence[str],
        descriptions: Sequence[str] | None,
        version: str,
    ) -> ClusterTree:
        """The complete tree of a branching, items put under it by ``leaf`` (int[N], rank).

        Items of one leaf keep their relative order. ``descriptions`` has one entry a node in
        node order, the root's first; None numbers the nodes, for want of names.
        """
        level, parent, lo, hi = _complete(branching)
        if descriptions is None:
            descriptions = ["", *(f"node {i}" for i in range(1, len(level)))]
        nodes = Nodes(version, level, parent, lo, hi, tuple(descriptions))
        order = np.argsort(leaf, kind="stable")
        start = np.zeros(nodes.leaf_count + 1, np.int64)
        np.cumsum(np.bincount(leaf, minlength=nodes.leaf_count), out=start[1:])
        return cls(nodes, tuple(item_ids[i] for i in order), start)


def _complete(branching: Sequence[int]) -> tuple[Int, Int, Int, Int]:
    level, parent, lo, hi = [0], [-1], [0], [int(np.prod(branching))]
    above = range(1)
    for depth, children in enumerate(branching, start=1):
        first = len(level)
        for node in above:
            width = (hi[node] - lo[node]) // children
            for c in range(children):
                level.append(depth)
                parent.append(node)
                lo.append(lo[node] + c * width)
                hi.append(lo[node] + (c + 1) * width)
        above = range(first, len(level))
    as_int = [np.asarray(a, np.int32) for a in (level, parent, lo, hi)]
    return as_int[0], as_int[1], as_int[2], as_int[3]


def write_nodes(nodes: Nodes, path: Path) -> None:
    """Writes the node table: one row a node, in node order."""
    pq.write_table(
        pa.table(
            {
                "node_id": pa.array(range(len(nodes)), pa.int32()),
                "level": pa.array(nodes.level, pa.int32()),
                "parent": pa.array(nodes.parent, pa.int32()),
                "leaf_lo": pa.array(nodes.leaf_lo, pa.int32()),
                "leaf_hi": pa.array(nodes.leaf_hi, pa.int32()),
                "description": pa.array(nodes.description, pa.string()),
            }
        ),
        path,
    )


def read_nodes(path: Path, tree_version: str) -> Nodes:
    """Reads a node table. Raises CorruptArtifact if it is no tree."""
    table = pq.read_table(path)

    def integers(name: str) -> Int:
        return np.asarray(table.column(name).to_numpy(), np.int32)

    return Nodes(
        tree_version=tree_version,
        level=integers("level"),
        parent=integers("parent"),
        leaf_lo=integers("leaf_lo"),
        leaf_hi=integers("leaf_hi"),
        description=tuple(table.column("description").to_pylist()),
    )


def read_item_order(path: Path, leaf_count: int) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Reads (item IDs in item order, int64[L + 1] first item of each leaf)."""
    table = pq.read_table(path, columns=["item_id", "leaf"])
    start = leaf_starts(table.column("leaf").to_numpy(), leaf_count, path.name)
    return tuple(table.column("item_id").to_pylist()), start


def leaf_starts(leaf: npt.NDArray[np.integer], leaf_count: int, file: str) -> npt.NDArray[np.int64]:
    """int64[L + 1]: first item of each leaf, of int[N] leaf ranks in item order.

    Args:
        file: that they were read from, for the error.

    Raises:
        CorruptArtifact: they are not in order, or not of that many leaves.
    """
    if len(leaf) and (leaf[0] < 0 or leaf[-1] >= leaf_count or (leaf[1:] < leaf[:-1]).any()):
        raise CorruptArtifact("items are not ordered by leaf", field=file)
    start = np.zeros(leaf_count + 1, np.int64)
    np.cumsum(np.bincount(leaf, minlength=leaf_count), out=start[1:])
    return start
