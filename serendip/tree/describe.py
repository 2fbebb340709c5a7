"""Descriptions: each node's name in a few of its distinctive words, unique within its level.

"baking: sourdough and rye": the word of the parent, then the words that tell the node from its
siblings (class-based TF-IDF). Knows no vectors and no tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, vstack

from serendip.tree.cluster_tree import ROOT, Nodes, normal_form
from serendip.tree.words import is_unspaced, phrases

Floats = npt.NDArray[np.float64]

_SHORTLIST = 64


@dataclass(frozen=True)
class Described:
    """Texts and words of M nodes, in node order.

    Attributes:
        texts: unique within a level; the root's is empty.
        words: what tells the node from its siblings, the best first.
    """

    texts: list[str]
    words: list[list[str]]


def describe(
    shape: Nodes, leaf: npt.NDArray[np.int64], counts: csr_matrix, words: Sequence[str], take: int
) -> Described:
    """Describes every node by words.

    Args:
        shape: the nodes (their descriptions are not read).
        leaf: int64[N], leaf rank of each item.
        counts: int[N, V], word counts of the items.
        words: the V words.
        take: distinctive words a description, besides the parent's.
    """
    words = phrases(counts, words)
    holds, n_node = _holds(shape, leaf, counts)
    everywhere = holds[ROOT].toarray()[0]
    last = int(shape.level.max())
    head = [""] * len(shape)
    found = Described([""] * len(shape), [[] for _ in range(len(shape))])
    for level in range(1, last + 1):
        used: set[str] = set()
        heads: set[str] = set()
        above = -1
        for node in shape.at_level(level):
            parent = int(shape.parent[node])
            if parent != above:  # siblings lie side by side: once a family
                above, family = parent, holds[parent].toarray()[0]
                inherited = {w for w in _heads_above(shape, head, parent) if w}
            row = holds[node]
            in_family = _rank(row, n_node[node], family, n_node[parent], words, inherited)
            if level < last:
                overall = _rank(row, n_node[node], everywhere, n_node[ROOT], words, inherited)
                fresh = (w for w in overall if w not in heads)
                head[node] = next(fresh, overall[0] if overall else f"interest {node}")
                heads.add(head[node])
            text = next(
                t for t in _phrasings(head[parent], in_family, take) if normal_form(t) not in used
            )
            used.add(normal_form(text))
            found.texts[node], found.words[node] = text, in_family
    return found


def _holds(
    shape: Nodes, leaf: npt.NDArray[np.int64], counts: csr_matrix
) -> tuple[csr_matrix, Floats]:
    """([M, V] items of a node that have a word, sparse; float64[M] items of a node, at least 1)."""
    n = len(leaf)
    member = csr_matrix((np.ones(n), (leaf, np.arange(n))), (shape.leaf_count, n))
    by_leaf = (member @ (counts > 0).astype(np.float64)).tocsr()
    by_level = []
    for level in range(int(shape.level.max()) + 1):
        of_leaf = shape.leaf_rank_to_node(level) - shape.at_level(level).start
        leaves = np.arange(shape.leaf_count)
        above = csr_matrix(
            (np.ones(len(leaves)), (of_leaf, leaves)), (len(shape.at_level(level)), len(leaves))
        )
        by_level.append(above @ by_leaf)
    holds = vstack(by_level).tocsr()
    holds.sort_indices()
    before = np.concatenate([[0], np.bincount(leaf, minlength=shape.leaf_count).cumsum()])
    n_node = before[shape.leaf_hi] - before[shape.leaf_lo]
    return holds, np.maximum(n_node, 1).astype(np.float64)


def _heads_above(shape: Nodes, head: Sequence[str], node: int) -> Iterator[str]:
    while node > 0:
        yield head[node]
        node = int(shape.parent[node])


def _rank(
    row: csr_matrix,
    n_inside: float,
    around: Floats,
    n_around: float,
    words: Sequence[str],
    without: set[str],
) -> list[str]:
    """Words by p(w | node) x log(p(w | node) / p(w | rest)), ties by the word itself.

    Args:
        row: [1, V], items of the node that have each word.
        around: float64[V], the same of a node above it; the rest is that less the node.
    """
    column, inside = row.indices, row.data
    outside, n_outside = around[column] - inside, n_around - n_inside
    p = inside / n_inside
    lift = np.log((inside + 0.5) / n_inside / ((outside + 0.5) / max(n_outside, 1.0)))
    best = np.argsort(-(p * lift), kind="stable")
    ranked: dict[str, None] = {}
    for i in best[: 4 * _SHORTLIST]:
        word = words[column[i]]
        if word in without or word in ranked:
            continue
        # Two pairs of a run that share a character would tell one word twice.
        if is_unspaced(word) and any(word[0] == w[-1] or word[-1] == w[0] for w in ranked):
            continue
        ranked[word] = None
        if len(ranked) == _SHORTLIST:
            break
    return list(ranked)


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
    if len(words) == 1:
        return words[0]
    if any(is_unspaced(w) for w in words):
        return "、".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"
