"""Builds the trie's arrays from token lists: one sort, then one sweep a level.

Knows no tokenizer and no model. D descriptions, T tokens in all, S states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
import numpy.typing as npt

from serendip.core import InvalidData

Int = npt.NDArray[np.int32]
Long = npt.NDArray[np.int64]
Duplicates = Literal["error", "first"]

_MOST_STATES = 2**31 - 1


@dataclass(frozen=True)
class TokenLists:
    """Token lists end to end.

    Attributes:
        flat: int32[T].
        start: int64[D + 1]; list i is flat[start[i] : start[i + 1]].
    """

    flat: Int
    start: Long

    @classmethod
    def of(cls, lists: Sequence[Sequence[int]]) -> TokenLists:
        """Packs lists of token IDs."""
        lengths = np.fromiter(map(len, lists), np.int64, len(lists))
        flat = np.fromiter(chain.from_iterable(lists), np.int32, int(lengths.sum()))
        return cls(flat, np.concatenate([[0], lengths.cumsum()]))

    def __len__(self) -> int:
        return len(self.start) - 1

    @property
    def lengths(self) -> Int:
        return np.diff(self.start).astype(np.int32)


@dataclass(frozen=True)
class States:
    """The trie's arrays; see DescriptionTrie."""

    token: Int
    first_child: Int
    lo: Int
    hi: Int


def build_states(
    tokens: TokenLists, node_ids: Sequence[int] | npt.NDArray[np.integer], end_token: int,
    duplicates: Duplicates,
) -> tuple[States, Long]:  # fmt: skip
    """States of a trie, and which description has which rank: int64[D'] (D' < D: duplicates left).

    Raises:
        InvalidData: there is no description, one is empty, holds a negative token or the end
            token, or two are equal while ``duplicates`` is "error"; or there are too many.
    """
    _check(tokens, node_ids, end_token)
    order, common, repeated = _sort(tokens)
    if repeated.any():
        if duplicates == "error":
            rank = int(repeated.argmax())
            raise InvalidData(
                "two descriptions have the same tokens",
                field="description",
                value=[int(node_ids[order[rank - 1]]), int(node_ids[order[rank]])],
                remedy="Describe one of these nodes in other words, or keep the first of equals "
                "(duplicates='first').",
            )
        order, common = order[~repeated], common[~repeated]
    return _sweep(tokens, order, common, end_token), order


def _check(
    tokens: TokenLists, node_ids: Sequence[int] | npt.NDArray[np.integer], end_token: int
) -> None:
    if not len(tokens) or len(tokens) != len(node_ids):
        raise InvalidData(
            "needs a node ID a description, and at least one",
            field="description",
            value=[len(tokens), len(node_ids)],
            remedy="Describe the clusters of the planning level.",
        )
    bad = tokens.lengths == 0
    at = np.flatnonzero((tokens.flat == end_token) | (tokens.flat < 0))
    bad[np.searchsorted(tokens.start, at, side="right") - 1] = True
    if bad.any():
        raise InvalidData(
            "a description must have tokens, and not the end token",
            field="description",
            row=int(bad.argmax()),
            remedy="Rephrase it.",
        )


def _sort(tokens: TokenLists) -> tuple[Long, Int, npt.NDArray[np.bool_]]:
    """Sorts the lists, a prefix before what it begins.

    One pass a token position, and only over lists that still share all before it with another.

    Returns:
        order: int64[D], the list of each rank; equal lists keep their order.
        common: int32[D], how many first tokens each shares with the rank before.
        repeated: bool[D], whether it equals the rank before.
    """
    lengths, start, flat = tokens.lengths, tokens.start, tokens.flat
    count = len(tokens)
    order = np.arange(count)
    common = np.zeros(count, np.int32)
    repeated = np.zeros(count, bool)
    base = int(flat.max()) + 2
    at = np.arange(count)  # ranks that are not settled, in groups that share all so far
    group = np.zeros(count, np.int64)  # first rank of each one's group
    depth = 0
    while len(at):
        lists = order[at]
        # 0 for a list that has ended, so that it comes first.
        key = flat[np.minimum(start[lists] + depth, len(flat) - 1)].astype(np.int64)
        key += 1
        key[lengths[lists] <= depth] = 0
        key += group * base
        by = np.argsort(key)
        key = key[by]
        order[at] = lists[by]
        new = np.empty(len(at), bool)
        new[0] = True
        np.not_equal(key[1:], key[:-1], out=new[1:])
        first = np.flatnonzero(new)
        inner = first[at[first] != group[first]]
        common[at[inner]] = depth
        size = np.diff(first, append=len(at))
        ended = key[first] % base == 0
        for i in np.flatnonzero(ended & (size > 1)):
            same = at[first[i] : first[i] + size[i]]
            order[same] = np.sort(order[same])
            common[same[1:]] = depth
            repeated[same[1:]] = True
        open_ = np.repeat((size > 1) & ~ended, size)
        group = np.repeat(at[first], size)[open_]
        at = at[open_]
        depth += 1
    return order, common, repeated


def _sweep(tokens: TokenLists, order: Long, common: Int, end_token: int) -> States:
    """The states, level by level, of lists in rank order.

    A list that begins another one gets the end token as a last token of its own; any other list
    ends in a state without children.
    """
    start, length = tokens.start[order], tokens.lengths[order]
    begins = np.zeros(len(order), bool)
    begins[:-1] = common[1:] == length[:-1]
    depths = length + begins
    count = 1 + int((depths - common).sum(dtype=np.int64))
    if count > _MOST_STATES:
        raise InvalidData(
            f"more than {_MOST_STATES} states",
            field="description",
            value=count,
            remedy="Plan at a broader level, or shorten the descriptions.",
        )
    token, lo, hi = (np.empty(count, np.int32) for _ in range(3))
    first_child = np.empty(count + 1, np.int32)
    token[0], lo[0], hi[0] = -1, 0, len(order)
    above, base, depth = slice(0, 1), 1, 1
    alive = np.arange(len(order), dtype=np.int32)
    while len(alive):
        new = np.flatnonzero(common[alive] < depth)  # ranks that open a state at this depth
        rank = alive[new]
        level = slice(base, base + len(new))
        lo[level] = rank
        hi[level] = rank + np.diff(new, append=len(alive))
        ends = length[rank] < depth
        rank[ends] = 0  # any list that has a token here; overwritten below
        token[level] = np.where(
            ends, end_token, tokens.flat[np.minimum(start[rank] + depth - 1, len(tokens.flat) - 1)]
        )
        first_child[above] = base + np.searchsorted(lo[level], lo[above])
        above, base, depth = level, level.stop, depth + 1
        alive = alive[depths[alive] >= depth]
    first_child[above] = count
    first_child[count] = count
    return States(token, first_child, lo, hi)
