"""Answers of a transformers text-generation checkpoint on disk. Knows no tree.

Weights are safetensors; no code of the folder is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from serendip.core import InvalidRequest

_MAX_PROMPT_TOKENS = 1024


class Generator:
    """Greedy answers: the same prompts, the same answers."""

    def __init__(self, folder: Path, batch_size: int, max_new_tokens: int = 32):
        """Loads the checkpoint.

        Raises:
            InvalidRequest: the folder is not there, has no safetensors or cannot be loaded.
        """
        if not any(folder.glob("*.safetensors")):
            raise _refused("is no folder with *.safetensors", folder)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, padding_side="left",
                truncation_side="left",
            )  # fmt: skip
            self._model = AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
            ).eval()
        except (OSError, ValueError, KeyError, ImportError) as e:
            raise _refused(f"cannot be loaded ({str(e).splitlines()[0]})", folder) from e
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token or self._tokenizer.unk_token
        if self._tokenizer.pad_token_id is None:
            raise _refused("its tokenizer has no token to pad with", folder)
        room = getattr(self._model.config, "max_position_embeddings", None)
        self._prompt_tokens = min(_MAX_PROMPT_TOKENS, (room or 1 << 30) - max_new_tokens)
        self._batch_size, self._new_tokens = batch_size, max_new_tokens

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[str]) -> Iterator[str]:
        """The answers, in the prompts' order; of a prompt that is too long its end is read."""
        for at in range(0, len(prompts), self._batch_size):
            batch = [self._written(p) for p in prompts[at : at + self._batch_size]]
            inputs = self._tokenizer(
                batch, return_tensors="pt", padding=True, truncation=True,
                max_length=self._prompt_tokens, add_special_tokens=not self._has_template,
                return_token_type_ids=False,
            )  # fmt: skip
            out = self._model.generate(
                **inputs, max_new_tokens=self._new_tokens, do_sample=False, num_beams=1,
                pad_token_id=self._tokenizer.pad_token_id,
            )  # fmt: skip
            new = out[:, inputs["input_ids"].shape[1] :]
            yield from self._tokenizer.batch_decode(new, skip_special_tokens=True)

    @property
    def _has_template(self) -> bool:
        return bool(self._tokenizer.chat_template)

    def _written(self, prompt: str) -> str:
        if not self._has_template:
            return f"{prompt}\nName:"
        turn = [{"role": "user", "content": prompt}]
        text: str = self._tokenizer.apply_chat_template(
            turn, tokenize=False, add_generation_prompt=True
        )
        return text


def _refused(message: str, folder: Path) -> InvalidRequest:
    return InvalidRequest(
        message,
        field="tree.llm",
        value=str(folder),
        remedy="Name the folder of a transformers text-generation checkpoint.",
    )
