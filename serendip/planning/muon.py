"""Muon for many small matrices: those of one shape are orthogonalised together.

The update is torch.optim.Muon's, which takes one matrix after the other: for matrices of a hundred
rows most of its time goes into calls. Knows no model and no schedule.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # K. Jordan et al. 2024, of the quintic iteration
_ITERATIONS = 5
_SMALLEST_NORM = 1e-7
_TOGETHER = 1 << 22  # numbers that are stacked at most: large matrices gain nothing by company


class Muon(torch.optim.Optimizer):
    """Muon (K. Jordan et al. 2024) with Nesterov momentum, at AdamW's scale (arXiv 2502.16982).

    Of each matrix it keeps ``momentum_buffer``, as torch.optim.Muon does.
    """

    def __init__(
        self,
        matrices: Iterable[torch.nn.Parameter],
        lr: float,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
    ) -> None:
        """
        Args:
            matrices: float32[rows, columns] each.
            weight_decay: decoupled, times ``lr``.
        """
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step for every matrix that has a gradient."""
        for group in self.param_groups:
            alike: dict[tuple[int, int], list[torch.nn.Parameter]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike.setdefault((min(matrix.shape), max(matrix.shape)), []).append(matrix)
            for (shorter, longer), matrices in alike.items():
                size = max(1, _TOGETHER // (shorter * longer))
                for at in range(0, len(matrices), size):
                    self._step(matrices[at : at + size], group)

    def _step(self, matrices: Sequence[torch.nn.Parameter], group: dict[str, Any]) -> None:
        """One step for matrices of one shape, or of its transpose."""
        lr = group["lr"]
        scale = 0.2 * math.sqrt(max(matrices[0].shape))
        directions = orthogonalised(self._ahead(matrices, group["momentum"]))
        for matrix, direction in zip(matrices, directions, strict=True):
            matrix.mul_(1 - lr * group["weight_decay"])
            matrix.add_(direction, alpha=-scale * lr)

    def _ahead(self, matrices: Sequence[torch.nn.Parameter], momentum: float) -> list[torch.Tensor]:
        """Gradients mixed with what their mean over the steps has become (Nesterov)."""
        ahead = []
        for matrix in matrices:
            gradient = matrix.grad
            assert gradient is not None
            state = self.state[matrix]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(matrix)
            mean = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
            ahead.append(gradient.lerp(mean, momentum))
        return ahead


def orthogonalised(matrices: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """About U V^T of each matrix U S V^T, by Newton-Schulz, all of them together.

    Args:
        matrices: float32 of one shape each, or of its transpose.

    Returns:
        matrices of the same shapes; singular values between about 0.7 and 1.2.
    """
    tall = [m.size(0) > m.size(1) for m in matrices]
    x = torch.stack([m.T if t else m for m, t in zip(matrices, tall, strict=True)])
    x = x.to(_type_on(x.device))
    x = x / x.flatten(1).norm(dim=1).clamp(min=_SMALLEST_NORM)[:, None, None]
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return [y.T if t else y for y, t in zip(x.unbind(), tall, strict=True)]


def _type_on(device: torch.device) -> torch.dtype:
    """bfloat16, which is enough here, but on a CPU that has no instructions for it.

    There products in bfloat16 are emulated, and twenty times slower than in float32.
    """
    able = device.type != "cpu" or torch.cpu.get_capabilities().get("avx512_bf16", False)
    return torch.bfloat16 if able else torch.float32
