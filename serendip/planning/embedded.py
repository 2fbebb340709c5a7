"""The embedded MLLM: a tiny Gemma 3 with a SentencePiece tokenizer of its own.

An ordinary transformers checkpoint that is small enough to be trained from nothing on a CPU;
once saved, nothing treats it in a special way. Knows no item and no plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import sentencepiece as spm
import torch
from tokenizers.models import BPE
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    Gemma3TextConfig,
    GemmaTokenizer,
    GenerationConfig,
    SiglipVisionConfig,
)
from transformers.convert_slow_tokenizer import SentencePieceExtractor

from serendip.core import InvalidRequest
from serendip.planning.mllm import Mllm

_SPECIAL = [
    "<mask>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<end_of_image>",
    "<image_soft_token>",
]
_NEWLINES = ["\n", "\n\n", "\n\n\n", "\n\n\n\n"]
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}"
    "{% if m['content'] is string %}{{ m['content'] | trim }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<start_of_image>' }}"
    "{% elif c['type'] == 'text' %}{{ c['text'] | trim }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PAD, EOS, BOS, UNK = range(4)

_IMAGE_SIDE, _PATCH, _TOKENS_PER_IMAGE = 48, 12, 4
_VISION_WIDTH, _VISION_LAYERS, _VISION_HEADS = 96, 3, 3
_WIDTH, _LAYERS, _HEADS, _KV_HEADS = 128, 4, 4, 2


def build_embedded(corpus: Sequence[str], vocabulary: int, seed: int) -> Mllm:
    """A fresh model of about 1.2 M parameters whose tokenizer is trained on ``corpus``."""
    torch.manual_seed(seed)
    tokenizer = _train_tokenizer(corpus, vocabulary)
    processor = Gemma3Processor(
        Gemma3ImageProcessorPil(
            size={"height": _IMAGE_SIDE, "width": _IMAGE_SIDE}, do_pan_and_scan=False
        ),
        tokenizer,
        chat_template=_CHAT_TEMPLATE,
        image_seq_length=_TOKENS_PER_IMAGE,
    )
    end = [EOS, tokenizer.convert_tokens_to_ids("<end_of_turn>")]
    text = Gemma3TextConfig(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=_WIDTH,
        intermediate_size=3 * _WIDTH,
        num_hidden_layers=_LAYERS,
        num_attention_heads=_HEADS,
        num_key_value_heads=_KV_HEADS,
        head_dim=_WIDTH // _HEADS,
        query_pre_attn_scalar=_WIDTH // _HEADS,
        max_position_embeddings=2048,
        sliding_window=512,
        layer_types=["full_attention"] * _LAYERS,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=BOS,
    )
    vision = SiglipVisionConfig(
        hidden_size=_VISION_WIDTH,
        intermediate_size=2 * _VISION_WIDTH,
        num_hidden_layers=_VISION_LAYERS,
        num_attention_heads=_VISION_HEADS,
        image_size=_IMAGE_SIDE,
        patch_size=_PATCH,
        vision_use_head=False,
    )
    model = Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config=text,
            vision_config=vision,
            mm_tokens_per_image=_TOKENS_PER_IMAGE,
            boi_token_index=tokenizer.boi_token_id,
            eoi_token_index=tokenizer.eoi_token_id,
            image_token_index=tokenizer.image_token_id,
            eos_token_id=end,
        )
    )
    # transformers initialises this projection to zeros, from which image tokens never start.
    projection = model.model.multi_modal_projector.mm_input_projection_weight
    torch.nn.init.normal_(projection, std=_VISION_WIDTH**-0.5)
    model.generation_config = GenerationConfig(
        do_sample=False, pad_token_id=PAD, eos_token_id=end, bos_token_id=BOS
    )
    return Mllm(model, processor)


def _train_tokenizer(corpus: Sequence[str], vocabulary: int) -> GemmaTokenizer:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "spm.model"
        try:
            path.write_bytes(train_pieces(corpus, vocabulary, _SPECIAL + _NEWLINES))
        except RuntimeError as e:
            raise InvalidRequest(
                f"the catalogue's texts do not fit it ({str(e).splitlines()[-1].strip()})",
                field="planner.vocabulary",
                value=vocabulary,
                remedy="Raise it above the number of different characters.",
            ) from e
        parts = SentencePieceExtractor(str(path)).extract(BPE)
    return GemmaTokenizer(
        vocab=parts["vocab"],
        merges=parts["merges"],
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        mask_token="<mask>",
        extra_special_tokens={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
            "sot_token": "<start_of_turn>",
            "eot_token": "<end_of_turn>",
        },
        add_bos_token=True,
        chat_template=_CHAT_TEMPLATE,
    )


def train_pieces(corpus: Iterable[str], vocabulary: int, symbols: Sequence[str] = ()) -> bytes:
    """A SentencePiece BPE model that keeps every character, and its white space, as it is.

    Args:
        vocabulary: pieces at most, the four special ones and ``symbols`` among them.
        symbols: texts that are always a piece of their own.
    """
    model = BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_writer=model,
        vocab_size=vocabulary,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        hard_vocab_limit=False,
        pad_id=PAD,
        eos_id=EOS,
        bos_id=BOS,
        unk_id=UNK,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        user_defined_symbols=list(symbols),
        minloglevel=2,
    )
    trained: bytes = model.getvalue()
    return trained
