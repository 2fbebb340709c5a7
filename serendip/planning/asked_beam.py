"""The beam over the trie, for an engine that can only be asked: prefixes in, log-probabilities out.

The same search as ``search`` with method "beam" and the renormalized score, which an engine that
shows neither hidden states nor a cache cannot run: it keeps the best prefixes, stops where one
description is left, and takes forced tokens without asking. The engine must renormalise over what
the *whole* trie allows, whatever the view: scores are then those of search.py. Knows no engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from serendip.planning.search import Found, Outcome
from serendip.planning.trie import START, DescriptionTrie
from serendip.planning.views import View


@dataclass(frozen=True, slots=True)
class Prefix:
    """The beginning of a description, of which the next token is asked.

    Attributes:
        prompt: which prompt it is an answer to.
        tokens: of the description, from its first one on.
        most: how many of the next tokens are wanted, the most probable ones.
    """

    prompt: int
    tokens: tuple[int, ...]
    most: int


# The log-probabilities of the likeliest next tokens of each prefix, over all that the whole trie
# allows there.
Ask = Callable[[Sequence[Prefix]], Sequence[Mapping[int, float]]]


@dataclass(frozen=True, slots=True)
class _Entry:
    score: float
    state: int
    tokens: tuple[int, ...]
    done: bool


def beam(
    trie: DescriptionTrie, views: Sequence[View], k: int, beams: int, ask: Ask
) -> list[Outcome]:
    """The k best descriptions of each of R prompts, one question a round for all of them.

    Args:
        views: R views.
        beams: prefixes that a prompt keeps, k or more.
    """
    pools = [[_entry(trie, 0.0, START, ())] for _ in views]
    opened = [0] * len(views)
    while True:
        asked: list[_Entry] = []
        prefixes: list[Prefix] = []
        for prompt, (pool, view) in enumerate(zip(pools, views, strict=True)):
            pools[prompt], push = _choose(pool, k, beams)
            opened[prompt] += len(push)
            asked += push
            prefixes += [Prefix(prompt, e.tokens, _most(trie, view, e, beams)) for e in push]
        if not asked:
            break
        for entry, prefix, answer in zip(asked, prefixes, ask(prefixes), strict=True):
            pools[prefix.prompt] += _after(trie, views[prefix.prompt], entry, answer)
    return [
        # What the engine did not show is not known to be worse: nothing is proven.
        Outcome(tuple(Found(int(trie.lo[e.state]), e.score, 0.0) for e in pool[:k]), False, count)
        for pool, count in zip(pools, opened, strict=True)
    ]


def _choose(pool: list[_Entry], k: int, beams: int) -> tuple[list[_Entry], list[_Entry]]:
    """What stays in a pool, best first, and what of its best is to be opened now."""
    kept: list[_Entry] = []
    push: list[_Entry] = []
    complete = 0
    for entry in sorted(pool, key=lambda e: -e.score)[:beams]:
        complete += entry.done
        if entry.done:
            kept.append(entry)
        elif complete < k:  # what comes after k complete ones is not among the k best
            push.append(entry)
    return kept, push


def _entry(trie: DescriptionTrie, score: float, state: int, tokens: tuple[int, ...]) -> _Entry:
    """The entry of a state, led on through all tokens that are forced."""
    while trie.hi[state] - trie.lo[state] > 1:
        below = trie.children(state)
        if below.stop - below.start > 1:
            return _Entry(score, state, tokens, done=False)
        state = below.start
        tokens = (*tokens, int(trie.token[state]))
    return _Entry(score, state, tokens, done=True)


def _most(trie: DescriptionTrie, view: View, entry: _Entry, beams: int) -> int:
    """How many of the next tokens must be known so that the best ``beams`` live ones are."""
    below = trie.children(entry.state)
    live = view.live_children(trie.lo[below], trie.hi[below])
    return min(len(live), beams + int((~live).sum()))


def _after(
    trie: DescriptionTrie, view: View, entry: _Entry, answer: Mapping[int, float]
) -> list[_Entry]:
    below = trie.children(entry.state)
    live = view.live_children(trie.lo[below], trie.hi[below])
    return [
        _entry(trie, entry.score + answer[token], below.start + at, (*entry.tokens, token))
        for at, token in enumerate(trie.token[below].tolist())
        if live[at] and token in answer
    ]
