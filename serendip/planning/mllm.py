"""A multimodal LLM and its processor: any image-text checkpoint of transformers, encoded once.

Knows no item, no trie and no plan: prompts in, token IDs and tensors out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import is_torchvision_available
from transformers.utils import logging as transformers_logging

from serendip.core import InvalidRequest
from serendip.planning.checkpoint_files import check_checkpoint, find_checkpoint, refused
from serendip.planning.gemma_pass import is_plain, states_at
from serendip.planning.prompt import Prompt
from serendip.planning.style import ANSWER, OPENED

Batch = dict[str, torch.Tensor]

IGNORED = -100  # a label that the loss leaves out
_PROBE = "zz"
_KEPT_TEXTS = 16_384  # whose tokens are remembered

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


class Mllm:
    """A model with its processor.

    Attributes:
        model: AutoModelForImageTextToText.
        processor: its AutoProcessor.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.processor = processor

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @classmethod
    def open(cls, checkpoint: str | Path, dtype: torch.dtype | None = None) -> Mllm:
        """Opens a checkpoint: a folder or a hub name; safetensors only, no remote code.

        Args:
            dtype: of the weights; None: as they were saved.

        Raises:
            CorruptArtifact: it is no image-text checkpoint, a part of it is missing or damaged,
                it needs code of its own, or its weights are not those of its config.
        """
        folder = find_checkpoint(checkpoint)
        check_checkpoint(folder)
        try:
            model, loaded = AutoModelForImageTextToText.from_pretrained(
                str(folder),
                dtype="auto" if dtype is None else dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # told below, with both shapes
            )
            processor = _open_processor(str(folder), model.config)
        except (ImportError, OSError, ValueError, KeyError, RuntimeError, TypeError) as e:
            first = (str(e).splitlines() or [type(e).__name__])[0]
            raise refused(checkpoint, f"no image-text checkpoint ({first})") from e
        # What follows transformers would fill with random numbers.
        if mismatched := sorted(loaded["mismatched_keys"]):
            name, found, asked = mismatched[0]
            raise refused(
                checkpoint,
                f"its weight {name} has the shape {tuple(found)}, its config asks for "
                f"{tuple(asked)}",
                "Fetch the checkpoint again, or the config that belongs to it.",
            )
        if missing := sorted(loaded["missing_keys"]):
            raise refused(
                checkpoint,
                f"its weights lack {len(missing)} that its config asks for, {missing[0]} for one",
                "Fetch the checkpoint again, or the config that belongs to it.",
            )
        return cls(model.eval(), processor)

    @classmethod
    def open_words(cls, checkpoint: Path) -> Mllm:
        """A checkpoint's processor and settings alone, for who runs its weights elsewhere.

        Everything but ``encode_training`` and what reads ``model`` itself works as ever.

        Raises:
            CorruptArtifact: see ``open``, less what only loaded weights show.
        """
        check_checkpoint(checkpoint)
        try:
            config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
            generation = GenerationConfig.from_pretrained(checkpoint)
            processor = _open_processor(str(checkpoint), config)
        except (ImportError, OSError, ValueError, KeyError, TypeError) as e:
            first = (str(e).splitlines() or [type(e).__name__])[0]
            raise refused(checkpoint, f"no image-text checkpoint ({first})") from e
        return cls(SimpleNamespace(config=config, generation_config=generation), processor)

    def save(self, folder: Path) -> None:
        """Writes an ordinary transformers checkpoint."""
        self.model.save_pretrained(folder, safe_serialization=True)
        self.processor.save_pretrained(folder)

    @cached_property
    def end_token(self) -> int:
        """The token that ends the model's turn, as the chat template writes it."""
        turns = [
            {"role": role, "content": [{"type": "text", "text": _PROBE}]}
            for role in ("user", "assistant")
        ]
        text = self.processor.apply_chat_template(turns, tokenize=False)
        after = self.tokens(text.rpartition(_PROBE)[2])
        return next((t for t in after if t in self.end_tokens), min(self.end_tokens))

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """Every token that ends a turn."""
        ends = self.model.generation_config.eos_token_id
        return frozenset(ends if isinstance(ends, list) else [ends])

    @cached_property
    def tokenizer_hash(self) -> str:
        """sha256 of the tokenizer: two with the same hash encode alike."""
        about = json.loads(self.tokenizer.backend_tokenizer.to_str())
        # How the last call padded and truncated is kept there, and changes no token.
        about = {k: v for k, v in about.items() if k not in ("padding", "truncation")}
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def tokens(self, text: str) -> list[int]:
        """Token IDs of a text that starts no sequence."""
        return list(self._tokens_of(text))

    @cached_property
    def _tokens_of(self) -> Callable[[str], tuple[int, ...]]:
        """The same, kept: descriptions and looks are asked for over and over in training."""

        @lru_cache(_KEPT_TEXTS)
        def tokens_of(text: str) -> tuple[int, ...]:
            return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)

        return tokens_of

    def description_tokens(self, descriptions: Sequence[str]) -> list[list[int]]:
        """Token IDs of each description as it follows the answer's opening.

        Raises:
            InvalidRequest: opening and description do not tokenise as their concatenation.
        """
        openings = [(opening, self.tokens(opening)) for opening in (ANSWER, OPENED)]
        rows = []
        for text in descriptions:
            ids = self.tokens(f" {text}")
            if any(self.tokens(f"{said} {text}") != before + ids for said, before in openings):
                raise InvalidRequest(
                    "does not tokenise as opening + description",
                    field="description",
                    value=text,
                    remedy="Rephrase it, or use another tokenizer.",
                )
            rows.append(ids)
        return rows

    def prompt_text(self, prompt: Prompt) -> str:
        """The prompt in the checkpoint's chat template, up to where the model goes on."""
        messages = [
            {**m, "content": [self._plain(part) for part in m["content"]]} for m in prompt.messages
        ]
        text: str = self.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return text + self.plain(prompt.opening)

    def plain(self, text: str) -> str:
        """A text from outside without the tokenizer's special tokens: words cannot be markup."""
        return self._special.sub(" ", text)

    def _plain(self, part: dict[str, str]) -> dict[str, str]:
        return {**part, "text": self.plain(part["text"])} if "text" in part else part

    @cached_property
    def _special(self) -> re.Pattern[str]:
        added = self.tokenizer.added_tokens_decoder.values()
        tokens = {t.content for t in added if t.special and t.content.strip()}
        # (?!) matches nothing: a tokenizer may have no special token.
        return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")

    def encode(self, prompts: Sequence[Prompt]) -> Batch:
        """Prompts as model inputs, padded on the left: input_ids int64[B, T] and the rest."""
        return self._process([self.prompt_text(p) for p in prompts], prompts, side="left")

    def encode_training(
        self, prompts: Sequence[Prompt], answers: Sequence[str]
    ) -> tuple[Batch, torch.Tensor]:
        """Prompts with their answers, padded on the right, and labels int64[B, T].

        Labels are IGNORED everywhere but on the answer and the turn's end.
        """
        end = self.tokenizer.convert_ids_to_tokens(self.end_token)
        texts = [f"{self.prompt_text(p)}{a}{end}" for p, a in zip(prompts, answers, strict=True)]
        batch = self._process(texts, prompts, side="right")
        lengths = batch["attention_mask"].sum(dim=1)
        labels = torch.full_like(batch["input_ids"], IGNORED)
        for row, answer in enumerate(answers):
            stop = int(lengths[row])
            start = stop - len(self.tokens(answer)) - 1
            labels[row, start:stop] = batch["input_ids"][row, start:stop]
        return batch, labels

    def _process(self, texts: list[str], prompts: Sequence[Prompt], side: str) -> Batch:
        images = [list(p.images) for p in prompts]
        batch = self.processor(
            text=texts,
            images=images if any(images) else None,
            padding=True,
            padding_side=side,
            add_special_tokens=False,
            return_tensors="pt",
        )
        return dict(batch)


def _open_processor(checkpoint: str, config: Any) -> Any:
    """The checkpoint's processor; without its video part, which asks for torchvision.

    Frames are put to a model as images, so the part that decodes videos is never used.
    """
    kind = PROCESSOR_MAPPING.get(type(config), None)
    parts = [] if kind is None else kind.get_attributes()
    if is_torchvision_available() or "video_processor" not in parts:
        return AutoProcessor.from_pretrained(checkpoint, trust_remote_code=False)
    kept = classmethod(lambda _: [part for part in parts if part != "video_processor"])
    images_only: Any = type(kind.__name__, (kind,), {"get_attributes": kept})
    return images_only.from_pretrained(checkpoint, trust_remote_code=False)


def answer_loss(
    mllm: Mllm, batch: Batch, labels: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Cross-entropy of the labelled tokens; the head runs on these positions alone.

    Args:
        batch: padded on the right.
        labels: int64[B, T], IGNORED where nothing is learnt.
        weights: float32[B]; the loss is the sum over tokens, each times its row's weight. None:
            the mean over tokens.
    """
    device = mllm.model.device
    batch, labels = {k: v.to(device) for k, v in batch.items()}, labels.to(device)
    wanted = labels[:, 1:] != IGNORED
    logits = mllm.model.get_output_embeddings()(_states_before(mllm.model, batch, wanted)).float()
    targets = labels[:, 1:][wanted]
    if weights is None:
        return functional.cross_entropy(logits, targets)
    each = functional.cross_entropy(logits, targets, reduction="none")
    return each @ weights.to(device).repeat_interleave(wanted.sum(dim=1))


def _states_before(model: Any, batch: Batch, wanted: torch.Tensor) -> torch.Tensor:
    """float[N, D]: the last states of the tokens before the wanted ones.

    Args:
        batch: padded on the right.
        wanted: bool[B, T - 1], of all tokens but the first.
    """
    pixels = batch.get("pixel_values")
    if is_plain(model):
        return states_at(model, batch["input_ids"], pixels, functional.pad(wanted, (0, 1)))
    if pixels is None:
        # Nothing looks ahead but within a picture, so no token sees the padding behind it; and
        # without a mask attention is cheaper.
        batch = {"input_ids": batch["input_ids"]}
    states: torch.Tensor = model.model(**batch, use_cache=False).last_hidden_state[:, :-1][wanted]
    return states
