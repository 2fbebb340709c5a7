"""Checkpoints that are not opened: each says what is wrong and what to do; nothing of them runs."""

import json
import shutil

import pytest
import torch
from checkpoints import ARCHITECTURES
from pair_world import make_pairs, pair_config
from safetensors.torch import load_file, save_file

from serendip.core import CorruptArtifact
from serendip.planning.finetune import publish_planner
from serendip.planning.mllm import Mllm

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good") / "checkpoint"
    ARCHITECTURES["smolvlm"]().save(folder)
    return folder


@pytest.fixture
def folder(good, tmp_path):
    """A good checkpoint, to be spoilt."""
    return shutil.copytree(good, tmp_path / "checkpoint")


def set_json(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refusal(checkpoint):
    with pytest.raises(CorruptArtifact) as caught:
        Mllm.open(checkpoint)
    error = caught.value
    assert error.field == "planner.checkpoint"
    assert error.value == str(checkpoint)
    assert error.remedy
    return str(error)


def shard(folder):
    """Cuts the weights in two files with an index."""
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(weights)
    index = {}
    for at, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{at}-of-00002.safetensors"
        save_file({n: weights[n] for n in part}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))


class Trap:
    """What runs when a pickle of it is read."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


def test_a_good_checkpoint_is_opened_whole_and_in_parts(good, folder):
    shard(folder)
    one, two = Mllm.open(good).model.state_dict(), Mllm.open(folder).model.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_checkpoint_of_pickles_alone_is_refused_and_none_is_read(folder, tmp_path):
    mark = tmp_path / "ran"
    (folder / WEIGHTS).unlink()
    torch.save(Trap(mark), folder / "pytorch_model.bin")
    assert "as a pickle (pytorch_model.bin), which can run code" in refusal(folder)
    assert not mark.exists()


def test_a_pickle_beside_the_weights_is_never_read(folder, tmp_path):
    mark = tmp_path / "ran"
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        torch.save(Trap(mark), folder / name)
    assert Mllm.open(folder).tokenizer_hash
    assert not mark.exists()
    with pytest.raises(Exception, match=r"weights_only|Unsupported|unpickl"):
        torch.load(folder / "optimizer.pt", weights_only=True)
    torch.load(folder / "optimizer.pt", weights_only=False)
    assert mark.exists()  # it is a trap


@pytest.mark.parametrize(
    "file",
    ["config.json", "processor_config.json", "tokenizer_config.json", "generation_config.json"],
)
def test_code_of_a_checkpoint_s_own_is_refused_and_not_run(folder, tmp_path, file):
    mark = tmp_path / "ran"
    (folder / "modeling_mine.py").write_text(f"open({str(mark)!r}, 'w')\n")
    classes = {"AutoConfig": "modeling_mine.Mine", "AutoModelForImageTextToText": "modeling_mine.M"}
    set_json(folder / file, auto_map=classes)
    assert f"{file} asks for code from outside (auto_map), which is never run" in refusal(folder)
    assert not mark.exists()


def test_code_of_an_architecture_that_transformers_does_not_know_is_not_run(folder, tmp_path):
    mark = tmp_path / "ran"
    (folder / "modeling_mine.py").write_text(f"open({str(mark)!r}, 'w')\n")
    set_json(folder / "config.json", model_type="mine", architectures=["Mine"])
    assert "model_type 'mine'" in refusal(folder)
    assert not mark.exists()


def test_an_attention_that_would_be_fetched_is_refused(folder):
    about = json.loads((folder / "config.json").read_text())
    about["text_config"]["attn_implementation"] = "somebody/kernels"
    (folder / "config.json").write_text(json.dumps(about))
    assert "asks for code from outside (attn_implementation)" in refusal(folder)


def test_an_adapter_is_refused(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/else"}')
    assert "holds an adapter" in refusal(folder)


def test_a_model_that_sees_nothing_is_refused(folder):
    text = json.loads((folder / "config.json").read_text())["text_config"]
    (folder / "config.json").write_text(json.dumps({**text, "model_type": "llama"}))
    assert "no image-text checkpoint: config.json says model_type 'llama'" in refusal(folder)


def test_a_checkpoint_without_a_chat_template_is_refused(folder):
    (folder / "chat_template.jinja").unlink()
    assert "has no chat template" in refusal(folder)


def test_a_part_that_is_missing_is_named(folder):
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "a part of its weights is missing: model-00002-of-00002.safetensors" in refusal(folder)


@pytest.mark.parametrize("name", ["../outside.safetensors", "pytorch_model-00001.bin"])
def test_an_index_that_leads_elsewhere_is_refused(folder, name):
    shard(folder)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], name)
    (folder / INDEX).write_text(json.dumps(index))
    assert f"names {name!r}, which is no safetensors file of it" in refusal(folder)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("left", [0, 4, 1000, -1])
def test_weights_that_were_cut_short_are_refused(folder, left, sharded):
    path = folder / WEIGHTS
    if sharded:
        shard(folder)
        path = folder / "model-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    assert f"{path.name} is damaged" in refusal(folder)


def test_weights_that_are_missing_are_not_made_up(folder):
    weights = load_file(folder / WEIGHTS)
    gone = next(name for name in weights if "q_proj" in name and "text" in name)
    del weights[gone]
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    assert "its weights lack 1 that its config asks for" in refusal(folder)


def test_weights_of_another_shape_than_the_config_s_are_refused(folder):
    weights = load_file(folder / WEIGHTS)
    name = next(name for name in weights if "text_model.layers.0.mlp.up_proj" in name)
    weights[name] = weights[name][:-1].clone()
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    said = refusal(folder)
    assert "up_proj.weight has the shape (191, 96), its config asks for (192, 96)" in said


def test_weights_of_another_architecture_are_refused(folder, tmp_path):
    other = tmp_path / "other"
    ARCHITECTURES["qwen3_vl"]().save(other)
    shutil.copy(other / WEIGHTS, folder / WEIGHTS)
    assert "its weight" in refusal(folder)


def test_a_name_that_is_neither_folder_nor_on_the_hub_is_refused(tmp_path, monkeypatch):
    assert "no such folder" in refusal(tmp_path / "nothing")
    assert "no such folder" in refusal("gemma")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "the hub said" in refusal("somebody/nothing-of-this-name")


def test_a_hub_s_name_is_opened_from_its_cache(good, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--somebody--something"
    shutil.copytree(good, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert Mllm.open("somebody/something").tokenizer_hash == Mllm.open(good).tokenizer_hash


def test_nothing_is_begun_with_a_checkpoint_that_is_refused(folder, tmp_path):
    set_json(folder / "config.json", auto_map={"AutoConfig": "mine.Mine"})
    config = pair_config(tmp_path, folder)
    artifacts = make_pairs(config)
    with pytest.raises(CorruptArtifact, match=r"planner\.checkpoint.*auto_map"):
        publish_planner(config, artifacts)
    assert not (artifacts.root / "planner").exists()
