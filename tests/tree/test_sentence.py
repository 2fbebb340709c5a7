"""Vectors by a sentence-transformers folder: what its files say is what is computed."""

import json

import numpy as np
import pytest
import tiny_checkpoints
import torch
import word_catalogue
from transformers import AutoModel, AutoTokenizer

from serendip.artifacts import Artifacts
from serendip.core import InvalidRequest
from serendip.tree.build import publish_tree
from serendip.tree.sentence import SentenceEncoder

TEXTS = ["rye bread", "Rye", "hill bike gravel track speed road wheel chain helmet", "bike"]
MEAN = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}
CLS = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}


def expected(folder, text, pool, prefix="", most=8):
    """One text alone, no padding, by transformers itself."""
    tokens = AutoTokenizer.from_pretrained(folder)(
        prefix + text.lower(), return_tensors="pt", truncation=True, max_length=most
    )
    with torch.inference_mode():
        hidden = AutoModel.from_pretrained(folder).eval()(**tokens).last_hidden_state[0]
    pooled = {
        "mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1], "max": hidden.amax(0)
    }[pool].numpy()  # fmt: skip
    return pooled / np.linalg.norm(pooled)


@pytest.mark.parametrize(
    ("config", "pool"),
    [
        (MEAN, "mean"),
        (CLS, "cls"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode": "cls"}, "cls"),
    ],
)
def test_pooling_prompts_and_limits_are_the_folders(tmp_path, config, pool):
    tiny_checkpoints.encoder(tmp_path, TEXTS, config)
    (tmp_path / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"query": "bread "}, "default_prompt_name": "query"})
    )
    vectors = SentenceEncoder(tmp_path).embed(TEXTS, batch_size=3)
    assert vectors.dtype == np.float32
    for text, vector in zip(TEXTS, vectors, strict=True):
        assert vector == pytest.approx(expected(tmp_path, text, pool, "bread "), abs=1e-5)


def test_a_plain_transformers_folder_is_pooled_by_the_mean(tmp_path):
    tiny_checkpoints.encoder(tmp_path, [t.lower() for t in TEXTS])
    vectors = SentenceEncoder(tmp_path).embed(["rye bread"], 1)
    assert vectors[0] == pytest.approx(expected(tmp_path, "rye bread", "mean"), abs=1e-5)


def spoil(folder, name, content):
    (folder / name).write_text(content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("modules.json", '[{"type": "x.Dense", "path": "3"}]', "names a Dense that is not known"),
        ("modules.json", '[{"type": "x.Transformer", "path": ""}]', "a Transformer and a Pooling"),
        ("modules.json", '[{"type": "x.Pooling", "path": "../.."}]', "leads out of the folder"),
        ("modules.json", "{", "is no JSON"),
        ("1_Pooling/config.json", '{"pooling_mode_weightedmean_tokens": true}', "pooling must be"),
        ("1_Pooling/config.json",
         '{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}', "pooling must be"),
        ("config.json", '{"model_type": "no such"}', "cannot be loaded"),
    ],
)  # fmt: skip
def test_what_is_not_known_here_is_refused(tmp_path, name, content, message):
    tiny_checkpoints.encoder(tmp_path, TEXTS, MEAN)
    spoil(tmp_path, name, content)
    with pytest.raises(InvalidRequest, match=rf"tree\.encoder: .*{message}"):
        SentenceEncoder(tmp_path)


def test_pickled_weights_are_refused(tmp_path):
    tiny_checkpoints.encoder(tmp_path, TEXTS, MEAN)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(InvalidRequest, match=r"tree\.encoder: has no \*\.safetensors"):
        SentenceEncoder(tmp_path)
    with pytest.raises(InvalidRequest, match=r"tree\.encoder: no such folder"):
        SentenceEncoder(tmp_path / "none")


def test_a_tree_is_built_and_grown_by_an_encoder(tmp_path):
    titles = word_catalogue.items(list(range(16)) * 6)
    word_catalogue.write(tmp_path / "data", titles)
    tiny_checkpoints.encoder(tmp_path / "encoder", titles.values(), MEAN)
    config = word_catalogue.config(
        tmp_path, vectors="encoder", encoder=str(tmp_path / "encoder"), encoder_batch=16
    )
    artifacts = Artifacts(config.artifacts_path)
    built = publish_tree(config, artifacts)
    assert built.inputs.keys() == {"data", "encoder"}
    word_catalogue.write(tmp_path / "data", {**titles, **word_catalogue.items([3], first=500)})
    assert publish_tree(config, artifacts).tree_version == built.tree_version
    (tmp_path / "encoder" / "sentence_bert_config.json").write_text('{"max_seq_length": 4}')
    assert publish_tree(config, artifacts).facts["rebuilt_because"] == "encoder has changed"


def test_a_vector_that_is_not_finite_names_its_item(tmp_path):
    from safetensors.torch import load_file, save_file

    titles = word_catalogue.items(list(range(16)) * 4)
    word_catalogue.write(tmp_path / "data", titles)
    tiny_checkpoints.encoder(tmp_path / "encoder", titles.values(), MEAN)
    weights = load_file(tmp_path / "encoder" / "model.safetensors")
    words = AutoTokenizer.from_pretrained(tmp_path / "encoder").get_vocab()
    weights["embeddings.word_embeddings.weight"][words["manta"]] = torch.nan
    save_file(weights, tmp_path / "encoder" / "model.safetensors", {"format": "pt"})
    config = word_catalogue.config(tmp_path, vectors="encoder", encoder=str(tmp_path / "encoder"))
    first = next(i for i, t in titles.items() if "manta" in t.split())
    with pytest.raises(InvalidRequest, match=f"tree.encoder.*item {first} is not finite"):
        publish_tree(config, Artifacts(config.artifacts_path))
