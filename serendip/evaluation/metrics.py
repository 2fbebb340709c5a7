"""Metrics, each with its formula and an example that runs as a test. Knows no model.

Those of next-item prediction stand in ``retrieval.metrics``, since training reads them as well
and must not import evaluation; they are handed on here.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

from serendip.retrieval.metrics import hit_rate_at_k, mean_and_error, mrr_at_k, ndcg_at_k

__all__ = [
    "hit_rate_at_k",
    "hits_at_k",
    "mean_and_error",
    "mrr_at_k",
    "ndcg_at_k",
    "percentile",
    "purity",
    "recall_at_k",
    "share",
    "share_error",
    "wilson_interval",
]


def share(hits: Sequence[bool]) -> float:
    """hits / n; 0 for none.

    >>> share([True, False, True, True])
    0.75
    """
    return sum(hits) / len(hits) if hits else 0.0


def recall_at_k(plans: Sequence[Sequence[Hashable]], labels: Sequence[Hashable], k: int) -> float:
    """Share of the plans whose first k clusters contain the label.

    >>> recall_at_k([["a", "b"], ["c", "d"]], ["b", "c"], 1)
    0.5
    >>> recall_at_k([["a", "b"], ["c", "d"]], ["b", "c"], 2)
    1.0
    """
    return share(hits_at_k(plans, labels, k))


def hits_at_k(
    plans: Sequence[Sequence[Hashable]], labels: Sequence[Hashable], k: int
) -> list[bool]:
    """Whether the first k clusters of each plan contain its label.

    Two planners on the same items differ by the mean of their hits' differences, whose standard
    error (mean_and_error) is less than that of either where they hit the same items.

    >>> hits_at_k([["a", "b"], ["c", "d"]], ["b", "c"], 1)
    [False, True]
    """
    return [label in plan[:k] for plan, label in zip(plans, labels, strict=True)]


def share_error(p: float, n: int) -> float:
    """Standard error of a share of n independent items: sqrt(p (1 - p) / n); nan for none.

    >>> share_error(0.5, 100)
    0.05
    """
    return math.sqrt(p * (1 - p) / n) if n else math.nan


def wilson_interval(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95% interval of a share: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n).

    E. B. Wilson, Probable inference, JASA 22 (1927).

    >>> low, high = wilson_interval(80, 100)
    >>> round(low, 3), round(high, 3)
    (0.711, 0.867)
    >>> wilson_interval(0, 0)
    (0.0, 1.0)
    """
    if not n:
        return 0.0, 1.0
    p = hits / n
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return (centre - spread) / scale, (centre + spread) / scale


def purity(clusters: Sequence[int], classes: Sequence[int]) -> float:
    """Share of the items that are of their cluster's most frequent class.

    C. D. Manning et al., Introduction to Information Retrieval, section 16.3.

    >>> purity([0, 0, 0, 1], [5, 5, 6, 6])
    0.75
    """
    counts: dict[tuple[int, int], int] = {}
    for pair in zip(clusters, classes, strict=True):
        counts[pair] = counts.get(pair, 0) + 1
    best: dict[int, int] = {}
    for (cluster, _), n in counts.items():
        best[cluster] = max(best.get(cluster, 0), n)
    return sum(best.values()) / len(clusters) if clusters else 0.0


def percentile(values: Sequence[float], q: float) -> float:
    """The value below which a share q of the sorted values lies (nearest rank).

    >>> percentile([3.0, 1.0, 2.0, 4.0], 0.5)
    2.0
    >>> percentile([3.0, 1.0, 2.0, 4.0], 0.99)
    4.0
    """
    ordered = sorted(values)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]
