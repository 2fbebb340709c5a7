"""Fine-tunes the MLLM on the curated pairs and publishes the planner (``serendip finetune``).

The embedded model is pretrained first, on captions. Its reasoning traces are its
own: what it sees it has said before it saw any label; or a teacher's (traces.py). Any other
checkpoint is opened as it is, and by default adapted (tuning.py). Held-out items take no part in
anything, nor does what looks like them.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from serendip.artifacts import Artifact, Artifacts
from serendip.catalog.items import fingerprint
from serendip.config import Config
from serendip.core import InvalidRequest
from serendip.curation.curate import current_pairs
from serendip.curves import Panel, draw_curves
from serendip.planning.batches import INSTRUCTION, Material, finetuning_losses
from serendip.planning.checkpoint_files import check_checkpoint, digest_checkpoint, find_checkpoint
from serendip.planning.embedded import build_embedded
from serendip.planning.examples import (
    Example,
    load_captions,
    load_examples,
    load_own_words,
)
from serendip.planning.mllm import Mllm
from serendip.planning.onnx_session import can_export, export_graphs
from serendip.planning.planner import GRAPHS, Planner
from serendip.planning.pretrain import look_at, pretraining_loss
from serendip.planning.prompt import Content, write_answer
from serendip.planning.style import OPENED, PROMPT, Style, open_style
from serendip.planning.traces import ask_teacher, keep_traces, teacher_settings
from serendip.planning.training import Stage, Watch, train
from serendip.planning.training_state import Line, trained
from serendip.planning.tuning import EMBEDDED, Tuning, device_of, dtype_of, muon_lr_of
from serendip.planning.validation import best_look, validate
from serendip.progress import console
from serendip.storage import write_atomically
from serendip.tree.cluster_tree import ClusterTree

HISTORY, CURVES, EVENTS = "history.jsonl", "curves.svg", "tensorboard"
_SETTINGS = "resume-settings.json"
_RATES = ("match_rate", "recall", "recall_at_1")
_CORPUS_REPEATS = 8  # of what the tokenizer should have whole words for


def publish_planner(config: Config, artifacts: Artifacts) -> Artifact:
    """Trains a planner on the current pairs; an unchanged one is reused.

    An interrupted run goes on from its last saved state, and ends with the weights of one that was
    not. Other settings, inputs or a changed checkpoint make another planner: they begin anew, and
    say so where another run was left unfinished. Beside checkpoint, trie and prompt lie
    history.jsonl (a line a look, the kept one last), curves.svg and tensorboard/.

    Raises:
        InvalidRequest: a setting does not fit the checkpoint or the style.
        InvalidData: no pair can be trained on.
        CorruptArtifact: the checkpoint cannot be used; see Mllm.open.
    """
    tree_artifact = artifacts.current("tree")
    pairs = current_pairs(config, artifacts)
    style = open_style(config.planner.style)
    if style.looks and not style.thumbnail and not config.planner.frames:
        raise InvalidRequest(
            f"shows no frame, and the prompt style {style.name} nothing else to look at",
            field="planner.frames",
            value=0,
            remedy="Raise it.",
        )
    settings = {
        "planner": config.planner.model_dump(),
        "prompt": style.template,
        "level": config.level,
        "level_gap": config.level_gap,
        "seed": config.seed,
        **teacher_settings(config),
    }
    inputs = {
        "tree": tree_artifact.tree_version,
        "pairs": pairs.version,
        "data": fingerprint(config.data_path),
    }
    folder = None
    if config.planner.checkpoint != EMBEDDED:
        folder = find_checkpoint(config.planner.checkpoint)
        check_checkpoint(folder)
        inputs["checkpoint"] = digest_checkpoint(folder)
    if reused := artifacts.reuse("planner", settings, inputs):
        return reused
    torch.set_num_threads(config.planner.threads)
    tree = ClusterTree.open(tree_artifact)
    with artifacts.publish(
        "planner", settings, inputs, log_until=pairs.log_until, resume=True
    ) as draft:
        started, cpu = time.monotonic(), time.process_time()
        _tell_of_others(draft.path, {**settings, "inputs": inputs})
        examples, validation, left_out, apart = load_examples(config, style, tree, pairs)
        if left_out["unreadable"]:
            console.print(
                f"  {left_out['unreadable']} context items are left out: they are gone, or their "
                "media are"
            )
        if config.planner.teacher:
            both, asked = ask_teacher(config, style, examples + validation, artifacts.root)
            examples, validation = both[: len(examples)], both[len(examples) :]
        descriptions = [tree.nodes.description[n] for n in tree.nodes.at_level(config.level)]
        words = load_own_words(config, tree, pairs, apart) if "title" in style.slots else []
        if folder is None:
            mllm, examples, validation = _build_embedded(
                config, style, words, examples, validation, descriptions, draft.path
            )
        else:
            mllm = Mllm.open(folder, dtype_of(config.planner))
            mllm.model.to(device_of())
        if config.planner.teacher:
            both, traced = keep_traces(config, mllm, examples + validation)
            examples, validation = both[: len(examples)], both[len(examples) :]
            draft.facts["traces"] = {**asked, **traced}
        planner = Planner.build(mllm, tree, config, draft.version, style)
        tuning = Tuning(mllm, config.planner, config.seed)
        weights = sum(p.numel() for p in trained(mllm.model).values())
        material = Material(examples, words, descriptions)
        kept = _finetune(config, planner, tuning, material, validation, draft.path)
        tuning.finish()
        mllm.save(draft.path / "checkpoint")
        if mllm.model.dtype == torch.float32 and can_export(mllm.model):
            export_graphs(mllm.model, draft.path / GRAPHS)
        planner.trie.save(draft.path / "trie")
        (draft.path / PROMPT).write_text(style.template)
        for leftover in draft.path.glob("resume-*"):
            leftover.unlink()
        draft.facts |= {
            "parameters": sum(p.numel() for p in mllm.model.parameters()),
            "trained_parameters": weights,
            "tuning": tuning.kind,
            "bfloat16": tuning.bfloat16,
            "training_pairs": len(examples),
            **left_out,
            "trie_states": len(planner.trie.token),
            "seconds": round(time.monotonic() - started, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
            **kept,
        }
    return artifacts.open("planner", draft.version)


def _build_embedded(
    config: Config,
    style: Style,
    words: Sequence[tuple[Content, str]],
    examples: list[Example],
    validation: list[Example],
    descriptions: Sequence[str],
    folder: Path,
) -> tuple[Mllm, list[Example], list[Example]]:
    """The embedded model, built and pretrained, and the examples with what it sees in them."""
    captions = load_captions(config)
    corpus = [f" {content.title}" for content, _ in words]
    if config.planner.text_chars:
        corpus += [f" {c.text[: config.planner.text_chars]}" for c, _ in words if c.text]
    corpus += [f" {text}" for text in descriptions] * _CORPUS_REPEATS
    corpus += [f" {caption}" for _, caption in captions]
    corpus += [f" {e.look}" for e in examples if e.look]
    asked = [re.sub(r"{\w+}", "", line) for line in style.asks]
    form = [write_answer(style, "x", "x", ""), OPENED, "Title:", "Text:"]
    corpus += [*asked, *form, INSTRUCTION] * 60
    mllm = build_embedded(corpus, config.planner.vocabulary, config.seed)
    mllm.model.to(device_of())
    if config.planner.pretrain_steps and captions and style.looks:
        train(
            mllm.model,
            lambda rng: [pretraining_loss(mllm, captions, [], config.planner, rng)],
            Stage(
                "pretrain",
                1,
                config.planner.pretrain_steps,
                config.planner.pretrain_lr,
                muon_lr=muon_lr_of(config.planner),
            ),
            seed=config.seed,
            state_path=folder / "resume-pretrain.safetensors",
            events=folder / EVENTS / "pretrain",
        )
    if style.looks and captions and not config.planner.teacher:
        both = examples + validation
        looks = look_at(mllm, [e.content for e in both])
        both = [replace(e, look=look) for e, look in zip(both, looks, strict=True)]
        examples, validation = both[: len(examples)], both[len(examples) :]
    return mllm, examples, validation


def _finetune(
    config: Config,
    planner: Planner,
    tuning: Tuning,
    material: Material,
    validation: Sequence[Example],
    folder: Path,
) -> Line:
    """The fine-tuning proper. The model ends as it was at its best look, which is returned."""
    settings = config.planner
    rows = -(-settings.batch_size // settings.accumulate)
    best = partial(best_look, items=len(validation))

    def tell(lines: Sequence[Line]) -> None:
        text = "".join(json.dumps(line) + "\n" for line in [*lines, best(lines)])
        write_atomically(folder / HISTORY, text.encode())
        line = lines[-1]
        shown = (n for n in ("validation_loss", *_RATES) if n in line)
        said = ", ".join(f"{name.replace('_', ' ')} {line[name]:.3f}" for name in shown)
        console.print(f"  step {line['step']}: {said}")

    lines = train(
        planner.mllm.model,
        lambda rng: finetuning_losses(planner.mllm, planner.style, settings, material, rng),
        Stage("finetune", 2, settings.steps, settings.lr, tuning.bfloat16, muon_lr_of(settings)),
        seed=config.seed,
        state_path=folder / "resume-finetune.safetensors",
        recipe={"examples": _digest(material.examples), "validation": _digest(validation)},
        watch=Watch(
            every=settings.log_every or settings.steps,
            measure=lambda: validate(planner, validation, rows),
            best=best,
            tell=tell,
            patience=settings.patience,
        ),
        events=folder / EVENTS / "finetune",
    )
    steps = [line["step"] for line in lines]
    losses = {n: [line[n] for line in lines] for n in ("loss", "validation_loss")}
    panels = [Panel("step", "cross-entropy", steps, losses)]
    if validation:
        rates = {name: [line[name] for line in lines] for name in _RATES}
        shown = f"share of {len(validation)} validation items"
        panels.append(Panel("step", shown, steps, rates, from_zero=True))
    draw_curves(folder / CURVES, panels)
    return best(lines)


def _digest(examples: Sequence[Example]) -> str:
    """12 hexadecimal digits over all that examples hold: files may change between two runs."""
    digest = hashlib.sha256()
    for e in examples:
        content = e.content
        words = (content.title, content.text, content.cluster, e.own, e.target, e.look)
        digest.update(repr((words, e.node_id, e.own_id)).encode())
        for image in content.images:
            digest.update(repr(image.shape).encode() + image.tobytes())
    return digest.hexdigest()[:12]


def _tell_of_others(draft: Path, settings: Mapping[str, Any]) -> None:
    """Notes what a training is of; says so if it begins while others lie unfinished."""
    began = (draft / _SETTINGS).exists()
    write_atomically(draft / _SETTINGS, json.dumps(settings).encode())
    for path in [] if began else sorted(draft.parent.glob(f"*/{_SETTINGS}")):
        if path.parent == draft:
            continue
        try:
            found = _flat(json.loads(path.read_bytes()))
        except FileNotFoundError:  # its owner has just removed it
            continue
        ours = _flat(json.loads(json.dumps(settings)))
        names = (name for name in {**found, **ours} if found.get(name) != ours.get(name))
        differ = "; ".join(f"{n} {found.get(n)!r}, now {ours.get(n)!r}" for n in names)
        console.print(f"  begins anew: what lies unfinished in {path.parent} is of other settings")
        console.print(f"    ({differ})")


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= (
            _flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
        )
    return flat
