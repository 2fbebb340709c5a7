"""The two losses of the sequence model: over all items, or over a sample of them.

Both are sums of negative log-likelihoods, each target's times its share of the weight. This
module knows no batch, no optimizer and no satisfaction.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from serendip.retrieval.model import SequenceModel

_BLOCK_FLOATS = 1 << 21  # logits that are made at a time: what a core's caches hold


def full_cross_entropy(
    vector: Tensor, items: Tensor, bias: Tensor, target: Tensor, share: Tensor
) -> Tensor:
    """Scalar loss over all N items.

    Equal to ``(F.cross_entropy(vector @ items.T + bias, target, reduction="none") *
    share).sum()``, but the P x N logits are made and used up block by block.

    Args:
        vector: float32[P, d]. items: float32[N, d]. bias: float32[N].
        target: int64[P], 0 to N - 1. share: float32[P].
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
        for start in range(0, len(vector), block):
            rows = slice(start, start + block)
            at_target, part = target[rows, None], share[rows, None]
            p = torch.addmm(bias, vector[rows], items.T)  # float32[block, N]
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
    model: SequenceModel, vector: Tensor, target: Tensor, share: Tensor, negatives: Tensor
) -> Tensor:
    """Scalar loss over each target and the negatives, which all targets share.

    The negatives are drawn uniformly, so each stands for N / S items; one that is the
    target itself is left out. Sampled softmax of Jean et al. 2015 (arXiv 1412.2007, section
    3), whose correction is a constant under uniform sampling.

    Args:
        vector: float32[P, d]. target: int64[P], 1 to N. share: float32[P].
        negatives: int64[S], 1 to N.
    """
    right = (vector * model.item.weight[target]).sum(dim=1) + model.bias[target]
    wrong = torch.addmm(model.bias[negatives], vector, model.item.weight[negatives].T)
    wrong = wrong + math.log(model.shape.items / len(negatives))
    wrong = wrong.masked_fill(negatives[None, :] == target[:, None], -math.inf)
    together = torch.cat([right[:, None], wrong], dim=1)
    return ((torch.logsumexp(together, dim=1) - right) * share).sum()
