"""Rows put together of texts and pictures, without a chat template: what pretraining is shown.

Knows no prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from serendip.planning.mllm import IGNORED, Batch, Mllm
from serendip.planning.prompt import Image


@dataclass(frozen=True)
class Segment:
    """A stretch of a row: text or an image, and whether its tokens are learnt."""

    content: str | Image
    learnt: bool = False


def pack(mllm: Mllm, rows: Sequence[Sequence[Segment]]) -> tuple[Batch, torch.Tensor]:
    """Rows of segments as model inputs, padded on the right, and their labels int64[B, T]."""
    first = mllm.tokenizer.bos_token_id
    bos = [] if first is None else [first]
    ids, labels, images = [], [], []
    for row in rows:
        row_ids, row_labels = list(bos), [IGNORED] * len(bos)
        for segment in row:
            if isinstance(segment.content, str):
                tokens = mllm.tokens(segment.content)
            else:
                tokens = mllm.tokens(mllm.processor.full_image_sequence)
                images.append(segment.content)
            row_ids += tokens
            row_labels += tokens if segment.learnt else [IGNORED] * len(tokens)
        ids.append(torch.tensor(row_ids))
        labels.append(torch.tensor(row_labels))
    pad = torch.nn.utils.rnn.pad_sequence
    input_ids = pad(ids, batch_first=True, padding_value=mllm.tokenizer.pad_token_id)
    batch = {
        "input_ids": input_ids,
        "attention_mask": pad([torch.ones_like(r) for r in ids], batch_first=True),
    }
    if "token_type_ids" in mllm.processor.model_input_names:
        batch["token_type_ids"] = (input_ids == mllm.tokenizer.image_token_id).long()
    if images:
        processed = mllm.processor.image_processor(images, return_tensors="pt")
        batch["pixel_values"] = processed["pixel_values"]
    return batch, pad(labels, batch_first=True, padding_value=IGNORED)
