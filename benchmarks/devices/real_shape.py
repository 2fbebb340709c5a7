"""A Gemma 3 of a real checkpoint's shape and random weights: prefill, answers, a LoRA step.

The weights are random, the shape is not: what is timed is what the checkpoint would take, but
for where its text ends. Its head is scaled as bench decode's, so that distributions over next
tokens are as uneven as a trained model's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from common.descriptions import END, PIECES, token_lists
from decoding.parts import LOGIT_SPREAD
from peers.full_head import FullHead
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForImageTextToText

from devices.clock import Times, once, peak_bytes, seconds
from serendip.planning.footprint import Shape
from serendip.planning.head import Head
from serendip.planning.mllm import IGNORED, Batch
from serendip.planning.search import Search, TrieHead, search
from serendip.planning.session import TorchSession
from serendip.planning.trie import DescriptionTrie

BEAMS, PICTURES, WORDS, ANSWER, RANK = 8, 3, 160, 40, 16
TEXT_PROMPT = 96  # tokens before the answers that are compared with the full head's


def shrunk(shape: Shape) -> Shape:
    """The same vocabulary and code, with narrow and few layers, for a machine without a GPU."""
    config = shape.config.to_dict()
    config["text_config"] |= {
        "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "head_dim": 64,
        "num_attention_heads": 4, "num_key_value_heads": 2, "query_pre_attn_scalar": 64,
    }  # fmt: skip
    config["text_config"].pop("layer_types", None)
    config["vision_config"] |= {
        "hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2,
        "num_attention_heads": 3, "image_size": 8 * config["vision_config"]["patch_size"],
    }  # fmt: skip
    config["mm_tokens_per_image"] = 16
    kind = config.pop("model_type")
    return Shape(f"{shape.name}, made small", 0, AutoConfig.for_model(kind, **config))


@dataclass(frozen=True)
class Made:
    """A model on its device, its head, and a trie of descriptions spread over its vocabulary."""

    shape: Shape
    model: Any
    head: Head
    trie: DescriptionTrie
    device: torch.device

    @classmethod
    def build(
        cls, shape: Shape, device: torch.device, dtype: torch.dtype, descriptions: int
    ) -> Made:
        """Fills the model on the device itself."""
        torch.manual_seed(0)
        with torch.device(device):
            model = AutoModelForImageTextToText.from_config(shape.config, dtype=dtype).eval()
        projection = model.model.multi_modal_projector.mm_input_projection_weight
        torch.nn.init.normal_(projection, std=projection.shape[0] ** -0.5)
        with torch.no_grad():
            ids = torch.arange(4, 68, device=device)[None]
            hidden = model.base_model(input_ids=ids).last_hidden_state[0]
            some = model.lm_head.weight[:4096].float()
            spread = float((hidden.float() @ some.T).std())
            # The last norm scales what a tied head is given, and leaves the embeddings alone.
            norm = model.get_decoder().norm.weight
            norm.copy_((1 + norm.float()) * (LOGIT_SPREAD / spread) - 1)
        vocabulary = shape.config.get_text_config().vocab_size
        tokens = token_lists("words", descriptions, vocabulary)
        trie = DescriptionTrie.build(tokens, range(len(tokens)), END)
        return cls(shape, model, Head.of(model), trie, device)

    def prompts(self, rows: int, *, answer: int = 0) -> Batch:
        """Prompts of PICTURES pictures and WORDS words, with so many tokens of an answer."""
        config, rng = self.shape.config, np.random.default_rng(rows)
        shown = [config.boi_token_index]
        shown += [config.image_token_index] * config.mm_tokens_per_image
        shown += [config.eoi_token_index]
        words = rng.integers(4, PIECES, (rows, WORDS + answer))
        pictures = np.tile(shown * PICTURES, (rows, 1))
        ids = torch.from_numpy(np.hstack([words[:, :20], pictures, words[:, 20:]])).to(self.device)
        side = config.vision_config.image_size
        pixels = torch.rand(rows * PICTURES, 3, side, side, device=self.device) * 2 - 1
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "token_type_ids": (ids == config.image_token_index).long(),
            "pixel_values": pixels.to(self.model.dtype),
        }


def prefill(made: Made, rows: int, repetitions: int) -> tuple[Times, int, int]:
    """Seconds of reading ``rows`` prompts, their tokens each, and bytes at the peak."""
    batch = made.prompts(rows)

    def read() -> None:
        TorchSession(made.model, made.head).prefill(batch)

    tokens = batch["input_ids"].shape[1]
    return seconds(made.device, read, repetitions), tokens, peak_bytes(made.device, read)


@dataclass(frozen=True)
class Answered:
    """Both ways on the same prompts.

    Attributes:
        engine, full_head: seconds.
        same: the share of the full head's descriptions that the engine found as well.
        apart: the largest difference of the two scores of one description.
    """

    engine: Times
    full_head: Times
    same: float
    apart: float


def answers(made: Made, rows: int, repetitions: int) -> Answered:
    """The BEAMS best descriptions of ``rows`` prompts that were read, both ways in turns."""
    rng = np.random.default_rng(rows)
    ids = torch.from_numpy(rng.integers(4, PIECES, (rows, TEXT_PROMPT))).to(made.device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    trie_head = TrieHead(made.head, made.trie)
    peer = FullHead(made.model, made.trie, END, BEAMS)
    views, how = [made.trie.view()] * rows, Search(k=BEAMS, beams=BEAMS)

    def ours() -> tuple[float, Any]:
        session = TorchSession(made.model, made.head)
        with torch.inference_mode():
            hidden = session.prefill(batch)
        tips = np.full(rows, session.slots - 1)
        return once(made.device, lambda: search(session, hidden, tips, trie_head, views, how))

    def theirs() -> tuple[float, Any]:
        state = peer.prefill(batch)
        return once(made.device, lambda: peer.answer(state))

    runs = [(ours(), theirs()) for _ in range(repetitions + 1)]
    engine, full_head = (np.array([run[i][0] for run in runs[1:]]) for i in (0, 1))
    return Answered(engine, full_head, *_compared(runs[-1][0][1], runs[-1][1][1]))


def _compared(ours: Any, theirs: Any) -> tuple[float, float]:
    same, total, apart = 0, 0, 0.0
    for outcome, beam in zip(ours, theirs, strict=True):
        scores = {f.rank: f.score for f in outcome.found}
        for rank, score in beam:
            total += 1
            if rank in scores:
                same += 1
                apart = max(apart, abs(scores[rank] - score))
    return same / total, apart


class Adapted:
    """The model with LoRA on the linear layers of its language part, and its optimizer."""

    def __init__(self, made: Made) -> None:
        self._made = made
        inside = {id(m) for m in made.model.get_decoder().modules()}
        names = [
            name
            for name, module in made.model.named_modules()
            if isinstance(module, torch.nn.Linear) and id(module) in inside
        ]
        get_peft_model(made.model, LoraConfig(r=RANK, target_modules=names))
        trained = [p for p in made.model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def step(self, rows: int, repetitions: int, *, checkpointing: bool) -> tuple[Times, int]:
        """Seconds of a step of ``rows`` rows, and bytes at its peak."""
        model, device = self._made.model, self._made.device
        batch = self._made.prompts(rows, answer=ANSWER)
        labels = torch.full_like(batch["input_ids"], IGNORED)
        labels[:, -ANSWER:] = batch["input_ids"][:, -ANSWER:]
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()

        def step() -> None:
            half = model.dtype == torch.bfloat16
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                hidden = model.model(**batch, use_cache=False).last_hidden_state
                wanted = labels[:, 1:] != IGNORED
                logits = model.get_output_embeddings()(hidden[:, :-1][wanted])
                loss = torch.nn.functional.cross_entropy(logits.float(), labels[:, 1:][wanted])
            loss.backward()
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)

        try:
            return seconds(device, step, repetitions), peak_bytes(device, step)
        finally:
            self._optimizer.zero_grad(set_to_none=True)
            model.gradient_checkpointing_disable()
            model.eval()
