"""Weights under the names that vLLM looks for: a copy where they differ, whole or not at all."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny_planner
import torch
from safetensors.torch import load_file, save_file

from serendip.core import CorruptArtifact
from serendip.planning import vllm_checkpoint
from serendip.planning.vllm_checkpoint import checkpoint_for_vllm, name_for_vllm, needs_names


@pytest.fixture
def planner(tmp_path):
    return tiny_planner.publish(tmp_path / "artifacts")[2]


def test_the_copy_has_every_tensor_under_a_name_that_vllm_maps(planner):
    made = checkpoint_for_vllm(planner)
    own = load_file(planner.path / "checkpoint" / "model.safetensors")
    copied = load_file(made / "model.safetensors")
    assert len(copied) == len(own)
    assert any("vision_tower.vision_model." in name for name in copied)
    for name, tensor in own.items():
        before, tower, after = name.partition("vision_tower.")
        found = f"{before}{tower}vision_model.{after}" if tower else name
        assert torch.equal(copied[found], tensor)
    assert not needs_names(made)
    for path in (planner.path / "checkpoint").iterdir():
        if path.suffix != ".safetensors":
            assert os.path.samefile(path, made / path.name), "linked, not copied"


def test_the_copy_is_made_once_and_goes_with_its_planner(planner):
    gone = planner.path.parent.parent / "vllm" / "0123456789ab"
    gone.mkdir(parents=True)
    with ThreadPoolExecutor(4) as threads:
        made = set(threads.map(lambda _: checkpoint_for_vllm(planner), range(4)))
    assert made == {gone.parent / planner.version}
    stamp = (made.pop() / "model.safetensors").stat().st_mtime_ns
    assert (checkpoint_for_vllm(planner) / "model.safetensors").stat().st_mtime_ns == stamp
    assert [p.name for p in gone.parent.iterdir()] == [planner.version]


def test_a_copy_that_is_interrupted_leaves_nothing(planner, monkeypatch):
    monkeypatch.setattr(vllm_checkpoint, "save_file", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        checkpoint_for_vllm(planner)
    assert list((planner.path.parent.parent / "vllm").iterdir()) == []


def test_older_names_and_other_architectures_are_loaded_as_they_lie(planner, tmp_path):
    older = checkpoint_for_vllm(planner)
    assert not needs_names(older)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    assert not needs_names(other)


def test_a_sharded_checkpoint_s_index_is_renamed_too(planner, tmp_path):
    whole = load_file(planner.path / "checkpoint" / "model.safetensors")
    sharded, target = tmp_path / "sharded", tmp_path / "target"
    sharded.mkdir()
    names = sorted(whole)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: whole[name] for name in part}, sharded / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    vllm_checkpoint.copy_renamed(sharded, target)
    said = json.loads((target / "model.safetensors.index.json").read_text())["weight_map"]
    assert said == {name: f for f in parts for name in load_file(target / f)}
    assert set(said) == set(map(name_for_vllm, names))


def test_a_tensor_that_vllm_would_pass_over_is_an_error(planner, tmp_path):
    with pytest.raises(CorruptArtifact, match=r"does not know.*adapter\.weight"):
        name_for_vllm("adapter.weight")
    tensors = load_file(planner.path / "checkpoint" / "model.safetensors")
    broken = tmp_path / "broken"
    broken.mkdir()
    save_file(tensors | {"adapter.weight": torch.zeros(1)}, broken / "model.safetensors")
    with pytest.raises(CorruptArtifact, match=r"adapter\.weight"):
        vllm_checkpoint.copy_renamed(broken, tmp_path / "target")
    assert not (tmp_path / "target").exists()
