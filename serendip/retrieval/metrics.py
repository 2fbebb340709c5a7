"""Metrics of a ranking, each with its formula and an example that runs as a test.

They judge next-item prediction by the place, from 1, of each held-out item among all items:
training chooses its epoch by them and evaluation reports them. They stand here because
evaluation comes after retrieval and may import it, never the other way round;
``evaluation.metrics`` hands them on. Knows no model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.int64] | Sequence[int]


def hit_rate_at_k(places: Places, k: int) -> float:
    """HR@k = 1/U sum_u [place_u <= k]; 0 for none. With one relevant item it is recall@k.

    Kang and McAuley, Self-Attentive Sequential Recommendation (arXiv 1808.09781), section IV.C;
    over all items, not over a sample: Krichene and Rendle, On Sampled Metrics for Item
    Recommendation, KDD 2020.

    >>> hit_rate_at_k([1, 2, 11, 4], 10)
    0.75
    >>> hit_rate_at_k([], 10)
    0.0
    """
    return _mean(np.ones(len(places)), places, k)


def ndcg_at_k(places: Places, k: int) -> float:
    """NDCG@k = 1/U sum_u [place_u <= k] / log2(place_u + 1); 0 for none.

    Järvelin and Kekäläinen, Cumulated gain-based evaluation of IR techniques, TOIS 20 (2002),
    with one relevant item, so that the ideal ranking's gain is 1.

    >>> ndcg_at_k([1, 3, 11], 10)
    0.5
    >>> ndcg_at_k([11], 10)
    0.0
    """
    return _mean(1 / np.log2(np.asarray(places, np.float64) + 1), places, k)


def mrr_at_k(places: Places, k: int) -> float:
    """MRR@k = 1/U sum_u [place_u <= k] / place_u; 0 for none.

    Voorhees, The TREC-8 Question Answering Track Report (1999), cut at k.

    >>> mrr_at_k([1, 4, 11, 2], 10)
    0.4375
    """
    return _mean(1 / np.asarray(places, np.float64), places, k)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """(mean, standard error) over repetitions: s / sqrt(n), where s has n - 1 below.

    The error of one repetition is not known: nan; of none, the mean is not either.

    >>> mean_and_error([1.0, 2.0, 3.0])
    (2.0, 0.5773502691896258)
    >>> mean_and_error([1.0])
    (1.0, nan)
    """
    n = len(values)
    mean = float(np.mean(values)) if n else math.nan
    return mean, float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.nan


def _mean(gain: npt.NDArray[np.float64], places: Places, k: int) -> float:
    found = np.asarray(places) <= k
    return float((gain * found).sum() / len(gain)) if len(gain) else 0.0
