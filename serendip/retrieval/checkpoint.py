"""A training between two epochs, on disk: what an interrupted one goes on from.

Tensors lie in one safetensors file, everything else in a JSON file that names it and is written
last: a reader finds one epoch's state whole, or the one before. There are no random states: an
epoch's randomness comes from the seed and its number alone (fitting.py). Knows no log.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from serendip.storage import write_atomically

STATE = "training.json"
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # what AdamW keeps of a parameter


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to.

    Attributes:
        loss: satisfaction-weighted mean of the training targets' loss.
        hr10, ndcg10, mrr10: of the held-out last events, all items ranked, seen ones left out;
            0 if no user has enough history.
        users: how many they were.
        seconds, cpu_seconds: of training and validation, on the wall and of this process.
    """

    number: int
    loss: float
    hr10: float
    ndcg10: float
    mrr10: float
    users: int
    seconds: float
    cpu_seconds: float


def save_state(
    folder: Path,
    key: str,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    epochs: list[Epoch],
    best: Mapping[str, Tensor],
) -> None:
    """Replaces the folder's state by the one after ``epochs[-1]``.

    Args:
        key: what the training is of; another training's state is not gone on from.
        best: the weights of the best epoch so far.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"best/{name}": value for name, value in best.items()}
    for name, parameter in model.named_parameters():
        tensors[f"model/{name}"] = parameter.detach()
        for moment in _MOMENTS:
            tensors[f"{moment}/{name}"] = optimizer.state[parameter][moment]
    file = f"training-{epochs[-1].number}.safetensors"
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / file)
    state = {"key": key, "file": file, "epochs": [asdict(epoch) for epoch in epochs]}
    write_atomically(folder / STATE, json.dumps(state, indent=1).encode())
    for old in folder.glob("training-*.safetensors"):
        if old.name != file:
            old.unlink()


def load_state(
    folder: Path, key: str, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[list[Epoch], dict[str, Tensor]] | None:
    """Puts model and optimizer back as they were saved; returns (epochs so far, best weights).

    None, and nothing is changed, where there is no state of this training, or none that can be
    read: it begins anew.
    """
    try:
        state = json.loads((folder / STATE).read_bytes())
        if state["key"] != key:
            return None
        epochs = [Epoch(**epoch) for epoch in state["epochs"]]
        tensors = load_file(folder / state["file"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model/{name}"])
            optimizer.state[parameter] = {m: tensors[f"{m}/{name}"] for m in _MOMENTS}
    best = {n.removeprefix("best/"): t for n, t in tensors.items() if n.startswith("best/")}
    return epochs, best
