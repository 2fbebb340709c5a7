"""Constrained decoding: free text first, then one of the trie's descriptions, k of them.

Batched beam search over the trie. The score of a description is *renormalised*:

    score(d) = sum over its tokens t_i of  z[t_i] - logsumexp(z[t] for t allowed at state i)

where z are the model's logits at state i and "allowed" means by the whole trie. A view takes
descriptions away and never changes this normaliser, so a cluster has one score under every
view that keeps it. A state with one description below it adds log 1 = 0 from there on, so the
search ends there, exactly.

Knows no tokenizer: token IDs in, ranks of descriptions out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from serendip.planning.mllm import Batch
from serendip.planning.trie import START, DescriptionTrie, View


class Session(Protocol):
    """What the decoder needs of a model: see TorchSession."""

    def prefill(self, batch: Batch) -> torch.Tensor: ...
    def extend(self, tokens: torch.Tensor, real: torch.Tensor) -> torch.Tensor: ...
    def reorder(self, rows: torch.Tensor) -> None: ...
    def logits(self, hidden: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True)
class Decoded:
    """What was decoded for one prompt.

    Attributes:
        reasoning: token IDs of the free text, without the answer's opening.
        ranks: descriptions, best first, all different; fewer than k if fewer live.
        scores: one a description, at most 0.
    """

    reasoning: list[int]
    ranks: list[int]
    scores: list[float]


@torch.inference_mode()
def write(session: Session, batch: Batch, ends: frozenset[int], max_tokens: int) -> list[list[int]]:
    """Unconstrained greedy text of each prompt, up to an end token (left out) or max_tokens."""
    texts, _ = _write_until(session, session.prefill(batch), (), ends, max_tokens)
    return texts


@torch.inference_mode()
def decode(
    session: Session,
    batch: Batch,
    trie: DescriptionTrie,
    views: Sequence[View],
    *,
    k: int,
    beams: int,
    opening: Sequence[int],
    ends: frozenset[int],
    max_reasoning: int,
) -> list[Decoded]:
    """Reasons freely, then plans: the k best descriptions of each prompt.

    Args:
        batch: B left-padded prompts.
        views: B views, one a row.
        beams: at least k; with as many as there are descriptions the search is exact.
        opening: tokens that open the answer span. They are forced after ``max_reasoning``
            tokens, or where the model ends its turn without them.
        ends: tokens that end a turn.
    """
    texts, hidden = _write_until(
        session, session.prefill(batch), tuple(opening), ends, max_reasoning
    )
    found = _search(session, hidden, trie, views, beams)
    return [
        Decoded(text, [r for _, r in best[:k]], [s for s, _ in best[:k]])
        for text, best in zip(texts, found, strict=True)
    ]


def _write_until(
    session: Session,
    hidden: torch.Tensor,
    opening: tuple[int, ...],
    ends: frozenset[int],
    max_tokens: int,
) -> tuple[list[list[int]], torch.Tensor]:
    """Greedy tokens a row until ``opening`` has been written, and the hidden states there.

    Without an opening a row stops at an end token. Rows that are through wait for the others.
    """
    rows = hidden.shape[0]
    texts: list[list[int]] = [[] for _ in range(rows)]
    forced: list[list[int]] = [[] for _ in range(rows)]
    waiting = np.zeros(rows, bool)
    final = hidden.clone()
    while not waiting.all():
        greedy = session.logits(hidden).argmax(dim=-1).tolist()
        tokens = [0] * rows
        for row in np.flatnonzero(~waiting):
            text = texts[row]
            if not forced[row] and (greedy[row] in ends or len(text) >= max_tokens):
                if not opening:
                    waiting[row] = True
                    continue
                forced[row] = list(opening)
            tokens[row] = forced[row].pop(0) if forced[row] else greedy[row]
            text.append(tokens[row])
        if waiting.all():
            break
        real = torch.from_numpy(~waiting)
        hidden = session.extend(torch.tensor(tokens), real)
        final[real] = hidden[real]
        if opening:
            for row in np.flatnonzero(~waiting):
                if not forced[row] and tuple(texts[row][-len(opening) :]) == opening:
                    del texts[row][-len(opening) :]
                    waiting[row] = True
    return texts, final


def _search(
    session: Session,
    hidden: torch.Tensor,
    trie: DescriptionTrie,
    views: Sequence[View],
    beams: int,
) -> list[list[tuple[float, int]]]:
    """Beam search from the hidden states at the opening's end: (score, rank) a row, best first.

    At every step a row keeps its ``beams`` best among those that are finished and those that
    go on; scores only fall, so it is through when all that it keeps are finished.
    """
    done: list[list[tuple[float, int]]] = [[] for _ in views]
    owner = np.arange(len(views))  # which prompt a beam belongs to
    state = np.full(len(views), START)
    score = np.zeros(len(views))
    while len(owner):
        edge = trie.expand(state)
        step = _log_softmax_by_row(session.logits(hidden), edge.row, edge.token)
        total = score[edge.row] + step
        at = owner[edge.row]
        keep: list[int] = []
        for prompt in np.unique(at):
            mine = np.flatnonzero(at == prompt)
            lo, hi = trie.lo[edge.state[mine]], trie.hi[edge.state[mine]]
            mine = mine[views[prompt].live(lo, hi)]
            pool = [(float(total[e]), -1, int(e)) for e in mine]
            pool += [(s, r, -1) for s, r in done[prompt]]
            # Ties by rank or edge: the same input gives the same answer.
            pool.sort(key=lambda c: (-c[0], c[1], c[2]))
            pool = pool[:beams]
            done[prompt] = [(s, r) for s, r, e in pool if e < 0]
            for s, _, e in pool:
                if e < 0:
                    continue
                child = edge.state[e]
                if trie.hi[child] - trie.lo[child] == 1:
                    done[prompt].append((s, int(trie.lo[child])))
                else:
                    keep.append(e)
            done[prompt].sort(key=lambda c: (-c[0], c[1]))
        if not keep:
            break
        chosen = np.array(keep)
        owner, state, score = at[chosen], edge.state[chosen], total[chosen]
        session.reorder(torch.from_numpy(edge.row[chosen]))
        hidden = session.extend(
            torch.from_numpy(edge.token[chosen]), torch.ones(len(chosen), dtype=torch.bool)
        )
    return done


def _log_softmax_by_row(
    logits: torch.Tensor, row: npt.NDArray[np.int64], token: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """float64[E]: log-softmax of each edge's logit among the edges of its row (row ascending)."""
    z = logits[torch.from_numpy(row), torch.from_numpy(token)].double().cpu().numpy()
    first = np.flatnonzero(np.diff(row, prepend=-1))
    edges = np.diff(np.append(first, len(row)))
    top = np.repeat(np.maximum.reduceat(z, first), edges)
    total = np.repeat(np.add.reduceat(np.exp(z - top), first), edges)
    result: npt.NDArray[np.float64] = z - top - np.log(total)
    return result
