"""The trie as a custom logits processor of vLLM. Importable only where vLLM is installed.

For the interface of the V1 model runner (``vllm.v1.sample.logits_processor``); where a release
uses its second model runner by default, set VLLM_USE_V2_MODEL_RUNNER=0. Start the engine with

    SERENDIP_TRIE=<folder> SERENDIP_TRIE_TOKENIZER=<sha256> vllm serve <checkpoint> \\
        --logits-processors serendip.planning.vllm_processor:VllmTrieProcessor

and a request opts in by its ``extra_args`` (``vllm_xargs`` over HTTP):

    serendip_trie       true
    serendip_only       node IDs, nothing else may be planned
    serendip_without    node IDs that may not be planned
    serendip_opening    token IDs that open the answer; free text comes before them
    serendip_max_free   free tokens after which the opening is forced
    serendip_answer     false: the row ends with the opening, and the description is left out
    serendip_begun      token IDs of the description that the prompt ends with already

The folder is the engine's to name, not a request's: a request could read any path. vLLM samples
from a softmax taken after the processor: see TrieLogitsProcessor for what that is under a view.
Its beam search takes no processor, and speculative decoding refuses them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from serendip.core import InvalidRequest
from serendip.planning.processors import Cursor, Guide, constrain
from serendip.planning.trie import DescriptionTrie
from serendip.planning.views import View

FOLDER = "SERENDIP_TRIE"
TOKENIZER = "SERENDIP_TRIE_TOKENIZER"

_FLAG = "serendip_trie"
_ANSWER = "serendip_answer"
_LISTS = ("serendip_only", "serendip_without", "serendip_opening", "serendip_begun")
_BOUND = "serendip_max_free"


@dataclass
class _Row:
    """A request in the batch.

    Attributes:
        written: the engine's own list of output tokens, which it goes on appending to.
        begun: where the first of them is written.
        cursor: where the row is after ``read`` of them.
    """

    guide: Guide
    view: View | None
    written: list[int]
    begun: Cursor
    cursor: Cursor
    read: int = 0

    def catch_up(self) -> None:
        if len(self.written) < self.read:  # the engine has dropped tokens and will write others
            self.read, self.cursor = 0, self.begun
        for token in self.written[self.read :]:
            if token < 0:
                raise InvalidRequest(
                    "the engine hides its output tokens from this processor",
                    field="--logits-processors",
                    value=token,
                    remedy="Name the class in this flag, or turn asynchronous scheduling off.",
                )
            self.cursor = self.guide.push(self.cursor, token)
            self.read += 1


class VllmTrieProcessor(LogitsProcessor):
    """Constrains the requests that opt in, and leaves all other rows of a batch as they are."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raises ValueError, as vLLM wants it, for arguments that can never be served."""
        try:
            _read(sampling_params, [])
        except InvalidRequest as e:
            raise ValueError(str(e)) from e

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        """Opens the trie, so that an engine without one does not start.

        Raises:
            InvalidRequest: the environment names no trie.
            CorruptArtifact: the folder holds none, or one of another tokenizer.
        """
        _trie()
        self._rows: dict[int, _Row] = {}

    def is_argmax_invariant(self) -> bool:
        """False, or vLLM would leave it out of greedy decoding."""
        return False

    def needs_output_token_ids(self) -> bool:
        """True: asked by those releases that otherwise show placeholders."""
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follows the requests through the batch; reads no token, which may be a placeholder yet.

        Args:
            batch_update: what was removed, then added, then moved; None if nothing was.
        """
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._rows.pop(index, None)
        for index, params, _, written in batch_update.added:
            self._put(index, _read(params, written))
        for source, target, direction in batch_update.moved:
            moved, replaced = self._rows.pop(source, None), self._rows.pop(target, None)
            self._put(target, moved)
            if direction == MoveDirectionality.SWAP:
                self._put(source, replaced)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """float[R, V]: the same tensor, changed in place.

        Raises:
            InvalidRequest: the engine shows placeholders instead of what was sampled.
        """
        for row in self._rows.values():
            row.catch_up()
        constrain(logits, [(i, r.guide, r.cursor, r.view) for i, r in self._rows.items()])
        return logits

    def _put(self, index: int, row: _Row | None) -> None:
        if row is None:
            self._rows.pop(index, None)
        else:
            self._rows[index] = row


def _trie() -> DescriptionTrie:
    for name in (FOLDER, TOKENIZER):
        if not os.environ.get(name):
            raise InvalidRequest(
                "is not set",
                field=name,
                remedy="Name the saved trie's folder and its tokenizer's sha256.",
            )
    return _open(os.environ[FOLDER], os.environ[TOKENIZER])


@lru_cache(maxsize=1)
def _open(folder: str, tokenizer_hash: str) -> DescriptionTrie:
    return DescriptionTrie.open(Path(folder), tokenizer_hash)


def _read(params: Any, written: list[int]) -> _Row | None:
    """A request's row at its start, None if it does not opt in.

    Raises:
        InvalidRequest: an argument of ours is unknown, of another type, or leaves nothing to plan.
    """
    given = getattr(params, "extra_args", None) or {}
    ours = {k: v for k, v in given.items() if k.startswith("serendip_")}
    flag, answers = ours.pop(_FLAG, False), ours.get(_ANSWER, True)
    for name, value in ((_FLAG, flag), (_ANSWER, answers)):
        if value not in (True, False):
            raise _wrong(name, value, "must be true or false")
    for name, value in ours.items():
        if name not in (*_LISTS, _BOUND, _ANSWER):
            raise _wrong(name, value, "is no argument of the trie")
        if not flag:
            raise _wrong(name, value, f"needs {_FLAG}")
        if name == _ANSWER:
            continue
        numbers = value if name in _LISTS else [value]
        if not isinstance(numbers, list | tuple) or not all(type(n) is int for n in numbers):
            raise _wrong(name, value, f"must be {'integers' if name in _LISTS else 'an integer'}")
    if not flag:
        return None
    trie = _trie()
    only, without, opening, begun = (ours.get(name) for name in _LISTS)
    ends = getattr(params, "all_stop_token_ids", None) or ()
    guide = Guide(trie, opening or (), ours.get(_BOUND), ends, answers)
    if begun and opening:
        raise _wrong("serendip_begun", begun, "is of a prompt that is open already")
    view = None
    if only is not None or without:
        view = trie.view(only=only, without=without or ())
    start = guide.walk(begun or ())
    if start.done:
        raise _wrong("serendip_begun", begun, "begins no description")
    return _Row(guide, view, written, start, start)


def _wrong(name: str, value: object, message: str) -> InvalidRequest:
    return InvalidRequest(
        message,
        field=f"extra_args.{name}",
        value=value,
        remedy=f"Send {_FLAG}=true with any of {', '.join((*_LISTS, _BOUND, _ANSWER))}.",
    )
