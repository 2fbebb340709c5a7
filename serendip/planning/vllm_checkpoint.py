"""A checkpoint under the names that vLLM looks for.

transformers 5.23 saves Gemma 3's vision tower as ``vision_tower.*``; vLLM, whose tower is an older
one, loads ``vision_tower.vision_model.*`` and no other. Where that is so a copy with the other
names is kept beside the artefacts, until its planner is gone:

    artifacts/vllm/<planner version>/

Every other architecture, and every Gemma 3 with the older names, is loaded as it lies. Knows no
vLLM: what a copy must be like is checked here, since a tensor that vLLM does not know may also be
passed over there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from serendip.artifacts import Artifact
from serendip.core import CorruptArtifact
from serendip.storage import seal_file, sync_folder

FOLDER = "vllm"
_HALF_MADE_S = 86_400  # after which a copy that nobody has finished is removed
_INDEX = "model.safetensors.index.json"
_TOWER = re.compile(r"^(model\.)?vision_tower\.(?!vision_model\.)")
# What vLLM's Gemma 3 maps to its parameters.
_KNOWN = re.compile(
    r"^(model\.)?(vision_tower\.vision_model|multi_modal_projector|language_model)\."
    r"|^(language_model\.)?lm_head\."
)


def checkpoint_for_vllm(planner: Artifact) -> Path:
    """The folder that vLLM loads of a planner: its checkpoint, or a copy under other names.

    The copy appears when it is whole; of two that make it at once one is kept. Copies of planners
    that are gone are removed.

    Raises:
        CorruptArtifact: a tensor has a name that vLLM's Gemma 3 does not know, or no weights lie
            there.
    """
    checkpoint = planner.path / "checkpoint"
    if not needs_names(checkpoint):
        return checkpoint
    copies = planner.path.parent.parent / FOLDER
    copies.mkdir(exist_ok=True)
    for old in copies.iterdir():
        half_made = old.name.startswith(".")
        stale = half_made and time.time() - old.stat().st_mtime > _HALF_MADE_S
        if stale or (not half_made and not (planner.path.parent / old.name).exists()):
            shutil.rmtree(old, ignore_errors=True)
    made = copies / planner.version
    if not made.exists():
        with tempfile.TemporaryDirectory(prefix=".", dir=copies, ignore_cleanup_errors=True) as new:
            copy_renamed(checkpoint, Path(new) / "checkpoint")
            try:
                (Path(new) / "checkpoint").rename(made)
            except OSError:  # another worker's copy stands there
                if not made.exists():
                    raise
    return made


def needs_names(checkpoint: Path) -> bool:
    """Whether a checkpoint is a Gemma 3 whose vision tower has the newer names."""
    config = json.loads((checkpoint / "config.json").read_text())
    if config.get("model_type") != "gemma3":
        return False
    return any(_TOWER.match(name) for path in _weights(checkpoint) for name in _names(path))


def name_for_vllm(name: str) -> str:
    """The name of a tensor of Gemma 3 that vLLM maps. Raises CorruptArtifact if it maps none."""
    found = _TOWER.sub(lambda m: f"{m[0]}vision_model.", name)
    if not _KNOWN.match(found):
        raise CorruptArtifact(
            "is a tensor that vLLM's Gemma 3 does not know",
            field="planner.checkpoint",
            value=name,
            remedy="Plan with plans.engine = 'serendip'.",
        )
    return found


def copy_renamed(checkpoint: Path, target: Path) -> None:
    """Writes a checkpoint with other names: weights anew, all else linked.

    Raises:
        CorruptArtifact: see ``name_for_vllm``.
    """
    weights = set(_weights(checkpoint))
    for path in weights:  # before a gigabyte is written
        _check_distinct(path)
    target.mkdir()
    for path in sorted(checkpoint.iterdir()):
        new = target / path.name
        if path in weights:
            tensors = {name_for_vllm(name): tensor for name, tensor in load_file(path).items()}
            save_file(tensors, new, metadata={"format": "pt"})
            seal_file(new)
        elif path.name == _INDEX:
            index = json.loads(path.read_text())
            index["weight_map"] = {name_for_vllm(n): f for n, f in index["weight_map"].items()}
            new.write_text(json.dumps(index))
        elif path.is_file():
            _link(path, new)
    sync_folder(target)


def _check_distinct(path: Path) -> None:
    names = list(map(name_for_vllm, _names(path)))
    if len(set(names)) < len(names):
        raise CorruptArtifact(
            "has tensors under both of a tower's names",
            field="planner.checkpoint",
            value=str(path),
            remedy="Save it again.",
        )


def _weights(checkpoint: Path) -> list[Path]:
    found = sorted(checkpoint.glob("*.safetensors"))
    if not found:
        raise CorruptArtifact(
            "has no safetensors",
            field="planner.checkpoint",
            value=str(checkpoint),
            remedy="Run serendip finetune again.",
        )
    return found


def _names(path: Path) -> Iterable[str]:
    with safe_open(path, framework="pt") as tensors:
        return list(tensors.keys())


def _link(path: Path, other: Path) -> None:
    try:
        os.link(path, other)
    except OSError:  # a file system without hard links
        shutil.copy2(path, other)
