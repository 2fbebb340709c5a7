"""Runs the curation's SQL on DuckDB and publishes the curated pairs (``serendip curate``).

The queries are files in ``sql/``, each a SELECT that reads tables named in its comment; the
recipe is the paper's (arXiv 2506.08283, section 3.1). Knows no media and no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serendip.artifacts import Artifact, Artifacts, check_made_from
from serendip.catalog.items import fingerprint, read_items_table
from serendip.catalog.logs import log_until, read_impressions, read_interactions
from serendip.config import Config, CurationConfig
from serendip.core import InvalidData, InvalidRequest
from serendip.progress import progress
from serendip.tree.cluster_tree import ClusterTree, tree_inputs

TABLES = ("held_out", "scores", "training", "labels", "transitions", "comparison")


@dataclass(frozen=True)
class Curated:
    """The curation's tables, each as documented in its SQL file.

    Attributes:
        held_out: (item_id), whether or not it has a score.
        scores: (item_id, own_id, node_id, support, satisfaction, held_out, rank_in_item).
        training: the curated pairs, cut per cluster.
        labels: one row a held-out item.
        transitions: (own_id, node_id, support, satisfaction).
        comparison: satisfaction by kind of pair.
    """

    held_out: pa.Table
    scores: pa.Table
    training: pa.Table
    labels: pa.Table
    transitions: pa.Table
    comparison: pa.Table


def sql(name: str, **numbers: float | str) -> str:
    """The query of ``sql/<name>.sql`` with its ``{numbers}`` filled in."""
    return (files("serendip.curation") / "sql" / f"{name}.sql").read_text().format(**numbers)


def curate(interactions: pa.Table, placed: pa.Table, config: CurationConfig) -> Curated:
    """Curates a log.

    Args:
        interactions: user_id, item_id, timestamp (ms), satisfaction.
        placed: item_id, node_id (planning level), base_id (level - level_gap).
        config: what to keep.

    Raises:
        InvalidData: no serendipitous pair is left.
    """
    with duckdb.connect(config={"memory_limit": config.memory_limit}) as db:
        db.register("interactions", interactions)
        db.register("items", placed)
        db.execute(f"CREATE TABLE events AS {sql('events')}")
        gap = config.session_gap_s * 1000
        db.execute(f"CREATE TABLE steps AS {sql('steps', session_gap_ms=gap)}")
        scores = sql(
            "scores",
            shrinkage=config.shrinkage,
            min_support_q=round(config.min_support * 1_000_000),
        )
        below = f"{round(config.held_out_share * 2**32):08x}"
        db.execute(f"CREATE TABLE held_out AS {sql('held_out', held_out_below=below)}")
        db.execute(f"CREATE TABLE scores AS {scores}")
        cut = config.contexts_per_cluster
        result = Curated(
            held_out=_fetch(db, "SELECT * FROM held_out ORDER BY item_id"),
            scores=_fetch(db, "SELECT * FROM scores ORDER BY item_id, rank_in_item"),
            training=_fetch(db, sql("training", contexts_per_cluster=cut)),
            labels=_fetch(db, sql("labels")),
            transitions=_fetch(db, sql("transitions")),
            comparison=_fetch(db, sql("comparison")),
        )
    if not len(result.training):
        raise InvalidData(
            "holds no serendipitous pair with enough support",
            field="interactions.parquet",
            remedy="Lower curation.min_support, raise level_gap, or bring a longer log.",
        )
    return result


def choose_corpus(shown: pa.Table, coverage: float) -> pa.Table:
    """(item_id, impressions): the fewest most-impressed items that cover that share."""
    with duckdb.connect() as db:
        db.register("shown", shown.select(["item_id"]))
        return _fetch(db, sql("corpus", coverage_thousandths=round(coverage * 1000)))


def _fetch(db: duckdb.DuckDBPyConnection, query: str) -> pa.Table:
    return db.sql(query).to_arrow_table()


def place_items(tree: ClusterTree, level: int, level_gap: int) -> pa.Table:
    """(item_id, node_id at ``level``, base_id at ``level - level_gap``) of the tree's items."""
    leaf = tree.leaf_of_rank
    return pa.table(
        {
            "item_id": pa.array(tree.item_ids, pa.string()),
            "node_id": pa.array(tree.nodes.leaf_rank_to_node(level)[leaf], pa.int32()),
            "base_id": pa.array(tree.nodes.leaf_rank_to_node(level - level_gap)[leaf], pa.int32()),
        }
    )


def publish_pairs(config: Config, artifacts: Artifacts) -> Artifact:
    """Curates the log under the current tree; an unchanged result is reused."""
    source = artifacts.current("tree")
    data = fingerprint(config.data_path)
    check_made_from(source, {"data": data})
    settings = {
        "curation": config.curation.model_dump(exclude={"memory_limit"}),
        "coverage": config.plans.coverage,
        "level": config.level,
        "level_gap": config.level_gap,
    }
    inputs = {**tree_inputs(source), "data": data}
    if reused := artifacts.reuse("pairs", settings, inputs):
        return reused
    tree = ClusterTree.open(source)
    items = read_items_table(config.data_path)
    log = read_interactions(config.data_path, items.column("item_id"))
    shown = read_impressions(config.data_path)
    until = max(log_until(log), source.log_until or 0, 0 if shown is None else log_until(shown))
    with (
        artifacts.publish("pairs", settings, inputs, log_until=until) as draft,
        progress("curate", 2) as tick,
    ):
        placed = place_items(tree, config.level, config.level_gap)
        curated = curate(log, placed, config.curation)
        tick(note="pairs")
        for name in TABLES:
            table = getattr(curated, name)
            pq.write_table(table, draft.path / f"{name}.parquet")
            draft.rows[f"{name}.parquet"] = len(table)
        corpus = choose_corpus(log if shown is None else shown, config.plans.coverage)
        pq.write_table(corpus, draft.path / "corpus.parquet")
        draft.rows["corpus.parquet"] = len(corpus)
        tick(note="corpus")
        draft.facts |= _facts(curated, tree, config)
        draft.facts["corpus_from"] = "interactions" if shown is None else "impressions"
    return artifacts.open("pairs", draft.version)


def _facts(curated: Curated, tree: ClusterTree, config: Config) -> dict[str, object]:
    clusters = tree.nodes.at_level(config.level)
    fill = np.bincount(
        curated.training.column("node_id").to_numpy() - clusters.start, minlength=len(clusters)
    )
    eligible = len(curated.scores.column("item_id").unique())
    return {
        "eligible_share": eligible / len(tree.item_ids),
        "clusters_filled": int((fill == config.curation.contexts_per_cluster).sum()),
        "clusters_empty": int((fill == 0).sum()),
        "fill_mean": float(fill.mean()),
        "comparison": {
            row["kind"]: {"support": row["support"], "satisfaction": row["satisfaction"]}
            for row in curated.comparison.to_pylist()
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
    """One of TABLES of a pairs artefact, or its corpus."""
    path: Path = artifact.file(f"{name}.parquet")
    return pq.read_table(path)
