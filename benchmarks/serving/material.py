"""What the serving bench serves and asks for: a made retriever, its users, their requests.

    python -m serving.material NAME

makes the artefacts of a size under artifacts/bench-serve, in a process of its own because torch
stays with whoever loads it. The weights are random: what a request costs does not depend on them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from peers import environment

from serendip.artifacts import Artifacts
from serendip.core import RetrievalQuery

FOLDER = Path(__file__).parents[2] / "artifacts" / "bench-serve"
DIMENSIONS = 64  # and one more for the bias
HISTORY = 50
K = 50
CLUSTERS = 4  # most a request; requests take 1, 2, 3, 4 in turn
ROWS = 32  # of the batch that is asked for in one call


@dataclass(frozen=True)
class Size:
    """A catalogue of equal clusters.

    Attributes:
        branching: of the tree; the product is the number of clusters.
        blocks: of the encoder; 2 is the project's default.
    """

    name: str
    items: int
    branching: tuple[int, int, int, int]
    blocks: int

    @property
    def clusters(self) -> int:
        return int(np.prod(self.branching))


# All have clusters of 244 items.
SIZES = {
    (name, blocks): Size(f"{name}-{blocks}", items, (width,) * 4, blocks)
    for name, items, width in (("1M", 1_000_000, 8), ("62k", 62_500, 4))
    for blocks in (1, 2)
}


def item_id(n: int) -> str:
    return f"i{n:08d}"


def root(size: Size) -> Path:
    """The folder of the size's artefacts."""
    return FOLDER / size.name


def make(size: Size) -> Artifacts:
    """The size's artefacts, made unless they are there."""
    artifacts = Artifacts(root(size))
    if artifacts.current_version("release") is None:
        print(f"making a retriever of {size.items:,} items (once)", file=sys.stderr)
        command = [sys.executable, "-m", "serving.material", size.name]
        subprocess.run(command, check=True, env=environment.variables())
    return artifacts


def users(size: Size, count: int, *, seed: int = 0) -> list[RetrievalQuery]:
    """Requests of different users: 50 random items each, 1 to 4 random clusters in turn."""
    rng = np.random.default_rng([seed, size.items])
    first_leaf = sum(int(np.prod(size.branching[:level])) for level in range(4))
    found = []
    for n in range(count):
        items = rng.integers(0, size.items, HISTORY).tolist()
        nodes = first_leaf + rng.choice(size.clusters, n % CLUSTERS + 1, replace=False)
        history = tuple(item_id(i) for i in items)
        found.append(RetrievalQuery(history=history, node_ids=tuple(nodes.tolist()), k=K))
    return found


def one_user(size: Size) -> RetrievalQuery:
    """The request that a load tool repeats: two clusters."""
    return users(size, ROWS)[1]


# --- making ------------------------------------------------------------------------------


def _publish(size: Size) -> None:
    import torch

    from serendip.retrieval.export import write_retriever
    from serendip.retrieval.model import ModelShape, SequenceModel
    from serendip.retrieval.train import order_version
    from serendip.tree.cluster_tree import ClusterTree

    torch.set_num_threads(1)
    torch.manual_seed(0)
    artifacts = Artifacts(root(size))
    rng = np.random.default_rng(0)
    leaf = rng.permutation(size.items) % size.clusters
    made = {"items": size.items, "blocks": size.blocks, "made": "for the serving bench"}
    with artifacts.publish("tree", made, {}) as draft:
        names = [item_id(n) for n in range(size.items)]
        tree = ClusterTree.from_leaves(size.branching, leaf, names, None, draft.version)
        tree.save(draft.path)
        draft.facts["tree_version"] = draft.version
    shape = ModelShape(size.items, DIMENSIONS, size.blocks, heads=2, max_history=HISTORY)
    model = SequenceModel(shape)
    inputs = {"tree": tree.version, "tree_items": tree.version}
    with artifacts.publish("retriever", made, inputs) as draft:
        satisfaction = rng.random(size.items, np.float32)
        write_retriever(draft.path, model, tree, satisfaction)
        draft.facts |= {
            "order_version": order_version(tree),
            "max_history": HISTORY,
            "prior_satisfaction": 0.5,
        }
    inputs |= {"retriever": draft.version, "planner": "0" * 12, "plans": "0" * 12}
    with artifacts.publish("release", made, inputs) as draft:
        draft.facts["tree_version"] = tree.version


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    _publish(next(size for size in SIZES.values() if size.name == sys.argv[1]))
