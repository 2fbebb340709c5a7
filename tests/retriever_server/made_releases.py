"""Releases with a random model, made in seconds: the same items under trees of other versions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from serendip.artifacts import Artifact, Artifacts
from serendip.core import Retrieval, RetrievalQuery
from serendip.retrieval import export
from serendip.retrieval.model import ModelShape, SequenceModel
from serendip.retrieval.ranker import ClusterRanker
from serendip.tree.cluster_tree import ClusterTree
from serendip.wire import query_to_proto

MAX_HISTORY = 20


@dataclass(frozen=True)
class MadeReleases:
    """Published releases, the last one current.

    Attributes:
        versions: of the releases, in the order in which they were published.
        rankers: of each, opened in this process.
    """

    artifacts: Artifacts
    versions: tuple[str, ...]
    rankers: tuple[ClusterRanker, ...]

    def write_requests(
        self,
        path: Path,
        count: int,
        *,
        k: int = 20,
        level: int = 2,
        which: Sequence[int] = (0,),
        gap: float = 1e-4,
    ) -> None:
        """Writes requests and the ranker's answers to them, for server_load.py.

        Args:
            which: the releases that they are planned under.
            gap: least difference between two scores, so that no rounding reorders an answer.
        """
        rng = np.random.default_rng(5)
        rows = []
        while len(rows) < count:
            ranker = self.rankers[which[len(rows) % len(which)]]
            history = rng.integers(0, ranker.item_count, rng.integers(1, MAX_HISTORY))
            nodes = list(ranker.nodes.at_level(level))
            query = RetrievalQuery(
                tuple(f"i{i}" for i in history), (int(rng.choice(nodes)),), k, widening=False
            )
            (found,) = ranker.retrieve([query])
            assert isinstance(found, Retrieval)
            scores = [c.score for c in found.candidates]
            if len(scores) > 1 and -np.diff(scores).max() < gap:
                continue
            request = query_to_proto(query, tree_version=ranker.versions.tree_version)
            rows.append(
                {
                    "request": request.SerializeToString().hex(),
                    "tree": ranker.versions.tree_version,
                    "items": [c.item_id for c in found.candidates],
                    "scores": scores,
                }
            )
        path.write_text(json.dumps(rows))


def make_releases(
    folder: Path,
    *,
    items: int = 2000,
    branching: tuple[int, ...] = (4, 4, 4, 4),
    dimensions: int = 16,
    blocks: int = 1,
    count: int = 2,
) -> MadeReleases:
    """Publishes ``count`` releases over one model; each has a tree of its own."""
    artifacts = Artifacts(folder)
    torch.manual_seed(3)
    rng = np.random.default_rng(3)
    shape = ModelShape(
        items=items, dimensions=dimensions, blocks=blocks, heads=2, max_history=MAX_HISTORY
    )
    model = SequenceModel(shape).eval()
    with torch.no_grad():
        model.item.weight[1:].normal_(std=0.2)
    satisfaction = rng.random(items).astype(np.float32)
    real, first = export.export_onnx, folder / "first"

    def once(model: SequenceModel, path: Path) -> None:
        if not first.exists():
            first.mkdir()
            real(model, first / path.name)
        shutil.copytree(first, path.parent, dirs_exist_ok=True)

    versions, rankers = [], []
    for seed in range(count):
        leaves = np.sort(rng.integers(0, int(np.prod(branching)), items))
        tree = publish_tree(artifacts, branching, leaves, seed)
        with mock.patch.object(export, "export_onnx", once):
            retriever = publish_retriever(artifacts, model, tree, satisfaction)
        versions.append(publish_release(artifacts, tree.version, retriever))
        rankers.append(ClusterRanker.open(retriever))
    return MadeReleases(artifacts, tuple(versions), tuple(rankers))


def publish_tree(
    artifacts: Artifacts, branching: tuple[int, ...], leaves: np.ndarray, seed: int
) -> ClusterTree:
    with artifacts.publish("tree", {"seed": seed}, {}) as draft:
        names = [f"i{i}" for i in range(len(leaves))]
        tree = ClusterTree.from_leaves(branching, leaves, names, None, draft.version)
        tree.save(draft.path)
        draft.facts["tree_version"] = draft.version
    return tree


def publish_retriever(
    artifacts: Artifacts, model: SequenceModel, tree: ClusterTree, satisfaction: np.ndarray
) -> Artifact:
    with artifacts.publish(
        "retriever", {}, {"tree": tree.version, "tree_items": tree.version}
    ) as draft:
        export.write_retriever(draft.path, model, tree, satisfaction)
        draft.facts |= {"order_version": tree.version, "max_history": MAX_HISTORY}
        draft.facts["prior_satisfaction"] = 0.5
    return artifacts.current("retriever")


def publish_release(artifacts: Artifacts, tree_version: str, retriever: Artifact) -> str:
    inputs = {"tree": tree_version, "retriever": retriever.version}
    with artifacts.publish("release", {}, inputs) as draft:
        draft.facts["tree_version"] = tree_version
    return draft.version
