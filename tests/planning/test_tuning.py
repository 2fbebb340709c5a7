"""Real checkpoints' shapes: fine-tune, merge, save, open and plan; what is trained and what is not.

A killed run goes on to the weights of one that was not.
"""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from checkpoints import ARCHITECTURES
from pair_world import DESCRIPTIONS, ITEMS, make_pairs, pair_config
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from serendip.core import InvalidData, InvalidRequest
from serendip.planning import finetune
from serendip.planning.checkpoint_files import digest_checkpoint
from serendip.planning.finetune import publish_planner
from serendip.planning.mllm import Mllm
from serendip.planning.planner import Planner
from serendip.planning.prompt import Content
from serendip.planning.tuning import Tuning
from serendip.tree.cluster_tree import ClusterTree

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Folders of tiny checkpoints, each made when it is first asked for."""
    root, made = tmp_path_factory.mktemp("checkpoints"), {}

    def folder(name):
        if name not in made:
            made[name] = root / name
            ARCHITECTURES[name]().save(made[name])
        return made[name]

    return folder


def weights_of(artifact):
    return load_file(artifact.path / "checkpoint" / "model.safetensors")


def is_of_language(name):
    """Whether a saved weight is one of the language model's layers."""
    return ".layers." in name and not any(v in name for v in ("vision", "visual"))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_real_checkpoint_s_shape_is_fine_tuned_merged_opened_and_plans(
    checkpoints, name, tmp_path
):
    config = pair_config(tmp_path, checkpoints(name))
    artifacts = make_pairs(config)
    artifact = publish_planner(config, artifacts)
    assert artifact.facts["tuning"] == "lora"
    assert 0 < artifact.facts["trained_parameters"] < artifact.facts["parameters"] / 3

    before = load_file(checkpoints(name) / "model.safetensors")
    after = weights_of(artifact)
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    linear = {k for k in before if is_of_language(k) and before[k].dim() == 2}
    assert changed == linear

    tree = ClusterTree.open(artifacts.current("tree"))
    planner = Planner.open(artifact, tree.nodes, config.plans)
    assert planner.style.name
    assert artifact.tree_version == tree.version == planner.trie.tree_version
    picture = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    own = tree.nodes.at_level(4)[0]
    (plan,) = planner.plan([Content(DESCRIPTIONS[0], "", picture)], [own])
    assert len(plan.clusters) == 2
    assert {c.description for c in plan.clusters} <= set(DESCRIPTIONS[1:])

    looks = [json.loads(x) for x in artifact.file("history.jsonl").read_text().splitlines()]
    assert [look["step"] for look in looks[:-1]] == [2, 3]
    assert looks[-1] in looks[:-1]
    assert {"loss", "validation_loss", "match_rate", "recall", "recall_at_1"} <= set(looks[-1])
    assert "<svg" in artifact.file("curves.svg").read_text()
    shown = EventAccumulator(str(artifact.path / "tensorboard" / "finetune")).Reload()
    assert [e.step for e in shown.Scalars("recall")] == [2, 3]
    assert not [file for file in artifact.files if "resume" in file]


@pytest.mark.parametrize(
    "name",
    [n if n == "smolvlm" else pytest.param(n, marks=pytest.mark.full) for n in ARCHITECTURES],
)
@pytest.mark.parametrize("killed_at", [3, pytest.param(2, marks=pytest.mark.full)])
def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(
    checkpoints, name, killed_at, tmp_path, monkeypatch
):
    # Dropout and accumulation: torch's own randomness, and a kill within a step.
    settings = {"steps": 5, "accumulate": 2, "lora": {"rank": 4, "dropout": 0.2, "projector": True}}
    whole = pair_config(tmp_path / "whole", checkpoints(name), **settings)
    undisturbed = publish_planner(whole, make_pairs(whole))

    config = pair_config(tmp_path / "killed", checkpoints(name), **settings)
    artifacts = make_pairs(config)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    job = [sys.executable, str(Path(__file__).with_name("finetune_job.py"))]
    job += [str(tmp_path / "config.json"), str(killed_at)]
    ended = subprocess.run(job, capture_output=True, text=True, timeout=300)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert artifacts.current_version("planner") is None

    steps, losses = [], finetune.finetuning_losses
    monkeypatch.setattr(finetune, "finetuning_losses", lambda *a: steps.append(1) or losses(*a))
    resumed = publish_planner(config, artifacts)
    assert len(steps) == 3  # it had been saved after the second
    assert resumed.facts["step"] == undisturbed.facts["step"]
    expected = weights_of(undisturbed)
    for key, value in weights_of(resumed).items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-6)
    original = load_file(checkpoints(name) / "model.safetensors")
    assert any((expected[key] - original[key]).abs().max() > 1e-4 for key in expected)


def test_it_goes_on_to_the_same_weights_in_micro_batches_and_with_activations_computed_again(
    checkpoints, tmp_path
):
    made = []
    for at, more in enumerate([{}, {"accumulate": 4, "gradient_checkpointing": True}]):
        config = pair_config(tmp_path / str(at), checkpoints("smolvlm"), steps=2, **more)
        made.append(weights_of(publish_planner(config, make_pairs(config))))
    for key, value in made[0].items():
        torch.testing.assert_close(value, made[1][key], rtol=0, atol=1e-4)


def test_a_run_with_other_settings_begins_anew_and_says_what_differs(
    checkpoints, tmp_path, monkeypatch, capsys
):
    config = pair_config(tmp_path, checkpoints("smolvlm"))
    artifacts = make_pairs(config)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finetune, "finetuning_losses", stop)
        with pytest.raises(KeyboardInterrupt):
            publish_planner(config, artifacts)
    capsys.readouterr()
    other = pair_config(tmp_path, checkpoints("smolvlm"), lr=2e-3, steps=1)
    publish_planner(other, artifacts)
    said = capsys.readouterr().err
    assert "begins anew" in said
    for setting in ("planner.lr 0.001, now 0.002", "planner.steps 3, now 1"):
        assert setting in said


def test_a_checkpoint_that_changed_makes_another_planner(checkpoints, tmp_path):
    folder = tmp_path / "checkpoint"
    ARCHITECTURES["smolvlm"]().save(folder)
    config = pair_config(tmp_path, folder, steps=1)
    artifacts = make_pairs(config)
    first = publish_planner(config, artifacts)
    assert publish_planner(config, artifacts).version == first.version
    mllm = Mllm.open(folder)
    with torch.no_grad():
        mllm.model.get_output_embeddings().weight.mul_(1.5)
    mllm.save(folder)
    assert digest_checkpoint(folder) != first.inputs["checkpoint"]  # which is another planner


def test_bfloat16_keeps_what_is_trained_in_float32_until_it_is_merged(checkpoints, tmp_path):
    settings = {"precision": "bfloat16", "steps": 1, "lora": {"rank": 2, "projector": True}}
    config = pair_config(tmp_path, checkpoints("smolvlm"), **settings).planner
    mllm = Mllm.open(config.checkpoint, torch.bfloat16)
    tuning = Tuning(mllm, config, seed=0)
    trained = {n: p for n, p in mllm.model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert {n.partition(".connector.")[1] for n in trained} == {"", ".connector."}
    tuning.finish()
    assert {p.dtype for p in mllm.model.parameters()} == {torch.bfloat16}
    pairs = pair_config(tmp_path, checkpoints("smolvlm"), **settings)
    artifact = publish_planner(pairs, make_pairs(pairs))
    assert {w.dtype for w in weights_of(artifact).values()} == {torch.bfloat16}


def test_named_layers_alone_are_adapted(checkpoints, tmp_path):
    config = pair_config(tmp_path, checkpoints("gemma3"), lora={"targets": ["q_proj", "v_proj"]})
    mllm = Mllm.open(config.planner.checkpoint)
    Tuning(mllm, config.planner, seed=0)
    names = [n for n, p in mllm.model.named_parameters() if p.requires_grad]
    assert {n.split(".lora_")[0].rpartition(".")[2] for n in names} == {"q_proj", "v_proj"}
    assert not [n for n in names if "vision" in n]  # whose layers are called so as well


def test_a_layer_that_the_language_model_does_not_have_is_refused(checkpoints, tmp_path):
    config = pair_config(tmp_path, checkpoints("gemma3"), lora={"targets": ["query"]})
    with pytest.raises(InvalidRequest, match=r"planner\.lora\.targets.*'query'.*q_proj"):
        Tuning(Mllm.open(config.planner.checkpoint), config.planner, seed=0)


def test_items_whose_media_are_gone_are_left_out_and_counted(checkpoints, tmp_path):
    config = pair_config(tmp_path, checkpoints("smolvlm"), steps=1)
    artifacts = make_pairs(config)
    for item in ITEMS[:5]:
        (config.data_path / f"{item}.png").unlink()
    artifact = publish_planner(config, artifacts)
    assert artifact.facts["unreadable"] == 5
    assert artifact.facts["training_pairs"] == len(ITEMS) - 5 - 1  # and a validation item


def test_without_any_media_left_nothing_is_published(checkpoints, tmp_path):
    config = pair_config(tmp_path, checkpoints("smolvlm"))
    artifacts = make_pairs(config)
    for path in config.data_path.glob("*.png"):
        path.unlink()
    with pytest.raises(InvalidData, match=r"thumbnail: none of the 24 .* media that can be read"):
        publish_planner(config, artifacts)
    assert artifacts.current_version("planner") is None


@pytest.mark.parametrize("label", [0, 3, 99, -1])
def test_a_label_that_is_no_description_is_refused(checkpoints, tmp_path, label):
    config = pair_config(tmp_path, checkpoints("smolvlm"))
    artifacts = make_pairs(config, label)
    with pytest.raises(InvalidData, match=rf"node_id: row 0: is no cluster .*got {label}\b"):
        publish_planner(config, artifacts)


def test_pairs_of_nothing_are_refused(checkpoints, tmp_path, monkeypatch):
    config = pair_config(tmp_path, checkpoints("smolvlm"))
    artifacts = make_pairs(config)
    pairs = artifacts.current("pairs")
    table = pq.read_table(pairs.file("training.parquet"))
    with artifacts.publish("pairs", {**pairs.config, "seed": 1}, pairs.inputs) as draft:
        pq.write_table(table.slice(0, 0), draft.path / "training.parquet")
        pq.write_table(table.slice(0, 0), draft.path / "held_out.parquet")
    with pytest.raises(InvalidData, match="no curated pair"):
        publish_planner(config, artifacts)
