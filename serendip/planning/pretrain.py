"""Pretraining of the embedded model: what a real MLLM brings along.

Captions teach it to see; titles with their own cluster's description teach it the words. The
captions lie outside the catalogue, and no held-out item's title is shown. Knows no pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from serendip.config import PlannerConfig
from serendip.planning.decode import write
from serendip.planning.examples import drop_words
from serendip.planning.head import Head
from serendip.planning.mllm import IGNORED, Batch, Mllm, answer_loss
from serendip.planning.prompt import Content, Image, write_words
from serendip.planning.session import TorchSession

_CAPTION_ROWS, _CAPTIONS_A_ROW = 6, 4
_WORD_ROWS = 10
_CAPTION_TOKENS = 16
_CAPTION_BATCH = 128
NOTHING = "nothing clear"  # the caption of a picture that shows nothing


@dataclass(frozen=True)
class Segment:
    """A stretch of a row: text or an image, and whether its tokens are learnt."""

    content: str | Image
    learnt: bool = False


def pretraining_loss(
    mllm: Mllm,
    captions: Sequence[tuple[Image, str]],
    words: Sequence[tuple[Content, str]],
    config: PlannerConfig,
    rng: np.random.Generator,
) -> torch.Tensor:
    """Loss of one batch of packed captions and of rows of words with their own description.

    Args:
        captions: (image, caption); may be empty.
        words: (title and text, description of the item's own cluster). Where the description is
            empty, the words themselves are learnt: the model then has never read a description.
    """
    end = mllm.tokenizer.convert_ids_to_tokens(mllm.end_token)
    rows: list[list[Segment]] = []
    if captions:
        for _ in range(_CAPTION_ROWS):
            row: list[Segment] = []
            for at in rng.integers(0, len(captions), _CAPTIONS_A_ROW):
                image, text = captions[at]
                row += [Segment(image), Segment(f" {text}{end}", learnt=True)]
            rows.append(row)
    for at in rng.integers(0, len(words), _WORD_ROWS):
        content, own = words[at]
        kept = replace(content, title=drop_words(content.title, config.word_dropout, rng))
        said = write_words(kept, config.text_chars)
        read = Segment(f"{mllm.plain(said)}\n", learnt=not own)
        rows.append([read, Segment(f"Topic: {own}{end}", learnt=True)] if own else [read])
    return answer_loss(mllm, *_encode(mllm, rows))


def look_at(mllm: Mllm, contents: Sequence[Content]) -> list[str]:
    """What the captioned model says of each item: its reasoning's look.

    The setting that it names first, of the first picture (thumbnail, then frames) that it finds
    clear; NOTHING if it finds none.
    """
    looks = [NOTHING] * len(contents)
    waiting = list(range(len(contents)))
    for picture in range(max(len(c.images) for c in contents)):
        waiting = [i for i in waiting if looks[i] == NOTHING and picture < len(contents[i].images)]
        captions = caption_images(mllm, [contents[i].images[picture] for i in waiting])
        for i, caption in zip(waiting, captions, strict=True):
            looks[i] = caption.split(",")[0].strip() or NOTHING
    return looks


def caption_images(mllm: Mllm, images: Sequence[Image]) -> list[str]:
    """The model's greedy caption of each image."""
    texts: list[str] = []
    head = Head.of(mllm.model)
    for at in range(0, len(images), _CAPTION_BATCH):
        rows = [[Segment(image)] for image in images[at : at + _CAPTION_BATCH]]
        batch, _ = _encode(mllm, rows)
        tokens = write(TorchSession(mllm.model, head), batch, mllm.end_tokens, _CAPTION_TOKENS)
        texts += [mllm.tokenizer.decode(t, skip_special_tokens=True).strip() for t in tokens]
    return texts


def _encode(mllm: Mllm, rows: Sequence[Sequence[Segment]]) -> tuple[Batch, torch.Tensor]:
    """Rows of segments as model inputs, padded on the right, and their labels."""
    image_tokens = mllm.tokens(mllm.processor.full_image_sequence)
    bos = [mllm.tokenizer.bos_token_id]
    ids, labels, images = [], [], []
    for row in rows:
        row_ids, row_labels = list(bos), [IGNORED] * len(bos)
        for segment in row:
            if isinstance(segment.content, str):
                tokens = mllm.tokens(segment.content)
            else:
                tokens = image_tokens
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
        "token_type_ids": (input_ids == mllm.tokenizer.image_token_id).long(),
    }
    if images:
        processed = mllm.processor.image_processor(images, return_tensors="pt")
        batch["pixel_values"] = processed["pixel_values"]
    return batch, pad(labels, batch_first=True, padding_value=IGNORED)
