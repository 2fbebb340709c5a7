"""A pass of Gemma 3 over rows that are learnt from: transformers' numbers with less work.

A model of a hundred columns spends its passes on many small operations more than on products. So
the last layer goes on with the tokens alone whose states are asked for, norms and rotations have
gradients in closed form, and the mask is built once. Knows no prompt and no loss.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from transformers import Gemma3ForConditionalGeneration

_SPARED = ("attn_logit_softcapping", "use_bidirectional_attention", "attention_dropout")


def is_plain(model: Any) -> bool:
    """Whether ``states_at`` gives what transformers gives of this model, as it is set just now.

    In float32 throughout, without a sliding window, and no activation is computed again.
    """
    if type(model) is not Gemma3ForConditionalGeneration or model.dtype != torch.float32:
        return False
    text = model.config.get_text_config()
    return (
        set(text.layer_types) == {"full_attention"}
        and not any(getattr(text, name) for name in _SPARED)
        and model.config.image_token_id < text.vocab_size
        and not torch.is_autocast_enabled(model.device.type)
        and not any(getattr(m, "gradient_checkpointing", False) for m in model.modules())
    )


def states_at(
    model: Gemma3ForConditionalGeneration,
    input_ids: torch.Tensor,
    pixel_values: torch.Tensor | None,
    wanted: torch.Tensor,
) -> torch.Tensor:
    """What the head is given at the wanted tokens.

    Args:
        input_ids: int64[B, T], padded on the right: nothing looks ahead but within a picture, so no
            token sees the padding behind it.
        pixel_values: float32[pictures, 3, side, side] in the order of the rows.
        wanted: bool[B, T].

    Returns:
        float32[N, D], the wanted tokens row by row.
    """
    stack = model.model.language_model
    hidden, mask = model.get_input_embeddings()(input_ids), None
    if pixel_values is not None:
        pictured = input_ids == model.config.image_token_id
        seen = model.model.get_image_features(pixel_values, return_dict=True).pooler_output
        hidden = hidden.masked_scatter(pictured[:, :, None], seen)
        mask = _mask(pictured, hidden.dtype)
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
    cos, sin = (x[0, :, None] for x in stack.rotary_emb(hidden, positions, "full_attention"))
    half = sin.shape[-1] // 2
    turn = cos, torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
    at = wanted.flatten().nonzero()[:, 0]
    for layer in stack.layers:
        hidden = _layer(layer, hidden, turn, mask, at if layer is stack.layers[-1] else None)
    return _normed(stack.norm, hidden)


def _mask(pictured: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is added to attention's logits: a token sees what is before it and its own picture.

    Args:
        pictured: bool[B, T], whether a token is a part of a picture; two pictures do not touch.

    Returns:
        [B, 1, T, T].
    """
    starts = pictured & ~functional.pad(pictured, (1, 0))[:, :-1]
    picture = torch.where(pictured, starts.cumsum(dim=1), 0)
    own = (picture[:, :, None] == picture[:, None]) & pictured[:, None]
    before = torch.ones(pictured.shape[1], pictured.shape[1], device=pictured.device).tril().bool()
    mask = torch.zeros(own.shape, dtype=dtype, device=pictured.device)
    return mask.masked_fill_(~(own | before), torch.finfo(dtype).min)[:, None]


def _layer(
    layer: Any,
    hidden: torch.Tensor,
    turn: tuple[torch.Tensor, torch.Tensor],
    mask: torch.Tensor | None,
    at: torch.Tensor | None,
) -> torch.Tensor:
    """A decoder layer.

    Args:
        hidden: [B, T, D].
        turn: see _Turned.
        at: int64[N] into the rows' tokens, one row after the other: those that are gone on with.

    Returns:
        [B, T, D]; [N, D] where ``at`` is given.
    """
    attention = layer.self_attn
    x = _normed(layer.input_layernorm, hidden)
    heads = (-1, attention.head_dim)
    q, k, v = (
        project(x).unflatten(-1, heads)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    q = _Turned.apply(q, attention.q_norm.weight, attention.q_norm.eps, *turn)
    k = _Turned.apply(k, attention.k_norm.weight, attention.k_norm.eps, *turn)
    x = functional.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None,
        scale=attention.scaling,
        enable_gqa=True,
    )
    x = x.transpose(1, 2).flatten(2)
    if at is not None:
        x, hidden = (y.flatten(0, 1).index_select(0, at) for y in (x, hidden))
    hidden = hidden + _normed(layer.post_attention_layernorm, attention.o_proj(x))
    x = layer.mlp(_normed(layer.pre_feedforward_layernorm, hidden))
    return hidden + _normed(layer.post_feedforward_layernorm, x)


def _normed(norm: Any, x: torch.Tensor) -> torch.Tensor:
    normed: torch.Tensor = _Normed.apply(x, norm.weight, norm.eps)
    return normed


class _Normed(torch.autograd.Function):
    """Gemma3RMSNorm: x / sqrt(mean(x^2) + eps) * (1 + weight), along the last dimension.

    With n the quotient and h the gradient of n, that of x is (h - n mean(h n)) / sqrt(...).
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        scale, inverse = 1 + weight, _inverse(x, eps)
        n = x * inverse
        ctx.save_for_backward(n, inverse, scale)
        return n * scale

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        n, inverse, scale = ctx.saved_tensors
        of_weight, shared = _shares(gradient * n, scale, inverse)
        return (gradient * scale).addcmul_(n, shared).mul_(inverse), of_weight, None


class _Turned(torch.autograd.Function):
    """Gemma3RMSNorm of each head [B, T, heads, width], and the rotation by its position.

    Args:
        cos, sin: [T, 1, width]; the first half of the sine is negated, so that a rotation is
            x cos + swapped(x) sin.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        cos: torch.Tensor,
        sin: torch.Tensor,
    ) -> torch.Tensor:
        scale, inverse = 1 + weight, _inverse(x, eps)
        n = x * inverse
        ctx.save_for_backward(n, inverse, scale, cos, sin)
        return (n * (cos * scale)).addcmul_(_swapped(n), sin * _swapped(scale))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        n, inverse, scale, cos, sin = ctx.saved_tensors
        back = _swapped(gradient * sin).addcmul_(gradient, cos)
        of_weight, shared = _shares(back * n, scale, inverse)
        return back.mul_(scale).addcmul_(n, shared).mul_(inverse), of_weight, None, None, None


def _inverse(x: torch.Tensor, eps: float) -> torch.Tensor:
    """1 / sqrt(mean(x^2) + eps), [..., 1]."""
    length: torch.Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return length.square_().mul_(1 / x.shape[-1]).add_(eps).rsqrt_()


def _shares(
    products: torch.Tensor, scale: torch.Tensor, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of a norm's weight, and -mean(h n) in the shape of ``like``.

    Args:
        products: of n and the gradient of n times ``scale``.
    """
    rows = products.reshape(-1, products.shape[-1])
    shared = torch.mv(rows, scale).mul_(-1 / rows.shape[-1]).view_as(like)
    return rows.sum(dim=0), shared


def _swapped(x: torch.Tensor) -> torch.Tensor:
    """The last dimension's halves, each in the other's place."""
    half = x.shape[-1] // 2
    return torch.cat((x[..., half:], x[..., :half]), dim=-1)
