"""One step under a trie, in five ways that find the same candidates.

Given the states of R rows and their log-probabilities float32[R, V]: the tokens that may follow
each, the states that they lead to, and their log-probabilities.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from common import descriptions
from common.descriptions import END
from common.timing import Times, interleaved
from peers import static_like

from serendip.planning.embedded import BOS
from serendip.planning.trie import START, DescriptionTrie
from serendip.planning.trie_build import TokenLists
from serendip.progress import console

Node = dict[int, "Node"]
ROOT = 0
OURS, EAGER, COMPILED = "ours", "static_like, eager", "static_like, compiled"
DICT, HF = "dict, nodes kept", "HF processor + dict"
ALONE = "the trie alone: "


def nested(lists: list[list[int]]) -> Node:
    """The trie as dicts in dicts, each list followed by the end token.

    Without the garbage collector, which would walk the dicts again and again.
    """
    root: Node = {}
    gc.disable()
    for tokens in lists:
        node = root
        for token in tokens:
            node = node.setdefault(token, {})
        node[END] = {}
    gc.enable()
    return root


def as_lists(lists: TokenLists) -> list[list[int]]:
    flat, start = lists.flat.tolist(), lists.start.tolist()
    return [flat[a:b] for a, b in pairwise(start)]


def trie_root(trie: DescriptionTrie, log_probs: torch.Tensor) -> tuple[object, object, object]:
    """The first step of all rows: one state, one set of columns."""
    below = trie.children(START)
    token = torch.from_numpy(trie.token[below])
    return token, below, log_probs.index_select(1, token)


def trie_step(
    trie: DescriptionTrie, log_probs: torch.Tensor, states: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Candidates of all rows, ragged: token, next state, log-probability."""
    edges = trie.expand(states)
    at = edges.row * log_probs.shape[1]  # in int32, which R x V fits here
    at += edges.token
    scores = log_probs.reshape(-1).index_select(0, torch.from_numpy(at))
    return edges.token, edges.state, scores.numpy()


def dict_step(
    nodes: Sequence[Node], log_probs: torch.Tensor
) -> list[tuple[list[int], list[Node], npt.NDArray[np.float32]]]:
    """The same where each row holds its dict."""
    scores = log_probs.numpy()
    found = []
    for row, node in enumerate(nodes):
        tokens = list(node)
        found.append((tokens, list(node.values()), scores[row].take(tokens)))
    return found


def prefixes(lists: TokenLists, rows: int, depth: int, rng: np.random.Generator) -> list[list[int]]:
    """The first tokens of random descriptions that are longer than ``depth``."""
    longer = np.flatnonzero(lists.lengths > depth)
    starts = lists.start[rng.choice(longer, rows)]
    found: list[list[int]] = lists.flat[starts[:, None] + np.arange(depth)].tolist()
    return found


@dataclass(frozen=True)
class Tries:
    """The same descriptions in every form."""

    ours: DescriptionTrie
    static: static_like.StaticIndex
    root: Node

    def allowed(self, _: int, tokens: torch.Tensor) -> list[int]:
        """What transformers asks for: the tokens that may follow a prompt of one and a prefix."""
        node = self.root
        for token in tokens[1:].tolist():
            node = node[token]
        return list(node)


Steps = dict[tuple[int, int, int], dict[int, dict[str, Times]]]


def measure_steps(
    sizes: Sequence[int], vocabularies: Sequence[int], rows_each: Sequence[int],
    depths: Sequence[int], repetitions: int,
) -> Steps:  # fmt: skip
    """By (N, V, R) and depth: seconds a step of each way."""
    found: Steps = {}
    for n in sizes:
        for vocabulary in vocabularies:
            lists = descriptions.token_lists("words", n, vocabulary)
            tries = Tries(
                DescriptionTrie.build(lists, np.arange(n, dtype=np.int32), END),
                static_like.build(lists, vocabulary, END),
                nested(as_lists(lists)),
            )
            for rows in rows_each:
                generator = torch.Generator().manual_seed(rows)
                log_probs = torch.randn(rows, vocabulary, generator=generator).log_softmax(-1)
                found[n, vocabulary, rows] = {}
                for depth in (ROOT, *depths):
                    batches = max(1, min(64, 512 // rows)) if depth else 1
                    begun = [
                        prefixes(lists, rows, depth, np.random.default_rng([depth, i]))
                        for i in range(batches)
                    ]
                    times = _one_depth(tries, log_probs, begun, repetitions)
                    found[n, vocabulary, rows][depth] = times
                console.print(f"steps: {n} descriptions, V={vocabulary}, R={rows} done")
    return found


@torch.inference_mode()
def _one_depth(
    tries: Tries, log_probs: torch.Tensor, begun: list[list[list[int]]], repetitions: int
) -> dict[str, Times]:
    """Seconds a step, over batches of prefixes of one length."""
    from transformers import PrefixConstrainedLogitsProcessor

    depth = len(begun[0][0])
    processor = PrefixConstrainedLogitsProcessor(tries.allowed, num_beams=1)
    ids = [torch.tensor([[BOS, *tokens] for tokens in batch]) for batch in begun]
    nodes = [[_node(tries.root, tokens) for tokens in batch] for batch in begun]
    steps: dict[str, list[Callable[[], object]]] = {
        DICT: [partial(dict_step, x, log_probs) for x in nodes],
        HF: [partial(processor, x, log_probs) for x in ids],
    }
    torch._dynamo.reset()  # or a call would try the shapes of other sizes first
    compiled = static_like.compiled()
    if depth == ROOT:
        steps[OURS] = [partial(trie_root, tries.ours, log_probs)]
        steps[EAGER] = [partial(static_like.start, log_probs, tries.static.start_mask)]
        if compiled:
            steps[COMPILED] = [partial(compiled.start, log_probs, tries.static.start_mask)]
    else:
        index, width = tries.static, tries.static.widest[depth]
        ours = [np.array([tries.ours.walk(tokens) for tokens in batch]) for batch in begun]
        static = [
            torch.tensor([static_like.state_after(index, np.array(tokens)) for tokens in batch])
            for batch in begun
        ]
        steps[OURS] = [partial(trie_step, tries.ours, log_probs, x) for x in ours]
        ways = {EAGER: static_like.step} | ({COMPILED: compiled.step} if compiled else {})
        for name, way in ways.items():
            steps[name] = [
                partial(way, log_probs, x, index.transitions, index.pointer, width) for x in static
            ]
    _check(tries, {name: calls[0]() for name, calls in steps.items()}, begun[0])
    if depth != ROOT:
        alone = {EAGER: static_like.expand} | ({COMPILED: compiled.expand} if compiled else {})
        steps[ALONE + OURS] = [partial(tries.ours.expand, x) for x in ours]
        for name, way in alone.items():
            steps[ALONE + name] = [
                partial(way, x, index.transitions, index.pointer, width) for x in static
            ]
    sweeps = {name: partial(_sweep, calls) for name, calls in steps.items()}
    times = interleaved(sweeps, repetitions)
    return {name: times[name] / len(steps[name]) for name in times}


def _sweep(calls: list[Callable[[], object]]) -> None:
    for call in calls:
        call()


def _node(node: Node, tokens: Sequence[int]) -> Node:
    for token in tokens:
        node = node[token]
    return node


def _check(tries: Tries, found: dict[str, Any], begun: list[list[int]]) -> None:
    """All ways give every row the same tokens, log-probabilities, and states that go on alike."""
    trie, index = tries.ours, tries.static
    row = trie.expand(np.array([trie.walk(tokens) for tokens in begun])).row
    ours_token, ours_state, ours_score = found[OURS]
    if begun[0] == []:
        ours_token = ours_token.numpy()
        ours_state = np.arange(ours_state.start, ours_state.stop)
    for i, tokens in enumerate(begun):
        mine = slice(None) if not tokens else row == i
        order = np.argsort(ours_token[mine])
        token, state = ours_token[mine][order], ours_state[mine][order]
        score = np.asarray(ours_score[i] if not tokens else ours_score[mine])[order]
        for name in (EAGER, COMPILED):
            if name not in found:
                continue
            if tokens:
                scores, its_tokens, its_states = (x[i].numpy() for x in found[name])
                real = np.isfinite(scores)
                its_token, its_state, its_score = its_tokens[real], its_states[real], scores[real]
            else:
                its_token = np.flatnonzero(np.isfinite(found[name][i].numpy()))
                its_score, its_state = found[name][i].numpy()[its_token], its_token + 1
            assert np.array_equal(token, its_token)
            assert np.array_equal(score, its_score)
            for a, b, t in list(zip(state, its_state, token, strict=True))[:20]:
                after = index.transitions[int(index.pointer[b]) : int(index.pointer[b + 1]), 0]
                goes_on = trie.token[trie.children(int(a))].tolist()
                assert int(b) == 0 or t == END or after.tolist() == (goes_on or [END])
        its_tokens, _, its_score = found[DICT][i]
        by = np.argsort(its_tokens)
        assert np.array_equal(token, np.array(its_tokens)[by])
        assert np.array_equal(score, its_score[by])
        masked = found[HF][i].numpy()
        assert np.array_equal(token, np.flatnonzero(np.isfinite(masked)))
        assert np.array_equal(score, masked[token])


def at_root(depths: dict[int, dict[str, Times]], way: str) -> Times:
    return depths[ROOT][way] / depths[ROOT][OURS]


def below_root(depths: dict[int, dict[str, Times]], way: str, base: str = OURS) -> Times:
    """The sum over depths, so that each depth is met once, over ours."""
    its, ours = (
        np.sum([times[w] for depth, times in depths.items() if depth != ROOT], axis=0)
        for w in (way, base)
    )
    ratio: Times = its / ours
    return ratio
