"""A torch model seen as the decoder sees every model: prefill, extend, reorder, head rows.

Knows no trie and no tokenizer. R is the number of rows in flight, which reorder may change.
"""

from __future__ import annotations

from typing import Any

import torch

from serendip.planning.mllm import Batch, Mllm


class TorchSession:
    """One batch in flight: the KV cache, which of its positions count, and where each row is."""

    def __init__(self, mllm: Mllm) -> None:
        self._model = mllm.model
        text = mllm.model.config.get_text_config()
        self._soft_cap: float | None = getattr(text, "final_logit_softcapping", None)

    def prefill(self, batch: Batch) -> torch.Tensor:
        """Reads left-padded prompts; returns float32[R, d], hidden states of the last tokens."""
        self._mask = batch["attention_mask"]
        self._position = self._mask.sum(dim=1)
        out = self._model.model(
            **batch,
            position_ids=(self._mask.cumsum(dim=1) - 1).clamp(min=0),
            use_cache=True,
        )
        self._cache = out.past_key_values
        return self._hidden(out)

    def extend(self, tokens: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Appends one token a row; returns float32[R, d].

        Args:
            tokens: int64[R].
            real: bool[R]; a row that is not real only waits: its token leaves no trace.
        """
        self._mask = torch.cat([self._mask, real[:, None].to(self._mask.dtype)], dim=1)
        out = self._model.model(
            input_ids=tokens[:, None],
            attention_mask=self._mask,
            position_ids=self._position[:, None],
            past_key_values=self._cache,
            use_cache=True,
        )
        self._position = self._position + real
        return self._hidden(out)

    def reorder(self, rows: torch.Tensor) -> None:
        """Makes row ``rows[i]`` the new row i; rows may repeat and may be left out."""
        self._cache.reorder_cache(rows)
        self._mask, self._position = self._mask[rows], self._position[rows]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32[R, V]: the head over the whole vocabulary."""
        scores: torch.Tensor = self._model.lm_head(hidden).float()
        if self._soft_cap:
            scores = torch.tanh(scores / self._soft_cap) * self._soft_cap
        return scores

    @staticmethod
    def _hidden(out: Any) -> torch.Tensor:
        last: torch.Tensor = out.last_hidden_state[:, -1]
        return last
