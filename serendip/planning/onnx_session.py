"""A Gemma 3 checkpoint as two ONNX graphs, seen as the decoder sees every model.

vision.onnx turns pictures into the features of their tokens. decoder.onnx reads tokens, of a
prompt or of a tree after it, on top of the keys and values of what was read before: prefill and
extend are one graph. Exported once, beside the checkpoint; run by ONNX Runtime, which on a CPU
takes a fraction of the time that the torch module does. Knows no trie and no tokenizer.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from transformers import Gemma3ForConditionalGeneration
from transformers.cache_utils import DynamicCache

from serendip.core import CorruptArtifact
from serendip.planning.head import Head
from serendip.planning.layout import Bool, Long, TokenTrees, prompt_sees, share, shared_tokens
from serendip.planning.mllm import Batch
from serendip.planning.session import TorchSession

VISION, DECODER = "vision.onnx", "decoder.onnx"
_OPSET = 18
_CLOSE = 1e-3  # largest difference of a hidden state between graph and module, relative

Floats = npt.NDArray[np.float32]


def can_export(model: Any) -> bool:
    """Whether a model can be run as graphs: Gemma 3 with images, every layer seeing every slot."""
    if not isinstance(model, Gemma3ForConditionalGeneration):
        return False
    return set(model.config.text_config.layer_types) == {"full_attention"}


def export_graphs(model: Any, folder: Path) -> None:
    """Writes the two graphs of a model that ``can_export`` into a folder.

    Raises:
        CorruptArtifact: the graphs do not give the module's hidden states.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text, vision = model.config.text_config, model.config.vision_config
    past = (text.num_hidden_layers, 2, 3, text.num_key_value_heads, 5, text.head_dim)
    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")  # which holds for every shape when it is traced
    try:
        _export(
            _Vision(model),
            {"pixels": torch.zeros(3, vision.num_channels, vision.image_size, vision.image_size)},
            ["features"],
            folder / VISION,
            {"pixels": {0: "image"}, "features": {0: "feature"}},
        )
        _export(
            _Decoder(model),
            {
                "token": torch.ones(3, 4, dtype=torch.long),
                "image": torch.ones(3, 4, dtype=torch.long),
                "features": torch.zeros(7, text.hidden_size),
                "position": torch.ones(3, 4, dtype=torch.long),
                "mask": torch.zeros(3, 1, 4, 9),
                "past": torch.zeros(past),
            },
            ["hidden", "present"],
            folder / DECODER,
            {
                **{name: {0: "row", 1: "new"} for name in ("token", "image", "position", "hidden")},
                "features": {0: "feature"},
                "mask": {0: "row", 2: "new", 3: "slot"},
                "past": {2: "row", 4: "before"},
                "present": {2: "row", 4: "slot"},
            },
        )
    finally:
        model.set_attn_implementation(attention)
    _check(model, folder)


def _export(
    module: torch.nn.Module, inputs: dict[str, torch.Tensor], outputs: list[str], path: Path,
    axes: dict[str, dict[int, str]],
) -> None:  # fmt: skip
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The tracing exporter: what it makes is the same, in 2 s instead of 30.
        torch.onnx.export(
            module.eval(), tuple(inputs.values()), str(path), dynamo=False, opset_version=_OPSET,
            input_names=list(inputs), output_names=outputs, dynamic_axes=axes,
        )  # fmt: skip


@torch.inference_mode()
def _check(model: Any, folder: Path) -> None:
    """Reads two prompts, one with a picture, and a token after each, in both ways."""
    vision, config = model.config.vision_config, model.config
    rng = torch.Generator().manual_seed(0)
    image = [config.image_token_id] * config.mm_tokens_per_image
    a, b, c = [t for t in range(5, 9) if t != config.image_token_id][:3]
    prompts = [[a, b, *image, c, a], [c, a, b]]
    longest = len(prompts[0])
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    side = vision.image_size
    batch = {
        "input_ids": ids,
        "attention_mask": torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts]),
        "token_type_ids": (ids == config.image_token_id).long(),
        "pixel_values": torch.randn(1, vision.num_channels, side, side, generator=rng),
    }
    head = Head.of(model)
    sessions = TorchSession(model, head), OnnxSession(Graphs(folder), head, config.image_token_id)
    found = []
    for session in sessions:
        first = session.prefill(batch)
        tip = session.slots - 1
        found.append((first, session.extend(np.array([[b], [c]]), np.array([[tip], [tip]]))))
    for ours, expected in zip(*found, strict=True):
        error = float((ours - expected).abs().max() / expected.abs().max())
        if not error < _CLOSE:
            raise CorruptArtifact(
                "the exported graphs differ from the checkpoint",
                field=str(folder),
                value=error,
                remedy="Plan with plans.runtime = 'torch', and please report it.",
            )


class _Vision(torch.nn.Module):
    """float32[I, 3, H, W] -> float32[I * tokens, d]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.model.get_image_features(pixels).pooler_output
        return found.flatten(0, 1)


class _Decoder(torch.nn.Module):
    """Tokens and the past in, the present out; ``image`` is 1 + a row of ``features``, or 0."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.body = model.model.language_model
        self.embed = model.get_input_embeddings()
        self.config = model.config.text_config

    def forward(
        self, token: torch.Tensor, image: torch.Tensor, features: torch.Tensor,
        position: torch.Tensor, mask: torch.Tensor, past: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        shown = torch.nn.functional.pad(features, (0, 0, 1, 0))[image]
        embedded = torch.where((image > 0)[..., None], shown, self.embed(token))
        cache = DynamicCache(config=self.config)
        for layer in range(self.config.num_hidden_layers):
            cache.update(past[layer, 0], past[layer, 1], layer)
        hidden = self.body(
            inputs_embeds=embedded,
            position_ids=position,
            attention_mask={"full_attention": mask},
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        present = torch.stack([torch.stack([c.keys, c.values]) for c in cache.layers])
        return hidden, present


class Graphs:
    """The two graphs, open; shared by sessions."""

    def __init__(self, folder: Path, threads: int = 1) -> None:
        """Opens a folder that ``export_graphs`` wrote. Raises CorruptArtifact."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._vision, self._decoder = (
                onnxruntime.InferenceSession(
                    str(folder / name), options, providers=["CPUExecutionProvider"]
                )
                for name in (VISION, DECODER)
            )
        except Exception as e:  # ONNX Runtime's errors have no common class
            raise CorruptArtifact(
                f"no ONNX graph of a planner ({str(e).splitlines()[0]})",
                field=str(folder),
                remedy="Publish the planner again (serendip finetune).",
            ) from e
        shape = next(i.shape for i in self._decoder.get_inputs() if i.name == "past")
        self.layers, self.kv_heads, self.head_dim = shape[0], shape[3], shape[5]
        self.width = self._decoder.get_outputs()[0].shape[2]

    def see(self, pixels: Floats) -> Floats:
        """float32[I * tokens, d] of pictures float32[I, 3, H, W]."""
        found: Floats = self._vision.run(None, {"pixels": pixels})[0]
        return found

    def read(self, given: Mapping[str, Any]) -> tuple[Floats, Floats]:
        """(hidden [R, Q, d], present) of the decoder's inputs."""
        hidden, present = self._decoder.run(None, given)
        return hidden, present


class OnnxSession:
    """One batch in flight on graphs: a Session."""

    def __init__(self, graphs: Graphs, head: Head, image_token: int) -> None:
        self.head = head
        self.slots = 0
        self._graphs, self._image_token = graphs, image_token
        self._features = np.zeros((0, graphs.width), np.float32)

    def prefill(self, batch: Batch) -> torch.Tensor:
        """See Session. What all prompts begin with is read once."""
        ids = batch["input_ids"].numpy()
        mask = batch["attention_mask"].numpy().astype(bool)
        image = ids == self._image_token
        if image.any():
            self._features = self._graphs.see(batch["pixel_values"].float().numpy())
        shared = shared_tokens(ids, mask, self._image_token)
        slots = share(mask, shared)
        self._trees = TokenTrees(slots)
        self.slots = self._trees.slots
        graphs = self._graphs
        self._past = np.zeros(
            (graphs.layers, 2, len(ids), graphs.kv_heads, 0, graphs.head_dim), np.float32
        )
        if shared:
            self._past = self._past[:, :, :1]
            once = np.arange(shared)[None]
            causal = np.tril(np.ones((1, shared, shared), bool))
            self._read(ids[:1][mask[:1]][None, :shared], once, causal)
            self._past = self._past.repeat(len(ids), axis=2)
        # Features lie in the order of the images' tokens, row by row.
        row = (image.cumsum().reshape(image.shape) * image)[:, shared:]
        sees = prompt_sees(slots, shared, image)
        position = self._trees.depth()[:, shared:].clip(0)
        return self._read(ids[:, shared:], position, sees, row)[:, -1]

    def extend(self, token: Long, parent: Long) -> torch.Tensor:
        """See Session."""
        sees = self._trees.append(parent)
        self.slots = self._trees.slots
        return self._read(token, self._trees.depth()[:, -token.shape[1] :], sees)

    def reorder(self, rows: Long) -> None:
        """See Session."""
        self._trees.reorder(rows)
        self._past = self._past[:, :, rows]

    def _read(
        self, token: Long, position: Long, sees: Bool, image: Long | None = None
    ) -> torch.Tensor:
        mask = np.where(sees, np.float32(0), np.finfo(np.float32).min)[:, None]
        hidden, self._past = self._graphs.read(
            {
                "token": token,
                "image": np.zeros_like(token) if image is None else image,
                "features": self._features,
                "position": position,
                "mask": mask,
                "past": self._past,
            }
        )
        return torch.from_numpy(hidden)
