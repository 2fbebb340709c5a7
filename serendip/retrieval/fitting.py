"""The training loop: epochs, validation, the best epoch's weights; goes on after a kill.

Each user's last event is never trained on; it chooses the epoch. An epoch's randomness comes
from (seed, its number) alone, so that a training that was interrupted ends with the weights of
one that was not. This module knows no artefact.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from serendip.config import RetrieverConfig
from serendip.core import InvalidData
from serendip.progress import Tick, console, progress
from serendip.retrieval.checkpoint import Epoch, load_state, save_state
from serendip.retrieval.metrics import hit_rate_at_k, mrr_at_k, ndcg_at_k
from serendip.retrieval.model import ModelShape, SequenceModel
from serendip.retrieval.objective import Objective
from serendip.retrieval.ranking import places_of_last
from serendip.retrieval.sequences import Sequences, training_batches
from serendip.retrieval.start import start_model

TOP = 10
_WARM_UP_SHARE = 0.1
_FINAL_LR_SHARE = 0.03
_WEIGHT_DECAY = 0.01
_HELD_OUT, _START = 1, 2  # set randomness apart from the epochs': who validates, the start

Int64 = npt.NDArray[np.int64]


def fit(
    sequences: Sequences,
    items: int,
    config: RetrieverConfig,
    seed: int,
    state: Path | None = None,
) -> tuple[SequenceModel, list[Epoch], Epoch]:
    """Trains; returns (the model of the best epoch, all epochs, the best).

    The best has the highest NDCG@10; where no user can validate, it is the last. After
    ``config.patience`` epochs without a better one training ends. The same arguments give the
    same model on one machine. The caller's random state is left alone.

    Args:
        state: a folder that keeps the training's state after each epoch. One of the same
            training that lies there is gone on from, and left there.

    Raises:
        InvalidData: no user has two events.
    """
    if not len(sequences.item) or np.diff(sequences.start).max() < 2:
        raise InvalidData(
            "no user has two events of items of the tree",
            field="interactions.parquet",
            remedy="Check that its item_id are those of items.parquet.",
        )
    held_out = sequences.validation_users()
    if len(held_out) > config.validation_users:
        rng = np.random.default_rng([seed, _HELD_OUT])
        held_out = np.sort(rng.choice(held_out, config.validation_users, replace=False))
    targets = len(sequences.training_targets())
    shape = ModelShape(items, config.dimensions, config.blocks, config.heads, config.max_history)
    objective = Objective.of(config, sequences, items)
    with _torch_state(seed, config.threads):
        model = SequenceModel(shape, config.dropout)
        start_model(model, sequences, np.random.default_rng([seed, _START]))
        optimizer = _optimizer(model, config.lr)
        training = _Training(model, optimizer, objective, sequences, held_out, config, seed)
        key = _key(sequences, items, config, seed)
        epochs: list[Epoch] = []
        weights = _copy_of(model)
        if state is not None and (saved := load_state(state, key, model, optimizer)):
            epochs, weights = saved
            console.print(f"  goes on after epoch {len(epochs)}")
        with progress("retriever", config.epochs * targets, done=len(epochs) * targets) as tick:
            while len(epochs) < config.epochs and not _is_over(epochs, config.patience):
                epoch = training.epoch(len(epochs) + 1, tick)
                epochs.append(epoch)
                if best_of(epochs) is epoch:
                    weights = _copy_of(model)
                if state is not None:
                    save_state(state, key, model, optimizer, epochs, weights)
                console.print(
                    f"  epoch {epoch.number}: loss {epoch.loss:.4f}, HR@10 {epoch.hr10:.4f}, "
                    f"NDCG@10 {epoch.ndcg10:.4f}"
                )
                tick(0, note=f"NDCG@10 {epoch.ndcg10:.4f}")
    model.load_state_dict(weights)
    return model.eval(), epochs, best_of(epochs)


def best_of(epochs: list[Epoch]) -> Epoch:
    """The first of the highest NDCG@10; the last where nobody validates."""
    if not epochs[-1].users:
        return epochs[-1]
    return max(epochs, key=lambda epoch: epoch.ndcg10)


def _is_over(epochs: list[Epoch], patience: int) -> bool:
    return bool(patience and epochs) and epochs[-1].number - best_of(epochs).number >= patience


# --- one epoch ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Training:
    """What all epochs share. ``held_out``: int64[V], the users that validate."""

    model: SequenceModel
    optimizer: torch.optim.Optimizer
    objective: Objective
    sequences: Sequences
    held_out: Int64
    config: RetrieverConfig
    seed: int

    def epoch(self, number: int, tick: Tick) -> Epoch:
        """Trains on every target once, then validates. ``number`` counts from 1."""
        began, cpu_began = time.monotonic(), time.process_time()
        model, config = self.model, self.config
        rng = np.random.default_rng([self.seed, 0, number])
        torch.manual_seed(int(rng.integers(2**63)))
        batches = list(training_batches(self.sequences, config.max_history, config.batch_size, rng))
        model.train()
        total = weight = 0.0
        for i, batch in enumerate(batches):
            done = (number - 1 + i / len(batches)) / config.epochs
            for group in self.optimizer.param_groups:
                group["lr"] = config.lr * _schedule(done)
            loss, batch_weight = self.objective.of_batch(model, batch, rng)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            self.optimizer.step()
            total += float(loss.detach()) * batch_weight
            weight += batch_weight
            tick(int((batch.weight > 0).sum()))
        place = places_of_last(model, self.sequences, self.held_out)
        return Epoch(
            number,
            total / max(weight, 1e-9),
            hit_rate_at_k(place, TOP),
            ndcg_at_k(place, TOP),
            mrr_at_k(place, TOP),
            len(self.held_out),
            round(time.monotonic() - began, 3),
            round(time.process_time() - cpu_began, 3),
        )


def _schedule(done: float) -> float:
    warm = min(1.0, (done + 1e-3) / _WARM_UP_SHARE)
    return warm * (1 - (1 - _FINAL_LR_SHARE) * done)


def _optimizer(model: SequenceModel, lr: float) -> torch.optim.AdamW:
    # Decay would pull rare items' vectors to zero between the batches that they are in.
    decayed = [p for name, p in model.blocks.named_parameters() if p.dim() > 1]
    ids = {id(p) for p in decayed}
    others = [p for p in model.parameters() if id(p) not in ids]
    groups = [
        {"params": decayed, "weight_decay": _WEIGHT_DECAY},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)


def _copy_of(model: SequenceModel) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _key(sequences: Sequences, items: int, config: RetrieverConfig, seed: int) -> str:
    """What a training is of, in 64 hexadecimal digits."""
    settings = {**config.recipe(), "items": items, "seed": seed}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for values in (sequences.item, sequences.satisfaction, sequences.start):
        digest.update(values.tobytes())
    return digest.hexdigest()


@contextmanager
def _torch_state(seed: int, threads: int) -> Iterator[None]:
    """Seeds torch, sets its threads, flushes denormals; puts all that back."""
    before = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        # A moment of AdamW that fades away would cost a hundred times a normal number.
        torch.set_flush_denormal(True)
        try:
            yield
        finally:
            torch.set_flush_denormal(False)
            torch.set_num_threads(before)
