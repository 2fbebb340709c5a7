"""STATIC's constraint (arXiv 2602.22647, "Vectorizing the Trie"), written anew.

Its PyTorch code is in no package registry, so this is the published method and none of its
lines: token lists of one length, a mask of first tokens, one table of transitions in CSR form,
and at each level a gather as wide as the widest state of that level, so that every shape is
known beforehand and the step compiles. Its dense table over the first two tokens is left out:
it has V x V entries, made for vocabularies of about 2,000.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from serendip.planning.trie_build import TokenLists

Candidates = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class StaticIndex:
    """States: 0 the root and the end, token + 1 after a first token, then on level by level.

    Attributes:
        start_mask: bool[V], the first tokens.
        transitions: int32[E + 1, 2], token and next state; a last row for what is clamped.
        pointer: int32[S + 1]; the transitions of s are [pointer[s], pointer[s + 1]).
        widest: per level, the most transitions of one of its states; widest[0] is the root's.
    """

    start_mask: torch.Tensor
    transitions: torch.Tensor
    pointer: torch.Tensor
    widest: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(x.nbytes for x in (self.start_mask, self.transitions, self.pointer))


def build(lists: TokenLists, vocabulary: int, pad: int) -> StaticIndex:
    """Pads to the longest list, sorts the rows, then one pass a level.

    Args:
        pad: fills up a list that has ended, and leads on from it; below every other token.
    """
    lengths = lists.lengths
    longest = int(lengths.max())
    column = np.arange(longest)
    inside = column < lengths[:, None]
    rows = np.full((len(lists), longest), pad, np.int32)
    rows[inside] = lists.flat
    rows = rows[np.lexsort(rows.T[::-1])]
    # From which column on a row differs from the one above.
    differs = np.empty((len(rows), longest), bool)
    differs[0] = True
    np.logical_or.accumulate(rows[1:] != rows[:-1], axis=1, out=differs[1:])
    start_mask = np.zeros(vocabulary, bool)
    start_mask[rows[:, 0]] = True
    state = rows[:, 0] + 1
    states = vocabulary + 1
    parents, edges, spans = [], [], [(1, states)]
    for level in range(1, longest):
        new = differs[:, level]
        opened = int(new.sum())
        if level < longest - 1:
            following = (np.cumsum(new) + (states - 1)).astype(np.int32)
            spans.append((states, states + opened))
            states += opened
        else:
            following = np.zeros(len(rows), np.int32)
        parents.append(state[new])
        edges.append(np.stack([rows[new, level], following[new]], axis=1))
        state = following
    # Parents ascend: within a level as the rows do, and from one level to the next.
    degree = np.bincount(np.concatenate(parents), minlength=states)
    pointer = np.concatenate([[0], degree.cumsum()]).astype(np.int32)
    edges.append(np.array([[pad, 0]], np.int32))
    widest = (int(start_mask.sum()), *(int(degree[a:b].max()) for a, b in spans))
    return StaticIndex(
        torch.from_numpy(start_mask),
        torch.from_numpy(np.concatenate(edges)),
        torch.from_numpy(pointer),
        widest,
    )


def start(log_probs: torch.Tensor, start_mask: torch.Tensor) -> torch.Tensor:
    """[R, V]: the first step; the state that a token leads to is the token + 1."""
    return torch.where(start_mask, log_probs, float("-inf"))


def step(
    log_probs: torch.Tensor,
    states: torch.Tensor,
    transitions: torch.Tensor,
    pointer: torch.Tensor,
    width: int,
) -> Candidates:
    """Candidates of R states of one level, padded to its widest.

    Args:
        log_probs: float32[R, V].
        states: int64[R].

    Returns:
        log-probabilities [R, width], -inf where there is no candidate; tokens and next states.
    """
    token, following, valid = expand(states, transitions, pointer, width)
    scores = log_probs.gather(1, token.long())
    return torch.where(valid, scores, float("-inf")), token, following


def expand(
    states: torch.Tensor, transitions: torch.Tensor, pointer: torch.Tensor, width: int
) -> Candidates:
    """Tokens and next states [R, width], and which of them are real: the constraint alone."""
    first = pointer[states]
    count = pointer[states + 1] - first
    offset = torch.arange(width)
    at = (first[:, None] + offset).clamp(max=len(transitions) - 1)
    found = transitions[at]
    return found[..., 0], found[..., 1], offset < count[:, None]


@dataclass(frozen=True)
class Compiled:
    """The three functions as torch.compile makes them for fixed shapes."""

    start: Callable[..., torch.Tensor]
    step: Callable[..., Candidates]
    expand: Callable[..., Candidates]


def compiled() -> Compiled | None:
    """None where there is no C++ compiler."""
    if not shutil.which("g++") and not shutil.which("clang++"):
        return None
    # One graph a shape: more of them than the default allows.
    torch._dynamo.config.cache_size_limit = 512
    torch._dynamo.config.accumulated_cache_size_limit = 4096
    return Compiled(*(torch.compile(f, dynamic=False) for f in (start, step, expand)))


def state_after(index: StaticIndex, tokens: npt.NDArray[np.integer]) -> int:
    """The state after at least one token."""
    state = int(tokens[0]) + 1
    for token in tokens[1:]:
        below = slice(int(index.pointer[state]), int(index.pointer[state + 1]))
        edges = index.transitions[below]
        state = int(edges[edges[:, 0] == int(token), 1].item())
    return state
