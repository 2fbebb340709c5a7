"""The embedded model on a device: trained for some steps, then bulk planning of what is decoded.

Made-up descriptions, pictures of noise: what is timed does not depend on what is learnt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from common.descriptions import texts

from devices.clock import Times, seconds
from serendip.planning.decode import decode
from serendip.planning.embedded import build_embedded
from serendip.planning.head import Head
from serendip.planning.mllm import Batch, Mllm, answer_loss
from serendip.planning.prompt import Content, Prompt, build_prompt, write_answer
from serendip.planning.search import Search, TrieHead
from serendip.planning.session import TorchSession
from serendip.planning.style import ANSWER, STYLES
from serendip.planning.trie import DescriptionTrie

BATCH, PICTURES = 32, 3
CLUSTERS, BEAMS, REASONING = 8, 12, 24
_STYLE = STYLES["video_cot"]


@dataclass(frozen=True)
class World:
    """A fresh model, its trie, and items."""

    mllm: Mllm
    trie: DescriptionTrie
    descriptions: list[str]
    prompts: list[Prompt]

    @classmethod
    def make(cls, items: int) -> World:
        """64 descriptions and so many items of three pictures."""
        descriptions = texts("words", 1_000)[:64]
        corpus = [f" {text}" for text in descriptions] * 8
        corpus += ["Title: Text: Topic: Look: Next: A viewer liked this video. Suggest a new one."]
        mllm = build_embedded(corpus * 4, 600, seed=0)
        rng = np.random.default_rng(0)
        prompts = []
        for at in range(items):
            shown = rng.integers(0, 255, (PICTURES, 60, 80, 3), dtype=np.uint8)
            content = Content(descriptions[at % 64], "", shown[0], tuple(shown[1:]))
            prompts.append(build_prompt(content, _STYLE, 100))
        tokens = mllm.description_tokens(descriptions)
        trie = DescriptionTrie.build(tokens, range(len(tokens)), mllm.end_token)
        return cls(mllm, trie, descriptions, prompts)


def training(world: World, device: torch.device, repetitions: int, steps: int) -> dict[str, Times]:
    """Seconds of a training step of BATCH rows, forward, backward and AdamW; and of its encoding,
    which the CPU does."""
    mllm, prompts = world.mllm, world.prompts[:BATCH]
    answers = [
        write_answer(_STYLE, own, "hills and a lake", planned)
        for own, planned in zip(world.descriptions[:BATCH], world.descriptions[32:], strict=True)
    ]
    encode = seconds(
        torch.device("cpu"), lambda: mllm.encode_training(prompts, answers), repetitions
    )
    batch, labels = mllm.encode_training(prompts, answers)
    batch, labels = moved(batch, device), labels.to(device)
    model = mllm.model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def some() -> None:
        for _ in range(steps):
            answer_loss(mllm, batch, labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    step = seconds(device, some, repetitions) / steps
    model.eval()
    return {"step": step, "encode": encode}


def planning(world: World, device: torch.device, rows: int, repetitions: int) -> dict[str, Times]:
    """Seconds an item of planning ``rows`` at once: encoding, and all that the model does."""
    mllm, prompts = world.mllm, world.prompts[:rows]
    encode = seconds(torch.device("cpu"), lambda: mllm.encode(prompts), repetitions)
    batch = mllm.encode(prompts)
    mllm.model.to(device)
    made = seconds(device, lambda: plans(world, batch), repetitions)
    return {"encode": encode / rows, "model": made / rows}


def plans(world: World, batch: Batch) -> list[Any]:
    """The CLUSTERS best of each row, reasoning first."""
    head = Head.of(world.mllm.model)
    return decode(
        TorchSession(world.mllm.model, head), batch, TrieHead(head, world.trie),
        [world.trie.view()] * len(batch["input_ids"]), Search(k=CLUSTERS, beams=BEAMS),
        opening=world.mllm.tokens(ANSWER), ends=world.mllm.end_tokens, max_reasoning=REASONING,
    )  # fmt: skip


def agreement(world: World, device: torch.device) -> float:
    """The largest difference between a device's scores and the CPU's, of the same eight items.

    Raises AssertionError if another description is found.
    """
    batch = world.mllm.encode(world.prompts[:8])
    world.mllm.model.to("cpu")
    expected = plans(world, batch)
    world.mllm.model.to(device)
    worst = 0.0
    for found, right in zip(plans(world, batch), expected, strict=True):
        scores = {f.rank: f.score for f in right.answer.found}
        assert {f.rank for f in found.answer.found} == set(scores)
        worst = max(worst, *(abs(f.score - scores[f.rank]) for f in found.answer.found))
    return worst


def moved(batch: Batch, device: torch.device) -> Batch:
    """The same on a device."""
    return {name: value.to(device) for name, value in batch.items()}
