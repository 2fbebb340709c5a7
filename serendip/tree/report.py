"""How balanced and how coherent a tree is: figures of each level, and a plot of them.

Knows no text and nothing of how the clusters were found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Weights = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LevelFigures:
    """One level of a tree. Weights are those that were balanced, as multiples of an equal share.

    Attributes:
        level: 1 (broadest) to the leaf level.
        nodes: clusters of the level.
        heaviest, lightest: weight of a cluster over the mean.
        largest, smallest: items of a cluster.
        cosine: mean cosine of the items to their cluster's centroid; None: not looked at.
        plain_cosine: the same under k-means without balance, same shape; None: not looked at.
    """

    level: int
    nodes: int
    heaviest: float
    lightest: float
    largest: int
    smallest: int
    cosine: float | None = None
    plain_cosine: float | None = None


def level_figures(
    branching: Sequence[int],
    leaf: Ints,
    weights: Weights,
    vectors: Floats | None = None,
    plain_leaf: Ints | None = None,
) -> list[LevelFigures]:
    """Figures of every level, the broadest first.

    Args:
        leaf: int64[N], leaf rank of each item in a complete tree of the branching.
        weights: float64[N], what was balanced.
        vectors: float32[N, d] of unit length, for the cosines.
        plain_leaf: int64[N], leaves of the tree to compare with.
    """
    found = []
    leaves = int(np.prod(branching))
    for level in range(1, len(branching) + 1):
        nodes = int(np.prod(branching[:level]))
        node = leaf // (leaves // nodes)
        load = np.bincount(node, weights, nodes) * (nodes / weights.sum())
        count = np.bincount(node, minlength=nodes)
        plain = None if plain_leaf is None else plain_leaf // (leaves // nodes)
        found.append(
            LevelFigures(
                level=level,
                nodes=nodes,
                heaviest=float(load.max()),
                lightest=float(load.min()),
                largest=int(count.max()),
                smallest=int(count.min()),
                cosine=None if vectors is None else mean_cosine(vectors, node),
                plain_cosine=(
                    None if vectors is None or plain is None else mean_cosine(vectors, plain)
                ),
            )
        )
    return found


def mean_cosine(vectors: Floats, node: Ints) -> float:
    """Mean cosine of unit vectors float32[N, d] to the centroid of their node (int64[N])."""
    # The sum over a node of cosines to its centroid is the length of the sum of its vectors.
    sums = node_sums(vectors, node, int(node.max()) + 1)
    return float(np.linalg.norm(sums, axis=1).sum() / len(vectors))


def node_sums(vectors: Floats, node: Ints, nodes: int) -> Floats:
    """float32[nodes, d]: the sum of each node's vectors."""
    order = np.argsort(node, kind="stable")
    count = np.bincount(node, minlength=nodes)
    held = np.flatnonzero(count)
    sums = np.zeros((nodes, vectors.shape[1]), np.float32)
    starts = (count.cumsum() - count)[held]
    sums[held] = np.add.reduceat(vectors[order], starts, axis=0)
    return sums


def plot_levels(
    path: Path, branching: Sequence[int], leaf: Ints, weights: Weights, levels: list[LevelFigures]
) -> None:
    """Draws the weights of each level's clusters, and their cosines, as an SVG file."""
    import matplotlib
    import matplotlib.figure

    with matplotlib.rc_context({"svg.hashsalt": "serendip"}):
        figure = matplotlib.figure.Figure(figsize=(9, 3.6), layout="constrained")
        loads, cosines = figure.subplots(1, 2)
        leaves = int(np.prod(branching))
        for of in levels:
            node = leaf // (leaves // of.nodes)
            load = np.sort(np.bincount(node, weights, of.nodes) * (of.nodes / weights.sum()))
            share = (np.arange(of.nodes) + 0.5) / of.nodes
            loads.plot(share, load, label=f"level {of.level}: {of.nodes} clusters")
        loads.axhline(1, color="grey", linewidth=0.5)
        loads.set(
            xlabel="clusters, lightest first", ylabel="weight over an equal share", ylim=(0, None)
        )
        loads.legend(fontsize="small")
        at = np.arange(len(levels))
        for shift, name in ((-0.2, "cosine"), (0.2, "plain_cosine")):
            heights = [getattr(of, name) for of in levels]
            if None not in heights:
                label = "balanced" if name == "cosine" else "plain k-means"
                cosines.bar(at + shift, heights, 0.4, label=label)
        cosines.set(
            xticks=at, xticklabels=[str(of.level) for of in levels], xlabel="level",
            ylabel="mean cosine to the centroid", ylim=(0, 1),
        )  # fmt: skip
        if cosines.patches:
            cosines.legend(fontsize="small")
        figure.savefig(path, metadata={"Date": None})
