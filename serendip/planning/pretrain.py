"""Pretraining of the embedded model: what a real MLLM brings along.

Captions teach it to see; they lie outside the catalogue. Knows no pair and no cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from serendip.config import PlannerConfig
from serendip.planning.decode import write
from serendip.planning.examples import drop_words
from serendip.planning.head import Head
from serendip.planning.mllm import Mllm, answer_loss
from serendip.planning.packing import Segment, pack
from serendip.planning.prompt import Content, Image, write_words
from serendip.planning.session import TorchSession

_CAPTION_ROWS, _CAPTIONS_A_ROW = 6, 4
_TITLE_ROWS = 10
_CAPTION_TOKENS = 16
_CAPTION_BATCH = 128
NOTHING = "nothing clear"  # the caption of a picture that shows nothing


def pretraining_loss(
    mllm: Mllm,
    captions: Sequence[tuple[Image, str]],
    titles: Sequence[Content],
    config: PlannerConfig,
    rng: np.random.Generator,
) -> torch.Tensor:
    """Loss of one batch of packed captions, and of plain titles where there are any.

    Args:
        captions: (image, caption); may be empty if there are titles.
        titles: what is read of them is learnt, and no description.
    """
    end = mllm.tokenizer.convert_ids_to_tokens(mllm.end_token)
    rows: list[list[Segment]] = []
    for _ in range(_CAPTION_ROWS if captions else 0):
        row: list[Segment] = []
        for at in rng.integers(0, len(captions), _CAPTIONS_A_ROW):
            image, text = captions[at]
            row += [Segment(image), Segment(f" {text}{end}", learnt=True)]
        rows.append(row)
    for at in rng.integers(0, len(titles), _TITLE_ROWS if titles else 0):
        kept = replace(titles[at], title=drop_words(titles[at].title, config.word_dropout, rng))
        said = mllm.plain(write_words(kept, config.text_chars))
        rows.append([Segment(f"{said}\n", learnt=True)])
    return answer_loss(mllm, *pack(mllm, rows))


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
        batch, _ = pack(mllm, rows)
        tokens = write(TorchSession(mllm.model, head), batch, mllm.end_tokens, _CAPTION_TOKENS)
        texts += [mllm.tokenizer.decode(t, skip_special_tokens=True).strip() for t in tokens]
    return texts
