"""Grounds and runs of the figures: a world with its two starts, and one arm trained and judged.

The captioned start has seen captions and plain titles, and never a description: which texts are
descriptions is what match rate asks. The tokenizer is trained on a corpus that has them, so that
they are short; the model has learnt nothing from that. What a reasoning trace says of the pictures
is the captioned model's word, in both starts: traces are data. Knows no figure.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from serendip.artifacts import Artifacts
from serendip.catalog.items import read_items
from serendip.config import Config
from serendip.core import Item
from serendip.curation.curate import publish_pairs, read_pairs
from serendip.evaluation.figures_study import ARMS, DONE, GROUNDS, SCRATCH, Ground, Measure, Run
from serendip.planning.batches import Material, finetuning_losses
from serendip.planning.embedded import build_embedded
from serendip.planning.examples import (
    Example,
    load_captions,
    load_examples,
    load_own_words,
)
from serendip.planning.mllm import Mllm
from serendip.planning.planner import Planner
from serendip.planning.pretrain import look_at, pretraining_loss
from serendip.planning.prompt import load_content, write_answer
from serendip.planning.style import OPENED, STYLES
from serendip.planning.training import Stage, Watch, train
from serendip.planning.training_state import Line
from serendip.storage import write_atomically
from serendip.tree.build import publish_tree
from serendip.tree.cluster_tree import ClusterTree

_FRESH, _CAPTIONED, _LOOKS = "fresh", "captioned", "looks.json"
_CORPUS_REPEATS, _FORM_REPEATS = 8, 60  # of what the tokenizer should have whole words for


def make_ground(ground: Ground, out: Path) -> Path:
    """Makes of a world its tree and pairs, and the two models that its runs start from.

    Returns the folder, in which the world lies. A ground that is whole is kept; one that was
    interrupted goes on.
    """
    folder = out / GROUNDS / ground.key
    if (folder / DONE).is_file():
        return folder
    began = time.monotonic()
    torch.set_num_threads(1)
    config = ground.study.config(ground.world, ground.seed, folder)
    artifacts = Artifacts(config.artifacts_path)
    publish_tree(config, artifacts)
    publish_pairs(config, artifacts)
    tree, pairs = ClusterTree.open(artifacts.current("tree")), artifacts.current("pairs")
    examples, _, _, apart = load_examples(config, STYLES["video_text"], tree, pairs)
    titles = [content for content, _ in load_own_words(config, tree, pairs, apart)]
    captions = load_captions(config)

    corpus = [f" {content.title}" for content in titles]
    corpus += [f" {text}" for text in _descriptions(config, tree)] * _CORPUS_REPEATS
    corpus += [f" {caption}" for _, caption in captions]
    mllm = build_embedded(corpus + _forms() * _FORM_REPEATS, config.planner.vocabulary, config.seed)
    mllm.save(folder / _FRESH)
    train(
        mllm.model,
        lambda rng: [pretraining_loss(mllm, captions, titles, config.planner, rng)],
        Stage(
            "pretrain",
            1,
            config.planner.pretrain_steps,
            config.planner.pretrain_lr,
            muon_lr=config.planner.muon_lr,
        ),
        seed=config.seed,
        state_path=folder / "resume-pretrain.safetensors",
    )
    mllm.save(folder / _CAPTIONED)
    looks = look_at(mllm, [e.content for e in examples])
    write_atomically(folder / _LOOKS, json.dumps(looks).encode())
    facts = {"seconds": round(time.monotonic() - began, 1), "examples": len(examples)}
    write_atomically(folder / DONE, json.dumps(facts).encode())
    (folder / "resume-pretrain.safetensors").unlink(missing_ok=True)
    return folder


def _descriptions(config: Config, tree: ClusterTree) -> list[str]:
    return [tree.nodes.description[n] for n in tree.nodes.at_level(config.level)]


def _forms() -> list[str]:
    """What the prompts and answers of all arms say of every item."""
    forms = ["Name an interest.", OPENED]
    for style in (*STYLES.values(), *(arm.style for arm in ARMS.values())):
        forms += [re.sub(r"{\w+}", "", line) for line in style.asks]
        forms.append(write_answer(style, "x", "x", ""))
    return sorted(set(filter(str.strip, forms)))


@dataclass(frozen=True)
class Opened:
    """A ground, read.

    Attributes:
        examples: training examples with pools of frames.
        judged: held-out items that are judged, with their own cluster and label.
    """

    tree: ClusterTree
    examples: list[Example]
    judged: list[tuple[Item, int, int]]


@lru_cache(maxsize=1)
def open_ground(folder: Path, config: Config, judged: int) -> Opened:
    """Reads a ground that was made; at most ``judged`` of its held-out items, drawn by its seed.

    Kept, since the runs of one ground follow each other in a process.
    """
    artifacts = Artifacts(config.artifacts_path)
    tree, pairs = ClusterTree.open(artifacts.current("tree")), artifacts.current("pairs")
    examples, *_ = load_examples(config, STYLES["video_text"], tree, pairs)
    looks = json.loads((folder / _LOOKS).read_text())
    examples = [replace(e, look=look) for e, look in zip(examples, looks, strict=True)]
    labels = {r["item_id"]: r["node_id"] for r in read_pairs(pairs, "labels").to_pylist()}
    drawn = np.random.default_rng([config.seed, 7]).permutation(sorted(labels))
    chosen = set(drawn[:judged].tolist())
    items = []
    for item in read_items(config.data_path):
        if item.item_id in chosen:
            own = tree.node_of(item.item_id, config.level)
            assert own is not None, item.item_id
            items.append((item, own, int(labels[item.item_id])))
    return Opened(tree, examples, items)


def train_arm(run: Run, out: Path) -> dict[str, Any]:
    """Trains one arm and judges it at every look: what the run's JSON file holds.

    ``looks`` has an entry a look: step, mean training loss, and for each measure a digit an item,
    1 for a hit.
    """
    began = time.monotonic()
    torch.set_num_threads(1)
    study, arm = run.ground.study, run.arm
    folder = out / GROUNDS / run.ground.key
    config = study.config(run.ground.world, run.ground.seed, folder)
    opened = open_ground(folder, config, study.judged)
    settings = config.planner.model_copy(update={"frames": arm.frames})
    config = config.model_copy(update={"planner": settings})
    start = _FRESH if run.start == SCRATCH else _CAPTIONED
    mllm = Mllm.open(folder / start)
    planner = Planner.build(mllm, opened.tree, config, run.key, arm.style)
    contents = [load_content(item, arm.style, arm.frames) for item, _, _ in opened.judged]
    own = [o for _, o, _ in opened.judged]
    labels = [label for _, _, label in opened.judged]
    material = Material(opened.examples, (), _descriptions(config, opened.tree))
    every = int(np.gcd.reduce(study.looks))
    judged: dict[int, dict[Measure, list[bool]]] = {}
    steps = count(every, every)

    def look() -> Line:
        step = next(steps)
        if step in study.looks:
            judged[step] = hits_of(planner, contents, own, labels)
        return {}

    with TemporaryDirectory() as scratch:
        lines = train(
            planner.mllm.model,
            lambda rng: finetuning_losses(planner.mllm, arm.style, settings, material, rng),
            Stage("finetune", 2, study.steps, settings.lr, muon_lr=settings.muon_lr),
            seed=config.seed,
            state_path=Path(scratch) / "state.safetensors",
            watch=Watch(every, look, best=lambda lines: lines[-1]),
        )
    losses = {int(line["step"]): line["loss"] for line in lines}
    looks = [
        {"step": step, "loss": losses[step]}
        | {str(m): "".join("01"[hit] for hit in found) for m, found in hits.items()}
        for step, hits in judged.items()
    ]
    return {
        "world": run.ground.world,
        "start": run.start,
        "arm": arm.name,
        "seed": run.ground.seed,
        "looks": looks,
        "seconds": round(time.monotonic() - began, 1),
    }


def hits_of(
    planner: Planner, contents: Sequence[Any], own: Sequence[int], labels: Sequence[int]
) -> dict[Measure, list[bool]]:
    """Whether each item is a hit now: recall_at_1 constrained, the others free and greedy."""
    # A new one: a planner keeps copies of the head's rows, and training has changed the head since.
    # And since arms are compared by what they are shown, none is told a topic beside it.
    planner = replace(planner, gives_topic=False)
    plans = planner.plan(contents, own)
    free = [planner.trie.resolve(text) for _, text in planner.write_free(contents, own)]
    return {
        "recall_at_1": [p.clusters[0].node_id == n for p, n in zip(plans, labels, strict=True)],
        "recall": [f == n for f, n in zip(free, labels, strict=True)],
        "match_rate": [f is not None for f in free],
    }
