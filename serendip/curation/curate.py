"""Runs the curation's SQL and publishes the curated pairs and the corpus (``serendip curate``).

The recipe is the paper's (arXiv 2506.08283, section 3.1). No row of the log passes through here:
the engine reads the files, checks them, and writes what comes out. Knows no media and no model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from serendip.artifacts import Artifact, Artifacts, check_made_from
from serendip.catalog.items import fingerprint
from serendip.catalog.logs import Repairs
from serendip.catalog.schema import (
    IMPRESSIONS,
    INTERACTIONS,
    ITEM_ID,
    LAST_TIMESTAMP,
    USER_ID,
)
from serendip.config import Config, CurationConfig
from serendip.core import InvalidData, InvalidRequest, SerendipError
from serendip.curation.check import check_ids, check_log, count_unknown, view_log
from serendip.curation.engine import Engine, open_engine, read_parts, sql
from serendip.progress import Tick, console, progress
from serendip.tree.cluster_tree import ClusterTree, tree_inputs

# The files of a pairs artefact, and in which order their rows lie; columns: the SQL files.
TABLES = {
    "held_out": "SELECT item_id FROM held_out ORDER BY item_id",
    "scores": "SELECT * FROM scores ORDER BY item_id, rank_in_item",
    "training": "SELECT * FROM training ORDER BY node_id, rank_in_cluster",
    "labels": "SELECT * FROM labels ORDER BY item_id",
    "transitions": "SELECT * FROM transitions ORDER BY own_id, node_id",
    "comparison": "SELECT * FROM comparison ORDER BY kind",
    "corpus": "SELECT * FROM corpus ORDER BY impressions DESC, item_id",
    "corpus_diff": "SELECT * FROM corpus_diff ORDER BY change, impressions DESC, item_id",
}


def narrow(engine: Engine) -> None:
    """Makes ``events``, the interactions as integers, ``users``, ``by_item``, and ``unknown``, the
    items that the catalogue does not have.

    Reads ``interactions`` and ``items``: item_id, item_no int32 (different for each), node_id
    int32 (planning level), base_id int32 (level - level_gap); none is negative.

    Raises:
        InvalidRequest: items, clusters and bases are more than 63 bits can tell apart.
    """
    bits = _place_bits(engine)
    engine.table("users", sql("users"))
    engine.table("events", sql("events", **bits))
    engine.table("unknown", sql("unknown"))
    engine.table("by_item", sql("by_item", **bits))


def _place_bits(engine: Engine) -> dict[str, int]:
    """How base_id, node_id and item_no lie in one BIGINT, from the highest bits to the lowest."""
    query = "SELECT MAX(base_id) AS base, MAX(node_id) AS node, MAX(item_no) AS item FROM items"
    (most,) = engine.fetch(query).to_pylist()
    base, node, item = (int(most[name]).bit_length() for name in ("base", "node", "item"))
    if base + node + item > 63:
        raise InvalidRequest(
            f"{base} bits of bases, {node} of clusters and {item} of items must be 63 together",
            field="level",
            remedy="Plan at a broader level.",
        )
    return {
        "item_bits": item,
        "item_mask": (1 << item) - 1,
        "node_mask": (1 << node) - 1,
        "base_shift": node + item,
    }


def curate(engine: Engine, config: CurationConfig) -> dict[str, int]:
    """Makes the tables of the curated pairs: TABLES but the corpus's, and ``duplicates``.

    Reads ``events``, which it lets go of, and ``items``: see narrow.

    Returns:
        {duplicates: rows left out; oversized_sets: pairs of sets of equal timestamps left out}.

    Raises:
        InvalidData: no serendipitous pair is left to train on.
    """
    # No gap within a user is longer than that, and every one between two users is.
    gap = min(config.session_gap_s * 1000, LAST_TIMESTAMP)
    ties = {"session_gap_ms": gap, "max_tied_pairs": config.max_tied_pairs}
    engine.table("moves", sql("moves", session_gap_ms=gap, **_place_bits(engine)))
    engine.drop("events")
    engine.table("sets", sql("sets"))
    engine.table("steps", sql("steps", **ties))
    fold, size = config.held_out_fold, config.held_out_share * 2**32
    first, end = (f"{min(round(n * size), 2**32 - 1):08x}" for n in (fold, fold + 1))
    engine.table("held_out", sql("held_out", first_hash=first, end_hash=end))
    support_q = round(config.min_support * 1_000_000)
    engine.table("scores", sql("scores", shrinkage=config.shrinkage, min_support_q=support_q))
    cut = config.contexts_per_cluster
    engine.table("training", sql("training", contexts_per_cluster=cut))
    for name in ("labels", "transitions", "comparison", "duplicates"):
        engine.table(name, sql(name))
    if not _value(engine, "SELECT COUNT(*) FROM training"):
        raise InvalidData(
            "holds no serendipitous pair with enough support",
            field=INTERACTIONS.file,
            remedy="Lower curation.min_support, raise level_gap, or bring a longer log.",
        )
    repeated = "SELECT CAST(COALESCE(SUM(events), 0) AS BIGINT) FROM duplicates"
    return {
        "duplicates": _value(engine, repeated),
        "oversized_sets": _value(engine, sql("oversized", **ties)),
    }


def choose_corpus(engine: Engine, coverage: float) -> None:
    """Makes the table ``corpus`` (item_id, impressions) of ``traffic`` (item_id, impressions): the
    fewest most-impressed items that cover that share of the impressions.
    """
    engine.table("corpus", sql("corpus", coverage_thousandths=round(coverage * 1000)))


def _value(engine: Engine, query: str) -> Any:
    return engine.fetch(query).column(0)[0].as_py()


def place_items(tree: ClusterTree, level: int, level_gap: int) -> pa.Table:
    """The tree's items: item_id, item_no (its rank), node_id at ``level``, base_id at
    ``level - level_gap``.
    """
    leaf = tree.leaf_of_rank
    return pa.table(
        {
            "item_id": pa.array(tree.item_ids, pa.string()),
            "item_no": pa.array(np.arange(len(leaf)), pa.int32()),
            "node_id": pa.array(tree.nodes.leaf_rank_to_node(level)[leaf], pa.int32()),
            "base_id": pa.array(tree.nodes.leaf_rank_to_node(level - level_gap)[leaf], pa.int32()),
        }
    )


def publish_pairs(config: Config, artifacts: Artifacts) -> Artifact:
    """Curates the log under the current tree; an unchanged result is reused.

    Raises:
        InvalidData: the log breaks its schema, or has no serendipitous pair.
        InvalidRequest: the engine is not installed, or memory or disk space end.
    """
    source = artifacts.current("tree")
    data = fingerprint(config.data_path)
    check_made_from(source, {"data": data})
    settings = {
        "curation": config.curation.recipe(),
        "coverage": config.plans.coverage,
        "level": config.level,
        "level_gap": config.level_gap,
    }
    inputs = {**tree_inputs(source), "data": data}
    if reused := artifacts.reuse("pairs", settings, inputs):
        return reused
    tree = ClusterTree.open(source)
    with (
        artifacts.publish("pairs", settings, inputs, log_until=source.log_until) as draft,
        open_engine(config.curation, draft.path) as engine,
        progress("curate", 4) as tick,
    ):
        engine.view("items", place_items(tree, config.level, config.level_gap))
        facts, until = make_tables(engine, config, tick)
        draft.facts |= facts
        draft.log_until = max(until, source.log_until or 0)
        draft.facts |= compare_corpus(engine, _previous(artifacts, draft.version))
        tick(note="corpus")
        for name, query in TABLES.items():
            file = f"{name}.parquet"
            draft.rows[file] = engine.write(query, draft.path / file)
        draft.facts |= _facts(engine, tree, config)
        tick(note="written")
    return artifacts.open("pairs", draft.version)


def make_tables(engine: Engine, config: Config, tick: Tick) -> tuple[dict[str, Any], int]:
    """Makes TABLES but ``corpus_diff`` from the logs of the data folder; reads ``items``.

    Returns:
        (what was read, repaired and left out, by log; the latest timestamp, Unix ms).
    """
    logs = [s for s in (INTERACTIONS, IMPRESSIONS) if view_log(engine, config.data_path, s)]
    later = {INTERACTIONS: (USER_ID, ITEM_ID)}
    checked = {log: check_log(engine, config.data_path, log, later.get(log, ())) for log in logs}
    tick(note="checked")
    facts: dict[str, Any] = {
        "interactions": _curate_log(engine, checked[INTERACTIONS][0], config),
        "corpus_from": "interactions",
    }
    tick(note="pairs")
    shown_rows, _ = checked.get(IMPRESSIONS, (0, None))
    if shown_rows:
        facts["impressions"] = _count_shown(engine, shown_rows, config)
        facts["corpus_from"] = "impressions"
    else:
        engine.table("traffic", sql("traffic"))
    choose_corpus(engine, config.plans.coverage)
    return facts, max(until or 0 for _, until in checked.values())


def _curate_log(engine: Engine, rows: int, config: Config) -> dict[str, Any]:
    """Curates interactions of so many rows; returns what was read and repaired."""
    narrow(engine)
    check_ids(engine, config.data_path, INTERACTIONS, USER_ID, "users")
    check_ids(engine, config.data_path, INTERACTIONS, ITEM_ID, "unknown")
    unknown = count_unknown(engine, INTERACTIONS, "unknown", rows, config.max_unknown_share)
    repaired = curate(engine, config.curation)
    Repairs(rows, repaired["duplicates"], unknown["unknown_rows"]).tell(INTERACTIONS)
    return {
        "rows_read": rows,
        **unknown,
        **repaired,
        "largest_user_share": _value(engine, "SELECT MAX(events) FROM users") / rows,
    }


def _count_shown(engine: Engine, rows: int, config: Config) -> dict[str, Any]:
    """Makes ``traffic`` of impressions of so many rows; returns what was read and repaired."""
    engine.table("shown_by_item", sql("shown_by_item"))
    engine.table("shown_unknown", sql("shown_unknown"))
    unknown = count_unknown(engine, IMPRESSIONS, "shown_unknown", rows, config.max_unknown_share)
    duplicates = rows - _value(engine, "SELECT CAST(SUM(events) AS BIGINT) FROM shown_by_item")
    engine.table("traffic", sql("shown_traffic"))
    Repairs(rows, duplicates, unknown["unknown_rows"]).tell(IMPRESSIONS)
    return {"rows_read": rows, **unknown, "duplicates": duplicates}


def _previous(artifacts: Artifacts, version: str) -> Artifact | None:
    """The current pairs, unless they are this version or cannot be read."""
    current = artifacts.current_version("pairs")
    if current is None or current == version:
        return None
    try:
        return artifacts.open("pairs", current)
    except SerendipError as e:
        console.print(f"  no corpus to compare with: {e}")
        return None


def compare_corpus(engine: Engine, previous: Artifact | None) -> dict[str, object]:
    """Makes ``corpus_diff`` against a previous pairs artefact; returns the corpus's facts.

    Reads ``corpus`` and ``traffic``.
    """
    nothing = pa.table({"item_id": pa.array([], pa.string())})
    engine.view("previous_corpus", nothing if previous is None else _files(previous, "corpus"))
    engine.table("corpus_diff", sql("corpus_diff"))
    (seen,) = engine.fetch(sql("covered")).to_pylist()
    changed = {
        row["change"]: row["items"]
        for row in engine.fetch(
            "SELECT change, COUNT(*) AS items FROM corpus_diff GROUP BY change"
        ).to_pylist()
    }
    total = seen["impressions"]
    return {
        "largest_item_share": seen["most"] / total,
        "corpus_covers": seen["covered"] / total,
        "corpus_diff": {
            "previous": None if previous is None else previous.version,
            "came": changed.get("came", 0),
            "left": changed.get("left", 0),
            "previous_covers": seen["covered_by_previous"] / total,
        },
    }


def _facts(engine: Engine, tree: ClusterTree, config: Config) -> dict[str, object]:
    clusters = tree.nodes.at_level(config.level)
    training = engine.fetch("SELECT node_id FROM training").column("node_id").to_numpy()
    fill = np.bincount(training - clusters.start, minlength=len(clusters))
    eligible = _value(engine, "SELECT COUNT(DISTINCT item_id) FROM scores")
    return {
        "eligible_share": eligible / len(tree.item_ids),
        "clusters_filled": int((fill == config.curation.contexts_per_cluster).sum()),
        "clusters_empty": int((fill == 0).sum()),
        "fill_mean": float(fill.mean()),
        "comparison": {
            row["kind"]: {"support": row["support"], "satisfaction": row["satisfaction"]}
            for row in engine.fetch(TABLES["comparison"]).to_pylist()
        },
    }


def current_pairs(config: Config, artifacts: Artifacts) -> Artifact:
    """The current pairs, if they are of the current tree, these data and these levels.

    Raises:
        InvalidRequest: they are of another making; names what differs.
        NotFound: none were published.
    """
    pairs = artifacts.current("pairs")
    data = fingerprint(config.data_path)
    check_made_from(pairs, {**tree_inputs(artifacts.current("tree")), "data": data})
    for name in ("level", "level_gap"):
        if pairs.config[name] != getattr(config, name):
            raise InvalidRequest(
                f"current pairs are of {name} {pairs.config[name]}",
                field=name,
                value=getattr(config, name),
                remedy="Run serendip curate again.",
            )
    return pairs


def read_pairs(artifact: Artifact, name: str) -> pa.Table:
    """One of TABLES of a pairs artefact. Raises CorruptArtifact if it has none such."""
    return read_parts(_files(artifact, name))


def _files(artifact: Artifact, name: str) -> list[Path]:
    """The file of a table, or the files of its parts in order."""
    parts = sorted(file for file in artifact.files if file.startswith(f"{name}.parquet/"))
    return [artifact.file(file) for file in parts or [f"{name}.parquet"]]
