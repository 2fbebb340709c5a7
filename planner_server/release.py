"""Opens what the current release names for the planner. Knows no gRPC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from planner_server.live import LivePlanner
from serendip.artifacts import Artifact, Artifacts
from serendip.catalog.items import read_items
from serendip.config import PlannerConfig, PlansConfig
from serendip.core import CorruptArtifact, Item, Plan, PlannedCluster, Versions
from serendip.planning.lmdb_store import FILE, LmdbStore
from serendip.planning.plan_store import PlanStore
from serendip.planning.planner import Planner
from serendip.planning.trie import DescriptionTrie
from serendip.tree.cluster_tree import ClusterTree


@dataclass(frozen=True)
class Serving:
    """What a planner server serves at a time.

    Attributes:
        trie: the descriptions that can be planned, for Resolve.
        level, level_gap: of the plans.
        store: plans by item.
        fallbacks: for each cluster its siblings with shrunk mean satisfaction, best first.
        live: plans by the model; None where live planning is off.
        items: the catalogue by item ID, for live plans; empty if it was not given.
    """

    versions: Versions
    tree: ClusterTree
    trie: DescriptionTrie
    level: int
    level_gap: int
    store: PlanStore
    fallbacks: Mapping[int, tuple[PlannedCluster, ...]]
    live: LivePlanner | None
    items: Mapping[str, Item]

    def fallback(self, item_id: str, own: int) -> Plan:
        """The plan of an item that has none: the siblings that satisfied most from its cluster."""
        return Plan(
            context_item_id=item_id,
            clusters=self.fallbacks[own],
            own_node_id=own,
            reasoning="",
            tree_version=self.versions.tree_version,
            planner_version="",
            planned_at_ms=0,
        )


def open_release(
    artifacts: Artifacts, catalogue: Path | None, *, live: bool, redis: str = ""
) -> Serving:
    """Opens tree, plans and, if ``live``, the checkpoint of the current release.

    Args:
        catalogue: the data folder whose media live plans may read; None: they are made from
            requests' bytes alone.
        redis: URL of the Redis that has the release's plans; empty: the artefact's file is read.

    Raises:
        NotFound: there is no release, or not the part that it names, or Redis lacks its plans.
        NotReady: Redis cannot be reached.
        CorruptArtifact: a part is not what it says, or does not fit the others.
        InvalidData: the catalogue breaks its schema.
    """
    release = artifacts.current("release")
    parts = {kind: artifacts.open(kind, v) for kind, v in release.inputs.items()}
    lacking = {"tree", "planner", "plans"} - parts.keys()
    if lacking or any(
        parts[k].tree_version != parts["tree"].tree_version for k in ("planner", "plans")
    ):
        raise CorruptArtifact(
            "its parts do not fit together",
            field=f"release/{release.version}",
            remedy="Publish it again (serendip release).",
        )
    tree = ClusterTree.open(parts["tree"])
    trained = parts["planner"]
    level, level_gap = int(trained.config["level"]), int(trained.config["level_gap"])
    return Serving(
        versions=Versions(
            tree_version=tree.version,
            planner_version=trained.version,
            plans_version=parts["plans"].version,
        ),
        tree=tree,
        trie=DescriptionTrie.open(trained.path / "trie"),
        level=level,
        level_gap=level_gap,
        store=_store(parts["plans"], redis),
        fallbacks=_fallbacks(tree, level, level_gap, parts["plans"].file("transitions.parquet")),
        live=LivePlanner(
            Planner.open(
                trained, tree.nodes, PlansConfig.model_validate(parts["plans"].config["plans"])
            ),
            threads=PlannerConfig.model_validate(trained.config["planner"]).threads,
        )
        if live
        else None,
        items={} if catalogue is None else {i.item_id: i for i in read_items(catalogue)},
    )


def _store(plans: Artifact, redis: str) -> PlanStore:
    if not redis:
        return LmdbStore(plans.file(FILE))
    from serendip.planning.redis_store import RedisStore, connect

    return RedisStore(connect(redis), plans.version)


def _fallbacks(
    tree: ClusterTree, level: int, level_gap: int, transitions: Path
) -> dict[int, tuple[PlannedCluster, ...]]:
    """Siblings of each cluster by shrunk mean satisfaction; unobserved ones last, by size."""
    observed = {
        (row["own_id"], row["node_id"]): row["satisfaction"]
        for row in pq.read_table(transitions).to_pylist()
    }
    found = {}
    for own in tree.nodes.at_level(level):
        siblings = [
            n for n in tree.nodes.at_level(level) if tree.nodes.is_serendipitous(own, n, level_gap)
        ]

        def worth(node: int, own: int = own) -> tuple[float, int]:
            start, end = tree.slice(node)
            return observed.get((own, node), 0.0), end - start

        siblings.sort(key=worth, reverse=True)
        found[own] = tuple(
            PlannedCluster(n, tree.nodes.description[n], worth(n)[0], True) for n in siblings[:8]
        )
    return found
