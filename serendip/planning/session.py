"""A torch model seen as the decoder sees every model: prefill, extend, reorder, hidden states.

All beams of a prompt are branches of one tree of tokens (see layout): they share its keys and
values, no beam is ever copied, and a run of forced tokens is one pass. Knows no trie and no
tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from transformers.cache_utils import Cache, DynamicLayer

from serendip.core import CorruptArtifact
from serendip.planning.head import Head
from serendip.planning.layout import ROOM, Bool, Long, TokenTrees, prompt_sees, share, shared_tokens
from serendip.planning.mllm import Batch

# Architectures whose prompts are causal but for what ``_prompt_sees`` knows of, as tests prove.
_CAUSAL_PROMPTS = frozenset(
    {"gemma3", "gemma3_text", "idefics3", "llama", "qwen2_5_vl", "qwen3_vl", "smolvlm"}
)
_PER_TOKEN = frozenset({"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"})


class Session(Protocol):
    """What the decoder needs of a model.

    Attributes:
        head: the model's head; hidden states are what it takes.
        slots: how many slots a row has; the next token's slot is ``slots``.
    """

    head: Head
    slots: int

    def prefill(self, batch: Batch) -> torch.Tensor:
        """Reads R left-padded prompts; returns [R, d], the hidden states of the last tokens.

        Those tokens' slot is ``slots - 1``.
        """
        ...

    def extend(self, token: Long, parent: Long) -> torch.Tensor:
        """Appends Q tokens a row, at slots ``slots`` and on; returns [R, Q, d].

        Args:
            token: int64[R, Q].
            parent: int64[R, Q], the slot that each token follows: the prompt's last or a later
                one, of this call too if it is to the left; NOWHERE for padding, which leaves no
                trace.
        """
        ...

    def reorder(self, rows: Long) -> None:
        """Makes row ``rows[i]`` the new row i; rows may repeat and may be left out."""
        ...


class TorchSession:
    """One batch in flight on a causal or image-text model of transformers."""

    def __init__(self, model: Any, head: Head) -> None:
        """Takes a model whose attention is "sdpa" or "eager", and ``Head.of(model)``."""
        self.head = head
        self.slots = 0
        self._body = model.base_model
        self._config = model.config
        text = model.config.get_text_config()
        kinds = set(getattr(text, "layer_types", None) or ())
        window: int | None = getattr(text, "sliding_window", None)
        self._window = window if "sliding_attention" in kinds or not kinds else None
        self._one_mask = not kinds  # older architectures: one mask for all layers, windowed or not

    @torch.inference_mode()
    def prefill(self, batch: Batch) -> torch.Tensor:
        """See Session. What all prompts begin with is read once."""
        batch = {name: value.to(self.head.weight.device) for name, value in batch.items()}
        # Every layer keeps all slots: a sliding window is in the mask.
        self._cache = Cache(layer_class_to_replicate=_GrowingLayer)
        mask = batch["attention_mask"].bool()
        position = self._positions(batch)
        # Where images stand, positions are not counts of tokens.
        after = position.masked_fill(~mask, -1).amax(dim=-1).reshape(-1, len(mask)).amax(dim=0) + 1
        self._shift = (after - mask.sum(dim=1))[:, None]
        shared = 0
        if self._config.model_type in _CAUSAL_PROMPTS:
            image_token = getattr(self._config, "image_token_id", None)
            shared = shared_tokens(_numpy(batch["input_ids"]), _numpy(mask), image_token)
        slots = share(_numpy(mask), shared)
        self._trees = TokenTrees(slots)
        self.slots = self._trees.slots
        if not shared:
            out = self._run(batch | {"position_ids": position})
        else:
            row = batch["input_ids"][0, mask[0]]
            once = torch.arange(shared, device=mask.device)[None]
            self._run({"input_ids": row[None, :shared], "position_ids": once})
            self._cache.reorder_cache(torch.zeros(len(mask), dtype=torch.long, device=mask.device))
            # Gemma 3: the tokens of an image see each other.
            image = _numpy(batch["token_type_ids"] == 1) if "token_type_ids" in batch else None
            sees = prompt_sees(slots, shared, image)
            rest = {k: v for k, v in batch.items() if k not in _PER_TOKEN}
            rest["input_ids"] = batch["input_ids"][:, shared:]
            rest["position_ids"] = position[..., shared:]
            out = self._run(rest | {"attention_mask": self._masks(sees)})
        last: torch.Tensor = out[:, -1]
        return last

    @torch.inference_mode()
    def extend(self, token: Long, parent: Long) -> torch.Tensor:
        """See Session."""
        sees = self._trees.append(parent)
        self.slots = self._trees.slots
        device = self.head.weight.device
        depth = torch.from_numpy(self._trees.depth()[:, -token.shape[1] :]).to(device)
        return self._run(
            {
                "input_ids": torch.from_numpy(token).to(device),
                "attention_mask": self._masks(sees),
                "position_ids": depth + self._shift,
            }
        )

    def reorder(self, rows: Long) -> None:
        """See Session."""
        self._trees.reorder(rows)
        at = torch.from_numpy(rows).to(self.head.weight.device)
        self._cache.reorder_cache(at)
        self._shift = self._shift[at]

    def _run(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        hidden: torch.Tensor = self._body(
            **inputs, past_key_values=self._cache, use_cache=True
        ).last_hidden_state
        return hidden

    def _positions(self, batch: Batch) -> torch.Tensor:
        """int64[R, T], or [3, R, T] where the architecture lays images out in three dimensions."""
        if any(name.endswith("_grid_thw") for name in batch):
            wanted = signature(self._body.get_rope_index).parameters
            found: torch.Tensor = self._body.get_rope_index(
                **{name: value for name, value in batch.items() if name in wanted}
            )[0]
            return found
        return (batch["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)

    def _masks(self, sees: Bool) -> torch.Tensor | dict[str, torch.Tensor]:
        if self._window is None:
            return self._additive(sees)
        depth = self._trees.depth()
        near = depth[:, -sees.shape[1] :, None] - depth[:, None, :] < self._window
        if self._one_mask:
            return self._additive(sees & near)
        return {
            "full_attention": self._additive(sees),
            "sliding_attention": self._additive(sees & near),
        }

    def _additive(self, sees: Bool) -> torch.Tensor:
        """[R, 1, Q, K]: 0 where a token sees a slot, the lowest number where it does not."""
        weight = self.head.weight
        mask = torch.zeros(sees.shape, dtype=weight.dtype, device=weight.device)
        # A byte a pair travels to the device, not two or four.
        hidden = torch.from_numpy(~sees).to(weight.device)
        return mask.masked_fill_(hidden, torch.finfo(weight.dtype).min)[:, None]


@torch.inference_mode()
def check_trees(model: Any, head: Head) -> None:
    """Reads a small tree of tokens and each of its branches as a text of its own.

    Raises:
        CorruptArtifact: they differ: the architecture's positions go by slot (ALiBi), or it has
            layers that no attention mask reaches.
    """
    last = model.get_input_embeddings().num_embeddings - 1
    prompt = [min(t, last) for t in (1, 2, 3, 4)]
    branches = [[min(t, last) for t in branch] for branch in ((5, 6), (7, 8))]
    session = TorchSession(model, head)
    ids = torch.tensor([prompt], device=head.weight.device)
    session.prefill({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    tip = session.slots - 1
    read = session.extend(
        np.array([[*branches[0], *branches[1]]]), np.array([[tip, tip + 1, tip, tip + 3]])
    )
    for branch, found in zip(branches, (read[0, 1], read[0, 3]), strict=True):
        whole = torch.tensor([prompt + branch], device=head.weight.device)
        expected = model.base_model(input_ids=whole, use_cache=False).last_hidden_state[0, -1]
        error = float((found - expected).abs().max() / (1e-6 + expected.abs().max()))
        if not error < (1e-3 if expected.dtype in (torch.float32, torch.float64) else 5e-2):
            raise CorruptArtifact(
                "cannot read a tree of tokens",
                field="planner.checkpoint",
                value=type(model).__name__,
                remedy="Use the trie as a logits processor instead (serendip.planning.processors).",
            )


class _GrowingLayer(DynamicLayer):
    """Keys and values in a buffer with room, so that a new token copies none of the earlier."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[..., :0, :], value_states[..., :0, :]
            self._room: list[torch.Tensor] = []
        used = self.keys.shape[-2]
        total = used + key_states.shape[-2]
        if not self._room or self._room[0].shape[-2] < total:
            self._room = [_with_room(t, total) for t in (self.keys, self.values)]
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[..., used:total, :] = new
        self.keys, self.values = (room[..., :total, :] for room in self._room)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._room = []


def _numpy(tensor: torch.Tensor) -> npt.NDArray[Any]:
    return tensor.cpu().numpy()


def _with_room(states: torch.Tensor, total: int) -> torch.Tensor:
    room = states.new_empty(*states.shape[:-2], total + max(ROOM, total // 4), states.shape[-1])
    room[..., : states.shape[-2], :] = states
    return room
