"""Descriptions: each node's name in a few of its distinctive words, unique within its level.

"baking: sourdough and rye": the word of the parent, then the words that tell the node from its
siblings (class-based TF-IDF). Knows no vectors and no tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from serendip.tree.cluster_tree import Nodes

Floats = npt.NDArray[np.float64]

_SHORTLIST = 64


def describe(
    shape: Nodes, leaf: npt.NDArray[np.int64], counts: csr_matrix, words: Sequence[str], take: int
) -> list[str]:
    """Describes every node.

    Args:
        shape: the nodes (their descriptions are not read).
        leaf: int64[N], leaf rank of each item.
        counts: int[N, V], word counts of the items.
        words: the V words.
        take: distinctive words a description, besides the parent's.

    Returns:
        One text a node, unique within a level; the root's is empty.
    """
    presence = (counts > 0).astype(np.float64)
    member = csr_matrix(
        (np.ones(len(leaf)), (leaf, np.arange(len(leaf)))), (shape.leaf_count, len(leaf))
    )
    by_leaf = np.asarray((member @ presence).todense())
    items_by_leaf = np.bincount(leaf, minlength=shape.leaf_count)
    holds = np.vstack([np.zeros(by_leaf.shape[1]), by_leaf.cumsum(axis=0)])
    items = np.concatenate([[0], items_by_leaf.cumsum()])
    # [M, V] items of the node that have the word; [M] items of the node.
    of_node = holds[shape.leaf_hi] - holds[shape.leaf_lo]
    n_node = np.maximum(items[shape.leaf_hi] - items[shape.leaf_lo], 1).astype(np.float64)

    head = [""] * len(shape)
    text = [""] * len(shape)
    for level in range(1, int(shape.level.max()) + 1):
        used: set[str] = set()
        heads: set[str] = set()
        for node in shape.at_level(level):
            parent = int(shape.parent[node])
            inherited = {w for w in _heads_above(shape, head, parent) if w}
            against_siblings = _rank(
                of_node[node], n_node[node],
                of_node[parent] - of_node[node], n_node[parent] - n_node[node], words, inherited,
            )  # fmt: skip
            against_all = _rank(
                of_node[node], n_node[node],
                of_node[0] - of_node[node], n_node[0] - n_node[node], words, inherited,
            )  # fmt: skip
            head[node] = next((w for w in against_all if w not in heads), f"interest {node}")
            heads.add(head[node])
            text[node] = next(
                t for t in _phrasings(head[parent], against_siblings, take) if t not in used
            )
            used.add(text[node])
    return text


def _heads_above(shape: Nodes, head: Sequence[str], node: int) -> Iterator[str]:
    while node > 0:
        yield head[node]
        node = int(shape.parent[node])


def _rank(
    inside: Floats,
    n_inside: float,
    outside: Floats,
    n_outside: float,
    words: Sequence[str],
    without: set[str],
) -> list[str]:
    """Words by p(w | node) x log(p(w | node) / p(w | rest)), ties by the word itself."""
    p = inside / n_inside
    lift = np.log((inside + 0.5) / n_inside / ((outside + 0.5) / max(n_outside, 1.0)))
    score = p * lift
    best = np.argsort(-score, kind="stable")[:_SHORTLIST]
    return [words[i] for i in best if inside[i] > 0 and words[i] not in without]


def _phrasings(parent: str, ranked: Sequence[str], take: int) -> Iterator[str]:
    """The best words first; then ever less distinctive last words; then numbers."""
    prefix = f"{parent}: " if parent else ""
    first = list(ranked[:take]) or ["miscellany"]
    yield prefix + _join(first)
    for word in ranked[take:]:
        yield prefix + _join([*first[:-1], word])
    number = 2
    while True:
        yield f"{prefix}{_join(first)} {number}"
        number += 1


def _join(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
