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
from serendip.planning.prompt import Content, Prompt, write_answer, write_reasoning, write_words
from serendip.planning.style import ANSWER, OPENED, Style
from serendip.planning.tuning import EMBEDDED

INSTRUCTION = "Name an interest."
_WORD_WEIGHT = 0.5  # of the rows of words, where a pair's rows weigh about 1


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

    A batch of curated pairs, and of descriptions alone, at most batch_size / accumulate rows at a
    time. Beside them, for the embedded checkpoint and where the style reasons, ``word_rows`` of
    words with their own cluster, and ``reasoning_rows`` of pairs whose reasoning is given and whose
    answer alone is learnt; these are short, and go through at once.
    """
    size = config.batch_size
    rows = -(-size // config.accumulate)
    prompts, answers, reasonings, targets = [], [], [], []
    for at in rng.integers(0, len(material.examples), size):
        example = material.examples[at]
        prompts.append(training_prompt(example.content, style, config, rng))
        answers.append(write_answer(style, example.own, example.look, example.target))
    alone = round(size * config.description_rows)
    share = alone / (size + alone)
    yield from _parts(mllm, prompts, answers, rows, 1 - share)
    if alone:
        chosen = rng.integers(0, len(material.descriptions), alone)
        bare = Prompt(({"role": "user", "content": [_text(INSTRUCTION)]},), (), OPENED)
        texts = [f" {material.descriptions[i]}" for i in chosen]
        yield from _parts(mllm, [bare] * alone, texts, rows, share)
    if not style.reasons or config.checkpoint != EMBEDDED:
        return
    if material.words and config.word_rows and write_reasoning(style, "x", ""):
        prompts, answers = [], []
        for at in rng.integers(0, len(material.words), config.word_rows):
            content, own = material.words[at]
            kept = replace(content, title=drop_words(content.title, config.word_dropout, rng))
            words = write_words(kept, config.text_chars)
            prompts.append(Prompt(({"role": "user", "content": [_text(words)]},), ()))
            answers.append(write_reasoning(style, own, ""))
        yield from _parts(mllm, prompts, answers, len(prompts), _WORD_WEIGHT)
    for at in rng.integers(0, len(material.examples), config.reasoning_rows):
        example = material.examples[at]
        reasonings.append(write_reasoning(style, example.own, example.look))
        targets.append(example.target)
    if reasonings:
        end = mllm.tokenizer.convert_ids_to_tokens(mllm.end_token)
        packed = [
            [Segment(f"{reasoning}{ANSWER}"), Segment(f" {target}{end}", learnt=True)]
            for reasoning, target in zip(reasonings, targets, strict=True)
        ]
        yield answer_loss(mllm, *pack(mllm, packed))


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _parts(
    mllm: Mllm, prompts: Sequence[Prompt], answers: Sequence[str], rows: int, weight: float
) -> Iterator[torch.Tensor]:
    """Parts of ``weight`` times the mean loss over all answers' tokens, ``rows`` rows each."""
    tokens = [len(mllm.tokens(answer)) + 1 for answer in answers]  # and the turn's end
    for at in range(0, len(prompts), rows):
        part = slice(at, at + rows)
        share = sum(tokens[part]) / sum(tokens)
        loss = answer_loss(mllm, *mllm.encode_training(prompts[part], answers[part]))
        yield weight * share * loss
