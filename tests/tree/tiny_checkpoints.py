"""Checkpoints of a few thousand random weights: a text generator and a sentence encoder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def _tokenizer(texts: Iterable[str], frame: bool) -> PreTrainedTokenizerFast:
    words = sorted({w for text in texts for w in text.lower().split()})
    ids = {w: i for i, w in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if frame:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="[SEP]"
    )


def causal(folder: Path, texts: Iterable[str], template: str | None = None) -> None:
    """A random Llama over the texts' words."""
    tokenizer = _tokenizer(texts, frame=False)
    tokenizer.chat_template = template
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=256,
            pad_token_id=0, bos_token_id=2, eos_token_id=3,
        )
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def encoder(folder: Path, texts: Iterable[str], pooling: dict | None = None) -> None:
    """A random BERT over the texts' words, laid out as sentence-transformers does.

    ``pooling`` is the pooling's config; None: a plain transformers folder.
    """
    tokenizer = _tokenizer(texts, frame=True)
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=32,
        )
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    if pooling is None:
        return
    names = ("Transformer", "Pooling", "Normalize")
    paths = ("", "1_Pooling", "2_Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (name, path) in enumerate(zip(names, paths, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": 8, "do_lower_case": True})
    )
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
