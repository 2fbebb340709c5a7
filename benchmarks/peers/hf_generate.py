"""transformers' own constrained generation: ``prefix_allowed_tokens_fn`` over nested dicts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

from serendip.planning.trie_build import TokenLists

Dicts = dict[int, Any]


def dict_trie(tokens: TokenLists, end: int) -> Dicts:
    """Nested dicts from token to what follows."""
    root: Dicts = {}
    flat, start = tokens.flat.tolist(), tokens.start.tolist()
    for first, last in pairwise(start):
        at = root
        for token in flat[first:last]:
            at = at.setdefault(token, {})
        at[end] = {}
    return root


def generate_with_dict_trie(
    model: Any, tokens: TokenLists, end: int, beams: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A beam search of ``generate`` from prompts int64[R, T] to sequences."""
    root = dict_trie(tokens, end)
    longest = int(tokens.lengths.max()) + 1

    def run(ids: torch.Tensor) -> torch.Tensor:
        prompt = ids.shape[1]

        def allowed(_: int, text: torch.Tensor) -> list[int]:
            at = root
            for token in text[prompt:].tolist():
                at = at.get(token, {})
            return list(at) or [end]

        sequences: torch.Tensor = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            prefix_allowed_tokens_fn=allowed,
            num_beams=beams,
            num_return_sequences=beams,
            max_new_tokens=longest,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=end,
        )
        return sequences

    return run
