"""Training: what each loss learns and does not, what ends it, what outlives a kill."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_training
import torch
from tiny_training import LONG, TINY, noise, tour

from serendip.config import RetrieverConfig
from serendip.core import InvalidData
from serendip.retrieval import fitting
from serendip.retrieval.checkpoint import STATE, Epoch
from serendip.retrieval.fitting import best_of, fit
from serendip.retrieval.metrics import mrr_at_k
from serendip.retrieval.model import ModelShape, SequenceModel
from serendip.retrieval.objective import loss_for
from serendip.retrieval.ranking import places_of_last
from serendip.retrieval.sequences import Sequences

LOSSES = ("full", "sampled", "mixed", "bce", "gbce")

# --- learning ----------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES, ids="by_{}".format)
def test_a_certain_next_item_is_learnt(loss: str) -> None:
    epochs = 14 if loss == "gbce" else 6  # its first ones find that all scores must be low
    settings = RetrieverConfig(
        dimensions=24, blocks=1, max_history=8, epochs=epochs, lr=1e-2, dropout=0.0, batch_size=16,
        loss=loss, negatives=20,
    )  # fmt: skip
    _, _, best = fit(tour(items=60, users=200, events=12), 60, settings, 0)
    assert best.hr10 > 0.95
    assert best.ndcg10 > 0.6
    assert best.users == 200


@pytest.mark.parametrize("loss", LOSSES, ids="by_{}".format)
def test_nothing_is_learnt_from_noise(loss: str) -> None:
    # Enough epochs over few users to know their events by heart, were they shown.
    sequences = noise(items=200, users=300, events=8)
    settings = RetrieverConfig(
        dimensions=32, blocks=1, max_history=8, epochs=12, lr=1e-2, dropout=0.0, batch_size=64,
        loss=loss, negatives=60,
    )  # fmt: skip
    _, epochs, best = fit(sequences, 200, settings, 0)
    chance = 10 / (200 - 7)
    assert epochs[-1].loss < 0.95 * epochs[0].loss  # it did learn its training events
    assert best.hr10 < chance + 0.06


def test_satisfaction_weighs_what_is_learnt() -> None:
    # From item 0 users go on to 1, satisfied, or to 2, three times as often and not.
    pairs = np.tile(np.array([0, 1, 0, 2, 0, 2, 0, 2]), 40)
    weight = np.tile(np.array([1, 1, 1, 0.02, 1, 0.02, 1, 0.02], np.float32), 40)
    sequences = Sequences(pairs, weight, np.arange(161, dtype=np.int64) * 2)
    settings = TINY.model_copy(update={"epochs": 20, "lr": 1e-2})
    model, _, _ = fit(sequences, 3, settings, 0)
    vector = model.encode(torch.tensor([[1]]), torch.tensor([1]))
    scores = (vector @ model.item.weight[1:].T + model.bias[1:])[0]
    assert scores[1] > scores[2]


def test_auto_goes_from_all_items_to_samples_as_the_catalogue_grows() -> None:
    config = RetrieverConfig()
    sizes = (3_000, 10_000, 10_001, 1_000_000, 1_000_001)
    chosen = [loss_for(config, items) for items in sizes]
    assert chosen == ["full", "full", "sampled", "sampled", "mixed"]
    assert loss_for(config.model_copy(update={"loss": "gbce"}), 5) == "gbce"


def test_a_log_with_nothing_to_learn_is_refused() -> None:
    with pytest.raises(InvalidData, match="two events"):
        fit(noise(items=9, users=5, events=1), 9, TINY, 0)


# --- places ------------------------------------------------------------------------------


def test_a_model_that_tells_nothing_apart_gains_nothing() -> None:
    model = SequenceModel(ModelShape(40, 8, 1, 2, 4))
    sequences = noise(items=40, users=20, events=5)
    for same in (0.0, torch.nan):
        with torch.no_grad():
            model.item.weight.fill_(same)
        assert places_of_last(model, sequences, np.arange(20)).min() > 35


def test_places_are_those_of_their_definition() -> None:
    model = SequenceModel(ModelShape(40, 8, 1, 2, 4)).train()
    with torch.no_grad():
        model.item.weight.normal_(generator=torch.Generator().manual_seed(0))
    # Histories of unlike length, longer ones than the model reads among them.
    long, short = noise(items=40, users=30, events=7), noise(items=40, users=9, events=3)
    whole = np.split(long.item, 30) + np.split(short.item, 9)
    sequences = Sequences.in_given_order(whole)
    expected = []
    for events in whole:
        read = torch.from_numpy(events[:-1][-4:] + 1)
        vector = model.eval()(read[None], torch.tensor([len(read)]))[0, -1]
        score = (model.item.weight[1:] @ vector).tolist()
        rivals = set(range(40)) - set(events.tolist())
        expected.append(1 + sum(score[r] > score[events[-1]] for r in rivals))
    model.train()
    assert places_of_last(model, sequences, np.arange(39)).tolist() == expected
    assert model.training
    assert places_of_last(model, sequences, np.array([5, 33])).tolist() == [
        expected[5],
        expected[33],
    ]


# --- which epoch, and when it ends -------------------------------------------------------


def epoch_of(number: int, ndcg10: float, users: int = 9) -> Epoch:
    return Epoch(number, 1.0, 0.0, ndcg10, 0.0, users, 0.0, 0.0)


def test_the_best_epoch_is_the_first_of_the_highest() -> None:
    epochs = [epoch_of(1, 0.1), epoch_of(2, 0.3), epoch_of(3, 0.3)]
    assert best_of(epochs).number == 2
    assert best_of([epoch_of(1, 0.0, users=0), epoch_of(2, 0.0, users=0)]).number == 2


def test_patience_ends_training_and_the_best_weights_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sequences = noise(items=60, users=50, events=8)
    # Epoch 3 is the best by decree.
    decreed = iter([0.1, 0.2, 0.4, 0.3, 0.3, 0.4, 0.1, 0.9])
    monkeypatch.setattr(fitting, "ndcg_at_k", lambda place, k: next(decreed))
    settings = TINY.model_copy(update={"epochs": 8, "patience": 3, "lr": 2e-2})
    model, epochs, best = fit(sequences, 60, settings, 0)
    assert [e.number for e in epochs] == [1, 2, 3, 4, 5, 6]
    assert best.number == 3
    place = places_of_last(model, sequences, sequences.validation_users())
    assert mrr_at_k(place, 10) == best.mrr10 != epochs[-1].mrr10


# --- the same again, and after a kill ----------------------------------------------------


def same(one: SequenceModel, other: SequenceModel) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())


def untimed(epochs: list[Epoch]) -> list[Epoch]:
    return [dataclasses.replace(epoch, seconds=0, cpu_seconds=0) for epoch in epochs]


def test_the_same_seed_gives_the_same_model_and_leaves_the_callers_dice_alone() -> None:
    sequences = noise(items=30, users=40, events=9)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, _, _ = fit(sequences, 30, TINY, 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(one, fit(sequences, 30, TINY, 3)[0])
    assert not same(one, fit(sequences, 30, TINY, 4)[0])


def test_a_training_that_is_killed_ends_as_one_that_is_not(tmp_path: Path) -> None:
    command = [sys.executable, tiny_training.__file__, str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    job = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 300
    while len(done_in(tmp_path)) < 2 and job.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    job.send_signal(signal.SIGKILL)
    _, said = job.communicate()
    assert job.returncode == -signal.SIGKILL, said
    done = len(done_in(tmp_path))
    assert 2 <= done < LONG.epochs, said

    sequences = noise(200, 200, 15)
    undisturbed, epochs, _ = fit(sequences, 200, LONG, 0)
    resumed, all_epochs, _ = fit(sequences, 200, LONG, 0, tmp_path)
    assert same(resumed, undisturbed)
    assert untimed(all_epochs) == untimed(epochs)
    assert len(list(tmp_path.glob("training-*.safetensors"))) == 1


def done_in(folder: Path) -> list[dict[str, float]]:
    try:
        return list(json.loads((folder / STATE).read_text())["epochs"])
    except FileNotFoundError:
        return []


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = noise(items=30, users=40, events=9)
    first, epochs, _ = fit(sequences, 30, TINY, 3, tmp_path)
    monkeypatch.setattr(fitting._Training, "epoch", None)
    again, all_epochs, _ = fit(sequences, 30, TINY, 3, tmp_path)
    assert same(first, again)
    assert all_epochs == epochs


@pytest.mark.parametrize("change", ["seed", "log", "settings", "torn", "no JSON", "file gone"])
def test_another_trainings_state_or_a_spoilt_one_is_not_gone_on_from(
    tmp_path: Path, change: str
) -> None:
    sequences = noise(items=30, users=40, events=9)
    settings, seed = TINY, 3
    fit(sequences, 30, TINY, 3, tmp_path)
    (weights,) = tmp_path.glob("training-*.safetensors")
    if change == "seed":
        seed = 4
    elif change == "log":
        sequences = noise(items=30, users=41, events=9)
    elif change == "settings":
        settings = TINY.model_copy(update={"lr": 1e-3})
    elif change == "torn":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif change == "no JSON":
        (tmp_path / STATE).write_text("{")
    else:
        weights.unlink()
    model, _, _ = fit(sequences, 30, settings, seed, tmp_path)
    assert same(model, fit(sequences, 30, settings, seed)[0])
