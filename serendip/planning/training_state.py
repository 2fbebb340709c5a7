"""A training between two steps, on disk: what an interrupted one goes on from.

One safetensors file holds the trained parameters, what the optimizers keep of each, whatever it
is called, and in its metadata the looks so far; it is replaced whole. The weights of the best
look lie in a file of their own, named by its step, which goes once a state that names a later one
is on disk: no more than two are ever kept. Knows no loss and no schedule.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from serendip.core import InvalidRequest

Line = dict[str, float]
Recipe = Mapping[str, str | int | float]


def trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that want a gradient, by name; a tied one once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def save_state(
    path: Path,
    recipe: Recipe,
    model: torch.nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    step: int,
    lines: Sequence[Line],
    recent: Sequence[float],
    kept: int | None,
) -> None:
    """Replaces the state by the one after ``step`` steps.

    Args:
        recipe: what the training is of; a state of another is not resumed from.
        lines: the looks so far.
        recent: losses of the last steps.
        kept: the step of the best look; the weights of all others go.
    """
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, Any] = {}  # what an optimizer keeps that is no tensor
    for name, parameter in trained(model).items():
        tensors[f"model/{name}"] = parameter.detach().contiguous()
        for at, optimizer in enumerate(optimizers):
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{at}.{key}/{name}"] = value.detach().contiguous()
                else:
                    numbers[f"{at}.{key}/{name}"] = value
    about = {
        "recipe": {**recipe, "weights": _shapes(model)},
        "step": step,
        "lines": list(lines),
        "recent": list(recent),
        "numbers": numbers,
    }
    _write(path, tensors, {"about": json.dumps(about)})
    if kept is not None:
        for old in path.parent.glob(_best(path, "*").name):
            if old != _best(path, kept):
                old.unlink()


def load_state(
    path: Path,
    recipe: Recipe,
    model: torch.nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
) -> tuple[int, list[Line], list[float]]:
    """Restores a saved state; returns (steps done, looks, recent losses), (0, [], []) without one.

    Raises:
        InvalidRequest: the state is of another recipe; names what differs.
    """
    try:
        with safe_open(path, "pt") as f:
            about = json.loads((f.metadata() or {})["about"])
        _check_recipe(path, about["recipe"], {**recipe, "weights": _shapes(model)})
        tensors = load_file(path)
    except (FileNotFoundError, SafetensorError, KeyError, ValueError):
        return 0, [], []  # none, or one that cannot be read: the training begins anew
    kept: dict[str, list[dict[str, Any]]] = {}
    for full, value in [*tensors.items(), *about["numbers"].items()]:
        place, _, name = full.partition("/")
        at, _, key = place.partition(".")
        if key:
            kept.setdefault(name, [{} for _ in optimizers])[int(at)][key] = value
    with torch.no_grad():
        for name, parameter in trained(model).items():
            parameter.copy_(tensors[f"model/{name}"])
            for optimizer, state in zip(optimizers, kept.get(name, []), strict=False):
                if state:
                    optimizer.state[parameter] = {
                        key: _beside(parameter, value) for key, value in state.items()
                    }
    return int(about["step"]), about["lines"], about["recent"]


def keep_weights(model: torch.nn.Module, path: Path, step: int) -> None:
    """Writes what the model has learnt beside its state, as that of a step."""
    tensors = {name: p.detach().contiguous() for name, p in trained(model).items()}
    _write(_best(path, step), tensors, {})


def load_weights(model: torch.nn.Module, path: Path, step: int) -> None:
    """Reads what keep_weights wrote of a step into the same model."""
    tensors = load_file(_best(path, step))
    with torch.no_grad():
        for name, parameter in trained(model).items():
            parameter.copy_(tensors[name])


def _beside(parameter: torch.Tensor, value: Any) -> Any:
    """What an optimizer keeps where it keeps it: counters stay on the CPU."""
    is_moment = isinstance(value, torch.Tensor) and value.dim()
    return value.to(parameter.device) if is_moment else value


def _check_recipe(path: Path, found: Recipe, ours: Recipe) -> None:
    differing = [k for k in {**found, **ours} if found.get(k) != ours.get(k)]
    if differing:
        raise InvalidRequest(
            "a training that lies here unfinished was begun with "
            + ", ".join(f"{k} {found.get(k)!r}, now {ours.get(k)!r}" for k in differing),
            field=str(path),
            remedy=f"Set it back to go on from there, or remove {path.parent} to begin anew.",
        )


def _shapes(model: torch.nn.Module) -> str:
    """12 hexadecimal digits over what is trained, by name, shape and type."""
    about = sorted((n, tuple(p.shape), str(p.dtype)) for n, p in trained(model).items())
    return hashlib.sha256(repr(about).encode()).hexdigest()[:12]


def _best(path: Path, step: int | str) -> Path:
    return path.with_name(f"{path.stem}-best-{step}.safetensors")


def _write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    partial = path.with_suffix(".partial")
    save_file(dict(tensors), partial, metadata=metadata)
    partial.replace(path)
