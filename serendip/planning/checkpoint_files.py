"""The files of a checkpoint, before anything of them is loaded: which are there, and are they safe.

What transformers would do with a folder depends on what lies in it: it may ask for code of the
checkpoint's own, read pickles, put an adapter on top, or fill what is missing with random
numbers. All of that is refused here, by looking alone. Knows no model.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from serendip.core import CorruptArtifact
from serendip.progress import progress
from serendip.storage import hash_file

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
# What a checkpoint is made of; nothing else of a hub's repository is fetched.
_PATTERNS = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_REMEDY = "Name a folder with config, processor and safetensors."


def find_checkpoint(checkpoint: str | Path) -> Path:
    """The folder of a checkpoint; one named as on the hub is fetched, without pickles and code.

    Raises:
        CorruptArtifact: there is no such folder and no such name on the hub, or the hub cannot
            be reached and its cache has no copy.
    """
    folder = Path(checkpoint)
    if folder.is_dir():
        return folder
    if folder.exists() or not _HUB_NAME.fullmatch(str(checkpoint)):
        raise refused(checkpoint, "no image-text checkpoint: no such folder")
    try:
        return Path(snapshot_download(str(checkpoint), allow_patterns=list(_PATTERNS)))
    except (OSError, ValueError) as e:
        raise refused(
            checkpoint, f"no image-text checkpoint: no such folder, and the hub said: {_first(e)}"
        ) from e


def check_checkpoint(folder: Path) -> None:
    """Raises CorruptArtifact unless a folder holds an image-text checkpoint, whole and safe.

    Weights are safetensors, each file there and as long as its header says; no file asks for
    code that is not transformers' own; there is a chat template.
    """
    config = _json(folder, "config.json")
    if config is None:
        raise refused(folder, "no image-text checkpoint: it has no config.json")
    for path in sorted(folder.glob("*config*.json")):
        _check_code(folder, path.name, _json(folder, path.name))
    if (folder / "adapter_config.json").exists():
        raise refused(
            folder,
            "holds an adapter, not a checkpoint of its own",
            "Merge it into its base model, and name the folder of the result.",
        )
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise refused(
            folder,
            f"no image-text checkpoint: config.json says model_type {kind!r}",
            "Name a checkpoint that transformers opens as AutoModelForImageTextToText.",
        )
    _check_weights(folder)
    if not _has_chat_template(folder):
        raise refused(
            folder,
            "has no chat template",
            "Name an instruction-tuned checkpoint, or add its chat_template.jinja.",
        )


def digest_checkpoint(folder: Path) -> str:
    """12 hexadecimal digits over the files that a checkpoint is made of."""
    paths = sorted({p for pattern in _PATTERNS for p in folder.glob(pattern)})
    digest = hashlib.sha256()
    with progress("checkpoint", len(paths)) as tick:
        for path in paths:
            digest.update(f"{path.name}:{hash_file(path)}\n".encode())
            tick()
    return digest.hexdigest()[:12]


def refused(checkpoint: str | Path, message: str, remedy: str = _REMEDY) -> CorruptArtifact:
    """The error of a checkpoint that cannot be used."""
    return CorruptArtifact(
        message, field="planner.checkpoint", value=str(checkpoint), remedy=remedy
    )


def _check_code(folder: Path, name: str, about: Any) -> None:
    for key, value in _entries(about):
        # An attention of this form is fetched from the hub, compiled, and run.
        fetched = "attn_implementation" in key and isinstance(value, str) and "/" in value
        if key == "auto_map" or fetched:
            raise refused(
                folder,
                f"{name} asks for code from outside ({key}), which is never run",
                "Name a checkpoint whose architecture transformers has itself.",
            )


def _entries(about: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(about, dict):
        yield from about.items()
        about = list(about.values())
    if isinstance(about, list):
        for below in about:
            yield from _entries(below)


def _check_weights(folder: Path) -> None:
    names = [_WHOLE]
    if not (folder / _WHOLE).exists():
        index = _json(folder, _INDEX)
        if index is None:
            pickles = sorted(p.name for pattern in _PICKLES for p in folder.glob(pattern))
            if pickles:
                raise refused(
                    folder,
                    f"holds its weights as a pickle ({pickles[0]}), which can run code, and no "
                    "safetensors",
                    "Convert it where it is trusted (save_pretrained), or name one that has them.",
                )
            raise refused(folder, f"no image-text checkpoint: it has no {_WHOLE}")
        try:
            names = sorted(set(index["weight_map"].values()))
        except (KeyError, TypeError, AttributeError) as e:
            raise refused(folder, f"{_INDEX} has no weight_map") from e
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise refused(folder, f"{_INDEX} names {name!r}, which is no safetensors file of it")
        try:
            with safe_open(folder / name, "pt"):
                pass
        except FileNotFoundError as e:
            raise refused(
                folder, f"a part of its weights is missing: {name}", "Fetch the checkpoint again."
            ) from e
        except (OSError, SafetensorError) as e:
            raise refused(
                folder, f"{name} is damaged ({_first(e)})", "Fetch the checkpoint again."
            ) from e


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").exists() or (folder / "chat_template.json").exists():
        return True
    files = (_json(folder, name) for name in ("processor_config.json", "tokenizer_config.json"))
    return any(isinstance(about, dict) and about.get("chat_template") for about in files)


def _json(folder: Path, name: str) -> Any:
    """What a JSON file holds; None without one. Raises CorruptArtifact if it is no JSON."""
    try:
        return json.loads((folder / name).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as e:
        raise refused(folder, f"no image-text checkpoint: {name} is no JSON") from e


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
