"""Both tiers' real servicers over a small made-up world: no model is trained, and none loaded.

81 leaves with two to four items each; every third item has a plan, some of a plan's clusters are
siblings of the item's own; the encoder adds up the vectors of what the user has seen.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from prometheus_client import CollectorRegistry

from planner_server.recommend import RecommenderService
from planner_server.release import Fallbacks
from planner_server.release import Serving as PlannerServing
from planner_server.service import PlannerService, services
from retriever_server.service import RetrieverService
from retriever_server.service import Serving as RetrieverServing
from serendip.core import Plan, PlannedCluster, Versions
from serendip.planning.lmdb_store import FILE, LmdbStore, write_lmdb
from serendip.planning.plan_store import StoreInfo, encode_plan
from serendip.planning.trie import DescriptionTrie
from serendip.retrieval.attributes import Attributes
from serendip.retrieval.item_ids import ItemIds
from serendip.retrieval.ranker import ClusterRanker
from serendip.serving.handlers import Service
from serendip.serving.http2.client import Channel
from serendip.serving.server import serve
from serendip.serving.upstream import Upstream
from serendip.tree.cluster_tree import ClusterTree

BRANCHING = (3, 3, 3, 3)
LEVEL, GAP = 4, 1
MAX_HISTORY = 5
VERSIONS = Versions(planner_version="b" * 12, plans_version="c" * 12)


def tree_of(version: str = "a" * 12) -> ClusterTree:
    leaf = np.repeat(np.arange(81), np.random.default_rng(0).integers(2, 5, 81))
    return ClusterTree.from_leaves(
        BRANCHING, leaf, [f"i{n}" for n in range(len(leaf))], None, version
    )


def plans_of(tree: ClusterTree) -> Iterator[Plan]:
    rng = np.random.default_rng(1)
    leaves = list(tree.nodes.at_level(LEVEL))
    for item_id in tree.item_ids[::3]:
        own = tree.node_of(item_id, LEVEL)
        above = tree.nodes.ancestor(own, LEVEL - GAP)
        near = [node for node in tree.nodes.under(above, LEVEL) if node != own]
        far = rng.choice([n for n in leaves if n not in (own, *near)], 6, replace=False).tolist()
        chosen = rng.permutation([*near, *far])[: rng.integers(1, 9)].tolist()
        clusters = tuple(
            PlannedCluster(node, tree.nodes.description[node], -float(rank), node in near)
            for rank, node in enumerate(chosen)
        )
        yield Plan(item_id, clusters, own, "because", tree.version, "b" * 12, 1_700_000_000_000)


def planner_serving(tree: ClusterTree, folder: Path) -> PlannerServing:
    plans = list(plans_of(tree))
    info = StoreInfo("c" * 12, tree.version, "b" * 12, len(plans))
    file = folder / f"{tree.version}.{FILE}"
    write_lmdb(file, ((p.context_item_id, encode_plan(p)) for p in plans), info)
    nodes = list(tree.nodes.at_level(LEVEL))
    texts = [tree.nodes.description[node] for node in nodes]
    tokens = [[ord(c) for c in text] for text in texts]
    return PlannerServing(
        version="d" * 12,
        versions=replace(VERSIONS, tree_version=tree.version),
        tree=tree,
        trie=DescriptionTrie.build(tokens, nodes, 1, texts=texts, tree_version=tree.version),
        level=LEVEL,
        level_gap=GAP,
        store=LmdbStore(file),
        fallbacks=Fallbacks(tree, LEVEL, GAP, {}),
        live=None,
        items={},
    )


def ranker_of(tree: ClusterTree) -> ClusterRanker:
    n = len(tree.item_ids)
    matrix = np.random.default_rng(2).normal(size=(n, 8)).astype(np.float32)

    def encode(histories: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        return np.stack([matrix[row[row > 0] - 1].sum(axis=0) for row in histories])

    colours = [["red", "green", None][i % 3] for i in range(n)]
    return ClusterRanker(
        versions=Versions(
            tree_version=tree.version, retriever_version="e" * 12, order_version="f" * 12
        ),
        nodes=tree.nodes,
        ids=ItemIds.of(tree.item_ids),
        leaf_start=np.asarray(tree.leaf_start, np.int64),
        matrix=matrix,
        satisfaction=np.random.default_rng(3).random(n).astype(np.float32),
        encode=encode,
        max_history=MAX_HISTORY,
        attributes=Attributes(pa.table({"colour": colours})),
    )


def retriever_service(tree: ClusterTree) -> RetrieverService:
    ranker = ranker_of(tree)
    return RetrieverService(
        RetrieverServing("d" * 12, ranker.versions, {tree.version: ranker}), CollectorRegistry()
    )


def planner_services(serving: PlannerServing, retriever: str) -> list[Service]:
    """To be made within the event loop that serves them."""
    planner = PlannerService(serving)
    return services(planner, RecommenderService(planner, channel_to(retriever)))


def channel_to(retriever: str) -> Channel:
    """As the planner server makes it."""
    opened = Upstream(retriever).open(CollectorRegistry())
    assert opened is not None
    return opened.in_loop()


@contextlib.asynccontextmanager
async def planner_server(serving: PlannerServing, retriever: str) -> AsyncIterator[Any]:
    """(the running server, its PlannerService), in this event loop."""
    planner = PlannerService(serving)
    async with channel_to(retriever) as channel:
        served = services(planner, RecommenderService(planner, channel))
        async with serve("planner", served) as running:
            yield running, planner
