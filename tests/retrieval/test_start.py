"""Where training starts, against counts made pair by pair."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_training import noise, tour

from serendip.retrieval import start
from serendip.retrieval.model import ModelShape, SequenceModel
from serendip.retrieval.sequences import MIN_EVENTS_TO_VALIDATE, Sequences
from serendip.retrieval.start import co_occurrence_vectors, start_model

ITEMS = 7


def ppmi_of(sequences: Sequences, items: int) -> np.ndarray:
    """The definition: pairs of one user's training events, up to 8 apart."""
    n = np.zeros((items, items))
    for first, end in zip(sequences.start[:-1].tolist(), sequences.start[1:].tolist(), strict=True):
        end -= end - first >= MIN_EVENTS_TO_VALIDATE
        for later in range(first, end):
            for earlier in range(max(first, later - 8), later):
                a, b = sequences.item[[earlier, later]]
                weight = sequences.satisfaction[later] / (later - earlier)
                n[a, b] += weight
                n[b, a] += weight
    each = n.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        pmi = np.log(n * n.sum() / np.outer(each, each))
    return np.where(n > 0, np.maximum(pmi, 0), 0)


histories = st.lists(
    st.lists(st.tuples(st.integers(0, ITEMS - 1), st.floats(0.1, 1)), max_size=14),
    min_size=1,
    max_size=5,
)


@given(histories)
@settings(max_examples=30, deadline=None)
def test_with_all_dimensions_the_vectors_are_those_of_the_whole_matrix(
    users: list[list[tuple[int, float]]],
) -> None:
    flat = [event for user in users for event in user]
    ends = np.concatenate([[0], np.cumsum([len(user) for user in users])]).astype(np.int64)
    sequences = Sequences(
        np.array([item for item, _ in flat], np.int64),
        np.array([weight for _, weight in flat], np.float32),
        ends,
    )
    vectors = co_occurrence_vectors(sequences, ITEMS, 32, np.random.default_rng(0))
    assert vectors.shape == (ITEMS, ITEMS)
    values, basis = np.linalg.eigh(ppmi_of(sequences, ITEMS))
    expected = (basis * np.abs(values)) @ basis.T
    assert vectors @ vectors.T == pytest.approx(expected, abs=1e-3)


def test_fewer_dimensions_keep_the_largest() -> None:
    sequences = noise(items=40, users=30, events=12)
    values = np.linalg.eigvalsh(ppmi_of(sequences, 40))
    vectors = co_occurrence_vectors(sequences, 40, 5, np.random.default_rng(0))
    largest = np.sort(np.abs(values))[::-1][:5]
    assert (vectors**2).sum(axis=0) == pytest.approx(largest, rel=0.02)


def model_of(items: int) -> SequenceModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SequenceModel(ModelShape(items, 16, 1, 2, 6))


def test_items_that_stand_together_start_alike() -> None:
    sequences, model = tour(items=60, users=100, events=12), model_of(60)
    start_model(model, sequences, np.random.default_rng(0))
    order = np.random.default_rng(7).permutation(60)
    vectors = model.item.weight.detach().numpy()[1:][order]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = vectors @ vectors.T
    near, far = np.diagonal(cosine, 1).mean(), np.diagonal(cosine, 30).mean()
    assert near > 0.6
    assert far < 0.2
    assert not model.item.weight[0].any()  # padding


def test_items_that_never_occur_keep_their_random_vectors() -> None:
    sequences, model = tour(items=20, users=40, events=8), model_of(30)
    before = model.item.weight.detach().clone()
    start_model(model, sequences, np.random.default_rng(0))
    assert torch.equal(model.item.weight[21:], before[21:])
    assert not torch.isclose(model.item.weight[1:21], before[1:21]).any(dim=1).all()


def test_a_log_without_a_pair_changes_no_vector() -> None:
    sequences, model = Sequences.in_given_order([np.array([1])] * 3), model_of(5)
    before = model.item.weight.detach().clone()
    start_model(model, sequences, np.random.default_rng(0))
    assert torch.equal(model.item.weight, before)


def test_popular_targets_are_ahead() -> None:
    item = np.array([[0, 2, 1, 2, 9], [0, 2, 1, 2, 9], [3, 1, 3, 3, 9]])
    model = model_of(10)
    start_model(model, Sequences.in_given_order(list(item)), np.random.default_rng(0))
    # Targets are neither first events nor the held-out last ones: 2 four times, 1 three, 3 two.
    expected = np.log(np.array([1, 4, 5, 3, 1, 1, 1, 1, 1, 1]) / 1.9)
    assert model.bias[1:].detach().numpy() == pytest.approx(expected, abs=1e-6)


def test_of_a_large_log_some_users_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "_MOST_EVENTS", 100)
    sequences = noise(items=40, users=30, events=12)
    counts = start._pair_counts(sequences, 40, np.random.default_rng(0))
    pairs_of_user = 2 * sum((11 - apart) / apart for apart in range(1, 9))
    assert counts.sum() == pytest.approx(8 * pairs_of_user, rel=1e-4)
