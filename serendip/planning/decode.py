"""Constrained decoding: free text first, then one of the trie's descriptions, k of them.

A row writes freely and greedily until it has written the tokens that open its answer; from there
on the trie rules (see search). Rows of a batch may open their answers at different lengths, or
have no free text at all. Knows no tokenizer: token IDs in, ranks of descriptions out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from serendip.planning.layout import NOWHERE, Long
from serendip.planning.mllm import Batch
from serendip.planning.search import Outcome, Search, TrieHead, search
from serendip.planning.session import Session
from serendip.planning.views import View
from serendip.progress import Seconds, timed


@dataclass(frozen=True)
class Decoded:
    """What was decoded for one prompt.

    Attributes:
        reasoning: token IDs of the free text, without the answer's opening.
        answer: the descriptions.
    """

    reasoning: list[int]
    answer: Outcome


@torch.inference_mode()
def write(session: Session, batch: Batch, ends: frozenset[int], max_tokens: int) -> list[list[int]]:
    """Unconstrained greedy text of each prompt, up to an end token (left out) or max_tokens."""
    hidden = session.prefill(batch)
    texts, _, _ = _write_until(session, hidden, (), ends, [max_tokens] * len(hidden))
    return texts


@torch.inference_mode()
def decode(
    session: Session,
    batch: Batch,
    trie_head: TrieHead,
    views: Sequence[View],
    how: Search,
    *,
    opening: Sequence[int],
    ends: frozenset[int],
    max_reasoning: int | Sequence[int | None],
    seeds: Sequence[int] | None = None,
    seconds: Seconds | None = None,
) -> list[Decoded]:
    """Reads B prompts, lets them reason, and searches for the k best descriptions of each.

    Args:
        batch: B left-padded prompts.
        views: B views, one a row.
        opening: tokens that open the answer span. What a row lacks of them is forced after
            ``max_reasoning`` tokens, or where the model ends its turn without them.
        ends: tokens that end a turn.
        max_reasoning: the bound of the free text, of all rows or a row each. A row with 0 opens
            its answer at once; one with None has it opened by its prompt.
        seeds: B seeds, for sampling.
        seconds: what "prefill", "reasoning" and "answer" took is added here.
    """
    bounds = [max_reasoning] * len(views) if isinstance(max_reasoning, int) else max_reasoning
    with timed(seconds, "prefill"):
        hidden = session.prefill(batch)
    with timed(seconds, "reasoning"):
        texts, hidden, tips = _write_until(session, hidden, tuple(opening), ends, bounds)
    with timed(seconds, "answer"):
        outcomes = search(session, hidden, tips, trie_head, views, how, seeds)
    return [Decoded(text, outcome) for text, outcome in zip(texts, outcomes, strict=True)]


def _write_until(
    session: Session,
    hidden: torch.Tensor,
    opening: tuple[int, ...],
    ends: frozenset[int],
    bounds: Sequence[int | None],
) -> tuple[list[list[int]], torch.Tensor, Long]:
    """Greedy tokens a row until ``opening`` has been written.

    Without an opening a row stops at an end token. Rows that are through wait for the others.

    Returns:
        The texts, without the opening; the hidden states [R, d] where they end, and the slots
        int64[R] of those.
    """
    rows = len(hidden)
    texts: list[list[int]] = [[] for _ in range(rows)]
    tips = np.full(rows, session.slots - 1)
    final = hidden.clone()
    writing = [row for row in range(rows) if bounds[row] is not None]
    while writing:
        at = torch.tensor(writing, device=final.device)
        greedy = session.head.full(final[at]).argmax(dim=-1).tolist()
        chunks: dict[int, Sequence[int]] = {}
        going = []
        for row, token in zip(writing, greedy, strict=True):
            text = texts[row]
            if token in ends or len(text) >= (bounds[row] or 0):
                if opening:
                    begun = _begun(text, opening)
                    chunks[row] = opening[begun:]
                    del text[len(text) - begun :]
                continue
            chunks[row] = (token,)
            text.append(token)
            if opening and tuple(text[-len(opening) :]) == opening:
                del text[-len(opening) :]
            else:
                going.append(row)
        if chunks:
            _push(session, chunks, final, tips)
        writing = going
    return texts, final, tips


def _begun(text: Sequence[int], opening: tuple[int, ...]) -> int:
    """How many of the opening's first tokens end a text that has not opened its answer."""
    return max(n for n in range(len(opening)) if tuple(text[len(text) - n :]) == opening[:n])


def _push(
    session: Session, chunks: Mapping[int, Sequence[int]], final: torch.Tensor, tips: Long
) -> None:
    """Appends tokens to some rows, in one pass, and moves their tips and final hidden states."""
    token = np.zeros((len(tips), max(map(len, chunks.values()))), np.int64)
    parent = np.full(token.shape, NOWHERE, np.int64)
    base = session.slots
    for row, chunk in chunks.items():
        token[row, : len(chunk)] = chunk
        parent[row, : len(chunk)] = [tips[row], *range(base, base + len(chunk) - 1)]
    hidden = session.extend(token, parent)
    for row, chunk in chunks.items():
        tips[row] = base + len(chunk) - 1
        final[row] = hidden[row, len(chunk) - 1]
