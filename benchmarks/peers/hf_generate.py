"""transformers' own constrained generation: ``prefix_allowed_tokens_fn`` over nested dicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch

from serendip.planning.mllm import Batch, Mllm
from serendip.planning.trie import DescriptionTrie
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


@torch.inference_mode()
def generate_descriptions(
    mllm: Mllm,
    trie: DescriptionTrie,
    batch: Batch,
    roots: Sequence[Dicts],
    *,
    opening: Sequence[int],
    beams: int,
    k: int,
) -> list[dict[int, float]]:
    """Full scores of each prompt's k best nodes under its own dicts, by beams of ``generate``."""
    extra = torch.tensor([list(opening)] * len(roots))
    fill = {"input_ids": extra, "attention_mask": torch.ones_like(extra)}
    given = {
        name: torch.cat([value, fill.get(name, torch.zeros_like(extra))], dim=1)
        if value.shape[:2] == batch["input_ids"].shape
        else value
        for name, value in batch.items()
    }
    prompt = given["input_ids"].shape[1]

    def allowed(row: int, text: torch.Tensor) -> list[int]:
        at = roots[row]
        for token in text[prompt:].tolist():
            at = at.get(token, {})
        return list(at) or [trie.end_token]

    longest = max(len(trie.tokens_of(rank)) for rank in range(len(trie)))
    out = mllm.model.generate(
        **given,
        prefix_allowed_tokens_fn=allowed,
        num_beams=beams,
        num_return_sequences=k,
        max_new_tokens=longest,
        length_penalty=0.0,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=trie.end_token,
        return_dict_in_generate=True,
        output_scores=True,
    )
    found: list[dict[int, float]] = [{} for _ in roots]
    written = out.sequences[:, prompt:].tolist()
    for i, (tokens, score) in enumerate(zip(written, out.sequences_scores.tolist(), strict=True)):
        tokens = tokens[: tokens.index(trie.end_token)]
        state = trie.walk(tokens)
        assert state is not None
        found[i // k][int(trie.node_of_rank[trie.lo[state]])] = score
    return found


def trie_without(trie: DescriptionTrie, node: int | None) -> Dicts:
    """Dicts of all descriptions but one node's."""
    kept = [r for r in range(len(trie)) if trie.node_of_rank[r] != node]
    return dict_trie(TokenLists.of([trie.tokens_of(r)[:-1] for r in kept]), trie.end_token)
