"""One training loop for caption pretraining and fine-tuning: seeded by step, resumable.

A step's randomness comes from (seed, stage, step) alone, so that a run that was interrupted
goes on as if it had not been. Only what is trained is saved, with its optimizers' state, each
time whole or not at all. Knows no prompt and no metric by name.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from serendip.core import InvalidRequest
from serendip.planning.muon import Muon
from serendip.planning.training_state import (
    Line,
    keep_weights,
    load_state,
    load_weights,
    save_state,
    trained,
)
from serendip.progress import progress

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_WARMUP_STEPS = 30
_WEIGHT_DECAY = 0.01
_FLOOR = 0.03  # of the peak learning rate, at the end of the cosine
_SAVE_EVERY, _SAVE_SECONDS = 50, 120.0  # whichever comes first

Loss = Callable[[np.random.Generator], Iterable[torch.Tensor]]


@dataclass(frozen=True)
class Stage:
    """One stretch of training.

    Attributes:
        name: shown to the user; also what a saved state belongs to.
        number: sets the stage's randomness apart.
        peak_lr: of a cosine schedule with a linear start.
        bfloat16: whether the passes run in bfloat16; weights and optimizer stay as they are.
        muon_lr: the peak for matrices, which Muon then trains; 0: AdamW trains everything.
    """

    name: str
    number: int
    steps: int
    peak_lr: float
    bfloat16: bool = False
    muon_lr: float = 0.0


@dataclass(frozen=True)
class Watch:
    """How a stage is looked at on its way, and which of its looks is kept.

    Attributes:
        every: steps between two looks; the last step is looked at whatever it is.
        measure: metrics of the model as it is.
        best: which of some looks is the best; the same whatever comes later but where that is
            better itself.
        tell: is given all looks so far after each.
        patience: looks without a better one after which the stage ends; 0: never.
    """

    every: int
    measure: Callable[[], Line]
    best: Callable[[Sequence[Line]], Line]
    tell: Callable[[Sequence[Line]], None] = lambda lines: None
    patience: int = 0

    def is_over(self, lines: Sequence[Line]) -> bool:
        """Whether the last ``patience`` looks were all worse than one before them."""
        if not self.patience or not lines:
            return False
        best = self.best(lines)["step"]
        return sum(line["step"] > best for line in lines) >= self.patience


def build_optimizers(model: torch.nn.Module, stage: Stage) -> list[torch.optim.Optimizer]:
    """What trains those of a model's parameters that want a gradient.

    Muon (K. Jordan et al. 2024, scaled to AdamW's step as in arXiv 2502.16982) takes matrices but
    embeddings and head, AdamW the rest. The schedule scales each group's own ``lr``; whatever an
    optimizer keeps of a parameter is saved and restored.
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    head = getattr(model, "get_output_embeddings", lambda: None)()
    tables |= {id(head.weight)} if head is not None else set()
    matrices: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for parameter in trained(model).values():
        plain = stage.muon_lr and parameter.dim() == 2 and id(parameter) not in tables
        (matrices if plain else rest).append(parameter)
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(Muon(matrices, lr=stage.muon_lr, weight_decay=_WEIGHT_DECAY))
    if rest:
        # One call for all of them. On a GPU AdamW takes them together as it is, and fused it would
        # want its counters there, where a state that is read back does not put them.
        fused = all(p.device.type == "cpu" for p in rest)
        optimizers.append(
            torch.optim.AdamW(
                rest, lr=stage.peak_lr, weight_decay=_WEIGHT_DECAY, betas=(0.9, 0.95), fused=fused
            )
        )
    return optimizers


def train(
    model: torch.nn.Module,
    loss_of: Loss,
    stage: Stage,
    *,
    seed: int,
    state_path: Path,
    recipe: Mapping[str, str | int | float] | None = None,
    watch: Watch | None = None,
    events: Path | None = None,
) -> list[Line]:
    """Trains ``model`` for ``stage.steps`` steps; with a watch it ends as it was at its best look.

    Args:
        loss_of: of a step's generator, the parts whose sum is the step's loss. Each is made and
            differentiated before the next: they are what gradient accumulation goes by.
        state_path: where the state is saved now and then; a state of this stage that lies there
            is resumed from. Files of the watch lie beside it under the same stem.
        recipe: what else must not have changed for a state to be resumed from.
        events: a folder of TensorBoard's event files: loss and learning rate of each step, and
            the looks.

    Returns:
        the looks: {"step", "loss" (mean of the last 20 steps), ...what was measured}.

    Raises:
        InvalidRequest: the state that lies there is of another recipe, the loss is not finite, or a
            step does not fit the device's memory.
    """
    optimizers = build_optimizers(model, stage)
    peaks = [[group["lr"] for group in o.param_groups] for o in optimizers]
    about: dict[str, str | int | float] = {
        "stage": stage.name,
        "steps": stage.steps,
        "lr": stage.peak_lr,
        "muon_lr": stage.muon_lr,
        "bfloat16": stage.bfloat16,
        "seed": seed,
        "optimizer": "+".join(type(o).__name__ for o in optimizers),
        **(recipe or {}),
    }
    weights = list(trained(model).values())
    device = weights[0].device
    first, lines, recent = load_state(state_path, about, model, optimizers)
    over = watch is not None and watch.is_over(lines)
    saved_at = time.monotonic()
    model.train()
    with (
        _own_randomness(device),
        closing(_Events(events, first)) as written,
        progress(stage.name, stage.steps, done=first) as tick,
    ):
        for step in range(first, stage.steps):
            if over:
                break
            share = _schedule(step, stage.steps)
            for optimizer, at in zip(optimizers, peaks, strict=True):
                for group, peak in zip(optimizer.param_groups, at, strict=True):
                    group["lr"] = peak * share
            torch.manual_seed(_torch_seed(seed, stage.number, step))
            rng = np.random.default_rng([seed, stage.number, step])
            try:
                loss = _backward(loss_of, rng, stage, device)
            except torch.OutOfMemoryError as e:
                raise InvalidRequest(
                    f"{stage.name} does not fit the memory of {device} at step {step + 1} ({e})",
                    field="planner.accumulate",
                    remedy="Raise it, or set planner.gradient_checkpointing; the same command then "
                    "begins anew.",
                ) from e
            if not math.isfinite(loss):
                raise InvalidRequest(
                    f"the loss of {stage.name} is {loss} at step {step + 1}",
                    field="planner.lr",
                    value=stage.peak_lr,
                    remedy="Lower the stage's learning rates (lr, pretrain_lr, muon_lr).",
                )
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            recent = [*recent[-19:], loss]
            mean = sum(recent) / len(recent)
            tick(note=f"loss {mean:.3f}")
            done = step + 1
            written.add({"loss": loss, "learning_rate_share": share}, done)
            looked = watch is not None and (done % watch.every == 0 or done == stage.steps)
            if watch is not None and looked:
                model.eval()
                with _autocast(stage, device):
                    line: Line = {"step": done, "loss": mean, **watch.measure()}
                model.train()
                lines = [*lines, line]
                written.add({k: v for k, v in line.items() if k not in ("step", "loss")}, done)
                if watch.best(lines) is line:
                    keep_weights(model, state_path, done)
                over = watch.is_over(lines)
            due = done % _SAVE_EVERY == 0 or time.monotonic() - saved_at > _SAVE_SECONDS
            if looked or due or done == stage.steps:
                written.flush()
                kept = int(watch.best(lines)["step"]) if watch and lines else None
                save_state(state_path, about, model, optimizers, done, lines, recent, kept)
                saved_at = time.monotonic()
            if watch is not None and looked:
                watch.tell(lines)
    model.eval()
    if watch is not None and lines:
        load_weights(model, state_path, int(watch.best(lines)["step"]))
    return lines


def _backward(loss_of: Loss, rng: np.random.Generator, stage: Stage, device: torch.device) -> float:
    """Adds up the gradients of a step's parts; returns the sum of their losses."""
    total = 0.0
    parts = iter(loss_of(rng))
    while True:
        with _autocast(stage, device):
            part = next(parts, None)
        if part is None:
            return total
        part.backward()
        total += part.item()


def _autocast(stage: Stage, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=stage.bfloat16)


@contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """Leaves the caller's random state as it was: each step seeds torch (for dropout)."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


def _torch_seed(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


class _Events:
    """TensorBoard's event files of one stage; none without a folder."""

    def __init__(self, folder: Path | None, first: int) -> None:
        self._writer: SummaryWriter | None = None
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            # What an earlier run wrote of later steps is shown no more.
            self._writer = SummaryWriter(str(folder), purge_step=first + 1)

    def add(self, values: Mapping[str, float], step: int) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _schedule(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / _WARMUP_STEPS)
    return warm * (_FLOOR + (1 - _FLOOR) * 0.5 * (1 + math.cos(math.pi * step / steps)))
