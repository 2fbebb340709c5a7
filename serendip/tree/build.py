"""Publishes the tree: vectors, balanced clustering, descriptions (``serendip tree``)."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serendip.artifacts import Artifact, Artifacts
from serendip.catalog.items import fingerprint, read_items_table
from serendip.catalog.logs import log_until, read_impressions, read_interactions
from serendip.config import Config
from serendip.core import InvalidData
from serendip.progress import progress
from serendip.tree.balance import balance_weights, cluster_leaves
from serendip.tree.cluster_tree import ClusterTree
from serendip.tree.describe import describe
from serendip.tree.embed import count_words, embed_counts, normalise_vectors


def publish_tree(config: Config, artifacts: Artifacts) -> Artifact:
    """Clusters the catalogue and describes the clusters; an unchanged tree is reused.

    Raises:
        InvalidData: the catalogue or the log breaks its schema, or is too small for the tree.
    """
    settings = {"tree": config.tree.model_dump(), "seed": config.seed}
    inputs = {"data": fingerprint(config.data_path)}
    if reused := artifacts.reuse("tree", settings, inputs):
        return reused
    items = read_items_table(config.data_path)
    unknown = config.max_unknown_share
    log = read_interactions(config.data_path, items.column("item_id"), max_unknown_share=unknown)
    shown = read_impressions(config.data_path, max_unknown_share=unknown)
    until = max(log_until(log), 0 if shown is None else log_until(shown))
    traffic = count_by_item(items.column("item_id"), log if shown is None else shown)
    with (
        artifacts.publish("tree", settings, inputs, log_until=until) as draft,
        progress("tree", 3) as tick,
    ):
        texts = [
            f"{title} {text}"
            for title, text in zip(
                items.column("title").to_pylist(), items.column("text").to_pylist(), strict=True
            )
        ]
        counts, words = count_words(texts, config.tree.min_df, config.tree.max_df)
        if config.tree.vectors == "text":
            vectors = embed_counts(counts, config.tree.dimensions, config.seed)
        elif "vector" in items.column_names:
            vectors = normalise_vectors(np.array(items.column("vector").to_pylist(), np.float32))
        else:
            raise InvalidData(
                "no such column",
                field="items.parquet:vector",
                remedy="Add it, or set tree.vectors = 'text'.",
            )
        tick(note="vectors")
        branching = config.tree.branching
        leaf = cluster_leaves(
            vectors,
            balance_weights(traffic, config.tree.balance_alpha, int(np.prod(branching))),
            branching,
            tolerance=config.tree.tolerance,
            restarts=config.tree.restarts,
            rng=np.random.default_rng(config.seed),
        )
        tick(note="clusters")
        item_ids = items.column("item_id").to_pylist()
        unnamed = ClusterTree.from_leaves(branching, leaf, item_ids, None, draft.version)
        texts = describe(unnamed.nodes, leaf, counts, words, config.tree.words)
        tree = ClusterTree.from_leaves(branching, leaf, item_ids, texts, draft.version)
        tree.save(draft.path)
        tick(note="descriptions")
        sizes = np.diff(tree.leaf_start)
        draft.rows |= {"nodes.parquet": len(tree.nodes), "items.parquet": len(item_ids)}
        draft.facts |= {
            "leaves": tree.nodes.leaf_count,
            "smallest_leaf": int(sizes.min()),
            "largest_leaf": int(sizes.max()),
        }
    return artifacts.open("tree", draft.version)


def count_by_item(item_ids: pa.ChunkedArray, log: pa.Table) -> np.ndarray:
    """float64[N]: events of a log for each item of the catalogue, in catalogue order."""
    counted = pc.value_counts(log.column("item_id"))
    index = pc.index_in(counted.field("values"), item_ids.combine_chunks())
    known = pc.is_valid(index).to_numpy(zero_copy_only=False)
    traffic = np.zeros(len(item_ids))
    at = index.drop_null().to_numpy()
    traffic[at] = counted.field("counts").to_numpy()[known]
    return traffic
