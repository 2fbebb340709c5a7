"""What a planner must beat: rankings of clusters fitted on the training items alone.

Nothing that started from a held-out item is counted. A held-out item may still be what came next
after a training item, as in the planner's own training pairs. Knows no model, no text and no
picture: all that a baseline is told of an item is its cluster.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import pyarrow as pa

from serendip.evaluation.metrics import recall_at_k, share_error

Ranking = Callable[[int], Sequence[int]]  # own cluster -> clusters, best first, without itself
Recalls = dict[str, tuple[float, float]]  # "recall_at_K" -> (recall, standard error)

AT = (1, 5, 10)


def fit_baselines(
    scores: pa.Table, clusters: Sequence[int], siblings: Callable[[int], Sequence[int]]
) -> dict[str, Ranking]:
    """Fits every baseline; equal scores are ranked by node ID, so that none is ranked by chance.

    - ``popular``: by how many training items have the cluster as their label.
    - ``satisfying``: by the mean satisfaction of the training pairs that lead to it.
    - ``popular_siblings``, ``satisfying_siblings``: the same, of the siblings alone.
    - ``following``: of the own cluster's training items, by how often it came next.
    - ``following_labels``: by how many of them have it as their label.
    - ``following_satisfying``: by the mean satisfaction of the pairs from them to it.

    Means weigh the pairs' shrunk satisfaction by their support. The last three go on with
    ``popular_siblings`` where the own cluster's items tell nothing more.

    Args:
        scores: the table of that name of a pairs artefact; its held-out rows are passed over.
        clusters: all of the planning level.
        siblings: own cluster -> the clusters that are serendipitous for it.

    >>> scores = pa.Table.from_pylist([
    ...     dict(item_id=i, own_id=o, node_id=n, support=s, satisfaction=m, held_out=h,
    ...          rank_in_item=r)
    ...     for i, o, n, s, m, h, r in [
    ...         ("a", 1, 2, 9.0, 0.5, False, 2), ("a", 1, 3, 1.0, 0.9, False, 1),
    ...         ("b", 4, 2, 1.0, 0.8, False, 1), ("c", 4, 2, 1.0, 0.8, False, 1),
    ...         ("d", 1, 4, 99.0, 1.0, True, 1)]])
    >>> fitted = fit_baselines(scores, [1, 2, 3, 4], lambda own: [n for n in (2, 3) if n != own])
    >>> {name: list(rank(1)) for name, rank in fitted.items()}  # doctest: +NORMALIZE_WHITESPACE
    {'popular': [2, 3, 4], 'satisfying': [3, 2, 4],
     'popular_siblings': [2, 3], 'satisfying_siblings': [3, 2],
     'following': [2, 3], 'following_labels': [3, 2], 'following_satisfying': [3, 2]}
    """
    labels: Counter[int] = Counter()
    labels_from: dict[int, Counter[int]] = defaultdict(Counter)
    support: dict[tuple[int | None, int], float] = defaultdict(float)
    total: dict[tuple[int | None, int], float] = defaultdict(float)
    for row in scores.to_pylist():
        if row["held_out"]:
            continue
        own, node = row["own_id"], row["node_id"]
        for start in (None, own):
            support[start, node] += row["support"]
            total[start, node] += row["support"] * row["satisfaction"]
        if row["rank_in_item"] == 1:
            labels[node] += 1
            labels_from[own][node] += 1
    mean = {pair: total[pair] / support[pair] for pair in total}

    def ranked(nodes: Sequence[int], score: Callable[[int], float]) -> list[int]:
        return sorted(nodes, key=lambda node: (-score(node), node))

    def popularity(node: int) -> float:
        return labels[node]

    def satisfaction(node: int) -> float:
        return mean.get((None, node), 0.0)

    def everywhere(score: Callable[[int], float]) -> Ranking:
        order = ranked(clusters, score)
        return lambda own: [node for node in order if node != own]

    def among_siblings(score: Callable[[int], float]) -> Ranking:
        return cache(lambda own: ranked(siblings(own), score))

    def following(score: Callable[[int, int], float]) -> Ranking:
        def rank(own: int) -> list[int]:
            after = ranked(siblings(own), popularity)
            return sorted(after, key=lambda node: -score(own, node))  # stable: ties by popularity

        return cache(rank)

    return {
        "popular": everywhere(popularity),
        "satisfying": everywhere(satisfaction),
        "popular_siblings": among_siblings(popularity),
        "satisfying_siblings": among_siblings(satisfaction),
        "following": following(lambda own, node: support.get((own, node), 0.0)),
        "following_labels": following(lambda own, node: labels_from[own][node]),
        "following_satisfying": following(lambda own, node: mean.get((own, node), 0.0)),
    }


def chance(choices: Sequence[int]) -> Recalls:
    """Expected recall of clusters drawn at random: mean over the items of min(k, c) / c.

    Args:
        choices: how many clusters each item's are drawn from, its label among them.

    >>> chance([4, 20])["recall_at_5"]
    (0.625, 0.0)
    """
    return {f"recall_at_{k}": (sum(min(k, c) / c for c in choices) / len(choices), 0.0) for k in AT}


def recalls(rankings: Sequence[Sequence[int]], labels: Sequence[int]) -> Recalls:
    """recall_at_k of n items' rankings at each of AT, with its binomial standard error.

    >>> recalls([[1, 2], [3, 1]], [2, 3])["recall_at_1"]
    (0.5, 0.3535533905932738)
    """
    found = {k: recall_at_k(rankings, labels, k) for k in AT}
    return {f"recall_at_{k}": (r, share_error(r, len(labels))) for k, r in found.items()}


def rank_all(baselines: Mapping[str, Ranking], own: Sequence[int]) -> dict[str, list[list[int]]]:
    """The first clusters, max(AT) of them, that each baseline has for items of these clusters."""
    return {name: [list(rank(o))[: max(AT)] for o in own] for name, rank in baselines.items()}
