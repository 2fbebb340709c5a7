"""What a checkpoint needs is worked out from its config: held against models that exist."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForImageTextToText

from serendip.planning.footprint import (
    Device,
    Footprint,
    Parts,
    Shape,
    Work,
    empty,
    picture,
    plan_seconds,
    rows_that_fit,
)

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs/models").glob("*.toml"))
FAMILIES = [
    path
    for path in FILES
    if path.stem.startswith(("gemma-3-4b", "qwen2.5-vl-3b", "qwen3-vl-4b", "smolvlm2-500m"))
]
RANK, WIDTH = 8, 128


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def shape(request):
    return Shape.read(request.param)


def test_a_config_makes_the_published_number_of_parameters(shape):
    model = empty(shape.config)
    assert all(p.is_meta for p in model.parameters())
    parts = Parts.of(model)
    assert parts.total == sum(p.numel() for p in model.parameters()) == shape.published
    assert min(parts.vision, parts.layers, parts.embeddings) > 0


def test_adapters_are_what_peft_makes(shape):
    text = empty(shape.config).get_decoder()
    get_peft_model(text, LoraConfig(r=RANK, target_modules=list(linears(text))))
    made = sum(p.numel() for p in text.parameters() if p.requires_grad)
    assert Footprint.of(shape, Work()).adapters(RANK) == made


def linears(module):
    return {n for n, m in module.named_modules() if isinstance(m, torch.nn.Linear)}


@pytest.mark.parametrize(("height", "width"), [(504, 896), (896, 504), (640, 640), (300, 896)])
def test_pictures_are_cut_as_the_processors_cut_them(shape, height, width):
    config, kind = shape.config, shape.config.model_type
    seen = picture(shape, height, width)
    if kind == "smolvlm":
        made = transformers.SmolVLMImageProcessorPil(
            size={"longest_edge": shape.longest_side},
            max_image_size={"longest_edge": config.vision_config.image_size},
        )
        tiles = made.get_number_of_image_patches(height, width, {})[0]
        assert seen.patches % tiles == seen.tokens % tiles == 0
        side = config.vision_config.image_size // config.vision_config.patch_size
        assert seen.patches // tiles == side**2
    elif kind == "gemma3":
        assert (seen.patches, seen.tokens) == (64**2, 258)
    else:
        made = transformers.Qwen2VLImageProcessorPil(patch_size=config.vision_config.patch_size)
        assert seen.patches == made.get_number_of_image_patches(height, width, {})
        assert seen.tokens == seen.patches // 4 + 2


def small(shape, layers):
    """The same architecture, small enough to run: widths and depths change, the code does not."""
    config = shape.config.to_dict()
    text, vision = config["text_config"], config["vision_config"]
    heads = 4 if text["num_attention_heads"] > text["num_key_value_heads"] else 2
    text |= {
        "hidden_size": WIDTH, "intermediate_size": 320, "num_hidden_layers": layers,
        "vocab_size": 512,
        "num_attention_heads": heads, "num_key_value_heads": 2, "head_dim": 32, "pad_token_id": 0,
    }  # fmt: skip
    text.pop("layer_types", None)
    depth = "depth" if "depth" in vision else "num_hidden_layers"
    vision |= {"hidden_size": 64, "intermediate_size": 96, depth: 3, "out_hidden_size": WIDTH}
    vision |= {"num_heads": 4} if "num_heads" in vision else {"num_attention_heads": 4}
    if "image_size" in vision:
        vision["image_size"] = 16 * vision["patch_size"]
        config["mm_tokens_per_image"] = 16
    if "deepstack_visual_indexes" in vision:
        vision["deepstack_visual_indexes"] = [0, 1]
    if "fullatt_block_indexes" in vision:
        vision["fullatt_block_indexes"] = [2]
    if "rope_parameters" in text and "mrope_section" in (text["rope_parameters"] or {}):
        text["rope_parameters"]["mrope_section"] = [4, 6, 6]
    return Shape("small", 0, AutoConfig.for_model(config.pop("model_type"), **config))


@pytest.fixture(params=FAMILIES, ids=lambda path: path.stem)
def family(request):
    return Shape.read(request.param)


def run(shape, layers, *, attention="sdpa", adapters=False):
    """A small model's language part, and a call that reads so many random embeddings."""
    little = small(shape, layers)
    torch.manual_seed(0)
    text = AutoModelForImageTextToText.from_config(
        little.config, dtype=torch.bfloat16, attn_implementation=attention
    ).get_decoder()
    if adapters:
        get_peft_model(text, LoraConfig(r=RANK, target_modules=list(linears(text))))

    def read(tokens):
        given = torch.randn(1, tokens, WIDTH, dtype=torch.bfloat16, requires_grad=adapters)
        return text(inputs_embeds=given, use_cache=False)

    return little, text, read


def test_operations_are_those_that_torch_counts(family):
    # The fused attention's operations are not counted.
    little, _, read = run(family, 3, attention="eager")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        read(96)
    expected = Footprint.of(little, Work(pictures=0, words=96)).read_flops()
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)


def test_operations_of_a_picture_are_those_that_torch_counts(family):
    little = small(family, 2)
    kind, vision = little.config.model_type, little.config.vision_config
    height, width = 16 * vision.patch_size, 24 * vision.patch_size
    if kind.startswith("qwen"):
        patch = 3 * vision.temporal_patch_size * vision.patch_size**2
        shown = {
            "pixel_values": torch.randn(16 * 24, patch, dtype=torch.bfloat16),
            "image_grid_thw": torch.tensor([[1, 16, 24]]),
        }
    else:
        pixels = torch.randn(1, 3, vision.image_size, vision.image_size, dtype=torch.bfloat16)
        shown = {"pixel_values": pixels if kind == "gemma3" else pixels[None]}
    model = AutoModelForImageTextToText.from_config(
        little.config, dtype=torch.bfloat16, attn_implementation="eager"
    )
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.model.get_image_features(**shown)
    tokens = picture(little, height, width).tokens
    with_it = Work(pictures=1, words=0, height=height, width=width)
    without = Work(pictures=0, words=tokens)
    expected = Footprint.of(little, with_it).read_flops()
    expected -= Footprint.of(little, without).read_flops()
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.05)


def kept_by_autograd(shape, layers, tokens):
    """Bytes a token of what is kept for the backward pass, weights left out."""
    _, text, read = run(shape, layers, adapters=True)
    own = {p.untyped_storage().data_ptr() for p in text.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # alive, or its place is reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        read(tokens)
    return sum(size for size, _ in kept.values()) / tokens


def test_what_a_layer_keeps_is_what_autograd_keeps(family):
    found = (kept_by_autograd(family, 4, 96) - kept_by_autograd(family, 2, 96)) / 2
    expected = Footprint.of(small(family, 2), Work()).kept_token()
    assert expected == pytest.approx(found, rel=0.04)


def test_checkpointing_saves_memory_and_costs_operations(shape):
    need = Footprint.of(shape, Work())
    assert need.kept(4, checkpointing=True) < need.kept(4, checkpointing=False) / 4
    assert need.step_flops(4, RANK, checkpointing=True) > need.step_flops(
        4, RANK, checkpointing=False
    )
    assert need.training(1, RANK, checkpointing=True) > need.weights
    assert need.planning(8) > need.planning(1) > need.weights


def test_a_device_is_bound_by_what_takes_longer():
    device = Device("", gb=10, tflops=10, gb_s=100, compute=0.5, bandwidth=0.5)
    assert device.seconds(5e12, 25e9) == 1
    assert device.seconds(5e12, 100e9) == 2
    assert rows_that_fit(device, lambda rows: rows * 1e9) == 8
    assert rows_that_fit(device, lambda rows: rows * 9e9) == 0


def test_rows_side_by_side_share_the_stream_of_the_weights(shape):
    need = Footprint.of(shape, Work())
    device = Device("", gb=80, tflops=312, gb_s=2039)
    assert plan_seconds(need, device, 32) < 32 * plan_seconds(need, device, 1)


def test_the_page_says_what_the_command_says(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["footprint", "--markdown"])
    runpy.run_path(str(ROOT / "benchmarks/footprint.py"), run_name="__main__")
    said = {line.rstrip() for line in capsys.readouterr().out.splitlines()}
    page = set((ROOT / "docs/real-models.md").read_text().splitlines())
    rows = {line for line in said if line.startswith("|")}
    assert len(rows) > 40
    assert rows <= page, "./build.sh bench footprint --markdown"
