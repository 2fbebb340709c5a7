"""Fine-tunes the MLLM on the curated pairs and publishes the planner (``serendip finetune``).

The embedded model is pretrained first, on captions and on titles. Its reasoning traces are its
own: what it sees it has said before it saw any label; or a teacher's (traces.py). Held-out items
take no part in anything, nor does what looks like them.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from serendip.artifacts import Artifact, Artifacts
from serendip.catalog.items import fingerprint
from serendip.config import Config
from serendip.core import InvalidData, InvalidRequest
from serendip.curation.curate import current_pairs
from serendip.planning.embedded import build_embedded
from serendip.planning.examples import (
    Example,
    load_captions,
    load_examples,
    load_own_words,
    training_prompt,
)
from serendip.planning.mllm import IGNORED, Mllm, answer_loss
from serendip.planning.onnx_session import can_export, export_graphs
from serendip.planning.planner import GRAPHS, Planner
from serendip.planning.pretrain import look_at, pretraining_loss
from serendip.planning.prompt import Content, Prompt, build_prompt, write_answer
from serendip.planning.style import OPENED, PROMPT, Style, open_style
from serendip.planning.traces import ask_teacher, keep_traces, teacher_settings
from serendip.planning.training import Stage, load_model, save_model, train
from serendip.planning.trie import DescriptionTrie
from serendip.progress import console
from serendip.tree.cluster_tree import ClusterTree

EMBEDDED = "embedded"
_DESCRIPTION_INSTRUCTION = "Name an interest."
_SHOWN = ("validation_loss", "match_rate", "recall", "recall_at_1")
_CORPUS_REPEATS = 8  # of what the tokenizer should have whole words for


def publish_planner(config: Config, artifacts: Artifacts) -> Artifact:
    """Trains a planner on the current pairs; an unchanged one is reused.

    An interrupted run goes on from its last saved state.
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
    if reused := artifacts.reuse("planner", settings, inputs):
        return reused
    torch.set_num_threads(config.planner.threads)
    tree = ClusterTree.open(tree_artifact)
    with artifacts.publish(
        "planner", settings, inputs, log_until=pairs.log_until, resume=True
    ) as draft:
        started = time.monotonic()
        examples, validation, left_out = load_examples(config, style, tree, pairs)
        if not examples:
            raise InvalidData(
                "no context item of the pairs has media that can be read",
                field="items.parquet:thumbnail",
                remedy="Add thumbnails, or set planner.style = 'text'.",
            )
        if config.planner.teacher:
            both, asked = ask_teacher(config, style, examples + validation, artifacts.root)
            examples, validation = both[: len(examples)], both[len(examples) :]
        descriptions = [tree.nodes.description[n] for n in tree.nodes.at_level(config.level)]
        mllm, examples, validation = _prepare_model(
            config, style, tree, pairs, examples, validation, descriptions, draft.path
        )
        if config.planner.teacher:
            both, kept = keep_traces(config, mllm, examples + validation)
            examples, validation = both[: len(examples)], both[len(examples) :]
            draft.facts["traces"] = {**asked, **kept}
        trie = DescriptionTrie.build(
            mllm.description_tokens(descriptions),
            tree.nodes.at_level(config.level),
            mllm.end_token,
            texts=descriptions,
            tree_version=tree.version,
            tokenizer_hash=mllm.tokenizer_hash,
        )
        planner = Planner(
            mllm, trie, tree.nodes, config.level, config.level_gap, config.planner,
            config.plans, draft.version, style,
        )  # fmt: skip
        history = _finetune(config, planner, examples, validation, descriptions, draft.path)
        mllm.save(draft.path / "checkpoint")
        if can_export(mllm.model):
            export_graphs(mllm.model, draft.path / GRAPHS)
        trie.save(draft.path / "trie")
        (draft.path / PROMPT).write_text(style.template)
        (draft.path / "history.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in history)
        )
        for leftover in draft.path.glob("resume-*"):
            leftover.unlink()
        draft.facts |= {
            "parameters": sum(p.numel() for p in mllm.model.parameters()),
            "training_pairs": len(examples),
            **left_out,
            "trie_states": len(trie.token),
            "seconds": round(time.monotonic() - started, 1),
            **history[-1],
        }
    return artifacts.open("planner", draft.version)


def _prepare_model(
    config: Config,
    style: Style,
    tree: ClusterTree,
    pairs: Artifact,
    examples: list[Example],
    validation: list[Example],
    descriptions: Sequence[str],
    folder: Path,
) -> tuple[Mllm, list[Example], list[Example]]:
    """The checkpoint to fine-tune; the embedded one is built, pretrained, and says what it sees."""
    if config.planner.checkpoint != EMBEDDED:
        return Mllm.open(config.planner.checkpoint), examples, validation
    captions = load_captions(config)
    words = load_own_words(config, tree, pairs)
    corpus = [f" {content.title}" for content, _ in words]
    if config.planner.text_chars:
        corpus += [f" {c.text[: config.planner.text_chars]}" for c, _ in words if c.text]
    corpus += [f" {text}" for text in descriptions] * _CORPUS_REPEATS
    corpus += [f" {caption}" for _, caption in captions]
    corpus += [f" {e.look}" for e in examples if e.look]
    asked = [re.sub(r"{\w+}", "", line) for line in style.asks]
    form = [write_answer(style, "x", "x", ""), OPENED, "Title:", "Text:"]
    corpus += [*asked, *form, _DESCRIPTION_INSTRUCTION] * 60
    mllm = build_embedded(corpus, config.planner.vocabulary, config.seed)
    if config.planner.pretrain_steps:
        shown = captions if style.looks else []
        train(
            mllm.model,
            lambda rng: pretraining_loss(mllm, shown, words, config.planner, rng),
            Stage("pretrain", 1, config.planner.pretrain_steps, config.planner.pretrain_lr),
            seed=config.seed,
            state_path=folder / "resume-pretrain.safetensors",
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
    examples: Sequence[Example],
    validation: Sequence[Example],
    descriptions: Sequence[str],
    folder: Path,
) -> list[dict[str, float]]:
    """The fine-tuning proper. The model ends as it was at its best look, by validation loss.

    Returns the log: one line a look, the kept one last.
    """
    model = planner.mllm.model
    log, best = folder / "resume-log.jsonl", folder / "resume-best.safetensors"

    def history() -> list[dict[str, float]]:
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def look(step: int, loss: float) -> None:
        line = {"step": step, "loss": loss, **_validate(planner, validation)}
        earlier = [entry["validation_loss"] for entry in history() if entry["step"] < step]
        if not earlier or line["validation_loss"] <= min(earlier):
            save_model(model, best)
        with log.open("a") as f:
            f.write(json.dumps(line) + "\n")
        shown = (f"{name.replace('_', ' ')} {line[name]:.3f}" for name in _SHOWN if name in line)
        console.print(f"  step {step}: {', '.join(shown)}")

    train(
        model,
        lambda rng: _finetuning_loss(config, planner, examples, descriptions, rng),
        Stage("finetune", 2, config.planner.steps, config.planner.lr),
        seed=config.seed,
        state_path=folder / "resume-finetune.safetensors",
        every=config.planner.log_every or config.planner.steps,
        look=look,
    )
    load_model(model, best)
    lines = list({line["step"]: line for line in history()}.values())
    kept = min(reversed(lines), key=lambda line: line["validation_loss"])
    return [*lines, kept]


def _finetuning_loss(
    config: Config,
    planner: Planner,
    examples: Sequence[Example],
    descriptions: Sequence[str],
    rng: np.random.Generator,
) -> torch.Tensor:
    """One batch of curated pairs, and beside it one of descriptions alone."""
    mllm = planner.mllm
    size = config.planner.batch_size
    prompts, answers = [], []
    for at in rng.integers(0, len(examples), size):
        example = examples[at]
        prompts.append(training_prompt(example.content, planner.style, config.planner, rng))
        answers.append(write_answer(planner.style, example.own, example.look, example.target))
    loss = answer_loss(mllm, *mllm.encode_training(prompts, answers))
    alone = round(size * config.planner.description_rows)
    if alone:
        chosen = [descriptions[i] for i in rng.integers(0, len(descriptions), alone)]
        ask = {"type": "text", "text": _DESCRIPTION_INSTRUCTION}
        bare = Prompt(({"role": "user", "content": [ask]},), (), OPENED)
        batch, labels = mllm.encode_training([bare] * alone, [f" {text}" for text in chosen])
        share = alone / (size + alone)
        loss = (1 - share) * loss + share * answer_loss(mllm, batch, labels)
    return loss


@torch.inference_mode()
def _validate(planner: Planner, examples: Sequence[Example]) -> dict[str, float]:
    """validation_loss (of the planned description's tokens), match_rate and recall
    (unconstrained) and recall_at_1 (constrained) on validation items; 0 where there are none."""
    if not examples:
        return {"validation_loss": 0.0}
    contents = [e.content.thinned(planner.config.frames) for e in examples]
    own = [e.own_id for e in examples]
    written = [planner.trie.resolve(text) for _, text in planner.write_free(contents, own)]
    plans = planner.plan(contents, own)
    n = len(examples)
    return {
        "validation_loss": _answer_loss(planner, contents, examples),
        "match_rate": sum(w is not None for w in written) / n,
        "recall": sum(w == e.node_id for w, e in zip(written, examples, strict=True)) / n,
        "recall_at_1": sum(
            p.clusters[0].node_id == e.node_id for p, e in zip(plans, examples, strict=True)
        )
        / n,
    }


def _answer_loss(
    planner: Planner, contents: Sequence[Content], examples: Sequence[Example]
) -> float:
    """Mean cross-entropy of the target descriptions, the reasoning given."""
    prompts = [build_prompt(c, planner.style, planner.config.text_chars) for c in contents]
    answers = [write_answer(planner.style, e.own, e.look, e.target) for e in examples]
    batch, labels = planner.mllm.encode_training(prompts, answers)
    for row, example in zip(labels, examples, strict=True):
        stop = int((row != IGNORED).nonzero()[-1]) + 1
        (target,) = planner.mllm.description_tokens([example.target])
        row[: stop - 1 - len(target)] = IGNORED
    return float(answer_loss(planner.mllm, batch, labels))
