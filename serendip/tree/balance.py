"""The balanced hierarchical clustering: top-down spherical k-means with balanced assignment.

At every split, prices on the children rise where the weight exceeds an equal share (dual
ascent), in turns with the centres; what then still spills over is repaired by capacity, least
loss first. Where a node holds very many items, centres and prices are found on a sample of them.
Knows no text.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serendip.core import InvalidData
from serendip.progress import Tick

Floats = npt.NDArray[np.float32]
Weights = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_SAMPLE = 40_000  # items that centres and prices are fitted on, at most
_LLOYD_ROUNDS = 12
_BALANCED_ROUNDS = 8
_ROUND_STEPS = 10  # price steps between two looks at the centres
_FINAL_STEPS = 30
_BLOCK = 16_384  # items whose scores stay in the cache
_SMALL = 8_192  # scores that one pass of numpy takes no longer for


def balance_weights(traffic: Weights, alpha: float, leaves: int, clip: float = 0.25) -> Weights:
    """float64[N] summing to 1: alpha x traffic + (1 - alpha) / N.

    An item heavier than a leaf cannot be balanced: no item counts for more traffic than ``clip``
    of a leaf's equal share (or than one of N, where clip x N < leaves).
    """
    n = len(traffic)
    share = np.maximum(traffic, 0) + 1e-12
    share = share / share.sum()
    for _ in range(20):
        share = np.minimum(share, clip / leaves)
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
    tick: Tick | None = None,
) -> Ints:
    """Puts each item in a leaf of the complete tree of a branching.

    Args:
        vectors: float32[N, d], of unit length.
        weights: float64[N], what is balanced.
        tolerance: a child's weight may pass its equal share of its parent's by this factor; what
            no child has room for goes to the emptiest all the same.
        restarts: k-means starts a split; the most coherent is kept.
        tick: told of every split.

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
    order = np.arange(len(vectors))
    start = np.array([0, len(vectors)])
    for children in branching:
        x, w = vectors[order], weights[order]
        below = np.empty(len(order), np.int64)
        for parent, (lo, hi) in enumerate(itertools.pairwise(start)):
            child = _split(x[lo:hi], w[lo:hi], children, tolerance, restarts, rng)
            below[lo:hi] = parent * children + child
            if tick is not None:
                tick()
        nodes = (len(start) - 1) * children
        within = np.argsort(below, kind="stable")
        order = order[within]
        start = np.searchsorted(below[within], np.arange(nodes + 1))
    leaf = np.empty(len(order), np.int64)
    leaf[order] = np.repeat(np.arange(leaves), np.diff(start))
    return leaf


def _split(
    x: Floats, w: Weights, k: int, tolerance: float, restarts: int, rng: np.random.Generator
) -> Ints:
    if k == 1 or not len(x):
        return np.zeros(len(x), np.int64)
    sampled = len(x) > _SAMPLE
    chosen = rng.choice(len(x), _SAMPLE, replace=False) if sampled else slice(None)
    fits = (_fit(x[chosen], w[chosen], k, tolerance, rng) for _ in range(restarts))
    best = max(fits, key=lambda fit: fit.coherence)
    child = best.child
    if sampled:
        child, _ = _place(x, w, best.centres, best.prices, tolerance)
    return _fill_empty(child, k)


@dataclass(frozen=True)
class _Prices:
    """Where the dual ascent stands: float32[k] prices, the step (0: not begun), the last push."""

    value: Floats
    step: float
    push: Floats

    @classmethod
    def none(cls, k: int) -> _Prices:
        return cls(np.zeros(k, np.float32), 0.0, np.zeros(k, np.float32))


@dataclass(frozen=True)
class _Fit:
    """One start's outcome: k centres float32[k, d], their prices, int64[n] child of each item."""

    coherence: float
    centres: Floats
    prices: _Prices
    child: Ints


def _fit(x: Floats, w: Weights, k: int, tolerance: float, rng: np.random.Generator) -> _Fit:
    """Balanced k-means from one random start: centres and prices in turns, then the repair."""
    centres = _fit_centres(x, k, rng)
    prices = _Prices.none(k)
    child = np.full(len(x), -1)
    for _ in range(_BALANCED_ROUNDS):
        previous = child
        child, prices = _price(centres @ x.T, w, tolerance, prices, _ROUND_STEPS)
        if (child == previous).all():
            break
        centres = _centres(x, child, centres)
    child, prices = _place(x, w, centres, prices, tolerance)
    coherence = float(np.linalg.norm(_sums(x, child, k), axis=1).sum())
    return _Fit(coherence, centres, prices, child)


def _place(
    x: Floats, w: Weights, centres: Floats, prices: _Prices, tolerance: float
) -> tuple[Ints, _Prices]:
    """The balanced assignment to fixed centres: by price, and where that fails by capacity."""
    scores = centres @ x.T
    child, prices = _price(scores, w, tolerance, prices, _FINAL_STEPS)
    capacity = (1 + tolerance) * w.sum() / len(centres)
    if np.bincount(child, w, len(centres)).max() > capacity:
        child = _repair((scores - prices.value[:, None]).T, w, capacity, tolerance)
    return child, prices


def _fit_centres(x: Floats, k: int, rng: np.random.Generator) -> Floats:
    """Plain spherical k-means from a k-means++ start: float32[k, d]."""
    chosen = [int(rng.integers(len(x)))]
    nearest = x @ x[chosen[0]]
    for _ in range(k - 1):
        distance = np.maximum(1 - nearest, 0).astype(np.float64) + 1e-9
        reach = distance.cumsum()
        chosen.append(int(np.searchsorted(reach, rng.random() * reach[-1], side="right")))
        nearest = np.maximum(nearest, x @ x[chosen[-1]])
    centres = x[chosen]
    free = np.zeros(k, np.float32)
    child = np.full(len(x), -1)
    for _ in range(_LLOYD_ROUNDS):
        previous, child = child, _argmax(centres @ x.T, free)
        if (child == previous).all():
            break
        centres = _centres(x, child, centres)
    return centres


def _sums(x: Floats, child: Ints, k: int) -> Floats:
    """float32[k, d]: the sum of each child's vectors."""
    member = (np.arange(k)[:, None] == child).astype(np.float32)
    sums: Floats = member @ x
    return sums


def _centres(x: Floats, child: Ints, old: Floats) -> Floats:
    sums = _sums(x, child, len(old))
    length = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.where(length > 1e-9, sums / np.maximum(length, 1e-9), old)


def _argmax(scores: Floats, prices: Floats) -> Ints:
    """int64[n]: best child by scores float32[k, n] less prices float32[k]; the first of equals."""
    k, n = scores.shape
    if k * n < _SMALL or k > np.iinfo(np.int8).max:
        child: Ints = (scores - prices[:, None]).argmax(axis=0)
        return child
    child = np.empty(n, np.int64)
    # Of the children that reach the maximum the first has the highest rank: a maximum again, since
    # numpy's argmax over few children is slow.
    rank = np.arange(k, 0, -1, dtype=np.int8)[:, None]
    for at in range(0, n, _BLOCK):
        block = scores[:, at : at + _BLOCK] - prices[:, None]
        best = (block == block.max(axis=0)).view(np.int8)
        child[at : at + _BLOCK] = k - (best * rank).max(axis=0)
    return child


def _price(
    scores: Floats, w: Weights, tolerance: float, prices: _Prices, steps: int
) -> tuple[Ints, _Prices]:
    """Raises the prices of full children until every one is near its equal share of w.

    Args:
        scores: float32[k, n].
        prices: where to go on from.

    Returns:
        Best child of each item at the last prices, and those prices; not balanced if the steps
        did not suffice.
    """
    k = len(scores)
    share = w.sum() / k
    # Half of them fades, so that no price outlives its cause.
    value, step, last = prices.value * np.float32(0.5), prices.step, prices.push
    if not step:
        step = 0.5 * float(scores.std()) + 1e-6
    for left in range(steps, -1, -1):
        child = _argmax(scores, value)
        load = np.bincount(child, w, k) / share
        if load.max() <= 1 + tolerance or not left:
            break
        push = np.log(np.maximum(load, 0.05)).astype(np.float32)
        value = value + np.float32(step) * push
        step *= 0.9 if float(push @ last) < 0 else 1.05
        last = push
    return child, _Prices(value, step, last)


def _repair(scores: Floats, w: Weights, capacity: float, tolerance: float) -> Ints:
    """Assigns within capacity. Items heavier than the tolerance come first: were they left over,
    no child would have room for them.

    Args:
        scores: float32[n, k].
    """
    child = np.full(len(w), -1)
    free = np.full(scores.shape[1], capacity)
    heavy = w > tolerance * capacity
    for items in (np.flatnonzero(heavy), np.flatnonzero(~heavy)):
        child[items] = _fill(scores[items], w[items], free)
    return child


def _fill(scores: Floats, w: Weights, free: Weights) -> Ints:
    """Fills the children's ``free`` weight, which is counted down: every round each child keeps
    those it fits best, and closes when full; the others go on to their next best open child.
    """
    n, k = scores.shape
    child = np.full(n, -1)
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
