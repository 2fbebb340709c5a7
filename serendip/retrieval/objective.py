"""What one batch of training costs: the config's loss, on the negatives that it asks for.

Binds sequences and losses; knows no optimizer and no epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from serendip.config import RetrieverConfig
from serendip.retrieval.losses import (
    binary_cross_entropy,
    full_cross_entropy,
    gbce_beta,
    log_expected_mixed,
    sampled_softmax,
)
from serendip.retrieval.model import SequenceModel
from serendip.retrieval.sequences import Batch, Sequences

Loss = Literal["full", "sampled", "mixed", "bce", "gbce"]
Int64 = npt.NDArray[np.int64]

_CALIBRATION = 0.75  # gSASRec's t
_REDRAWS = 20


def loss_for(config: RetrieverConfig, items: int) -> Loss:
    """The loss that "auto" stands for: a softmax over all items while that is affordable, then
    over a uniform sample, then over one that has the batch's targets as well; or the named one.
    """
    if config.loss != "auto":
        return config.loss
    if items <= config.sampled_above:
        return "full"
    return "sampled" if items <= config.mixed_above else "mixed"


@dataclass(frozen=True)
class Objective:
    """A loss, and what it draws its negatives by.

    Attributes:
        negatives: drawn a batch, or a target by "gbce"; "bce" draws one a target.
        log_expected: float32[N], of "mixed" (losses.log_expected_mixed); else None.
    """

    loss: Loss
    negatives: int
    log_expected: Tensor | None

    @classmethod
    def of(cls, config: RetrieverConfig, sequences: Sequences, items: int) -> Objective:
        """The objective that a config asks for, on a catalogue of so many items."""
        loss = loss_for(config, items)
        expected = None
        if loss == "mixed":
            counts = np.bincount(sequences.item[sequences.training_targets()], minlength=items)
            in_batch = config.negatives // 2
            uniform = config.negatives - in_batch
            expected = log_expected_mixed(torch.from_numpy(counts).float(), uniform, in_batch)
        return cls(loss, 1 if loss == "bce" else config.negatives, expected)

    def of_batch(
        self, model: SequenceModel, batch: Batch, rng: np.random.Generator
    ) -> tuple[Tensor, float]:
        """(satisfaction-weighted mean loss, sum of the weights) of one batch."""
        learnt = batch.weight > 0
        weight = torch.from_numpy(batch.weight[learnt])
        target = torch.from_numpy(batch.target[learnt] - 1)
        hidden = model(torch.from_numpy(batch.ids), torch.from_numpy(batch.length))
        vector = hidden.flatten(0, 1)[torch.from_numpy(np.flatnonzero(learnt))]
        total = weight.sum()
        share = weight / total.clamp_min(1e-9)
        # Row 0 is padding: it is no item, so it takes no part.
        items, bias = model.item.weight[1:], model.bias[1:]
        if self.loss == "full":
            loss = full_cross_entropy(vector, items, bias, target, share)
        elif self.loss in ("sampled", "mixed"):
            drawn, expected = self._shared(target, len(items), rng)
            loss = sampled_softmax(vector, items, bias, target, share, drawn, expected)
        elif self.loss == "bce":
            drawn = torch.from_numpy(_unseen(batch, learnt, len(items), rng))
            loss = binary_cross_entropy(vector, items, bias, target, share, drawn)
        else:
            shape = (len(target), self.negatives)
            drawn = torch.from_numpy(rng.integers(0, len(items), shape))
            beta = gbce_beta(self.negatives, len(items), _CALIBRATION)
            share = share / (self.negatives + 1)
            loss = binary_cross_entropy(vector, items, bias, target, share, drawn, beta)
        return loss, float(total)

    def _shared(
        self, target: Tensor, items: int, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor | float]:
        """int64[S] negatives for all targets of a batch, and the log of how often each is
        expected among them."""
        if self.log_expected is None:
            drawn = torch.from_numpy(rng.integers(0, items, self.negatives))
            return drawn, float(np.log(self.negatives / items))
        in_batch = self.negatives // 2
        uniform = torch.from_numpy(rng.integers(0, items, self.negatives - in_batch))
        rivals = target[torch.from_numpy(rng.integers(0, len(target), in_batch))]
        drawn = torch.cat([uniform, rivals])
        return drawn, self.log_expected[drawn]


def _unseen(
    batch: Batch, learnt: npt.NDArray[np.bool_], items: int, rng: np.random.Generator
) -> Int64:
    """int64[P, 1]: for each target a uniform item that its window does not hold.

    A window that holds nearly every item may keep one of its own after some draws.
    """
    row = np.broadcast_to(np.arange(len(batch.ids))[:, None], batch.ids.shape)
    held = [of + row * (items + 1) for of in (batch.ids, batch.target)]
    taken = np.unique(np.concatenate(held, axis=None))
    mine = row[learnt] * (items + 1) + 1
    drawn = rng.integers(0, items, len(mine))
    for _ in range(_REDRAWS):
        again = np.flatnonzero(np.isin(mine + drawn, taken))
        if not len(again):
            break
        drawn[again] = rng.integers(0, items, len(again))
    return drawn[:, None]
