"""Where training starts: item vectors from co-occurrence, biases from popularity.

Both are what the first epochs would find, had in seconds. Knows no epoch and no optimizer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse
import torch

from serendip.retrieval.model import SequenceModel
from serendip.retrieval.sequences import Sequences

_APART = 8  # events, at most, between two that count as a pair
_MOST_EVENTS = 5_000_000  # of users drawn at random; they tell enough, and it bounds memory
_SPARE, _ROUNDS = 10, 5  # of the subspace iteration
_SPREAD = 0.03  # standard deviation of what the vectors start as

Float32 = npt.NDArray[np.float32]


def start_model(model: SequenceModel, sequences: Sequences, rng: np.random.Generator) -> None:
    """Sets the model's item vectors and biases by the training events.

    Biases: log((n_j + 1) / (mean n + 1)), n_j being how often item j is a target. Training
    would take them there, but AdamW moves them by no more than lr a step: thousands of steps, in
    which the vectors learn popularity instead.

    Vectors: co_occurrence_vectors; items that never occur keep their random ones.
    """
    items, d = model.shape.items, model.shape.dimensions
    count = np.bincount(sequences.item[sequences.training_targets()], minlength=items)
    found = co_occurrence_vectors(sequences, items, d, rng)
    with torch.no_grad():
        model.bias[1:] = torch.from_numpy(np.log((count + 1) / (count.mean() + 1)))
        known = found.any(axis=1)
        if known.any():
            found *= _SPREAD / found[known].std()
            ranks = torch.from_numpy(np.flatnonzero(known) + 1)
            model.item.weight[ranks, : found.shape[1]] = torch.from_numpy(found[known])


def co_occurrence_vectors(
    sequences: Sequences, items: int, dimensions: int, rng: np.random.Generator
) -> Float32:
    """float32[N, min(d, N)]: V sqrt(|L|) of the largest eigenvalues L of the PPMI matrix.

    PPMI_ij = max(0, log(n_ij n / (n_i n_j))): Levy and Goldberg, Neural Word Embedding as Implicit
    Matrix Factorization, NeurIPS 2014. Here n_ij sums satisfaction / distance of the pairs of one
    user's training events up to 8 apart; the eigenvectors come from subspace iteration (Halko et
    al., arXiv 0909.4061).
    """
    ppmi = _ppmi(_pair_counts(sequences, items, rng))
    rank = min(dimensions, items)
    basis = rng.standard_normal((items, min(items, rank + _SPARE))).astype(np.float32)
    for _ in range(_ROUNDS):
        basis = np.linalg.qr(ppmi @ basis)[0]
    values, vectors = np.linalg.eigh(basis.T @ (ppmi @ basis))
    largest = np.argsort(-np.abs(values), kind="stable")[:rank]
    scaled = vectors[:, largest] * np.sqrt(np.abs(values[largest]))
    return np.asarray(basis @ scaled, np.float32)


def _pair_counts(sequences: Sequences, items: int, rng: np.random.Generator) -> Any:
    """float32[N, N], symmetric and sparse: n_ij."""
    size = np.diff(sequences.start)
    user = np.repeat(np.arange(sequences.users), size)
    order = rng.permutation(sequences.users)
    drawn = np.zeros(sequences.users, np.bool_)
    drawn[order[np.cumsum(size[order]) <= _MOST_EVENTS]] = True
    trained_on = np.arange(len(user)) < sequences.training_ends()[user]
    kept = np.flatnonzero(drawn[user] & trained_on)
    user, item, weight = user[kept], sequences.item[kept], sequences.satisfaction[kept]
    counts = scipy.sparse.csr_matrix((items, items), dtype=np.float32)
    for apart in range(1, _APART + 1):
        same = np.flatnonzero(user[apart:] == user[:-apart])
        pairs = (item[same], item[same + apart])
        values = weight[same + apart] / np.float32(apart)
        counts += scipy.sparse.coo_matrix((values, pairs), counts.shape).tocsr()
    return (counts + counts.T).tocsr()


def _ppmi(counts: Any) -> Any:
    """Of a symmetric csr matrix of counts; what is 0 or below takes no place."""
    each = np.asarray(counts.sum(axis=1)).ravel()
    log_each = np.log(np.maximum(each, 1e-12))
    values = counts.tocoo()
    value = np.log(np.maximum(values.data, 1e-12)) + np.log(max(each.sum(), 1e-12))
    value -= log_each[values.row] + log_each[values.col]
    kept = (value > 0) & (values.data > 0)
    entries = (value[kept].astype(np.float32), (values.row[kept], values.col[kept]))
    return scipy.sparse.csr_matrix(entries, shape=counts.shape)
