"""The DescriptionTrie: an automaton over the tokens of all descriptions, in CSR arrays.

States are numbered breadth-first, so that a state's children are contiguous, and descriptions are
ranked by their tokens, so that those below a state are a range of ranks. Nothing is kept a state
but four int32; the arrays are mapped into memory. Knows no model, and no tokenizer but its hash.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serendip.core import CorruptArtifact, InvalidRequest, NotFound
from serendip.planning.trie_build import Duplicates, Int, Long, TokenLists, build_states
from serendip.planning.views import Mask, View

START = 0  # the state before the first token
_LONG = 512  # mean number of children from which on their tokens are copied by the run
_ARRAYS = ("token", "first_child", "lo", "hi", "node_of_rank", "text", "text_start")


@dataclass(frozen=True)
class Expansion:
    """The children of many states, ragged: E edges over R rows.

    Attributes:
        row: int32[E], which of the given states the edge leaves, ascending.
        token: int32[E].
        state: int32[E], the state that the edge leads to.
    """

    row: Int
    token: Int
    state: Int


@dataclass(frozen=True)
class Runs:
    """For each of E edges its token and those that are forced after it.

    Attributes:
        token: int32[E, C], -1 beyond the end.
        length: int64[E], at least 1.
        end: int64[E], the state after the last token.
    """

    token: Int
    length: Long
    end: Long


@dataclass(frozen=True)
class DescriptionTrie:
    """S states over D descriptions, ranked by their tokens, a prefix before what it begins.

    A state without children is a terminal: its one description is complete. A description that
    begins another one has the end token as its last edge, where it competes with the longer one;
    any other is complete after its own tokens, and the end token follows by force.

    Attributes:
        token: int32[S], the token that leads into the state; -1 for the start.
        first_child: int32[S + 1]; the children of s are [first_child[s], first_child[s + 1]), in
            rank order: the end token first, then by token.
        lo, hi: int32[S], ranks [lo, hi) of the descriptions below the state.
        node_of_rank: int32[D], the tree's node of each description.
        text, text_start: uint8[B] and int64[D + 1], the descriptions' UTF-8 by rank; empty where
            the trie was built of tokens alone.
        end_token: ends a description.
        tree_version: the tree that those nodes belong to.
        tokenizer_hash: sha256 of the tokenizer that the tokens are of.
    """

    token: Int
    first_child: Int
    lo: Int
    hi: Int
    node_of_rank: Int
    text: npt.NDArray[np.uint8]
    text_start: Long
    end_token: int
    tree_version: str = ""
    tokenizer_hash: str = ""

    def __len__(self) -> int:
        return len(self.node_of_rank)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(getattr(self, name).nbytes for name in _ARRAYS)

    @classmethod
    def build(
        cls,
        tokens: TokenLists | Sequence[Sequence[int]],
        node_ids: Sequence[int] | Int,
        end_token: int,
        *,
        texts: Sequence[str] = (),
        duplicates: Duplicates = "error",
        tree_version: str = "",
        tokenizer_hash: str = "",
    ) -> DescriptionTrie:
        """Builds the trie of descriptions that are given as token IDs, without the end token.

        Args:
            texts: the descriptions themselves, for ``describe`` and ``resolve``.
            duplicates: what to do with a description whose tokens are those of an earlier one:
                "error", or "first" to keep the earlier one's node alone.

        Raises:
            InvalidData: a description is empty, holds the end token, or is a duplicate and
                ``duplicates`` is "error".
        """
        lists = tokens if isinstance(tokens, TokenLists) else TokenLists.of(tokens)
        states, order = build_states(lists, node_ids, end_token, duplicates)
        encoded = [texts[i].encode() for i in order.tolist()] if len(texts) else []
        sizes = np.fromiter(map(len, encoded), np.int64, len(encoded))
        return cls(
            states.token,
            states.first_child,
            states.lo,
            states.hi,
            node_of_rank=np.asarray(node_ids, np.int32)[order],
            text=np.frombuffer(b"".join(encoded), np.uint8),
            text_start=np.concatenate([[0], sizes.cumsum()]),
            end_token=end_token,
            tree_version=tree_version,
            tokenizer_hash=tokenizer_hash,
        )

    # --- walking ---------------------------------------------------------------------------

    def degree(self, states: npt.NDArray[np.integer]) -> Int:
        """int32[R]: how many children each state has; a terminal has none."""
        degree: Int = self.first_child[states + 1] - self.first_child[states]
        return degree

    def children(self, state: int) -> slice:
        """The states that follow one state."""
        return slice(int(self.first_child[state]), int(self.first_child[state + 1]))

    def expand(self, states: npt.NDArray[np.integer]) -> Expansion:
        """The children of each of R states, row by row."""
        if len(states) == 1:
            only = self.children(int(states[0]))
            state = np.arange(only.start, only.stop, dtype=np.int32)
            return Expansion(np.zeros(len(state), np.int32), self.token[only], state)
        first, after = self.first_child[states], self.first_child[states + 1]
        degree = after - first
        last = degree.cumsum(dtype=np.int32)
        row = np.arange(len(degree), dtype=np.int32).repeat(degree)
        state = np.arange(len(row), dtype=np.int32)
        state += (first - (last - degree)).repeat(degree)
        if len(row) <= _LONG * len(degree):
            return Expansion(row, self.token.take(state), state)
        # Siblings lie side by side, and copying many beats taking each.
        runs = [self.token[i:j] for i, j in zip(first.tolist(), after.tolist(), strict=True)]
        return Expansion(row, np.concatenate(runs), state)

    def runs(self, states: npt.NDArray[np.integer], *, whole: bool = False) -> Runs:
        """From each of E states on through all states with one child: the radix edges.

        Args:
            whole: a description that ends has the end token as its last one.
        """
        end = states.astype(np.int64)
        columns = [self.token[end]]
        length = np.ones(len(end), np.int64)
        going = np.flatnonzero(self.degree(end) == 1)
        while len(going):
            end[going] = self.first_child[end[going]]
            columns.append(np.full(len(end), -1, np.int32))
            columns[-1][going] = self.token[end[going]]
            length[going] += 1
            going = going[self.degree(end[going]) == 1]
        if whole:
            bare = np.flatnonzero((self.degree(end) == 0) & (self.token[end] != self.end_token))
            columns.append(np.full(len(end), -1, np.int32))
            token = np.stack(columns, axis=1)
            token[bare, length[bare]] = self.end_token
            length[bare] += 1
            return Runs(token[:, : length.max(initial=1)], length, end)
        return Runs(np.stack(columns, axis=1), length, end)

    def step(self, state: int, token: int) -> int | None:
        """The state that a token leads to, or None."""
        below = self.children(state)
        tokens = self.token[below]
        if len(tokens) and tokens[0] == token:
            return int(below.start)
        at = 1 + int(np.searchsorted(tokens[1:], token))
        if at < len(tokens) and tokens[at] == token:
            return int(below.start) + at
        return None

    def walk(self, tokens: Sequence[int]) -> int | None:
        """The state after some tokens, or None if no description begins so."""
        state = START
        for token in tokens:
            after = self.step(state, token)
            if after is None:
                return None
            state = after
        return state

    def path(self, rank: int) -> list[int]:
        """States from the first token's to the terminal of a description."""
        found: list[int] = []
        below = self.children(START)
        while below.start < below.stop:
            at = int(np.searchsorted(self.lo[below], rank, side="right")) - 1
            found.append(below.start + at)
            below = self.children(found[-1])
        return found

    def tokens_of(self, rank: int) -> list[int]:
        """A description's tokens, and the end token."""
        tokens: list[int] = self.token[self.path(rank)].tolist()
        return tokens if tokens[-1] == self.end_token else [*tokens, self.end_token]

    # --- nodes and texts -------------------------------------------------------------------

    @cached_property
    def _ranks_by_node(self) -> Long:
        return np.argsort(self.node_of_rank, kind="stable")

    def ranks_of(self, node_ids: Sequence[int] | npt.NDArray[np.integer]) -> Int:
        """int32[m]: ascending ranks of the descriptions of those of the nodes that the trie has."""
        by = self._ranks_by_node
        wanted = np.unique(np.asarray(node_ids, np.int64))
        first = np.searchsorted(self.node_of_rank, wanted, sorter=by)
        after = np.searchsorted(self.node_of_rank, wanted, side="right", sorter=by)
        found = [by[i:j] for i, j in zip(first.tolist(), after.tolist(), strict=True)]
        return np.sort(np.concatenate([*found, by[:0]])).astype(np.int32)

    def describe(self, node_id: int) -> str:
        """The description of a node.

        Raises:
            NotFound: the trie has no such node, or was built without texts.
        """
        ranks = self.ranks_of([node_id])
        if not len(ranks) or not len(self.text):
            raise NotFound(
                "has no description here",
                field="node_id",
                value=node_id,
                remedy="Ask for a node of the planning level.",
            )
        return self._text(int(ranks[0]))

    def resolve(self, text: str) -> int | None:
        """The node that a text describes, or None; compared as ``normalise`` leaves them.

        The first call hashes all descriptions, about a second a million.
        """
        hashes, ranks = self._by_hash
        wanted = _hash(normalise(text))
        at = int(np.searchsorted(hashes, wanted))
        while at < len(hashes) and hashes[at] == wanted:
            if normalise(self._text(int(ranks[at]))) == normalise(text):
                return int(self.node_of_rank[ranks[at]])
            at += 1
        return None

    def _text(self, rank: int) -> str:
        return self.text[self.text_start[rank] : self.text_start[rank + 1]].tobytes().decode()

    @cached_property
    def _by_hash(self) -> tuple[npt.NDArray[np.uint64], Long]:
        count = len(self.text_start) - 1
        hashes = np.fromiter((_hash(normalise(self._text(r))) for r in range(count)), np.uint64)
        by = np.argsort(hashes, kind="stable")
        return hashes[by], by

    # --- views -----------------------------------------------------------------------------

    def mask(self, allowed: npt.NDArray[np.bool_]) -> Mask:
        """A bitmask of clusters, to be shared by many views.

        Args:
            allowed: bool[n], by node ID; a node beyond its end is not allowed.
        """
        kept = np.zeros(len(self), bool)
        inside = self.node_of_rank < len(allowed)
        kept[inside] = allowed[self.node_of_rank[inside]]
        return Mask(np.concatenate([[0], kept.cumsum()]).astype(np.int32))

    def view(
        self,
        *,
        only: Sequence[int] | Int | None = None,
        without: Sequence[int] | Int = (),
        mask: Mask | None = None,
    ) -> View:
        """A view that keeps the nodes of ``only`` and of ``mask`` (default: all) less those of
        ``without``. After the first, a view costs as much as the nodes that it names, whatever the
        size of the trie.

        Raises:
            InvalidRequest: nothing is left.
        """
        ranks = None if only is None else self.ranks_of(only)
        gone = self.ranks_of(without)
        if ranks is not None:
            if mask is not None:
                ranks = ranks[mask.kept[ranks + 1] > mask.kept[ranks]]
            ranks, gone, mask = np.setdiff1d(ranks, gone), gone[:0], None
        elif mask is not None:
            gone = gone[mask.kept[gone + 1] > mask.kept[gone]]
        view = View(len(self), ranks, gone, mask)
        if not view.count:
            raise InvalidRequest(
                "no cluster is left to plan",
                field="exclude_node_ids",
                remedy="Exclude fewer clusters, or drop the sibling constraint.",
            )
        return view

    # --- disk ------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Writes one npy a column and trie.json into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name), allow_pickle=False)
        about = {
            "end_token": self.end_token,
            "tree_version": self.tree_version,
            "tokenizer_hash": self.tokenizer_hash,
        }
        (folder / "trie.json").write_text(json.dumps(about))

    @classmethod
    def open(cls, folder: Path, tokenizer_hash: str | None = None) -> DescriptionTrie:
        """Maps a saved trie into memory.

        Args:
            tokenizer_hash: of the tokenizer in use; None where no token will be.

        Raises:
            CorruptArtifact: a file is missing or of another shape than the rest, or the trie
                was built with another tokenizer.
        """
        try:
            about: dict[str, Any] = json.loads((folder / "trie.json").read_text())
            arrays: dict[str, Any] = {
                # A plain array over the map: a memmap is slow to index.
                name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False))
                for name in _ARRAYS
            }
            trie = cls(**arrays, **about)
            fits = trie._fits()
        except (OSError, ValueError, TypeError, IndexError) as e:
            raise _corrupt(folder, f"no trie ({e})") from e
        if not fits:
            raise _corrupt(folder, "its arrays do not fit together")
        if tokenizer_hash not in (None, trie.tokenizer_hash):
            raise _corrupt(folder, "the trie was built with another tokenizer")
        return trie

    def _fits(self) -> bool:
        states, ranks = len(self.token), len(self.node_of_rank)
        return (
            len(self.first_child) == states + 1
            and len(self.lo) == len(self.hi) == states
            and all(getattr(self, name).dtype == np.int32 for name in _ARRAYS[:5])
            and int(self.first_child[-1]) == states
            and (int(self.lo[START]), int(self.hi[START])) == (0, ranks)
            and len(self.text_start) in (1, ranks + 1)
            and int(self.text_start[-1]) == len(self.text)
        )


def normalise(text: str) -> str:
    """The form in which texts are compared: runs of white space one space, ends trimmed."""
    return re.sub(r"\s+", " ", text).strip()


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _corrupt(folder: Path, message: str) -> CorruptArtifact:
    return CorruptArtifact(
        message, field=str(folder), remedy="Publish the planner again (serendip finetune)."
    )
