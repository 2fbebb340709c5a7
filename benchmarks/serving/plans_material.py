"""What the look-up bench serves: made plans under a release without a model.

    python -m serving.plans_material

makes the artefacts under artifacts/bench-planner. The planner artefact has its trie alone, which
is all that a server opens that plans nothing live.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import descriptions
from common.made_plans import MODELS, info, item_id, plans

from serendip.artifacts import Artifacts
from serendip.planning.lmdb_store import FILE, write_lmdb
from serendip.planning.trie import DescriptionTrie
from serendip.tree.cluster_tree import ClusterTree
from serendip.v1 import planner_pb2

ROOT = Path(__file__).parents[2] / "artifacts" / "bench-planner"
ITEMS = 100_000
BRANCHING = (10, 10, 10, 10)  # as many clusters as there are made plans
LEVEL = 4


def make() -> Artifacts:
    """The artefacts, made unless they are there."""
    artifacts = Artifacts(ROOT)
    if artifacts.current_version("release") is None:
        _publish(artifacts)
    return artifacts


def request(items: int, k: int = 8) -> planner_pb2.PlanRequest:
    """A look-up of different items, in no order."""
    picked = np.random.default_rng(items).choice(ITEMS, items, replace=False).tolist()
    return planner_pb2.PlanRequest(context_item_ids=[item_id(n) for n in picked], k=k)


def _publish(artifacts: Artifacts) -> None:
    made = {"items": ITEMS, "made": "for the look-up bench"}
    with artifacts.publish("tree", made, {}) as draft:
        leaf = np.arange(ITEMS) % MODELS
        names = [item_id(n) for n in range(ITEMS)]
        tree = ClusterTree.from_leaves(BRANCHING, leaf, names, None, draft.version)
        tree.save(draft.path)
        draft.facts["tree_version"] = tree.version
    inputs = {"tree": tree.version}
    config = {"level": LEVEL, "level_gap": 1}
    with artifacts.publish("planner", made | config, inputs) as draft:
        texts = descriptions.texts("words", MODELS)
        tokens = [list(text.encode()) for text in texts]
        nodes = list(tree.nodes.at_level(LEVEL))
        trie = DescriptionTrie.build(tokens, nodes, 256, texts=texts, tree_version=tree.version)
        trie.save(draft.path / "trie")
        draft.facts["tree_version"] = tree.version
    inputs |= {"planner": draft.version}
    with artifacts.publish("plans", made, inputs) as draft:
        write_lmdb(draft.path / FILE, plans(ITEMS), info(ITEMS, draft.version))
        none = {"own_id": pa.int32(), "node_id": pa.int32(), "satisfaction": pa.float64()}
        pq.write_table(
            pa.table({name: pa.array([], kind) for name, kind in none.items()}),
            draft.path / "transitions.parquet",
        )
        draft.facts["tree_version"] = tree.version
    inputs |= {"plans": draft.version, "retriever": "0" * 12}
    with artifacts.publish("release", made, inputs) as draft:
        draft.facts["tree_version"] = tree.version


if __name__ == "__main__":
    make()
