"""k-means of other projects on the vectors of the tree's bench.

    python -m peers.clustering faiss N D CHILDREN...
    python -m peers.clustering constrained N D K TOLERANCE REPETITIONS

``faiss`` splits top-down into a tree of our shape; ``constrained`` clusters flat, in turns with
ours. Both print one JSON object.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from common.timing import clocks
from common.vectors import vectors_and_traffic

from serendip.tree.balance import balance_weights, cluster_leaves
from serendip.tree.report import level_figures, mean_cosine

ROUNDS = 20  # of k-means: ours has 12 without balance and up to 8 with


def faiss_tree(n: int, d: int, branching: list[int]) -> dict[str, Any]:
    """A tree of faiss's spherical k-means: its seconds and cosines."""
    import faiss

    faiss.omp_set_num_threads(1)
    x, traffic = vectors_and_traffic(n, d)

    def split(of: Any, children: int) -> Any:
        if len(of) <= children:
            return np.arange(len(of))
        kmeans = faiss.Kmeans(
            d, children, niter=ROUNDS, spherical=True, seed=1, min_points_per_centroid=1,
            max_points_per_centroid=40_000 // children,
        )  # fmt: skip
        kmeans.train(of)
        return kmeans.index.search(of, 1)[1].ravel()

    def tree() -> Any:
        node = np.zeros(n, np.int64)
        for children in branching:
            order = np.argsort(node, kind="stable")
            bounds = np.searchsorted(node[order], np.arange(node.max() + 2))
            for lo, hi in itertools.pairwise(bounds):
                of = order[lo:hi]
                node[of] = node[of] * children + split(x[of], children)
        return node

    wall_s, cpu_s, leaf = clocks(tree)
    weights = balance_weights(traffic, 0.5, int(np.prod(branching)), 0.25)
    levels = [vars(level) for level in level_figures(branching, leaf, weights, x)]
    return {"wall_s": wall_s, "cpu_s": cpu_s, "levels": levels}


def constrained(n: int, d: int, k: int, tolerance: float, repetitions: int) -> dict[str, Any]:
    """k-means-constrained and ours in turns: wall and CPU seconds, cosines, largest clusters."""
    from k_means_constrained import KMeansConstrained

    x, _ = vectors_and_traffic(n, d)
    weights = np.full(n, 1 / n)

    def ours(seed: int) -> Any:
        rng = np.random.default_rng(seed)
        return cluster_leaves(x, weights, (k,), tolerance=tolerance, restarts=1, rng=rng)

    def peer(seed: int) -> Any:
        model = KMeansConstrained(
            k, size_max=math.ceil((1 + tolerance) * n / k), n_init=1, max_iter=ROUNDS,
            random_state=seed,
        )  # fmt: skip
        return model.fit_predict(x)

    ways: dict[str, Callable[[int], Any]] = {"ours": ours, "k-means-constrained": peer}
    found: dict[str, dict[str, list[float]]] = {
        way: {"wall_s": [], "cpu_s": [], "cosine": [], "largest": []} for way in ways
    }
    for seed in range(repetitions):
        for way in list(ways) if seed % 2 else list(ways)[::-1]:
            wall_s, cpu_s, leaf = clocks(lambda way=way, seed=seed: ways[way](seed))
            row = (wall_s, cpu_s, mean_cosine(x, leaf), np.bincount(leaf).max() * k / n)
            for name, value in zip(found[way], row, strict=True):
                found[way][name].append(float(value))
    return found


if __name__ == "__main__":
    verb, *words = sys.argv[1:]
    numbers = [int(w) if w.isdigit() else float(w) for w in words]
    if verb == "faiss":
        n, d, *children = (int(v) for v in numbers)
        print(json.dumps(faiss_tree(n, d, children)))
    else:
        n, d, k, tolerance, repetitions = numbers
        print(json.dumps(constrained(int(n), int(d), int(k), tolerance, int(repetitions))))
