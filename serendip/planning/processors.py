"""The trie as a logits processor: the constraint for those who decode with another engine.

``Guide`` leads a row from free text through the trie and knows no engine. ``TrieLogitsProcessor``
is its face for ``generate`` of transformers; vllm_processor.py has the one for vLLM. Knows no
tokenizer: token IDs in, nodes out.

A processor can remove tokens, and no more: normalising, scoring and the search are the engine's.
Its scores are therefore not those of decode.py; see TrieLogitsProcessor for what they are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from transformers import LogitsProcessor

from serendip.core import InvalidRequest
from serendip.planning.trie import START, DescriptionTrie
from serendip.planning.views import View

Int = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a row stands after the tokens that it has written; shared by rows, never changed.

    Attributes:
        written: tokens of free text, of which there are no more once the answer has begun.
        opened: how many of the opening's first tokens end this free text.
        state: where in the trie the answer is, None outside of it.
        done: the row has ended, or written what no description begins with.
        rank: the description that it has ended with.
    """

    written: int = 0
    opened: int = 0
    state: int | None = None
    done: bool = False
    rank: int | None = None


class Guide:
    """What may follow what a row has written: free text, the opening, a description, the end.

    Args:
        opening: tokens after which the description begins; none where it begins at once.
        max_free: free tokens after which the rest of the opening is forced; None for no bound.
        end_tokens: what ends a turn beside the trie's own end token; free text has none of them,
            since a row that ended there would have no answer.
        answers: whether the description is written; a row that only reasons ends with the opening.

    Raises:
        InvalidRequest: the opening holds an end token, or a bound is negative or lacks an opening,
            or there is neither an answer nor an opening.
    """

    def __init__(
        self,
        trie: DescriptionTrie,
        opening: Sequence[int] = (),
        max_free: int | None = None,
        end_tokens: Collection[int] = (),
        answers: bool = True,
    ) -> None:
        self.trie = trie
        self.answers = answers
        self.opening = tuple(opening)
        self.max_free = max_free
        self.end_tokens = frozenset(end_tokens) | {trie.end_token}
        self._end = np.array([trie.end_token], np.int32)
        if self.end_tokens & set(self.opening):
            raise InvalidRequest(
                "holds an end token",
                field="opening",
                value=list(self.opening),
                remedy="Leave the end of the turn out of it.",
            )
        if max_free is not None and (max_free < 0 or not self.opening):
            raise InvalidRequest(
                "must be 0 or more, and bounds the text before an opening",
                field="max_free",
                value=max_free,
                remedy="Name the opening's tokens, or drop the bound.",
            )
        if not answers and not self.opening:
            raise InvalidRequest(
                "leaves nothing to be written",
                field="answers",
                value=False,
                remedy="Name the opening's tokens.",
            )

    def start(self) -> Cursor:
        """Where a row is that has written nothing."""
        return Cursor() if self.opening else Cursor(state=START)

    def push(self, cursor: Cursor, token: int) -> Cursor:
        """Where a row is after one more token."""
        if cursor.done:
            return cursor
        if cursor.state is None:
            return self._listen(cursor, token)
        state = self.trie.step(cursor.state, token)
        if token == self.trie.end_token:
            # Without an edge of its own, the end belongs after a terminal and nowhere else.
            if state is None and not len(self.trie.token[self.trie.children(cursor.state)]):
                state = cursor.state
            return Cursor(done=True, rank=None if state is None else int(self.trie.lo[state]))
        return Cursor(done=True) if state is None else Cursor(state=state)

    def walk(self, tokens: Iterable[int]) -> Cursor:
        """Where a row is after some tokens."""
        cursor = self.start()
        for token in tokens:
            cursor = self.push(cursor, token)
        return cursor

    def allowed(self, cursor: Cursor, view: View | None = None) -> Int | None:
        """int32[U], U > 0: the tokens that may follow; None for all but ``end_tokens``.

        After a description, and where a row has strayed to what the view does not keep, that is
        the end token.
        """
        if cursor.done:
            return self._end
        if cursor.state is None:
            if self.max_free is None or cursor.written < self.max_free:
                return None
            return np.array([self.opening[cursor.opened]], np.int32)
        below = self.trie.children(cursor.state)
        tokens = self.trie.token[below]
        if view is not None and len(tokens):
            tokens = tokens[view.live_children(self.trie.lo[below], self.trie.hi[below])]
        return tokens if len(tokens) else self._end

    def node(self, tokens: Iterable[int]) -> int | None:
        """The node whose description some tokens are, up to its end; None if they are none."""
        rank = self.walk(tokens).rank
        return None if rank is None else int(self.trie.node_of_rank[rank])

    def _listen(self, cursor: Cursor, token: int) -> Cursor:
        if token in self.end_tokens:
            return Cursor(done=True)
        tail = (*self.opening[: cursor.opened], token)
        while tail != self.opening[: len(tail)]:
            tail = tail[1:]
        if len(tail) == len(self.opening):
            return Cursor(state=START) if self.answers else Cursor(done=True)
        return Cursor(cursor.written + 1, len(tail))


class TrieLogitsProcessor(LogitsProcessor):
    """Lets ``generate(logits_processor=[...])`` write descriptions of a trie and nothing else.

    For greedy search, sampling and beams. A row's place is read from its tokens at every call,
    since generate reorders rows; no state is kept but a memo of the last call. Rows that are done
    are left the end token, which generate replaces by padding.

    What the numbers are that generate returns:

    - beams: transformers takes the log-softmax over the whole vocabulary *before* its processors
      and adds up what they leave. A sequence's score is the ``full`` one, log p of all that it
      wrote with the end token, and is the same under every view that keeps it; generate divides
      it by length ** length_penalty, so pass ``length_penalty=0.0`` to compare.
    - sampling: the softmax comes *after* the processors, over what is left at each state. Without
      a view that is ``renormalized``. Under a view it is not: it normalises over the children
      that the view keeps, state by state, which is neither the whole trie's distribution nor
      the one given the view (a description that lost its siblings inherits their share).
    - ``renormalize_logits=True`` makes scores of beams out of the latter.

    Ask for no more sequences than the view keeps descriptions, and leave ``early_stopping`` off:
    beams beside the real ones are repetitions or cut short, with scores of about -1e9 / length,
    and early stopping counts them as finished. Let no other setting forbid what a description
    needs (min_new_tokens, suppressed or bad words); top_k and top_p come after this processor and
    do no harm. ``max_new_tokens`` must have room for the free text, the opening, the longest
    description and the end.

    Args:
        prompt_length: columns of input_ids that are prompt (0 where inputs_embeds are given).
        views: one a prompt; its row has all beams or samples of a prompt.
        opening, max_free, end_tokens: see Guide.

    Raises:
        InvalidRequest: a view is of another trie; or see Guide.
    """

    supports_continuous_batching = False

    def __init__(
        self,
        trie: DescriptionTrie,
        prompt_length: int,
        *,
        views: Sequence[View] | None = None,
        opening: Sequence[int] = (),
        max_free: int | None = None,
        end_tokens: Collection[int] = (),
    ) -> None:
        self._guide = Guide(trie, opening, max_free, end_tokens)
        self._prompt_length = prompt_length
        self._views = views
        self._known: dict[tuple[int, ...], Cursor] = {}
        for view in views or ():
            if view.size != len(trie):
                raise InvalidRequest(
                    f"is a view of a trie with {view.size} descriptions",
                    field="views",
                    value=len(trie),
                    remedy="Ask this trie for its views.",
                )

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """float[R, V]: a copy of the scores, with -inf for what may not follow int64[R, T].

        Raises:
            InvalidRequest: rows are no multiple of the views, or are shorter than the prompt.
        """
        cursors = self._find(self._written(input_ids))
        views = self._views_of(len(cursors))
        masked = scores.clone()
        constrain(
            masked,
            [(row, self._guide, cursors[row], views[row]) for row in range(len(cursors))],
        )
        return masked

    def nodes(self, sequences: torch.Tensor) -> list[int | None]:
        """The node of each row of what generate returned, None where it wrote no description."""
        return [self._guide.node(tokens) for tokens in self._written(sequences)]

    def _written(self, input_ids: torch.Tensor) -> list[list[int]]:
        if input_ids.shape[1] < self._prompt_length:
            raise InvalidRequest(
                f"is more than the {input_ids.shape[1]} tokens of a row",
                field="prompt_length",
                value=self._prompt_length,
                remedy="Give the padded length of input_ids, or 0 for inputs_embeds.",
            )
        tokens: list[list[int]] = input_ids[:, self._prompt_length :].tolist()
        return tokens

    def _find(self, rows: list[list[int]]) -> list[Cursor]:
        # A place depends on the row's tokens alone, so the last call's places may be taken up by
        # any row, whatever has been reordered, and even by another generate.
        before, self._known = self._known, {}
        for tokens in rows:
            key = tuple(tokens)
            known = before.get(key[:-1]) if key else None
            self._known[key] = (
                self._guide.walk(key) if known is None else self._guide.push(known, key[-1])
            )
        return [self._known[tuple(tokens)] for tokens in rows]

    def _views_of(self, rows: int) -> Sequence[View | None]:
        if self._views is None:
            return [None] * rows
        if not self._views or rows % len(self._views):
            raise InvalidRequest(
                f"must have one entry a prompt, for {rows} rows",
                field="views",
                value=len(self._views),
                remedy="Give one view for each row of the prompt batch.",
            )
        each = rows // len(self._views)
        return [view for view in self._views for _ in range(each)]


def constrain(scores: torch.Tensor, rows: Iterable[tuple[int, Guide, Cursor, View | None]]) -> None:
    """Sets to -inf, in place, what the rows named may not write; leaves other rows alone.

    Args:
        scores: float[R, V].
        rows: index, and where the row stands.

    Raises:
        InvalidRequest: a token lies beyond V: trie or opening are of another tokenizer.
    """
    bound: list[int] = []
    kept: list[Int] = []
    for row, guide, cursor, view in rows:
        allowed = guide.allowed(cursor, view)
        if allowed is None:
            scores[row, sorted(guide.end_tokens)] = -torch.inf
        else:
            bound.append(row)
            kept.append(allowed)
    if not bound:
        return
    token = np.concatenate(kept).astype(np.int64)
    if int(token.max()) >= scores.shape[1]:
        raise InvalidRequest(
            f"a token beyond a vocabulary of {scores.shape[1]}",
            field="trie or opening",
            value=int(token.max()),
            remedy="Make both with the tokenizer of this model.",
        )
    at = torch.from_numpy(np.repeat(bound, [len(k) for k in kept])).to(scores.device)
    tokens = torch.from_numpy(token).to(scores.device)
    values = scores[at, tokens]
    scores[torch.tensor(bound, device=scores.device)] = -torch.inf
    scores[at, tokens] = values
