"""What one step of fine-tuning learns from: pairs, and rows beside them that cost little.

A pair's row is long: instruction, pictures, words, reasoning, answer. What takes a model that
starts from nothing most steps is two look-ups in it: which cluster words tell of, and which
description follows from a reasoning. Each has rows of its own, without pictures. Knows no file
and no optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from serendip.config import PlannerConfig
from serendip.planning.examples import Example, drop_words, training_prompt
from serendip.planning.mllm import Mllm, answer_loss
from serendip.planning.packing import Segment, pack
from serendip.planning.prompt import (
    Content,
    Message,
    Prompt,
    write_answer,
    write_reasoning,
    write_words,
)
from serendip.planning.style import ANSWER, OPENED, Style
from serendip.planning.tuning import EMBEDDED

INSTRUCTION = "Name an interest."
_WORD_WEIGHT = 0.5  # of the rows of words, where a pair's rows weigh about 1

_Row = tuple[Prompt, str]  # and its answer
_Weighed = tuple[_Row, float]


@dataclass(frozen=True)
class Material:
    """What is learnt from. No held-out item is in it.

    Attributes:
        examples: curated pairs.
        words: (title and text, description of the item's own cluster); may be empty.
        descriptions: all of the planning level.
    """

    examples: Sequence[Example]
    words: Sequence[tuple[Content, str]]
    descriptions: Sequence[str]


def finetuning_losses(
    mllm: Mllm, style: Style, config: PlannerConfig, material: Material, rng: np.random.Generator
) -> Iterator[torch.Tensor]:
    """The parts of one step's loss.

    A batch of curated pairs, at most batch_size / accumulate rows at a time, and of descriptions
    alone. Beside them, for the embedded checkpoint and where the style reasons, ``word_rows`` of
    words with their own cluster, which go through together with the descriptions, and
    ``reasoning_rows`` of pairs whose reasoning is given and whose answer alone is learnt.
    """
    size = config.batch_size
    rows = -(-size // config.accumulate)
    extra = style.reasons and config.checkpoint == EMBEDDED
    alone = round(size * config.description_rows)
    share = alone / (size + alone)
    pairs: list[_Row] = []
    for at in rng.integers(0, len(material.examples), size):
        example = material.examples[at]
        prompt = training_prompt(example.content, style, config, rng)
        pairs.append((prompt, write_answer(style, example.own, example.look, example.target)))
    bare: list[_Row] = [
        (Prompt(_asked(INSTRUCTION), (), OPENED), f" {material.descriptions[at]}")
        for at in rng.integers(0, len(material.descriptions), alone)
    ]
    words: list[_Row] = []
    if extra and material.words and write_reasoning(style, "x", ""):
        for at in rng.integers(0, len(material.words), config.word_rows):
            content, own = material.words[at]
            kept = replace(content, title=drop_words(content.title, config.word_dropout, rng))
            said = write_words(kept, config.text_chars)
            words.append((Prompt(_asked(said), ()), write_reasoning(style, own, "")))
    yield from _losses(mllm, _weigh(mllm, pairs, 1 - share), rows)
    short = [*_weigh(mllm, bare, share), *_weigh(mllm, words, _WORD_WEIGHT)]
    yield from _losses(mllm, short, max(len(short), rows) if extra else rows)
    if extra and config.reasoning_rows:
        yield _reasonings_loss(mllm, style, material, config.reasoning_rows, rng)


def _reasonings_loss(
    mllm: Mllm, style: Style, material: Material, rows: int, rng: np.random.Generator
) -> torch.Tensor:
    """Mean loss of the descriptions that follow from given reasonings."""
    end = mllm.tokenizer.convert_ids_to_tokens(mllm.end_token)
    packed = []
    for at in rng.integers(0, len(material.examples), rows):
        example = material.examples[at]
        reasoning = write_reasoning(style, example.own, example.look)
        answer = Segment(f" {example.target}{end}", learnt=True)
        packed.append([Segment(f"{reasoning}{ANSWER}"), answer])
    return answer_loss(mllm, *pack(mllm, packed))


def _asked(text: str) -> tuple[Message, ...]:
    """The turn of a user who says this and shows nothing."""
    return ({"role": "user", "content": [{"type": "text", "text": text}]},)


def _weigh(mllm: Mllm, rows: Sequence[_Row], weight: float) -> list[_Weighed]:
    """A weight that is spread evenly over all tokens of the rows' answers."""
    tokens = sum(len(mllm.tokens(answer)) + 1 for _, answer in rows)  # and the turn's end
    return [(row, weight / tokens) for row in rows]


def _losses(mllm: Mllm, weighed: Sequence[_Weighed], rows: int) -> Iterator[torch.Tensor]:
    """Their loss in parts of at most ``rows`` rows."""
    for at in range(0, len(weighed), rows):
        part = weighed[at : at + rows]
        batch, labels = mllm.encode_training([p for (p, _), _ in part], [a for (_, a), _ in part])
        yield answer_loss(mllm, batch, labels, torch.tensor([weight for _, weight in part]))
