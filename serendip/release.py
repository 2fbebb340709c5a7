"""A release: one tree, planner, plans and retriever that fit together.

Servers follow the current release alone, so that nothing tears when artefacts are republished.
Every pair of parts is checked here, by versions first and by content then; a server that opens a
release need not. Knows no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing

import numpy as np
import pyarrow.parquet as pq

from serendip.artifacts import VERBS, Artifact, Artifacts
from serendip.core import CorruptArtifact, InvalidRequest, NotFound
from serendip.planning.lmdb_store import FILE, LmdbStore
from serendip.planning.plan_store import plan_message
from serendip.planning.trie import DescriptionTrie
from serendip.progress import progress
from serendip.tree.cluster_tree import Nodes, read_nodes

PARTS = ("tree", "planner", "plans", "retriever")
_NODE_COLUMNS = ("node_id", "level", "parent", "leaf_lo", "leaf_hi", "description")
_ORDER_COLUMNS = ("item_id", "leaf")
_ORDER = "item_order.parquet"
_TICK_EVERY = 10_000


def publish_release(artifacts: Artifacts) -> Artifact:
    """Names the current parts as a release and makes it current.

    Raises:
        InvalidRequest: the parts were made for or by different versions; names those that lag.
        CorruptArtifact: a part's files are not what its manifest says, or do not fit the others'.
        NotFound: a part was never published, or was removed meanwhile.
    """
    parts = {kind: artifacts.current(kind) for kind in PARTS}
    check_parts(parts)
    inputs = {kind: part.version for kind, part in parts.items()}
    if reused := artifacts.reuse("release", {}, inputs):
        return reused
    seen = [part.log_until for part in parts.values() if part.log_until is not None]
    with artifacts.publish("release", {}, inputs, log_until=max(seen, default=None)) as draft:
        # From here on nobody removes them: a draft says what it is made of.
        for kind, version in inputs.items():
            if not artifacts.exists(kind, version):
                raise NotFound(
                    "was removed", field=f"{kind}/{version}", remedy=f"Run {VERBS[kind]} again."
                )
        draft.facts |= {
            "tree_version": parts["tree"].tree_version,
            "parts": inputs,
            "items": pq.read_metadata(parts["tree"].file("items.parquet")).num_rows,
            "items_of_the_retriever": pq.read_metadata(parts["retriever"].file(_ORDER)).num_rows,
        }
    return artifacts.open("release", draft.version)


def check_parts(parts: Mapping[str, Artifact]) -> None:
    """Raises InvalidRequest or CorruptArtifact unless the parts, one a kind, fit together."""
    tree, planner, plans, retriever = (parts[kind] for kind in PARTS)
    lags = [
        *_lag(planner, "tree", planner.tree_version, tree.tree_version),
        *_lag(plans, "tree", plans.tree_version, tree.tree_version),
        *_lag(plans, "planner", plans.inputs.get("planner"), planner.version),
        *_lag(retriever, "tree", retriever.tree_version, tree.tree_version),
    ]
    if lags:
        part, says = lags[0]
        behind = {p.kind for p, _ in lags}
        # Plans are made by the planner: if that is made again, they are.
        behind |= {"plans"} if "planner" in behind else set()
        verbs = [VERBS[kind] for kind in PARTS if kind in behind]
        raise InvalidRequest(
            says,
            field=f"{part.kind}/{part.version}",
            remedy=f"Run {', '.join(verbs)} again, then serendip release.",
        )
    nodes = read_nodes(tree.file("nodes.parquet"), tree.tree_version)
    level = int(planner.config["level"])
    check_planner_and_tree(planner, nodes, level)
    check_plans(plans, planner, nodes, level)
    check_retriever_and_tree(retriever, tree)


def check_planner_and_tree(planner: Artifact, nodes: Nodes, level: int) -> None:
    """Raises CorruptArtifact unless the planner's trie has the tree's clusters of the planning
    level, each by its description, and nothing else."""
    trie = DescriptionTrie.open(planner.path / "trie")
    wanted = nodes.at_level(level)
    texts = [nodes.description[n].encode() for n in trie.node_of_rank if n in wanted]
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    same = (
        trie.tree_version == nodes.tree_version
        and np.array_equal(np.sort(trie.node_of_rank), np.arange(wanted.start, wanted.stop))
        and np.array_equal(np.diff(trie.text_start), lengths)
        and trie.text.tobytes() == b"".join(texts)
    )
    if not same:
        raise _unfit(
            planner,
            f"its trie ({len(trie)} descriptions, tree {trie.tree_version}) does not describe the "
            f"{len(wanted)} nodes of level {level} of tree {nodes.tree_version}",
        )


def check_plans(plans: Artifact, planner: Artifact, nodes: Nodes, level: int) -> None:
    """Raises CorruptArtifact unless every plan was made by that planner over that tree, and names
    clusters of the planning level alone."""
    wanted = nodes.at_level(level)
    versions = nodes.tree_version, planner.version
    count = 0
    with (
        closing(LmdbStore(plans.file(FILE))) as store,
        progress("check plans", store.info().count) as tick,
    ):
        for _, data in store.rows():
            plan = plan_message(data)
            made = plan.tree_version, plan.planner_version
            if made != versions:
                raise _unfit(
                    plans,
                    f"the plan of item {plan.context_item_id!r} is of tree {made[0]} and planner "
                    f"{made[1]}, the release's are {versions[0]} and {versions[1]}",
                )
            for cluster in plan.clusters:
                if cluster.node_id not in wanted:
                    raise _unfit(
                        plans,
                        f"the plan of item {plan.context_item_id!r} names node {cluster.node_id}; "
                        f"level {level} of tree {versions[0]} has {wanted.start} to "
                        f"{wanted.stop - 1}",
                    )
            count += 1
            if count % _TICK_EVERY == 0:
                tick(_TICK_EVERY)


def check_retriever_and_tree(retriever: Artifact, tree: Artifact) -> None:
    """Raises CorruptArtifact unless the retriever has the tree's nodes, and its items in the order
    of the tree artefact that it was made of.

    A tree that has grown since is the same tree with other items: the retriever, which owns its
    order, serves those that it has.
    """
    pairs: list[tuple[str, str, Sequence[str]]] = [
        ("nodes.parquet", "nodes.parquet", _NODE_COLUMNS)
    ]
    if retriever.inputs.get("tree_items", tree.version) == tree.version:
        pairs.append((_ORDER, "items.parquet", _ORDER_COLUMNS))
    for ours, theirs, columns in pairs:
        mine = pq.read_table(retriever.file(ours), columns=list(columns))
        its = pq.read_table(tree.file(theirs), columns=list(columns))
        if not mine.equals(its):
            raise _unfit(
                retriever,
                f"its {ours} ({len(mine)} rows) differs from {theirs} ({len(its)} rows) of "
                f"tree/{tree.version}",
            )


def _lag(part: Artifact, of: str, made: str | None, current: str) -> list[tuple[Artifact, str]]:
    """The part and what is wrong with it, if it was not made of the current version."""
    return [] if made == current else [(part, f"was made of {of} {made}, current is {current}")]


def _unfit(part: Artifact, says: str) -> CorruptArtifact:
    return CorruptArtifact(
        says,
        field=f"{part.kind}/{part.version}",
        remedy=f"Remove {part.path}, run {VERBS[part.kind]} again, then serendip release.",
    )
