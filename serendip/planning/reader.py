"""Reads edges of the trie into a model: runs of forced tokens, many at once, some ahead of time.

Between search, which says which edges it wants, and session, which knows no trie.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from serendip.planning.layout import NOWHERE, Long
from serendip.planning.session import Session
from serendip.planning.trie import DescriptionTrie
from serendip.planning.views import View

# Rows of a session are given up when this share of them or less is still searched.
_WORTH_KEEPING = 0.75
# Tokens up to which a pass costs what it takes to stream the model's weights, about.
_ROOM_AHEAD = 16


class Read(NamedTuple):
    """The run of an edge after the model has read it.

    Attributes:
        hidden: [n, d], after each of its tokens but a description's last; after the last of them
            alone where not the ``whole`` run is asked for.
        slot: of the last one read.
    """

    hidden: torch.Tensor
    slot: int


class Reader:
    """What has been read for each of R prompts, and the session's rows that they lie in."""

    def __init__(
        self, session: Session, trie: DescriptionTrie, views: Sequence[View], *, whole: bool
    ) -> None:
        """
        Args:
            whole: every token of a description is to be read, its end token's state included;
                otherwise only what leads to states where descriptions part.
        """
        self._session, self._trie, self._views = session, trie, views
        self._whole = whole
        self._known: list[dict[int, Read]] = [{} for _ in views]  # by the edge's state
        self._row_of = np.arange(len(views))
        self._rows = len(views)

    def read(self, prompt: Long, state: Long, slot: Long) -> list[Read]:
        """Reads the runs of E edges, in one pass if there is anything that was not read ahead.

        Args:
            prompt: int64[E]; a prompt that is not named is through, and not asked for again.
            state: int64[E], the states that the edges lead to.
            slot: int64[E], the slots that they follow.
        """
        asked = list(zip(prompt.tolist(), state.tolist(), strict=True))
        new = [i for i, (p, s) in enumerate(asked) if s not in self._known[p]]
        if new:
            self._drop_rows(np.unique(prompt))
            self._pass(prompt[new], state[new], slot[new])
        return [self._known[p].pop(s) for p, s in asked]

    def _pass(self, prompt: Long, state: Long, slot: Long) -> None:
        given = len(prompt)
        prompt, state, above = self._look_ahead(prompt, state)
        runs = self._trie.runs(state, whole=self._whole)
        # Nothing follows the last token of a description: it is scored and not read.
        length = runs.length - (self._trie.degree(runs.end) == 0)
        row = self._row_of[prompt]
        first = _first_columns(row, length)
        base = self._session.slots
        last = base + first + length - 1
        follows = last[above]
        follows[:given] = slot
        token = np.zeros((self._rows, int((first + length).max())), np.int64)
        parent = np.full(token.shape, NOWHERE, np.int64)
        for j in range(int(length.max())):
            on = np.flatnonzero(j < length)
            at = first[on] + j
            token[row[on], at] = runs.token[on, j]
            parent[row[on], at] = base + at - 1 if j else follows[on]
        hidden = self._session.extend(token, parent)
        for i, p in enumerate(prompt.tolist()):
            stop = int(first[i] + length[i])
            start = int(first[i]) if self._whole else stop - 1
            # A copy, or each would hold on to the whole pass.
            mine = hidden[int(row[i]), start:stop].clone()
            self._known[p][int(state[i])] = Read(mine, int(last[i]))

    def _look_ahead(self, prompt: Long, state: Long) -> tuple[Long, Long, Long]:
        """Appends edges below the given ones, level by level, while a pass has room for them.

        A pass of a few tokens costs as much as one of two, and what is read now needs no pass of
        its own later.

        Returns:
            prompt, state: of all edges.
            above: int64, the one that each edge follows, -1 for those given.
        """
        prompts, states, above = prompt.tolist(), state.tolist(), [-1] * len(state)
        given = self._trie.runs(state, whole=self._whole)
        ends = given.end.tolist()
        asked = self._rows * int(np.bincount(prompt, given.length).max())
        # One token alone is a product with a vector, which is cheaper still.
        room = _ROOM_AHEAD - asked if asked > 1 else 0
        at = 0
        while at < len(states) and room > 0:
            children = self._asked_below(ends[at], self._views[prompts[at]])
            runs = self._trie.runs(children, whole=self._whole)
            tokens = self._rows * int(runs.length.sum())
            if tokens <= room:
                room -= tokens
                prompts += [prompts[at]] * len(children)
                states += children.tolist()
                above += [at] * len(children)
                ends += runs.end.tolist()
            at += 1
        return np.array(prompts), np.array(states), np.array(above)

    def _asked_below(self, state: int, view: View) -> Long:
        """The children of a state that the search would ask for, if it chose them."""
        below = self._trie.children(state)
        if below.start == below.stop:
            return np.empty(0, np.int64)
        lo, hi = self._trie.lo[below], self._trie.hi[below]
        asks = view.live_children(lo, hi)
        asks &= self._trie.token[below] != self._trie.end_token if self._whole else hi - lo > 1
        children: Long = below.start + np.flatnonzero(asks)
        return children

    def _drop_rows(self, active: Long) -> None:
        """Drops the session's rows of prompts that are through, where that is worth the copy."""
        if len(active) <= _WORTH_KEEPING * self._rows:
            self._session.reorder(self._row_of[active])
            self._rows = len(active)
            self._row_of[active] = np.arange(len(active))


def _first_columns(row: Long, length: Long) -> Long:
    """int64[E]: the column of each run's first token, runs side by side in their row."""
    by = np.argsort(row, kind="stable")
    before = length[by].cumsum() - length[by]
    opens = np.diff(row[by], prepend=-1) != 0
    result = np.empty_like(before)
    result[by] = before - np.maximum.accumulate(np.where(opens, before, 0))
    return result
