"""The balanced hierarchical clustering: top-down spherical k-means with balanced assignment.

At every split, prices on the children rise where the weight exceeds an equal share (dual
ascent); what then still spills over is repaired by capacity, least loss first. Knows no text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from serendip.core import InvalidData

Floats = npt.NDArray[np.float32]
Weights = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_SAMPLE = 40_000  # items that centres are fitted on, at most
_LLOYD_ROUNDS = 12
_BALANCED_ROUNDS = 8
_PRICE_STEPS = 60


def balance_weights(traffic: Weights, alpha: float, leaves: int) -> Weights:
    """float64[N] summing to 1: alpha x traffic + (1 - alpha) / N.

    An item heavier than a quarter leaf cannot be balanced: traffic is clipped there.
    """
    n = len(traffic)
    share = np.maximum(traffic, 0) + 1e-12
    share = share / share.sum()
    for _ in range(20):
        share = np.minimum(share, 0.25 / leaves)
        share = share / share.sum()
    blend: Weights = alpha * share + (1 - alpha) / n
    return blend


def cluster_leaves(
    vectors: Floats,
    weights: Weights,
    branching: Sequence[int],
    *,
    tolerance: float,
    restarts: int,
    rng: np.random.Generator,
) -> Ints:
    """Puts each item in a leaf of the complete tree of a branching.

    Args:
        vectors: float32[N, d], of unit length.
        weights: float64[N], what is balanced.
        tolerance: a child's weight may pass its equal share by this factor.
        restarts: k-means starts a split; the most coherent is kept.

    Returns:
        int64[N], leaf rank in path order.

    Raises:
        InvalidData: fewer items than leaves.
    """
    leaves = int(np.prod(branching))
    if len(vectors) < leaves:
        raise InvalidData(
            f"needs at least one item a leaf ({leaves})",
            field="items.parquet",
            value=len(vectors),
            remedy="Choose a smaller tree.branching.",
        )
    node = np.zeros(len(vectors), np.int64)
    for children in branching:
        below = np.empty_like(node)
        for parent in range(int(node.max()) + 1):
            items = np.flatnonzero(node == parent)
            child = _split(vectors[items], weights[items], children, tolerance, restarts, rng)
            below[items] = parent * children + child
        node = below
    return node


def _split(
    x: Floats, w: Weights, k: int, tolerance: float, restarts: int, rng: np.random.Generator
) -> Ints:
    if k == 1 or not len(x):
        return np.zeros(len(x), np.int64)
    best: tuple[float, Ints] | None = None
    for _ in range(restarts):
        centres = _fit_centres(x, k, rng)
        child = np.full(len(x), -1)
        for _ in range(_BALANCED_ROUNDS):
            scores = x @ centres.T
            previous, child = child, _assign(scores, w, tolerance)
            if (child == previous).all():
                break
            centres = _centres(x, child, centres)
        coherence = float((x * centres[child]).sum())
        if best is None or coherence > best[0]:
            best = coherence, child
    assert best is not None
    return _fill_empty(best[1], k)


def _fit_centres(x: Floats, k: int, rng: np.random.Generator) -> Floats:
    """Plain spherical k-means from a k-means++ start: float32[k, d]."""
    if len(x) > _SAMPLE:
        x = x[rng.choice(len(x), _SAMPLE, replace=False)]
    centres = x[[rng.integers(len(x))]]
    for _ in range(k - 1):
        distance = np.maximum(1 - (x @ centres.T).max(axis=1), 0).astype(np.float64) + 1e-9
        centres = np.vstack([centres, x[rng.choice(len(x), p=distance / distance.sum())]])
    for _ in range(_LLOYD_ROUNDS):
        centres = _centres(x, (x @ centres.T).argmax(axis=1), centres)
    return centres


def _centres(x: Floats, child: Ints, old: Floats) -> Floats:
    sums = np.zeros_like(old)
    np.add.at(sums, child, x)
    length = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.where(length > 1e-9, sums / np.maximum(length, 1e-9), old)


def _assign(scores: Floats, w: Weights, tolerance: float) -> Ints:
    """Best child a item under prices that keep every child near its equal share of w."""
    k = scores.shape[1]
    share = w.sum() / k
    prices = np.zeros(k, np.float32)
    step = 0.5 * float(scores.std()) + 1e-6
    last = np.zeros(k, np.float32)
    for _ in range(_PRICE_STEPS):
        child: Ints = (scores - prices).argmax(axis=1)
        load = np.bincount(child, w, k) / share
        if load.max() <= 1 + tolerance:
            return child
        push = np.log(np.maximum(load, 0.05)).astype(np.float32)
        prices += step * push
        step *= 0.9 if float(push @ last) < 0 else 1.05
        last = push
    return _repair(scores - prices, w, (1 + tolerance) * share)


def _repair(scores: Floats, w: Weights, capacity: float) -> Ints:
    """Assigns within capacity: every round each child keeps those it fits best, and closes
    when full; the others go on to their next best open child."""
    n, k = scores.shape
    child = np.full(n, -1)
    free = np.full(k, capacity)
    closed = np.zeros(k, bool)
    waiting = np.arange(n)
    while len(waiting) and not closed.all():
        open_scores = np.where(closed, -np.inf, scores[waiting])
        wish = open_scores.argmax(axis=1)
        rest: list[Ints] = []
        for j in np.unique(wish):
            mine = np.flatnonzero(wish == j)
            others = np.delete(open_scores[mine], j, axis=1).max(axis=1, initial=-np.inf)
            mine = mine[np.argsort(others - open_scores[mine, j], kind="stable")]
            fits = int(np.searchsorted(w[waiting[mine]].cumsum(), free[j], side="right"))
            taken = waiting[mine[:fits]]
            child[taken] = j
            free[j] -= w[taken].sum()
            if fits < len(mine):
                closed[j] = True
                rest.append(waiting[mine[fits:]])
        waiting = np.concatenate(rest) if rest else waiting[:0]
    for i in waiting[np.argsort(-w[waiting], kind="stable")]:  # heavier than any space left
        j = int(free.argmax())
        child[i] = j
        free[j] -= w[i]
    return child


def _fill_empty(child: Ints, k: int) -> Ints:
    """Moves single items into empty children, so that no node is empty where items suffice."""
    count = np.bincount(child, minlength=k)
    for j in np.flatnonzero(count == 0):
        if count.max() < 2:
            break
        donor = int(count.argmax())
        child[np.flatnonzero(child == donor)[-1]] = j
        count[donor] -= 1
        count[j] += 1
    return child
