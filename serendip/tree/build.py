"""Publishes the tree (``serendip tree``): built, grown by what is new, or rebuilt.

An unchanged tree is reused. Where the settings are those of the current tree and only the catalogue
has changed, further items go to the leaves that there are (tree/grow.py), unless that tree has
drifted too far; then, or when asked to, it is built anew, and its nodes are mapped to the new ones.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from serendip.artifacts import Artifact, Artifacts, Draft
from serendip.catalog.items import fingerprint
from serendip.catalog.logs import log_until, read_impressions, read_interactions
from serendip.config import Config
from serendip.core import CorruptArtifact, NotFound
from serendip.progress import console, progress
from serendip.tree import embed
from serendip.tree.balance import balance_weights, cluster_leaves
from serendip.tree.cluster_tree import ClusterTree
from serendip.tree.describe import describe
from serendip.tree.embed import TextModel
from serendip.tree.grow import Drift, Grown, Placement, grow, unchanged
from serendip.tree.naming import name_nodes
from serendip.tree.node_map import map_nodes
from serendip.tree.report import level_figures, plot_levels
from serendip.tree.source import Source, hash_sources
from serendip.tree.words import count_words

Weights = npt.NDArray[np.float64]

PLOT = "balance.svg"
GROWN_FROM = "grown_from"  # among the inputs of a grown tree: the version that it grew from
_FREE = 1e9  # a tolerance that balances nothing

# Settings that change how the work is done, or when it is done again, and not what comes out; and
# folders and files, which stand among the inputs by their hash.
_BESIDE = {
    "encoder", "encoder_batch", "descriptions_path", "llm", "llm_batch",
    "grow_share", "grow_cosine_loss", "grow_imbalance",
}  # fmt: skip


def publish_tree(config: Config, artifacts: Artifacts, *, rebuild: bool = False) -> Artifact:
    """Clusters the catalogue and describes the clusters, or grows the tree that there is.

    Args:
        rebuild: do not grow, however little has changed. What these very data have built before
            is taken, since it would come out the same.

    Raises:
        InvalidData: the catalogue, the log or the table of descriptions breaks its schema, a
            vector has no direction, or the catalogue is too small for the tree.
        InvalidRequest: a checkpoint that the settings name cannot be loaded.
    """
    settings = {"tree": config.tree.model_dump(exclude=_BESIDE), "seed": config.seed}
    inputs = {"data": fingerprint(config.data_path), **hash_sources(config.tree)}
    before = _current(artifacts)
    if not rebuild and before and _same(before, settings, inputs):
        return before
    if reused := artifacts.reuse("tree", settings, inputs):
        return reused
    source = Source.read(config)
    weights, until = _weights(config, source.item_ids)
    why = "asked to"
    if before and not rebuild:
        why = _other_making(before, settings, inputs)
        grown, why = (None, why) if why else _grow(before, source, weights, config)
        if grown:
            until = max(until, before.log_until or 0)
            inputs |= {GROWN_FROM: before.version}
            if reused := artifacts.reuse("tree", settings, inputs):
                return reused
            with artifacts.publish("tree", settings, inputs, log_until=until) as draft:
                _write_grown(draft, before, grown, weights, config)
            _say(f"grown from {before.version}: {grown.placed} items placed, no node renumbered")
            return artifacts.open("tree", draft.version)
    with artifacts.publish("tree", settings, inputs, log_until=until) as draft:
        tree = _build(config, source, weights, draft)
        if before:
            _map(before, tree, why, draft)
    return artifacts.open("tree", draft.version)


def _build(config: Config, source: Source, weights: Weights, draft: Draft) -> ClusterTree:
    settings = config.tree
    branching = settings.branching
    counts, words = count_words(source.texts, settings.min_df, settings.max_df)
    vectors, model = source.fit(counts, words)

    def cluster(what: str, tolerance: float) -> npt.NDArray[np.int64]:
        splits = sum(int(np.prod(branching[:level])) for level in range(len(branching)))
        with progress(what, splits) as tick:
            return cluster_leaves(
                vectors, weights, branching, tolerance=tolerance, restarts=settings.restarts,
                rng=np.random.default_rng(config.seed), tick=tick,
            )  # fmt: skip

    leaf = cluster("tree", settings.tolerance)
    plain = cluster("plain k-means, to compare", _FREE)
    levels = level_figures(branching, leaf, weights, vectors, plain)
    unnamed = ClusterTree.from_leaves(branching, leaf, source.item_ids, None, draft.version)
    described = describe(unnamed.nodes, leaf, counts, words, settings.words)
    title_of = dict(zip(source.item_ids, source.titles, strict=True))
    texts, named = name_nodes(settings, unnamed, described, title_of)
    tree = ClusterTree.from_leaves(branching, leaf, source.item_ids, texts, draft.version)
    tree.save(draft.path)
    order = np.argsort(leaf, kind="stable")
    Placement.built(
        source.content()[order], vectors[order], leaf[order], tree.nodes.leaf_count
    ).save(draft.path)
    if model is not None:
        model.save(draft.path)
    plot_levels(draft.path / PLOT, branching, leaf, weights, levels)
    draft.rows |= {"nodes.parquet": len(tree.nodes), "items.parquet": len(source.item_ids)}
    draft.facts |= {
        "tree_version": draft.version,
        "made": "built",
        "levels": [asdict(level) for level in levels],
        "heaviest_leaf_built": levels[-1].heaviest,
        "cosine_vs_plain": (levels[-1].cosine or 0) / max(levels[-1].plain_cosine or 0, 1e-9),
        "without_words": int((~vectors.any(axis=1)).sum()),
        "descriptions": named,
    }
    return tree


def _grow(
    before: Artifact, source: Source, weights: Weights, config: Config
) -> tuple[Grown | None, str]:
    """The current tree with the catalogue as it is now; or None, and why it is to be rebuilt."""
    tree, placement = ClusterTree.open(before), Placement.open(before)
    content = source.content()
    rank = unchanged(tree, placement, source.item_ids, content)
    share = float((placement.grown[rank] | (rank < 0)).mean())
    if share > config.tree.grow_share:  # before anything is embedded for nothing
        return None, f"share {share:.3f} is above {config.tree.grow_share:g}"
    dimensions = placement.centroids.shape[1]
    if source.column is not None and source.column.shape[1] != dimensions:
        return None, f"vectors are of another length than {dimensions}"
    model = TextModel.load(before.file(embed.FILE)) if config.tree.vectors == "text" else None
    grown = grow(tree, placement, source.item_ids, content, lambda rows: source.embed(rows, model))
    drift = _drift(before, grown, weights, config)
    return (None, why) if (why := drift.beyond(config.tree)) else (grown, "")


def _drift(before: Artifact, grown: Grown, weights: Weights, config: Config) -> Drift:
    heaviest = level_figures(config.tree.branching, grown.leaf, weights)[-1].heaviest
    return Drift.of(grown.placement, heaviest, float(before.facts["heaviest_leaf_built"]))


def _write_grown(
    draft: Draft, before: Artifact, grown: Grown, weights: Weights, config: Config
) -> None:
    tree, branching = grown.tree, config.tree.branching
    tree.save(draft.path)
    grown.placement.save(draft.path)
    if embed.FILE in before.files:
        shutil.copy(before.file(embed.FILE), draft.path)
    levels = level_figures(branching, grown.leaf, weights)
    plot_levels(draft.path / PLOT, branching, grown.leaf, weights, levels)
    draft.rows |= {"nodes.parquet": len(tree.nodes), "items.parquet": len(tree.item_ids)}
    draft.facts |= {
        "tree_version": tree.version,
        "made": "grown",
        "levels": [asdict(level) for level in levels],
        "heaviest_leaf_built": before.facts["heaviest_leaf_built"],
        "cosine": float(grown.placement.cosine.mean()),
        "placed": grown.placed,
        "removed": grown.removed,
        "drift": asdict(_drift(before, grown, weights, config)),
        "descriptions": before.facts["descriptions"],
    }


def _map(before: Artifact, tree: ClusterTree, why: str, draft: Draft) -> None:
    """Maps the nodes of the tree before to those of its successor."""
    old = ClusterTree.open(before)
    mapped = map_nodes(old, tree)
    mapped.save(draft.path)
    survive = [
        sum(map(mapped.survives, old.nodes.at_level(level)))
        for level in range(1, int(old.nodes.level.max()) + 1)
    ]
    draft.facts |= {
        "made": "rebuilt",
        "rebuilt_from": before.version,
        "rebuilt_because": why,
        "nodes_that_survive": survive,
    }
    _say(f"rebuilt, not grown ({why})")


def _current(artifacts: Artifacts) -> Artifact | None:
    try:
        return artifacts.current("tree")
    except NotFound:
        return None
    except CorruptArtifact as e:
        _say(f"built anew, the current one cannot be read: {e}")
        return None


def _made_of(tree: Artifact) -> dict[str, str]:
    return {kind: version for kind, version in tree.inputs.items() if kind != GROWN_FROM}


def _same(before: Artifact, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> bool:
    return before.config == _as_json(settings) and _made_of(before) == inputs


def _other_making(before: Artifact, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """What but the catalogue and its log differs from the current tree's making; "": nothing."""
    if before.config != _as_json(settings):
        return "the settings have changed"
    made_of = _made_of(before)
    changed = [kind for kind in inputs if kind != "data" and inputs[kind] != made_of.get(kind)]
    return f"{changed[0]} has changed" if changed else ""


def _as_json(settings: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(settings))


def _say(message: str) -> None:
    console.print(f"  tree: {message}")


def _weights(config: Config, item_ids: Sequence[str]) -> tuple[Weights, int]:
    """(float64[N] what is balanced, Unix time in ms of the log's last event)."""
    ids = pa.chunked_array([pa.array(item_ids, pa.string())])
    unknown = config.max_unknown_share
    log = read_interactions(config.data_path, ids, max_unknown_share=unknown)
    shown = read_impressions(config.data_path, max_unknown_share=unknown)
    until = max(log_until(log), 0 if shown is None else log_until(shown))
    traffic = count_by_item(ids, log if shown is None else shown)
    leaves = int(np.prod(config.tree.branching))
    tree = config.tree
    return balance_weights(traffic, tree.balance_alpha, leaves, tree.balance_clip), until


def count_by_item(item_ids: pa.ChunkedArray, log: pa.Table) -> np.ndarray:
    """float64[N]: events of a log for each item of the catalogue, in catalogue order."""
    counted = pc.value_counts(log.column("item_id"))
    index = pc.index_in(counted.field("values"), item_ids.combine_chunks())
    known = pc.is_valid(index).to_numpy(zero_copy_only=False)
    traffic = np.zeros(len(item_ids))
    at = index.drop_null().to_numpy()
    traffic[at] = counted.field("counts").to_numpy()[known]
    return traffic
