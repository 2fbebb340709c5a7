"""Vectors of texts by a sentence-transformers folder on disk, through transformers alone.

Read are modules.json (a Transformer, a Pooling, perhaps a Normalize), the pooling's config, the
length limit and the default prompt; a folder without modules.json is pooled by the mean. Weights
are safetensors, and no code of a folder is run. Knows no item.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModel, AutoTokenizer

from serendip.core import InvalidRequest
from serendip.progress import progress
from serendip.tree.embed import normalise_vectors

Floats = npt.NDArray[np.float32]
Pooling = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

FIELD = "tree.encoder"
_MAX_TOKENS = 512  # of a text, where the folder says nothing
_MAX_JSON_BYTES = 1 << 20


def _mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weight = mask[:, :, None].to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)


def _first(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return hidden[torch.arange(len(hidden)), mask.argmax(1)]  # of either padding side


def _last(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
    return hidden[torch.arange(len(hidden)), last]


def _max(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return hidden.masked_fill(mask[:, :, None] == 0, -torch.inf).amax(1)


POOLINGS: Mapping[str, Pooling] = {"mean": _mean, "cls": _first, "lasttoken": _last, "max": _max}
_FLAGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
}


class SentenceEncoder:
    """A folder's model, ready to embed."""

    def __init__(self, folder: Path):
        """Loads the folder.

        Raises:
            InvalidRequest: there is no such folder, it has no safetensors or broken files, or
                asks for a module or a pooling that is not known here.
        """
        if not folder.is_dir():
            raise _refused("no such folder", folder)
        modules = _modules(folder)
        settings = _json(folder / "sentence_bert_config.json", {})
        prompts = _json(folder / "config_sentence_transformers.json", {})
        self._prefix = (prompts.get("prompts") or {}).get(prompts.get("default_prompt_name"), "")
        self._lower = bool(settings.get("do_lower_case"))
        self._pool = POOLINGS[_pooling(folder / modules["Pooling"], folder)]
        inner = folder / modules["Transformer"]
        if not any(inner.glob("*.safetensors")):
            raise _refused("has no *.safetensors", inner)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(
                inner, local_files_only=True, trust_remote_code=False
            )
            self._model = AutoModel.from_pretrained(
                inner, local_files_only=True, trust_remote_code=False, use_safetensors=True,
                dtype=torch.float32,
            ).eval()  # fmt: skip
        except (OSError, ValueError, KeyError, ImportError) as e:
            raise _refused(f"cannot be loaded ({str(e).splitlines()[0]})", inner) from e
        limits = (
            settings.get("max_seq_length") or _MAX_TOKENS,
            getattr(self._model.config, "max_position_embeddings", None),
            self._tokenizer.model_max_length,
        )
        self._max_tokens = int(min(filter(None, limits)))

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], batch_size: int) -> Floats:
        """float32[N, d]: unit vectors; long texts are cut at the model's limit."""
        written = [self._prefix + (t.lower() if self._lower else t) for t in texts]
        # Texts of like length together: little padding.
        order = np.argsort([len(t) for t in written], kind="stable")[::-1]
        found: list[npt.NDArray[np.float32]] = []
        with progress("vectors", len(texts)) as tick:
            for at in range(0, len(order), batch_size):
                batch = [written[i] for i in order[at : at + batch_size]]
                inputs = self._tokenizer(
                    batch, padding=True, truncation=True, max_length=self._max_tokens,
                    return_tensors="pt",
                )  # fmt: skip
                hidden = self._model(**inputs).last_hidden_state
                found.append(self._pool(hidden, inputs["attention_mask"]).numpy())
                tick(len(batch))
        vectors = np.concatenate(found)
        result = np.empty_like(vectors)
        result[order] = vectors
        return normalise_vectors(result) if np.isfinite(result).all() else result


def _modules(folder: Path) -> dict[str, str]:
    """Folder of the Transformer and of the Pooling, relative to the model's."""
    listed = _json(folder / "modules.json", None)
    if listed is None:
        return {"Transformer": "", "Pooling": ""}
    found: dict[str, str] = {}
    for module in listed:
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        if kind not in ("Transformer", "Pooling", "Normalize") or kind in found:
            raise _refused(
                f"modules.json names a {kind or 'module'} that is not known here", folder
            )
        path = str(module.get("path", ""))
        if not (folder / path).resolve().is_relative_to(folder.resolve()):
            raise _refused("modules.json leads out of the folder", folder)
        found[kind] = path
    if not {"Transformer", "Pooling"} <= found.keys():
        raise _refused("modules.json must name a Transformer and a Pooling", folder)
    return found


def _pooling(path: Path, folder: Path) -> str:
    """Name of the pooling in POOLINGS."""
    config = _json(path / "config.json", {}) if path != folder else {}
    modes = [name for flag, name in _FLAGS.items() if config.get(flag)]
    others = [k for k, v in config.items() if k.startswith("pooling_mode_") and v is True]
    named = config.get("pooling_mode")
    if isinstance(named, str):
        modes, others = [named], []
    if not modes and not others:
        modes = ["mean"]
    if len(modes) != 1 or modes[0] not in POOLINGS or set(others) - _FLAGS.keys():
        raise _refused(f"pooling must be one of {', '.join(POOLINGS)}", path)
    return modes[0]


def _json(path: Path, missing: Any) -> Any:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise _refused("is too large", path)
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return missing
    except ValueError as e:
        raise _refused(f"is no JSON ({e})", path) from e


def _refused(message: str, path: Path) -> InvalidRequest:
    return InvalidRequest(
        message,
        field=FIELD,
        value=str(path),
        remedy="Name the folder of a sentence-transformers or transformers model.",
    )
