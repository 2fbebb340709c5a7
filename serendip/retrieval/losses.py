"""The losses of the sequence model, each as its formula. Knows no batch and no optimizer.

Throughout, P targets, N items: s_j = vector . items_j + bias_j, s_+ is the target's score, and
each target's term counts by its share, so that a loss is a weighted mean where shares sum to 1.
What a docstring calls the arguments' shapes holds for all:

    vector: float32[P, d]. items: float32[N, d]. bias: float32[N].
    target: int64[P], 0 to N - 1. share: float32[P].
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Floats that are worked on at a time: about what a core's caches hold.
_BLOCK_FLOATS = 1 << 19


def full_cross_entropy(
    vector: Tensor, items: Tensor, bias: Tensor, target: Tensor, share: Tensor
) -> Tensor:
    """Scalar loss over all N items: log sum_j exp(s_j) - s_+.

    Equal to ``(F.cross_entropy(vector @ items.T + bias, target, reduction="none") *
    share).sum()``, but the P x N logits are made and used up block by block.
    """
    loss: Tensor = _FullCrossEntropy.apply(vector, items, bias, target, share)
    return loss


class _FullCrossEntropy(torch.autograd.Function):
    """Gradients are made on the way forward, while a block's logits are at hand."""

    @staticmethod
    def forward(
        ctx: Any, vector: Tensor, items: Tensor, bias: Tensor, target: Tensor, share: Tensor
    ) -> Tensor:
        loss = vector.new_zeros(())
        to_vector = torch.empty_like(vector)
        to_items = torch.zeros_like(items)
        to_bias = torch.zeros_like(bias)
        block = max(1, _BLOCK_FLOATS // len(items))
        buffer = vector.new_empty(min(block, len(vector)), len(items))
        for start in range(0, len(vector), block):
            rows = slice(start, start + block)
            at_target, part = target[rows, None], share[rows, None]
            p = buffer[: len(part)]
            torch.addmm(bias, vector[rows], items.T, out=p)
            right = p.gather(1, at_target)
            top = p.amax(dim=1, keepdim=True)
            p.sub_(top).exp_()
            mass = p.sum(dim=1, keepdim=True)
            loss += ((mass.log() + top - right) * part).sum()
            p.mul_(part / mass).scatter_add_(1, at_target, -part)
            torch.mm(p, items, out=to_vector[rows])
            to_items.addmm_(p.T, vector[rows])
            to_bias += p.sum(dim=0)
        ctx.save_for_backward(to_vector, to_items, to_bias)
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        to_vector, to_items, to_bias = ctx.saved_tensors
        return to_vector * gradient, to_items * gradient, to_bias * gradient, None, None


def sampled_softmax(
    vector: Tensor,
    items: Tensor,
    bias: Tensor,
    target: Tensor,
    share: Tensor,
    negatives: Tensor,
    log_expected: Tensor | float,
) -> Tensor:
    """Scalar loss over each target and the negatives S, which all targets share:
    log(exp(s_+) + sum_{j in S, j != +} exp(s_j - log E_j)) - s_+.

    E_j, how often item j is expected in S, makes the sum that of all items in expectation: Jean
    et al. (arXiv 1412.2007), section 3, and as *logQ correction* Yi et al., Sampling-bias-corrected
    neural modeling, RecSys 2019. Uniform negatives have E = |S| / N.

    Args:
        negatives: int64[S], 0 to N - 1; an item may stand in it twice.
        log_expected: float32[S], of each negative, or one number for all.
    """
    right = (vector * F.embedding(target, items)).sum(dim=1) + bias[target]
    shift = bias[negatives] - log_expected
    wrong = torch.addmm(shift, vector, F.embedding(negatives, items).T)
    wrong = wrong.masked_fill(negatives[None, :] == target[:, None], -math.inf)
    together = torch.cat([right[:, None], wrong], dim=1)
    return ((torch.logsumexp(together, dim=1) - right) * share).sum()


def log_expected_mixed(counts: Tensor, uniform: int, in_batch: int) -> Tensor:
    """float32[N]: log E_j, E_j = uniform / N + in_batch * counts_j / sum(counts).

    So often is an item expected among ``uniform`` draws from all items and ``in_batch`` draws
    from a batch's targets: mixed negative sampling, Yang et al., WWW 2020 companion. In-batch
    negatives alone never show an item that nobody interacts with, uniform ones seldom a rival.

    Args:
        counts: float32[N], how often each item is a target.
    """
    share = counts / counts.sum().clamp_min(1)
    return torch.log(uniform / len(counts) + in_batch * share)


def binary_cross_entropy(
    vector: Tensor,
    items: Tensor,
    bias: Tensor,
    target: Tensor,
    share: Tensor,
    negatives: Tensor,
    beta: float = 1.0,
) -> Tensor:
    """Scalar loss of each target against negatives of its own:
    -beta log sigmoid(s_+) - sum_{j in S, j != +} log(1 - sigmoid(s_j)).

    With one negative and beta = 1 this is SASRec's (arXiv 1808.09781, section III.E). With
    ``gbce_beta`` and shares divided by |S| + 1 it is gSASRec's gBCE (arXiv 2308.07192).

    Args:
        negatives: int64[P, S], 0 to N - 1.
    """
    loss: Tensor = _BinaryCrossEntropy.apply(vector, items, bias, target, share, negatives, beta)
    return loss


def gbce_beta(negatives: int, items: int, calibration: float) -> float:
    """The power that gBCE raises the positive's probability to (arXiv 2308.07192):
    alpha * (t * (1 - 1 / alpha) + 1 / alpha), where alpha = negatives / (items - 1).

    Args:
        calibration: t; at 0 the loss is plain BCE, at 1 scores become calibrated probabilities.

    >>> gbce_beta(256, 3417, 0.0)
    1.0
    >>> round(gbce_beta(256, 3417, 0.75), 4)
    0.3062
    """
    alpha = negatives / max(1, items - 1)
    return alpha * (calibration * (1 - 1 / alpha) + 1 / alpha)


class _BinaryCrossEntropy(torch.autograd.Function):
    """As _FullCrossEntropy: the P x S x d vectors of the negatives never stand in memory."""

    @staticmethod
    def forward(
        ctx: Any,
        vector: Tensor,
        items: Tensor,
        bias: Tensor,
        target: Tensor,
        share: Tensor,
        negatives: Tensor,
        beta: float,
    ) -> Tensor:
        loss = vector.new_zeros(())
        to_vector = torch.empty_like(vector)
        to_items = torch.zeros_like(items)
        to_bias = torch.zeros_like(bias)
        block = max(1, _BLOCK_FLOATS // (negatives.shape[1] * vector.shape[1]))
        for start in range(0, len(vector), block):
            rows = slice(start, start + block)
            user, part, right = vector[rows], share[rows, None], target[rows, None]
            # The target stands first; what the sample has of it too does not count.
            drawn = torch.cat([right, negatives[rows]], dim=1)
            sign = torch.ones_like(drawn, dtype=vector.dtype)
            sign[:, 0] = -1
            weight = (drawn != right).to(vector.dtype)
            weight[:, 0] = beta
            weight *= part
            shown = F.embedding(drawn, items)  # float32[block, S + 1, d]
            score = torch.bmm(shown, user[:, :, None])[:, :, 0] + bias[drawn]
            loss += (F.softplus(score * sign) * weight).sum()
            slope = torch.sigmoid(score * sign) * sign * weight
            torch.bmm(slope[:, None, :], shown, out=to_vector[rows][:, None, :])
            each = torch.bmm(slope[:, :, None], user[:, None, :])
            to_items.index_add_(0, drawn.reshape(-1), each.reshape(-1, each.shape[2]))
            to_bias.index_add_(0, drawn.reshape(-1), slope.reshape(-1))
        ctx.save_for_backward(to_vector, to_items, to_bias)
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        to_vector, to_items, to_bias = ctx.saved_tensors
        return (to_vector * gradient, to_items * gradient, to_bias * gradient, *[None] * 4)
