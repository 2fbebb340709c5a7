"""Artefacts made by hand in milliseconds: true files where a check looks into them."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from serendip.artifacts import Artifact, Artifacts
from serendip.core import Plan, PlannedCluster
from serendip.planning.lmdb_store import FILE, write_lmdb
from serendip.planning.plan_store import StoreInfo, encode_plan
from serendip.planning.trie import DescriptionTrie
from serendip.tree.cluster_tree import ClusterTree, write_nodes

LEVEL = 4
BRANCHING = (1, 1, 2, 2)
ITEMS = tuple(f"i{n}" for n in range(8))
UNTIL = 1_700_000_000_000


def publish_tree(artifacts: Artifacts, seed: int = 0) -> ClusterTree:
    """A tree of 4 leaves with 2 items each; another seed describes and orders them otherwise."""
    settings, data = {"seed": seed}, {"data": f"{seed:012x}"}
    with artifacts.publish("tree", settings, data, log_until=UNTIL) as draft:
        plain = ClusterTree.from_leaves(BRANCHING, [0, 0, 1, 1, 2, 2, 3, 3], ITEMS, None, "")
        texts = ["", *(f"node {n} of {seed}" for n in range(1, len(plain.nodes)))]
        leaves = [(leaf + seed) % 4 for leaf in (0, 0, 1, 1, 2, 2, 3, 3)]
        tree = ClusterTree.from_leaves(BRANCHING, leaves, ITEMS, texts, draft.version)
        tree.save(draft.path)
        draft.rows["items.parquet"] = len(ITEMS)
        draft.facts["tree_version"] = draft.version
    return tree


def grow_tree(artifacts: Artifacts, tree: ClusterTree) -> tuple[str, ClusterTree]:
    """The same tree with one item more; returns its artefact's version, which is another one."""
    inputs = {"tree": tree.version, "data": "9" * 12}
    with artifacts.publish("tree", {}, inputs, log_until=UNTIL) as draft:
        order = pq.read_table(artifacts.root / "tree" / tree.version / "items.parquet")
        last = pa.table({"item_id": ["new"], "leaf": pa.array([3], pa.int32())})
        write_nodes(tree.nodes, draft.path / "nodes.parquet")
        pq.write_table(pa.concat_tables([order, last]), draft.path / "items.parquet")
        draft.facts["tree_version"] = tree.version
    start = tree.leaf_start.copy()
    start[-1] += 1
    return draft.version, ClusterTree(tree.nodes, (*tree.item_ids, "new"), start)


def publish_pairs(artifacts: Artifacts, tree: ClusterTree) -> Artifact:
    data = {"tree": tree.version, "data": artifacts.current("tree").inputs["data"]}
    with artifacts.publish("pairs", {"level": LEVEL}, data, log_until=UNTIL) as draft:
        (draft.path / "training.txt").write_text("pairs")
    return artifacts.current("pairs")


def publish_planner(
    artifacts: Artifacts, tree: ClusterTree, seed: int = 0, texts: list[str] | None = None
) -> Artifact:
    """A planner whose trie is true and whose checkpoint is one small file."""
    pairs = publish_pairs(artifacts, tree)
    settings = {"level": LEVEL, "level_gap": 1, "seed": seed}
    inputs = {"tree": tree.version, "pairs": pairs.version}
    with artifacts.publish("planner", settings, inputs, log_until=UNTIL, resume=True) as draft:
        nodes = tree.nodes.at_level(LEVEL)
        texts = texts or [tree.nodes.description[n] for n in nodes]
        tokens = [[5 + t, 9, 5 + t] for t in range(len(texts))]
        trie = DescriptionTrie.build(
            tokens, nodes, end_token=1, texts=texts, tree_version=tree.version
        )
        trie.save(draft.path / "trie")
        (draft.path / "weights").write_text("w" * 1000)
    return artifacts.current("planner")


def plan_of(item_id: str, node_ids, tree_version: str, planner_version: str) -> Plan:
    clusters = tuple(
        PlannedCluster(node, f"node {node} of 0", -1.0 - rank, rank == 0)
        for rank, node in enumerate(node_ids)
    )
    return Plan(item_id, clusters, None, "Topic: x", tree_version, planner_version, UNTIL)


def publish_plans(
    artifacts: Artifacts, tree: ClusterTree, planner: Artifact, plans: list[Plan] | None = None
) -> Artifact:
    """Plans of every item but the last, which is quarantined."""
    nodes = list(tree.nodes.at_level(LEVEL))
    if plans is None:
        plans = [plan_of(i, nodes[:2], tree.version, planner.version) for i in ITEMS[:-1]]
    inputs = {
        "tree": tree.version, "planner": planner.version,
        "pairs": planner.inputs["pairs"], "corpus": "c" * 12,
    }  # fmt: skip
    with artifacts.publish("plans", {}, inputs, log_until=UNTIL, resume=True) as draft:
        info = StoreInfo(draft.version, tree.version, planner.version, len(plans))
        write_lmdb(draft.path / FILE, ((p.context_item_id, encode_plan(p)) for p in plans), info)
        draft.rows[FILE] = len(plans)
        gone = {"item_id": [ITEMS[-1]], "reason": ["no such file"]}
        pq.write_table(pa.table(gone), draft.path / "quarantine.parquet")
        none = {"own_id": pa.int32(), "node_id": pa.int32(), "satisfaction": pa.float64()}
        columns = {name: pa.array([], kind) for name, kind in none.items()}
        pq.write_table(pa.table(columns), draft.path / "transitions.parquet")
    return artifacts.current("plans")


def publish_retriever(
    artifacts: Artifacts, tree: ClusterTree, items=None, seed: int = 0, **more: str
) -> Artifact:
    """A retriever's nodes and item order, without its model."""
    inputs = {"tree": tree.version, "data": artifacts.current("tree").inputs["data"], **more}
    with artifacts.publish("retriever", {"seed": seed}, inputs, log_until=UNTIL) as draft:
        write_nodes(tree.nodes, draft.path / "nodes.parquet")
        order = {
            "item_id": pa.array(items or tree.item_ids, pa.string()),
            "leaf": pa.array(tree.leaf_of_rank, pa.int32()),
        }
        pq.write_table(pa.table(order), draft.path / "item_order.parquet")
    return artifacts.current("retriever")


def publish_all(artifacts: Artifacts, seed: int = 0) -> Artifact:
    """One of each, released; returns the release."""
    from serendip.release import publish_release

    tree = publish_tree(artifacts, seed)
    publish_plans(artifacts, tree, publish_planner(artifacts, tree, seed))
    publish_retriever(artifacts, tree, seed=seed)
    return publish_release(artifacts)
