"""Constrained beam search as the field does it: all logits, a mask, one token a step.

Each beam is a row with a cache of its own. The trie is ours and costs next to nothing here, so
what is compared is the decoding, not the data structure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from serendip.planning.trie import START, DescriptionTrie


@dataclass
class Prefilled:
    """Prompts that were read: their cache and the hidden states of their last tokens."""

    cache: DynamicCache
    hidden: torch.Tensor


@dataclass(frozen=True)
class FullHead:
    """A masked decoder over a model of transformers, with the renormalized score."""

    model: Any
    trie: DescriptionTrie
    end_token: int
    beams: int

    @torch.inference_mode()
    def prefill(self, batch: dict[str, torch.Tensor]) -> Prefilled:
        """Reads prompts of one length."""
        cache = DynamicCache()
        out = self.model.model(input_ids=batch["input_ids"], past_key_values=cache, use_cache=True)
        return Prefilled(cache, out.last_hidden_state[:, -1])

    @torch.inference_mode()
    def write(self, state: Prefilled, tokens: int, opening: int) -> Prefilled:
        """Writes free text greedily, then the opening."""
        for step in range(tokens + 1):
            token = self.model.lm_head(state.hidden).argmax(dim=-1)
            if step == tokens:
                token = torch.full_like(token, opening)
            state = self._extend(state, token)
        return state

    @torch.inference_mode()
    def answer(self, state: Prefilled) -> list[list[tuple[int, float]]]:
        """(rank, score) of each row's beams, best first, when all have written the end token."""
        rows, beams = len(state.hidden), self.beams
        done: list[list[tuple[int, float]]] = [[] for _ in range(rows)]
        owner = np.arange(rows)
        at = np.full(rows, START)
        device = state.hidden.device
        score = torch.zeros(rows, device=device)
        while len(owner):
            scores = self._scores(self.model.lm_head(state.hidden), at) + score[:, None]
            kept: list[tuple[int, int, int, float]] = []  # owner, row, token, score
            for row in np.unique(owner):
                mine = np.flatnonzero(owner == row)
                flat = scores[mine[0] : mine[-1] + 1].flatten()
                values, index = flat.topk(min(beams, int((flat > -torch.inf).sum())))
                vocabulary = scores.shape[1]
                pool = [(s, int(mine[i // vocabulary]), i % vocabulary)
                        for s, i in zip(values.tolist(), index.tolist(), strict=True)]  # fmt: skip
                pool += [(s, -1, rank) for rank, s in done[row]]
                pool = sorted(pool, key=lambda c: -c[0])[:beams]
                done[row] = [(c[2], c[0]) for c in pool if c[1] < 0]
                for s, source, token in pool:
                    if source >= 0 and token == self.end_token:
                        done[row].append((self._rank(int(at[source])), s))
                    elif source >= 0:
                        kept.append((int(row), source, token, s))
            if not kept:
                break
            owner = np.array([k[0] for k in kept])
            source = np.array([k[1] for k in kept])
            token = np.array([k[2] for k in kept])
            at = np.array(
                [self._step(int(s), int(t)) for s, t in zip(at[source], token, strict=True)]
            )
            score = torch.tensor([k[3] for k in kept], device=device)
            state.cache.reorder_cache(torch.from_numpy(source).to(device))
            state = self._extend(state, torch.from_numpy(token).to(device))
        return [sorted(d, key=lambda c: -c[1]) for d in done]

    def _scores(self, logits: torch.Tensor, at: np.ndarray) -> torch.Tensor:
        """Log-softmax over what the trie allows, -inf elsewhere: float32[R, V]."""
        logits = logits.float()
        mask = torch.full_like(logits, -torch.inf)
        for row, state in enumerate(at.tolist()):
            allowed = self.trie.token[self.trie.children(state)].astype(np.int64)
            at_row = torch.from_numpy(allowed).to(mask.device)
            mask[row, at_row if len(allowed) else self.end_token] = 0
        return torch.log_softmax(logits + mask, dim=-1)

    def _step(self, state: int, token: int) -> int:
        after = self.trie.step(state, token)
        assert after is not None
        return after

    def _rank(self, state: int) -> int:
        return int(self.trie.lo[state])

    def _extend(self, state: Prefilled, token: torch.Tensor) -> Prefilled:
        out = self.model.model(
            input_ids=token[:, None], past_key_values=state.cache, use_cache=True
        )
        return Prefilled(state.cache, out.last_hidden_state[:, -1])
