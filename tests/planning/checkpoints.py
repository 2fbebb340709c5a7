"""Tiny image-text checkpoints of four architectures, with random weights and real processors.

Each is built offline, saves and opens as an ordinary checkpoint, and tells prompts and pictures
apart.
"""

import json
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    Gemma3ForConditionalGeneration,
    GenerationConfig,
    GPT2Tokenizer,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    Idefics3VisionConfig,
    LlamaConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import (
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLVisionConfig,
)
from transformers.models.qwen3_vl.configuration_qwen3_vl import (
    Qwen3VLTextConfig,
    Qwen3VLVisionConfig,
)

from serendip.planning.embedded import build_embedded
from serendip.planning.mllm import Mllm

CORPUS = [
    f" {group}: {word}"
    for group in ("bread", "bike", "music", "sea")
    for word in ("rye", "rye and oats", "cake", "hill", "hill and mud", "track", "cello", "synth")
] * 4 + [
    "Title: Text: Topic: Look:\nNext:",
    "A viewer liked this video. Suggest a new interest.",
    "A viewer liked this item. Suggest a new interest.",
] * 8
_SHARPNESS = 4.0  # of the head: the logits' standard deviation is about this
_WIDTH, _LAYERS, _HEADS, _KV_HEADS = 96, 4, 4, 2
_VISION_WIDTH, _VISION_LAYERS, _VISION_HEADS = 48, 2, 2
_VOCABULARY = 340

_QWEN_SPECIAL = {
    "sot_token": "<|im_start|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
}
_QWEN_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_QWEN_PATCH, _QWEN_MERGE = 6, 2

_SMOLVLM_SPECIAL = [
    "<global-img>",
    *(f"<row_{i}_col_{j}>" for i in (1, 2) for j in (1, 2)),
    "<fake_token_around_image>",
    "<image>",
    "<end_of_utterance>",
]
_SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}"
    "{{ ':' if m['content'][0]['type'] == 'image' else ': ' }}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<image>' }}"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{{ '<end_of_utterance>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
_SMOLVLM_SIDE, _SMOLVLM_PATCH, _SMOLVLM_SHUFFLE = 32, 8, 2


def _image_only(processor: type) -> type:
    """Its video part wants torchvision, which pictures alone do not need."""
    parts = classmethod(lambda cls: ["image_processor", "tokenizer"])
    # What is saved names the class that everybody has.
    return type(processor.__name__, (processor,), {"get_attributes": parts})


def tiny_gemma3(corpus: Sequence[str] = CORPUS, window: int = 512) -> Mllm:
    """Gemma 3: SentencePiece, a tied head, sliding and full layers in turn."""
    return _gemma3(corpus, window)


def tiny_gemma3_capped(corpus: Sequence[str] = CORPUS) -> Mllm:
    """Gemma 3 with a head of its own and a soft cap in its config."""
    return _gemma3(corpus, 512, cap=5.0, tied=False)


def _gemma3(
    corpus: Sequence[str], window: int, cap: float | None = None, tied: bool = True
) -> Mllm:
    made = build_embedded(corpus, _VOCABULARY, seed=0)
    config = made.model.config
    text = config.text_config
    text.layer_types = ["sliding_attention", "full_attention"] * (len(text.layer_types) // 2)
    text.sliding_window = window
    text.final_logit_softcapping = cap
    config.tie_word_embeddings = text.tie_word_embeddings = tied
    model = Gemma3ForConditionalGeneration(config)
    model.generation_config = made.model.generation_config
    made = Mllm(_randomised(model), made.processor)
    for layer in model.get_decoder().layers:
        # Or a tied head would say the last token again.
        layer.post_feedforward_layernorm.weight.data.add_(2)
    return made


def tiny_qwen2_5_vl(corpus: Sequence[str] = CORPUS) -> Mllm:
    """Qwen2.5-VL: byte-level BPE, positions in three dimensions, pictures of any shape."""
    processor = _qwen_processor(Qwen2_5_VLProcessor, corpus)
    about = _qwen_text(processor.tokenizer)
    about["rope_parameters"]["mrope_section"] = [4, 4, 4]
    vision = Qwen2_5_VLVisionConfig(
        depth=_VISION_LAYERS,
        hidden_size=_VISION_WIDTH,
        intermediate_size=2 * _VISION_WIDTH,
        num_heads=_VISION_HEADS,
        patch_size=_QWEN_PATCH,
        spatial_merge_size=_QWEN_MERGE,
        window_size=2 * _QWEN_PATCH * _QWEN_MERGE,
        fullatt_block_indexes=[_VISION_LAYERS - 1],
        out_hidden_size=_WIDTH,
    )
    config = Qwen2_5_VLConfig(
        text_config=Qwen2_5_VLTextConfig(**about),
        vision_config=vision,
        tie_word_embeddings=False,
        **_qwen_ids(processor.tokenizer),
    )
    return _qwen(Qwen2_5_VLForConditionalGeneration, config, processor)


def tiny_qwen3_vl(corpus: Sequence[str] = CORPUS) -> Mllm:
    """Qwen3-VL: as Qwen2.5-VL, and pictures that enter the first layers once more (DeepStack)."""
    processor = _qwen_processor(Qwen3VLProcessor, corpus)
    about = _qwen_text(processor.tokenizer)
    about["rope_parameters"] |= {"mrope_section": [4, 4, 4], "mrope_interleaved": True}
    vision = Qwen3VLVisionConfig(
        depth=_VISION_LAYERS,
        hidden_size=_VISION_WIDTH,
        intermediate_size=2 * _VISION_WIDTH,
        num_heads=_VISION_HEADS,
        patch_size=_QWEN_PATCH,
        spatial_merge_size=_QWEN_MERGE,
        num_position_embeddings=64,
        deepstack_visual_indexes=[0],
        out_hidden_size=_WIDTH,
    )
    config = Qwen3VLConfig(
        text_config=Qwen3VLTextConfig(head_dim=_WIDTH // _HEADS, **about),
        vision_config=vision,
        tie_word_embeddings=True,
        **_qwen_ids(processor.tokenizer),
    )
    return _qwen(Qwen3VLForConditionalGeneration, config, processor)


def _qwen_processor(kind: type, corpus: Sequence[str]) -> Any:
    vocab, merges = _train_bpe(Qwen2Tokenizer().backend_tokenizer.pre_tokenizer, corpus)
    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=_QWEN_SPECIAL,
        chat_template=_QWEN_TEMPLATE,
    )
    factor = _QWEN_PATCH * _QWEN_MERGE
    images = Qwen2VLImageProcessorPil(
        patch_size=_QWEN_PATCH,
        merge_size=_QWEN_MERGE,
        size={"shortest_edge": factor**2, "longest_edge": (4 * factor) ** 2},
    )
    return _image_only(kind)(images, tokenizer, chat_template=_QWEN_TEMPLATE)


def _qwen_text(tokenizer: Any) -> dict[str, Any]:
    of = tokenizer.convert_tokens_to_ids
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": _WIDTH,
        "intermediate_size": 2 * _WIDTH,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        "bos_token_id": None,
        "eos_token_id": of("<|im_end|>"),
        "pad_token_id": of("<|endoftext|>"),
    }


def _qwen_ids(tokenizer: Any) -> dict[str, int]:
    of = tokenizer.convert_tokens_to_ids
    return {
        "image_token_id": of("<|image_pad|>"),
        "video_token_id": of("<|video_pad|>"),
        "vision_start_token_id": of("<|vision_start|>"),
        "vision_end_token_id": of("<|vision_end|>"),
    }


def _qwen(kind: Any, config: Any, processor: Any) -> Mllm:
    of = processor.tokenizer.convert_tokens_to_ids
    torch.manual_seed(0)
    model = kind(config)
    model.generation_config = GenerationConfig(
        do_sample=False,
        pad_token_id=of("<|endoftext|>"),
        eos_token_id=[of("<|im_end|>"), of("<|endoftext|>")],
    )
    return Mllm(_randomised(model), processor)


def tiny_smolvlm(corpus: Sequence[str] = CORPUS) -> Mllm:
    """SmolVLM, whose architecture is Idefics 3: byte-level BPE, a picture in tiles."""
    vocab, merges = _train_bpe(pre_tokenizers.ByteLevel(add_prefix_space=False), corpus)
    tokenizer = GPT2Tokenizer(
        vocab=vocab,
        merges=merges,
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
        extra_special_tokens=_SMOLVLM_SPECIAL,
        chat_template=_SMOLVLM_TEMPLATE,
    )
    tokens_per_tile = (_SMOLVLM_SIDE // _SMOLVLM_PATCH // _SMOLVLM_SHUFFLE) ** 2
    processor = Idefics3Processor(
        Idefics3ImageProcessorPil(
            size={"longest_edge": 2 * _SMOLVLM_SIDE},
            max_image_size={"longest_edge": _SMOLVLM_SIDE},
        ),
        tokenizer,
        image_seq_len=tokens_per_tile,
        chat_template=_SMOLVLM_TEMPLATE,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=_WIDTH,
        intermediate_size=2 * _WIDTH,
        num_hidden_layers=_LAYERS,
        num_attention_heads=_HEADS,
        num_key_value_heads=_KV_HEADS,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = Idefics3VisionConfig(
        hidden_size=_VISION_WIDTH,
        intermediate_size=2 * _VISION_WIDTH,
        num_hidden_layers=_VISION_LAYERS,
        num_attention_heads=_VISION_HEADS,
        image_size=_SMOLVLM_SIDE,
        patch_size=_SMOLVLM_PATCH,
    )
    torch.manual_seed(0)
    model = Idefics3ForConditionalGeneration(
        Idefics3Config(
            text_config=text,
            vision_config=vision,
            image_token_id=processor.image_token_id,
            scale_factor=_SMOLVLM_SHUFFLE,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=True,
        )
    )
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Mllm(_randomised(model), processor)


def _train_bpe(
    split: pre_tokenizers.PreTokenizer, corpus: Sequence[str]
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A byte-level vocabulary with <|endoftext|> at its start, and its merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = split
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    about = json.loads(tokenizer.to_str())["model"]
    return about["vocab"], [tuple(pair) for pair in about["merges"]]


@torch.no_grad()
def _randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Weights that neither shrink nor blow up what passes through, and a sharp head."""
    torch.manual_seed(0)
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    model.get_decoder().norm.weight.add_(_SHARPNESS - 1)
    return model.eval()


ARCHITECTURES = {
    "gemma3": tiny_gemma3,
    "qwen2_5_vl": tiny_qwen2_5_vl,
    "qwen3_vl": tiny_qwen3_vl,
    "smolvlm": tiny_smolvlm,
}
