"""The LM head, row by row: logits of the tokens that are asked for, and of no others.

A head is z = cap(scale * (h @ W[t] + b[t])), where cap(x) = c * tanh(x / c) if the architecture
caps its final logits, and the identity if not. V tokens, d wide, H hidden states. Knows no trie.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from serendip.core import CorruptArtifact

Double = npt.NDArray[np.float64]
Integers = npt.NDArray[np.integer]
Method = Literal["unique", "by_row", "full"]

# What it costs to touch one row of W (d numbers) in a product with H hidden states, in units of
# streaming it once: a row that is gathered is read at random, written, and read again.
_GATHER = 3.5
_BY_ROW = 8.0  # the same, with its hidden state gathered beside it, and a product of their own
_ROWS_PER_STREAM = 13.0  # hidden states whose arithmetic takes as long as streaming the row

_CHUNK_EDGES = 8192
_CHUNK_VOCABULARY = 16384


@dataclass(frozen=True)
class Head:
    """The last layer of a language model.

    Attributes:
        weight: [V, d]; tied or not, it is not copied.
        bias: [V] or None.
        scale: factor of the logits before the cap.
        soft_cap: c above, or None.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None

    @classmethod
    @torch.inference_mode()
    def of(cls, model: Any) -> Head:
        """The head of a causal or image-text model of transformers, checked on a few tokens.

        A soft cap of the config is believed only if the model's logits have it: some
        architectures (Gemma 3 with images) leave it out.

        Raises:
            CorruptArtifact: its logits are not of the form above.
        """
        last = model.get_output_embeddings()
        text = model.config.get_text_config()
        divisor = getattr(text, "logits_scaling", None) or 1.0
        head = cls(
            weight=last.weight,
            bias=getattr(last, "bias", None),
            scale=float(getattr(text, "logit_scale", None) or 1.0) / float(divisor),
            soft_cap=getattr(text, "final_logit_softcapping", None),
        )
        # Not token 0 alone: padding is often embedded as zeros, which any head agrees on.
        probe = torch.arange(min(8, len(last.weight)), device=last.weight.device)[None]
        hidden = model.base_model(input_ids=probe).last_hidden_state[0]
        expected = model(input_ids=probe).logits[0].double()
        # Small logits hardly feel a cap, so the nearer of the two is taken.
        candidates = [head, replace(head, soft_cap=None)]
        errors = [float((c.full(hidden).double() - expected).abs().max()) for c in candidates]
        if min(errors) <= 1e-3 + 1e-2 * float(expected.abs().max()):
            return candidates[errors.index(min(errors))]
        raise CorruptArtifact(
            "its logits are no linear head, scaled and soft-capped",
            field="planner.checkpoint",
            value=type(model).__name__,
            remedy="Use the trie as a logits processor instead (serendip.planning.processors).",
        )

    @property
    def vocabulary(self) -> int:
        return int(self.weight.shape[0])

    def select(self, tokens: Integers) -> Head:
        """The head of some tokens alone, in their order: its rows are copied side by side.

        In float32 at least, so that scores of a model in half precision are not rounded to it.
        """
        at = torch.from_numpy(np.asarray(tokens, np.int64)).to(self.weight.device)
        bias = None if self.bias is None else _wide(self.bias[at])
        return replace(self, weight=_wide(self.weight[at]), bias=bias)

    def full(self, hidden: torch.Tensor) -> torch.Tensor:
        """[H, V] of hidden states [H, d], float32 or wider: one GEMM."""
        given = hidden.to(self.weight.dtype)
        return self._finish(torch.nn.functional.linear(given, self.weight, self.bias))

    def edges(
        self, hidden: torch.Tensor, row: Integers, token: Integers,
        method: Method | None = None,
    ) -> Double:  # fmt: skip
        """float64[E]: the logit of ``token[e]`` at hidden state ``row[e]``.

        Args:
            hidden: [H, d].
            row, token: int[E].
            method: None lets ``cheapest`` choose.
        """
        if method is None:
            method = cheapest(len(hidden), token, self.vocabulary)
        if method == "by_row":
            return self._by_row(hidden, row, token)
        column = token
        if method == "full":
            z = self.full(hidden)
        elif len(hidden) == 1:
            return _double(self.select(token).full(hidden)[0])
        else:
            distinct, column = np.unique(token, return_inverse=True)
            z = self.select(distinct).full(hidden)
        # In int64: H x V outgrows int32.
        flat = torch.from_numpy(row.astype(np.int64) * z.shape[1] + column).to(z.device)
        return _double(z.reshape(-1)[flat])

    def log_norm(self, hidden: torch.Tensor) -> Double:
        """float64[H]: log of the sum of exp(z) over the whole vocabulary, a chunk at a time."""
        total = torch.full((len(hidden),), -torch.inf, dtype=torch.float64, device=hidden.device)
        for at in range(0, self.vocabulary, _CHUNK_VOCABULARY):
            chunk = slice(at, at + _CHUNK_VOCABULARY)
            bias = None if self.bias is None else self.bias[chunk]
            z = replace(self, weight=self.weight[chunk], bias=bias).full(hidden)
            total = torch.logaddexp(total, z.double().logsumexp(dim=1))
        return _double(total)

    def _by_row(self, hidden: torch.Tensor, row: Integers, token: Integers) -> Double:
        found = np.empty(len(row))
        for at in range(0, len(row), _CHUNK_EDGES):
            part = slice(at, at + _CHUNK_EDGES)
            mine = self.select(token[part])
            states = hidden[torch.from_numpy(row[part]).to(hidden.device)].to(mine.weight.dtype)
            z = torch.bmm(mine.weight[:, None], states[:, :, None])[:, 0, 0]
            found[part] = _double(self._finish(z if mine.bias is None else z + mine.bias))
        return found

    def _finish(self, z: torch.Tensor) -> torch.Tensor:
        z = _wide(z)
        if self.scale != 1.0:
            z = z * self.scale
        if self.soft_cap:
            z = torch.tanh(z / self.soft_cap) * self.soft_cap
        return z


def cheapest(hidden_states: int, token: Integers, vocabulary: int) -> Method:
    """The cheapest way to the logits of edges, by a model of memory and arithmetic.

    One GEMM over the distinct tokens computes each for every hidden state; a product an edge
    wastes nothing but gathers more; the full head gathers nothing.
    """
    product = 1 + hidden_states / _ROWS_PER_STREAM
    by_row = _BY_ROW * len(token)
    full = product * vocabulary
    # Edges bound the distinct tokens from above: they are counted only where it can matter.
    unique = (_GATHER + product) * min(len(token), vocabulary)
    if hidden_states > 1 and unique > min(by_row, full):
        unique = (_GATHER + product) * len(np.unique(token))
    costs: dict[Method, float] = {"unique": unique, "by_row": by_row, "full": full}
    return min(costs, key=lambda m: costs[m])


def _wide(z: torch.Tensor) -> torch.Tensor:
    return z if z.dtype == torch.float64 else z.float()


def _double(z: torch.Tensor) -> Double:
    found: Double = z.double().cpu().numpy()
    return found
