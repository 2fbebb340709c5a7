"""One training loop for caption pretraining and fine-tuning: seeded by step, resumable.

A step's randomness comes from (seed, stage, step) alone, so that a run that was interrupted
goes on as if it had not been. Knows no prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from serendip.progress import progress

_WARMUP_STEPS = 30
_FLOOR = 0.03  # of the peak learning rate, at the end of the cosine
_SAVE_EVERY = 50

Loss = Callable[[np.random.Generator], torch.Tensor]


@dataclass(frozen=True)
class Stage:
    """One stretch of training.

    Attributes:
        name: shown to the user; also what a saved state belongs to.
        number: sets the stage's randomness apart.
        peak_lr: of a cosine schedule with a linear start.
    """

    name: str
    number: int
    steps: int
    peak_lr: float


def train(
    model: torch.nn.Module,
    loss_of: Loss,
    stage: Stage,
    *,
    seed: int,
    state_path: Path,
    every: int = 0,
    look: Callable[[int, float], None] | None = None,
) -> None:
    """Trains ``model`` by AdamW on ``loss_of(rng)`` for ``stage.steps`` steps.

    Args:
        state_path: where the state is saved now and then; a state of this stage that lies
            there is resumed from.
        every, look: ``look(step, mean loss)`` is called each ``every`` steps, and at the end
            (0: never).
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=stage.peak_lr, weight_decay=0.01, betas=(0.9, 0.95)
    )
    first = _resume(model, optimizer, stage, state_path)
    recent: list[float] = []
    model.train()
    with progress(stage.name, stage.steps) as tick:
        tick(first)
        for step in range(first, stage.steps):
            for group in optimizer.param_groups:
                group["lr"] = stage.peak_lr * _schedule(step, stage.steps)
            loss = loss_of(np.random.default_rng([seed, stage.number, step]))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            recent = [*recent[-19:], loss.item()]
            mean = sum(recent) / len(recent)
            tick(note=f"loss {mean:.3f}")
            done = step + 1
            if look is not None and every and (done % every == 0 or done == stage.steps):
                model.eval()
                look(done, mean)
                model.train()
            if done % _SAVE_EVERY == 0 and done < stage.steps:
                _save(model, optimizer, stage, done, state_path)
    model.eval()


def save_model(model: torch.nn.Module, path: Path) -> None:
    """Writes a model's parameters, whole or not at all."""
    partial = path.with_suffix(".partial")
    save_file({n: p.detach().contiguous() for n, p in model.named_parameters()}, partial)
    partial.replace(path)


def load_model(model: torch.nn.Module, path: Path) -> None:
    """Reads parameters that save_model wrote into the same model."""
    tensors = load_file(path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[name])


def _schedule(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / _WARMUP_STEPS)
    return warm * (_FLOOR + (1 - _FLOOR) * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _save(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    stage: Stage,
    step: int,
    path: Path,
) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"model/{name}"] = parameter.detach().contiguous()
        state = optimizer.state[parameter]
        for key in ("exp_avg", "exp_avg_sq", "step"):
            if key in state:
                tensors[f"{key}/{name}"] = state[key].contiguous()
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"stage": stage.name, "step": str(step)})
    partial.replace(path)


def _resume(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, stage: Stage, path: Path
) -> int:
    """Restores a saved state of this stage; returns the step to go on from."""
    try:
        with safe_open(path, "pt") as f:
            about = f.metadata() or {}
        if about.get("stage") != stage.name:
            return 0
        tensors = load_file(path)
    except (FileNotFoundError, SafetensorError):
        return 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model/{name}"])
            if f"exp_avg/{name}" in tensors:
                optimizer.state[parameter] = {
                    key: tensors[f"{key}/{name}"] for key in ("exp_avg", "exp_avg_sq", "step")
                }
    return int(about["step"])
