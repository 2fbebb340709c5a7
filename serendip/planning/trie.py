"""The DescriptionTrie: an automaton over the tokens of all descriptions, in CSR arrays.

States are numbered breadth-first, so that a state's children are contiguous. Every description
ends with the end token, so that one may be a prefix of another and still be a path of its own.
Knows no model; the tokenizer is only asked when the trie is built.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serendip.core import CorruptArtifact, InvalidData, InvalidRequest

Int = npt.NDArray[np.int32]

START = 0  # the state before the first token
_ARRAYS = ("token", "first_child", "terminal", "lo", "hi", "node_of_rank")


@dataclass(frozen=True)
class Expansion:
    """The children of many states, ragged: E edges over R rows.

    Attributes:
        row: int64[E], which of the given states the edge leaves, ascending.
        token: int64[E].
        state: int64[E], the state that the edge leads to.
    """

    row: npt.NDArray[np.int64]
    token: npt.NDArray[np.int64]
    state: npt.NDArray[np.int64]


@dataclass(frozen=True)
class DescriptionTrie:
    """S states over D descriptions; descriptions are ranked by their tokens, in order.

    Attributes:
        token: int32[S], the token that leads into the state; -1 for the start.
        first_child: int32[S + 1]; the children of s are [first_child[s], first_child[s + 1]).
        terminal: int32[S], rank of the description that ends here, or -1.
        lo, hi: int32[S], ranks [lo, hi) of the descriptions below the state.
        node_of_rank: int32[D], the tree's node of each description.
        tree_version: the tree that those nodes belong to.
        tokenizer_hash: sha256 of the tokenizer that the tokens are of.
    """

    token: Int
    first_child: Int
    terminal: Int
    lo: Int
    hi: Int
    node_of_rank: Int
    tree_version: str
    tokenizer_hash: str

    def __len__(self) -> int:
        return len(self.node_of_rank)

    @classmethod
    def build(
        cls,
        tokens: Sequence[Sequence[int]],
        node_ids: Sequence[int],
        end_token: int,
        *,
        tree_version: str = "",
        tokenizer_hash: str = "",
    ) -> DescriptionTrie:
        """Builds the trie of descriptions that are given as token IDs, without the end token.

        Raises:
            InvalidData: a description is empty, holds the end token, or equals another after
                tokenisation.
        """
        for i, t in enumerate(tokens):
            if not len(t) or end_token in t:
                raise InvalidData(
                    "a description must have tokens, and not the end token",
                    field="description",
                    row=i,
                    remedy="Rephrase it.",
                )
        rows = sorted(range(len(tokens)), key=lambda i: (*tokens[i], end_token))
        width = max(map(len, tokens)) + 1
        # int64[D, width] in rank order, -1 beyond the end.
        table = np.full((len(rows), width), -1, np.int64)
        for rank, i in enumerate(rows):
            table[rank, : len(tokens[i])] = tokens[i]
            table[rank, len(tokens[i])] = end_token
        same = (table[1:] == table[:-1]).all(axis=1)
        if same.any():
            rank = int(same.argmax())
            raise InvalidData(
                "two descriptions have the same tokens",
                field="description",
                value=[int(node_ids[rows[rank]]), int(node_ids[rows[rank + 1]])],
                remedy="Describe one of these nodes in other words.",
            )
        return cls(
            *_states(table),
            node_of_rank=np.asarray([node_ids[i] for i in rows], np.int32),
            tree_version=tree_version,
            tokenizer_hash=tokenizer_hash,
        )

    def expand(self, states: npt.NDArray[np.integer]) -> Expansion:
        """The children of each of R states, row by row, by falling rank of nothing: by token."""
        first = self.first_child[states].astype(np.int64)
        degree = self.first_child[np.asarray(states) + 1] - first
        row = np.repeat(np.arange(len(degree)), degree)
        child = np.arange(int(degree.sum())) + np.repeat(first - (degree.cumsum() - degree), degree)
        return Expansion(row, self.token[child].astype(np.int64), child)

    def view(self, *, only: Sequence[int] | None = None, without: Sequence[int] = ()) -> View:
        """A view that keeps the nodes of ``only`` (default: all) less those of ``without``.

        Raises:
            InvalidRequest: nothing is left.
        """
        allowed = np.ones(len(self), bool)
        if only is not None:
            allowed &= np.isin(self.node_of_rank, np.asarray(only, np.int32))
        allowed &= ~np.isin(self.node_of_rank, np.asarray(without, np.int32))
        if not allowed.any():
            raise InvalidRequest(
                "no cluster is left to plan",
                field="exclude_node_ids",
                remedy="Exclude fewer clusters, or drop the sibling constraint.",
            )
        return View(np.concatenate([[0], allowed.cumsum()]).astype(np.int32))

    def save(self, folder: Path) -> None:
        """Writes one npy a column and trie.json into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name), allow_pickle=False)
        about = {"tree_version": self.tree_version, "tokenizer_hash": self.tokenizer_hash}
        (folder / "trie.json").write_text(json.dumps(about))

    @classmethod
    def open(cls, folder: Path, tokenizer_hash: str) -> DescriptionTrie:
        """Maps a saved trie into memory. Raises CorruptArtifact on another tokenizer's."""
        about = json.loads((folder / "trie.json").read_text())
        if about["tokenizer_hash"] != tokenizer_hash:
            raise CorruptArtifact(
                "the trie was built with another tokenizer",
                field=str(folder),
                remedy="Publish the planner again (serendip finetune).",
            )
        arrays = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in _ARRAYS
        }
        return cls(**arrays, **about)


@dataclass(frozen=True)
class View:
    """Which descriptions a row may still choose. It removes; it never changes a score.

    Attributes:
        kept: int32[D + 1]; kept[hi] - kept[lo] descriptions of ranks [lo, hi) are allowed.
    """

    kept: Int

    @property
    def count(self) -> int:
        """How many descriptions are allowed."""
        return int(self.kept[-1])

    def live(self, lo: Int, hi: Int) -> npt.NDArray[np.bool_]:
        """bool[...]: whether a description of ranks [lo, hi) is allowed."""
        return self.kept[hi] > self.kept[lo]


def normalise(text: str) -> str:
    """The form in which texts are compared: runs of white space one space, ends trimmed."""
    return re.sub(r"\s+", " ", text).strip()


def _states(table: npt.NDArray[np.int64]) -> tuple[Int, Int, Int, Int, Int]:
    """token, first_child, terminal, lo, hi of the trie of a sorted token table."""
    ranks, width = table.shape
    tokens = [np.array([-1])]
    parents = [np.array([-1])]
    lows, highs = [np.array([0])], [np.array([ranks])]
    terminals = [np.array([-1])]
    state_of_row = np.zeros(ranks, np.int64)
    count = 1
    alive = np.arange(ranks)
    for depth in range(width):
        alive = alive[table[alive, depth] >= 0]
        if not len(alive):
            break
        key_state, key_token = state_of_row[alive], table[alive, depth]
        new = np.ones(len(alive), bool)
        new[1:] = (key_state[1:] != key_state[:-1]) | (key_token[1:] != key_token[:-1])
        at = np.flatnonzero(new)
        parents.append(key_state[at])
        tokens.append(key_token[at])
        lows.append(alive[at])
        ends = np.append(at[1:], len(alive)) - 1
        highs.append(alive[ends] + 1)
        last = depth + 1 == width
        ended = np.ones(len(alive), bool) if last else table[alive, depth + 1] < 0
        terminals.append(np.where(ended[at], alive[at], -1))
        state_of_row[alive] = count + new.cumsum() - 1
        count += len(at)
    parent = np.concatenate(parents)
    degree = np.bincount(parent[1:], minlength=count)
    first_child = np.concatenate([[1], 1 + degree.cumsum()])
    columns = (
        np.concatenate(tokens), first_child, np.concatenate(terminals),
        np.concatenate(lows), np.concatenate(highs),
    )  # fmt: skip
    token, first, terminal, lo, hi = (c.astype(np.int32) for c in columns)
    return token, first, terminal, lo, hi
