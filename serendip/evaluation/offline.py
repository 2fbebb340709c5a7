"""Offline figures of a planner on held-out context items (``serendip evaluate``).

Held-out items took no part in training; their label is their best cluster by the curation's
ranking, of their own transitions. Beside the planner stand baselines, fitted on the other items;
where the world is synthetic, its planted truth as well, called *simulated*.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from serendip.artifacts import Artifact, Artifacts, check_made_from
from serendip.catalog.items import fingerprint, read_items
from serendip.config import Config
from serendip.core import Constraint, InvalidData, InvalidRequest, MediaError, PlannedCluster
from serendip.curation.curate import current_pairs, read_pairs
from serendip.evaluation.baselines import AT, chance, fit_baselines, rank_all, recalls
from serendip.evaluation.metrics import recall_at_k, share, wilson_interval
from serendip.evaluation.truth import Truth, read_truth, swap_pairs
from serendip.planning.planner import Planner
from serendip.planning.prompt import Content, load_content
from serendip.progress import Tick, progress
from serendip.tree.cluster_tree import ClusterTree, tree_inputs

Figures = dict[str, object]
Ranked = tuple[PlannedCluster, ...]
Rankings = dict[str, list[list[int]]]  # by arm: an item's clusters, best first


@dataclass(frozen=True)
class HeldOut:
    """The held-out context items that have a label and media that can be read.

    Attributes:
        item_ids, contents, own, labels: one entry an item.
        all_labels: best cluster of every item that has one, held out or not.
        unreadable: held-out items that have a label and no readable media.
    """

    item_ids: list[str]
    contents: list[Content]
    own: list[int]
    labels: list[int]
    all_labels: dict[str, int]
    unreadable: int


def publish_report(config: Config, artifacts: Artifacts) -> Artifact:
    """Evaluates the current planner and publishes the report; an unchanged one is reused.

    figures.json holds the figures. rankings.parquet holds a row for each held-out item: item_id,
    own_id, label, and the first clusters of ``planner``, ``planner_siblings`` and each baseline.

    Raises:
        InvalidRequest: the planner has seen events later than its data's log.
    """
    parts = {
        "tree": artifacts.current("tree"),
        "pairs": current_pairs(config, artifacts),
        "planner": artifacts.current("planner"),
    }
    made_from = {"tree": parts["tree"].tree_version, "pairs": parts["pairs"].version}
    check_made_from(parts["planner"], made_from)
    inputs = {
        **tree_inputs(parts["tree"]),
        **{kind: parts[kind].version for kind in ("pairs", "planner")},
    }
    inputs["data"] = fingerprint(config.data_path)
    settings = {"plans": config.plans.model_dump()}
    if reused := artifacts.reuse("report", settings, inputs):
        return reused
    until = parts["pairs"].log_until
    for part in parts.values():
        if until is not None and (part.log_until or 0) > until:
            raise InvalidRequest(
                f"has seen the log up to {part.log_until}, labels end at {until}",
                field=f"{part.kind}/{part.version}",
                remedy="Publish it again from the same log.",
            )
    torch.set_num_threads(config.planner.threads)
    tree = ClusterTree.open(parts["tree"])
    planner = Planner.open(parts["planner"], tree.nodes, config.plans)
    with artifacts.publish("report", settings, inputs, log_until=until) as draft:
        held_out = load_held_out(config, planner, tree, parts["pairs"])
        truth = read_truth(config.data_path, tree, config.level)
        figures, rankings = evaluate(planner, held_out, truth)
        scores = read_pairs(parts["pairs"], "scores")
        clusters = planner.nodes.at_level(planner.level)
        baselines = fit_baselines(scores, clusters, planner.siblings)
        rankings |= rank_all(baselines, held_out.own)
        choices = [len(planner.siblings(own)) for own in held_out.own]
        figures["arms"] = {
            **{name: recalls(ranked, held_out.labels) for name, ranked in rankings.items()},
            "chance_siblings": chance(choices),
            "chance": chance([len(clusters) - 1] * len(choices)),
        }
        _write_rankings(held_out, rankings, draft.path / "rankings.parquet")
        figures["comparison"] = parts["pairs"].facts["comparison"]
        (draft.path / "figures.json").write_text(json.dumps(figures, indent=2))
        draft.facts |= figures
    return artifacts.open("report", draft.version)


def load_held_out(config: Config, planner: Planner, tree: ClusterTree, pairs: Artifact) -> HeldOut:
    """Reads labels and media of the held-out items.

    Raises:
        InvalidData: there is none.
    """
    labels = {r["item_id"]: r["node_id"] for r in read_pairs(pairs, "labels").to_pylist()}
    best = read_pairs(pairs, "scores").to_pylist()
    result = HeldOut(
        [], [], [], [], {r["item_id"]: r["node_id"] for r in best if r["rank_in_item"] == 1}, 0
    )
    unreadable = 0
    with progress("held-out media", len(labels)) as tick:
        for item in read_items(config.data_path):
            if item.item_id not in labels:
                continue
            tick()
            own = tree.node_of(item.item_id, planner.level)
            try:
                content = load_content(item, planner.style, planner.config.frames)
            except MediaError:
                unreadable += 1
                continue
            assert own is not None, item.item_id
            result.item_ids.append(item.item_id)
            result.contents.append(content)
            result.own.append(own)
            result.labels.append(labels[item.item_id])
    if not result.item_ids:
        raise InvalidData(
            "holds no held-out item with a label and readable media",
            field="items.parquet",
            remedy="Raise curation.held_out_share, or bring a longer log.",
        )
    return replace(result, unreadable=unreadable)


def _write_rankings(held_out: HeldOut, rankings: Rankings, path: Path) -> None:
    columns = {"item_id": held_out.item_ids, "own_id": held_out.own, "label": held_out.labels}
    pq.write_table(pa.table({**columns, **rankings}), path)


def evaluate(planner: Planner, held_out: HeldOut, truth: Truth | None) -> tuple[Figures, Rankings]:
    """Match rate, recall, and what the plans are like; against the truth if there is one.

    Returns:
        (figures; the clusters of ``planner`` and ``planner_siblings``, max(AT) an item at most).
    """
    batches = 4 if truth else 3
    with progress("evaluate", batches * len(held_out.item_ids)) as tick:
        written = _written(planner, held_out, tick)
        plans = _ranked(planner, held_out.contents, held_out.own, tick)
        constrained = _ranked(
            planner, held_out.contents, held_out.own, tick, constraint=Constraint.SIBLINGS
        )
        labels = held_out.labels
        chosen = _clusters(plans)
        among_siblings = _clusters(constrained)
        free = [planner.trie.resolve(text) for _, text in written]
        n = len(labels)
        hits = sum(c[0] == label for c, label in zip(chosen, labels, strict=True))
        figures: Figures = {
            "held_out": n,
            "unreadable": held_out.unreadable,
            "match_rate": share([f is not None for f in free]),
            "recall": share([f == label for f, label in zip(free, labels, strict=True)]),
            "recall_at_1": hits / n,
            "recall_at_1_interval": wilson_interval(hits, n),
            **{f"recall_at_{k}": recall_at_k(chosen, labels, k) for k in (4, 5, 8, 10)},
            **{f"recall_at_{k}_siblings": recall_at_k(among_siblings, labels, k) for k in AT},
            "serendipitous_share": share([p[0].serendipitous for p in plans]),
            "serendipitous_share_siblings": share([p[0].serendipitous for p in constrained]),
            "sibling_chance": sum(1 / len(planner.siblings(o)) for o in held_out.own) / n,
        }
        if truth:
            figures |= _against_truth(planner, held_out, truth, plans, written)
            figures["follows_frames"], figures["swapped"] = _swap(planner, held_out, truth, tick)
    return figures, {"planner": chosen, "planner_siblings": among_siblings}


def _clusters(plans: Sequence[Ranked]) -> list[list[int]]:
    return [[c.node_id for c in plan] for plan in plans]


def _against_truth(
    planner: Planner,
    held_out: HeldOut,
    truth: Truth,
    plans: Sequence[Ranked],
    written: Sequence[tuple[str, str]],
) -> Figures:
    ids = held_out.item_ids
    first = [p[0].node_id for p in plans]
    labels = dict(zip(ids, held_out.labels, strict=True))
    ceilings = truth.text_ceiling(held_out.all_labels, labels)
    return {
        "simulated": True,
        "truth_agreement": share(
            [truth.target_node(i) == f for i, f in zip(ids, first, strict=True)]
        ),
        "label_truth_agreement": share([truth.target_node(i) == n for i, n in labels.items()]),
        "recall_text_ceiling": max(ceilings.values()),
        "recall_text_ceiling_planted": ceilings["planted"],
        "recall_text_ceiling_fitted": ceilings["fitted"],
        "leaf_purity": truth.leaf_purity,
        "parent_purity": truth.parent_purity,
        "look_accuracy": share(
            [f"Look: {truth.look(i)}" in r for i, (r, _) in zip(ids, written, strict=True)]
        ),
        "topic_accuracy": share(
            [
                f"Topic: {planner.nodes.description[o]}" in r
                for o, (r, _) in zip(held_out.own, written, strict=True)
            ]
        ),
    }


def _swap(planner: Planner, held_out: HeldOut, truth: Truth, tick: Tick) -> tuple[float, int]:
    """Share of the plans that move with another item's frames, and of how many."""
    at = {item_id: i for i, item_id in enumerate(held_out.item_ids)}
    contents, own, wanted = [], [], []
    for item_id, donor_id in swap_pairs(held_out.item_ids):
        node = truth.node_if_seen(item_id, donor_id)
        if node is None or node == held_out.own[at[item_id]]:
            continue
        item, donor = held_out.contents[at[item_id]], held_out.contents[at[donor_id]]
        contents.append(replace(item, cover=donor.cover, frames=donor.frames))
        own.append(held_out.own[at[item_id]])
        wanted.append(node)
    plans = _ranked(planner, contents, own, tick)
    moved = [p[0].node_id == n for p, n in zip(plans, wanted, strict=True)]
    return share(moved), len(moved)


def _ranked(
    planner: Planner,
    contents: Sequence[Content],
    own: Sequence[int],
    tick: Tick,
    *,
    constraint: Constraint = Constraint.NOT_OWN,
) -> list[Ranked]:
    """The first max(AT) clusters of each item, fewer where there are fewer."""
    plans: list[Ranked] = []
    size = planner.search.batch_size
    for at in range(0, len(contents), size):
        mine = own[at : at + size]
        views = [planner.view(o, constraint=constraint) for o in mine]
        plans += planner.rank(contents[at : at + size], mine, clusters=max(AT), views=views)
        tick(len(mine))
    return plans


def _written(planner: Planner, held_out: HeldOut, tick: Tick) -> list[tuple[str, str]]:
    texts: list[tuple[str, str]] = []
    size = planner.search.batch_size
    for at in range(0, len(held_out.contents), size):
        batch = held_out.contents[at : at + size]
        texts += planner.write_free(batch, held_out.own[at : at + size])
        tick(len(batch))
    return texts
