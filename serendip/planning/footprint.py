"""What a real checkpoint needs, worked out from its config: parameters, bytes, operations.

Nothing is loaded: the model is built on torch's meta device, and its own modules are counted. A
multiply-add is two operations. Bytes are of bfloat16 weights and states and of float32 adapters
(peft's default). Knows no file format of a checkpoint, no allocator and no kernel: what a device
really takes is measured by benchmarks/gpu.py.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

HALF, SINGLE = 2, 4  # bytes of a bfloat16 and of a float32
_ADAMW = 2 * SINGLE  # bytes of the two moments of a trained parameter
_MARKERS = 2  # tokens that stand around a picture, or before a tile of one


@dataclass(frozen=True)
class Shape:
    """A checkpoint's config, as a file of configs/models has it.

    Attributes:
        published: the parameters that the checkpoint is published to have.
        config: of transformers.
        longest_side: pixels that its processor scales a picture's longer side to before it cuts
            tiles; 0 where it cuts none.
    """

    name: str
    published: int
    config: Any
    longest_side: int = 0

    @classmethod
    def read(cls, path: Path) -> Shape:
        """Reads a TOML file. Raises KeyError where a name is missing."""
        about = tomllib.loads(path.read_text())
        kind = about["config"].pop("model_type")
        config = AutoConfig.for_model(kind, **about["config"])
        return cls(about["name"], about["parameters"], config, about.get("longest_side", 0))


def empty(config: Any) -> Any:
    """The model of a config, without a byte of weights."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)


@dataclass(frozen=True)
class Text:
    """The language model's sizes.

    Attributes:
        wide, narrow: numbers of a token's queries, and of its keys.
        norms: numbers that a layer normalises, a token.
    """

    width: int
    layers: int
    gated: int
    vocabulary: int
    wide: int
    narrow: int
    norms: int

    @classmethod
    def of(cls, config: Any) -> Text:
        """Reads the config of an image-text model."""
        text = config.get_text_config()
        width, heads = int(text.hidden_size), int(text.num_attention_heads)
        head = int(getattr(text, "head_dim", None) or width // heads)
        wide, narrow = heads * head, int(text.num_key_value_heads) * head
        gemma = text.model_type.startswith("gemma3")
        norms = (4 if gemma else 2) * width
        if gemma or text.model_type.startswith("qwen3"):  # queries and keys are normalised too
            norms += wide + narrow
        return cls(
            width, int(text.num_hidden_layers), int(text.intermediate_size), int(text.vocab_size),
            wide, narrow, norms,
        )  # fmt: skip


@dataclass(frozen=True)
class Parts:
    """What a model consists of; parameters, unless said otherwise.

    Attributes:
        vision: the tower that reads pictures.
        connector: between the two, where it is no part of the tower.
        layers: of the language model, with its norms.
        embeddings: of tokens; with a head of its own, if the model has one.
        text_products: multiply-adds a token of the language model's layers.
        text_inputs: numbers that its linear layers take in, a token; each layer its own.
        text_ends: numbers that they take in and give out.
        patch_products: multiply-adds a patch of the vision tower.
        token_products: multiply-adds a token that the tower or the connector makes of patches.
    """

    vision: int
    connector: int
    layers: int
    embeddings: int
    text_products: int
    text_inputs: int
    text_ends: int
    patch_products: int
    token_products: int

    @property
    def total(self) -> int:
        return self.vision + self.connector + self.layers + self.embeddings

    @classmethod
    def of(cls, model: Any) -> Parts:
        """Counts a model of transformers, tied weights once."""
        text, tower = model.get_decoder(), model.get_encoder("image")
        total = _parameters(model)
        embeddings = model.get_input_embeddings().weight.numel()
        layers = _parameters(text) - embeddings
        head = model.get_output_embeddings().weight
        if head is not model.get_input_embeddings().weight:
            embeddings += head.numel()
        vision = _parameters(tower)
        linear = [m for m in text.modules() if isinstance(m, torch.nn.Linear)]
        on_patches = [m for name, m in tower.named_modules() if "merger" not in name]
        on_tokens = [m for name, m in tower.named_modules() if "merger" in name]
        connector = total - layers - embeddings - vision
        return cls(
            vision=vision,
            connector=connector,
            layers=layers,
            embeddings=embeddings,
            text_products=sum(m.weight.numel() for m in linear),
            text_inputs=sum(m.in_features for m in linear),
            text_ends=sum(m.in_features + m.out_features for m in linear),
            patch_products=_products(on_patches),
            # A connector is one or two matrices, and little beside them.
            token_products=_products(on_tokens) + connector,
        )


def _parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _products(modules: list[torch.nn.Module]) -> int:
    kinds = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv3d)
    return sum(m.weight.numel() for m in modules if isinstance(m, kinds))


@dataclass(frozen=True)
class Picture:
    """What a model makes of one picture.

    Attributes:
        patches: that its tower reads, of all tiles.
        tokens: that the language model reads, markers included.
        pairs: of patches that attend to each other, over all layers of the tower.
    """

    patches: int
    tokens: int
    pairs: int


def picture(shape: Shape, height: int, width: int) -> Picture:
    """A picture of so many pixels, as the processor of a checkpoint resizes it.

    Pixel bounds of a processor's own config are not looked at: pictures are decoded at 896 pixels a
    side at most, which is within those of the checkpoints in configs/models.

    Raises:
        KeyError: the architecture is none of gemma3, qwen2_5_vl, qwen3_vl, idefics3 and smolvlm.
    """
    vision, kind = shape.config.vision_config, shape.config.model_type
    if kind == "gemma3":
        patches = (vision.image_size // vision.patch_size) ** 2
        tokens = shape.config.mm_tokens_per_image + _MARKERS
        return Picture(patches, tokens, vision.num_hidden_layers * patches**2)
    if kind in ("qwen2_5_vl", "qwen3_vl"):
        side = vision.patch_size * vision.spatial_merge_size
        merged = max(1, round(height / side)) * max(1, round(width / side))
        patches = merged * vision.spatial_merge_size**2
        layers, near = vision.depth, 0
        if kind == "qwen2_5_vl":  # the other layers look at windows
            near = layers - len(vision.fullatt_block_indexes)
        window = min(patches, (getattr(vision, "window_size", 0) // vision.patch_size) ** 2)
        pairs = (layers - near) * patches**2 + near * patches * window
        return Picture(patches, merged + _MARKERS, pairs)
    if kind in ("idefics3", "smolvlm"):
        side = vision.image_size
        tiles = _tiles(height, width, shape.longest_side or side, side)
        patches = (side // vision.patch_size) ** 2
        tokens = patches // shape.config.scale_factor**2 + _MARKERS
        return Picture(
            tiles * patches, tiles * tokens, tiles * vision.num_hidden_layers * patches**2
        )
    raise KeyError(kind)


def _tiles(height: int, width: int, longest: int, side: int) -> int:
    """Tiles that a picture is cut into, and the whole of it once more, scaled down."""
    if longest <= side:
        return 1
    long = math.ceil(longest / side)
    scaled = int(longest * min(height, width) / max(height, width))
    short = math.ceil(int(long * side * scaled / longest) / side)
    return long * short + 1


@dataclass(frozen=True)
class Work:
    """What is asked of the model for one item.

    Attributes:
        pictures: thumbnail and frames.
        height, width: pixels of each, as they are decoded.
        words: tokens of the instruction, the title, the text and the chat template.
        reasoning: tokens that are written freely.
        passes, read: passes of the constrained answer, and tokens that each reads, a row.
        answer: tokens of a training row that are learnt.
    """

    pictures: int = 3
    height: int = 504
    width: int = 896
    words: int = 160
    reasoning: int = 32
    passes: int = 3
    read: int = 16
    answer: int = 40


@dataclass(frozen=True)
class Footprint:
    """What a checkpoint needs for some work.

    Attributes:
        parts: counted.
        prompt: tokens of a prompt.
    """

    shape: Shape
    text: Text
    parts: Parts
    work: Work
    prompt: int
    seen: Picture

    @classmethod
    def of(cls, shape: Shape, work: Work) -> Footprint:
        """Builds the model without weights and counts it."""
        seen = picture(shape, work.height, work.width)
        prompt = work.words + work.pictures * seen.tokens
        return cls(shape, Text.of(shape.config), Parts.of(empty(shape.config)), work, prompt, seen)

    @property
    def weights(self) -> int:
        """Bytes of the weights."""
        return HALF * self.parts.total

    @property
    def cache_row(self) -> int:
        """Bytes of keys and values of one row, prompt and answer."""
        tokens = self.prompt + self.work.reasoning + self.work.passes * self.work.read
        return HALF * 2 * self.text.layers * self.text.narrow * tokens

    def planning(self, rows: int) -> int:
        """Bytes while ``rows`` prompts are planned: weights, caches, and what a pass needs.

        The engine's caches have room for a quarter more than they hold. A pass holds one layer's
        widest states and the attention mask that the engine makes; the tower reads all pictures
        of the batch at once.
        """
        vision = self.shape.config.vision_config
        layer = HALF * rows * self.prompt * (3 * self.text.gated + 2 * self.text.width)
        mask = HALF * rows * self.prompt**2
        wide = int(vision.intermediate_size) + 4 * int(vision.hidden_size)
        patches = HALF * rows * self.work.pictures * self.seen.patches * wide
        caches = rows * self.cache_row * 5 // 4
        return self.weights + caches + max(layer + mask, patches)

    def adapters(self, rank: int) -> int:
        """Parameters of LoRA of that rank on every linear layer of the language model."""
        return rank * self.parts.text_ends

    def kept_token(self) -> int:
        """Bytes a token that one layer keeps for its backward pass, with adapters on it.

        Norms keep what they normalise in float32, an adapter keeps a float32 copy of its input;
        attention keeps queries, keys, values and what comes out, a gated layer its three widths.
        """
        text = self.text
        attention = HALF * 2 * (text.wide + text.narrow)
        inputs = SINGLE * self.parts.text_inputs // text.layers
        return SINGLE * text.norms + attention + HALF * 3 * text.gated + inputs

    def kept(self, rows: int, *, checkpointing: bool) -> int:
        """Bytes that the backward pass of ``rows`` training rows needs.

        With gradient checkpointing a layer keeps its input alone, and is run again.
        """
        text, tokens = self.text, rows * (self.prompt + self.work.answer)
        a_layer = tokens * self.kept_token()
        if checkpointing:
            layers = text.layers * HALF * tokens * text.width + a_layer
        else:
            layers = text.layers * a_layer
        # Logits of what is learnt: in bfloat16, in float32, their softmax and its gradient.
        return layers + rows * self.work.answer * text.vocabulary * (HALF + 3 * SINGLE)

    def training(self, rows: int, rank: int, *, checkpointing: bool) -> int:
        """Bytes of LoRA by AdamW, ``rows`` at a time: weights, adapters, gradients, moments."""
        adapters = self.adapters(rank) * (SINGLE + SINGLE + _ADAMW)
        return self.weights + adapters + self.kept(rows, checkpointing=checkpointing)

    def read_flops(self) -> int:
        """Operations of reading one prompt, pictures included."""
        return self._vision() + self._layers(self.prompt, self.prompt)

    def pass_flops(self, tokens: int, *, head: bool) -> int:
        """Operations of a later pass of one row; ``head``: with all logits of each token."""
        return self._layers(tokens, self.prompt) + tokens * head * 2 * self._head_products

    def pass_bytes(self, rows: int, *, head: bool) -> int:
        """Bytes that a pass of ``rows`` rows streams: the layers, the caches, and the head."""
        layers = HALF * self.parts.layers
        return layers + rows * self.cache_row + HALF * head * self._head_products

    def step_flops(self, rows: int, rank: int, *, checkpointing: bool) -> int:
        """Operations of a LoRA step on ``rows`` rows, the vision tower frozen.

        Frozen weights need no gradient: backward costs a forward pass, two for attention.
        """
        tokens = self.prompt + self.work.answer
        again = 1 if checkpointing else 0
        products = 2 * tokens * self.parts.text_products * (2 + again)
        attention = self._attention(tokens, tokens) * (3 + again)
        adapters = 2 * tokens * self.adapters(rank) * (3 + again)
        head = 2 * self.work.answer * self._head_products * 2
        return rows * (self._vision() + products + attention + adapters + head)

    @property
    def _head_products(self) -> int:
        return self.text.vocabulary * self.text.width

    def _vision(self) -> int:
        seen, width = self.seen, int(self.shape.config.vision_config.hidden_size)
        products = seen.patches * self.parts.patch_products
        products += seen.tokens * self.parts.token_products
        return self.work.pictures * (2 * products + 4 * width * seen.pairs)

    def _layers(self, tokens: int, context: int) -> int:
        return 2 * tokens * self.parts.text_products + self._attention(tokens, context)

    def _attention(self, tokens: int, context: int) -> int:
        """A mask saves nothing: every query meets every key."""
        return self.text.layers * 4 * self.text.wide * tokens * context


@dataclass(frozen=True)
class Device:
    """A device by its data sheet, and the shares of it that are assumed to be reached.

    Attributes:
        gb: memory, 10^9 bytes.
        tflops: 10^12 bfloat16 operations a second, dense, at the peak.
        gb_s: 10^9 bytes a second of memory, at the peak.
        spare_gb: what runtime, kernels and fragments take.
        compute, bandwidth: shares.
    """

    name: str
    gb: float
    tflops: float
    gb_s: float
    spare_gb: float = 1.5
    compute: float = 0.4
    bandwidth: float = 0.6

    def seconds(self, flops: float, streamed: float = 0.0) -> float:
        """Seconds of operations and of bytes, whichever takes longer."""
        by_compute = flops / (self.tflops * 1e12 * self.compute)
        return max(by_compute, streamed / (self.gb_s * 1e9 * self.bandwidth))

    def holds(self, size: float) -> bool:
        return size <= (self.gb - self.spare_gb) * 1e9


def read_seconds(need: Footprint, device: Device, rows: int) -> float:
    """Seconds of reading ``rows`` prompts."""
    return device.seconds(rows * need.read_flops(), need.weights)


def plan_seconds(need: Footprint, device: Device, rows: int) -> float:
    """Seconds of planning ``rows`` items side by side: read, reason, answer."""
    work = need.work
    write = device.seconds(rows * need.pass_flops(1, head=True), need.pass_bytes(rows, head=True))
    answer = device.seconds(
        rows * need.pass_flops(work.read, head=False), need.pass_bytes(rows, head=False)
    )
    return read_seconds(need, device, rows) + work.reasoning * write + work.passes * answer


def rows_that_fit(device: Device, size: Any, most: int = 256) -> int:
    """The most rows, a power of two, whose ``size(rows)`` bytes the device holds; 0 if none."""
    fit, rows = 0, 1
    while rows <= most and device.holds(size(rows)):
        fit, rows = rows, 2 * rows
    return fit
