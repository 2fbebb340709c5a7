"""Which slot sees which: prompts padded on the left, and after each a tree of tokens.

Each row of a session is a prompt and, after it, a *tree* of tokens: a new token names the slot
that it follows and sees the prompt and its own ancestors, nothing else (tree attention, as in
SpecInfer, arXiv 2305.09781). Knows no model: arrays in, arrays out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Long = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

NOWHERE = -1  # the parent of a token that is padding
ROOM = 64  # slots that a cache grows by, at least
_WORTH_SHARING = 64  # tokens that need not be read, for one more pass
_SHARED_PART = 0.125  # of the longest prompt


class TokenTrees:
    """Which slots each slot of each row sees, and how many tokens come before it on its path.

    Attributes:
        slots: how many slots a row has.
    """

    def __init__(self, prompt_mask: Bool) -> None:
        """Takes bool[R, T], which slots of the prompts hold a token."""
        rows, self.slots = prompt_mask.shape
        self._first = self.slots - 1  # the slot of the prompts' last tokens: parents begin here
        self._sees = np.zeros((rows, 1 + ROOM, self.slots + ROOM), bool)
        self._sees[:, 0, : self.slots] = prompt_mask
        self._depth = np.zeros((rows, self.slots + ROOM), np.int64)
        self._depth[:, : self.slots] = prompt_mask.cumsum(axis=1) - 1

    def append(self, parent: Long) -> Bool:
        """Adds Q slots a row; returns bool[R, Q, slots], what each sees, itself included."""
        rows, wide = parent.shape
        self._grow(wide)
        at = self.slots - self._first
        everyone = np.arange(rows)
        for q in range(wide):
            real = parent[:, q] != NOWHERE
            above = np.where(real, parent[:, q], self._first)
            sees = self._sees[everyone, above - self._first] & real[:, None]
            sees[:, self.slots + q] = True
            self._sees[:, at + q] = sees
            self._depth[:, self.slots + q] = (self._depth[everyone, above] + 1) * real
        self.slots += wide
        return self._sees[:, at : at + wide, : self.slots]

    def depth(self) -> Long:
        """int64[R, slots]; 0 for padding."""
        return self._depth[:, : self.slots]

    def reorder(self, rows: Long) -> None:
        """See Session."""
        self._sees, self._depth = self._sees[rows], self._depth[rows]

    def _grow(self, wide: int) -> None:
        rows, parents, slots = self._sees.shape
        lacking = self.slots + wide - slots
        if lacking <= 0:
            return
        more = max(lacking, ROOM, parents // 2)
        sees = np.zeros((rows, parents + more, slots + more), bool)
        sees[:, :parents, :slots] = self._sees
        depth = np.zeros((rows, slots + more), np.int64)
        depth[:, :slots] = self._depth
        self._sees, self._depth = sees, depth


def shared_tokens(ids: Long, mask: Bool, image_token: int | None) -> int:
    """How many first tokens all R prompts have in common, before any image; 0 if few.

    Args:
        ids: int64[R, T].
        mask: bool[R, T].
    """
    if len(ids) == 1:
        return 0
    rows: Sequence[list[int]] = [row[real].tolist() for row, real in zip(ids, mask, strict=True)]
    shared = 0
    for tokens in zip(*(row[:-1] for row in rows), strict=False):
        if len(set(tokens)) > 1 or tokens[0] == image_token:
            break
        shared += 1
    # The masks of the rest are written out: a small part of a long prompt is not worth that.
    worth = shared * (len(rows) - 1) >= _WORTH_SHARING
    return shared if worth and shared >= _SHARED_PART * ids.shape[1] else 0


def share(mask: Bool, shared: int) -> Bool:
    """bool[R, T]: the slots that hold a token, once the shared ones stand first in every row."""
    rest = mask & (mask.cumsum(axis=1) > shared)
    return np.concatenate([np.ones((len(mask), shared), bool), rest[:, shared:]], axis=1)


def prompt_sees(slots: Bool, shared: int, image: Bool | None) -> Bool:
    """bool[R, Q, T]: what each prompt token after the shared ones sees; padding sees itself.

    Args:
        slots: bool[R, T], which hold a token.
        image: bool[R, T], tokens of images that see each other both ways; None if none do.
    """
    order = slots.cumsum(axis=1)
    sees: Bool = order[:, None, :] <= order[:, shared:, None]
    if image is not None:
        image = image & slots
        image[:, :shared] = False
        opens = image & ~np.pad(image, ((0, 0), (1, 0)))[:, :-1]
        block = np.where(image, opens.cumsum(axis=1), 0)
        sees |= (block[:, shared:, None] == block[:, None, :]) & image[:, shared:, None]
    sees &= slots[:, None, :]
    itself = np.arange(sees.shape[1])
    sees[:, itself, shared + itself] = True
    return sees
