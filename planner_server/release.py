"""Opens what the current release names for the planner. Knows no gRPC."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq

from planner_server.live import LivePlanner
from planner_server.live_metrics import LiveMetrics
from serendip.artifacts import Artifact, Artifacts
from serendip.catalog.items import read_items
from serendip.config import PlannerConfig, PlansConfig
from serendip.core import (
    MAX_PLANNED_CLUSTERS,
    CorruptArtifact,
    InvalidRequest,
    Item,
    Plan,
    PlannedCluster,
    Versions,
)
from serendip.planning.kept_plans import KeptPlans
from serendip.planning.lmdb_store import FILE, LmdbStore
from serendip.planning.plan_store import PlanStore
from serendip.planning.prompt import load_content, load_inside
from serendip.planning.rows import plans_made_of
from serendip.planning.style import style_of
from serendip.planning.trie import DescriptionTrie
from serendip.planning.workers import Setup
from serendip.tree.cluster_tree import ClusterTree

_PARTS = ("tree", "planner", "plans")


@dataclass(frozen=True)
class LiveOptions:
    """How plans are made live.

    Attributes:
        workers: processes, each with a model of its own.
        runtime: of the model; "auto": ONNX Runtime where the planner has graphs, else torch.
        threads: of each model; None: as the planner was trained with.
        keeps: whether live plans are kept for later calls and the next bulk run.
    """

    workers: int = 1
    runtime: Literal["auto", "onnx", "torch"] = "auto"
    threads: int | None = None
    keeps: bool = True


class Fallbacks:
    """For each cluster the siblings that satisfied most after it, by the curated table."""

    def __init__(
        self,
        tree: ClusterTree,
        level: int,
        level_gap: int,
        satisfaction: Mapping[tuple[int, int], float],
    ) -> None:
        """
        Args:
            satisfaction: shrunk mean satisfaction by (own cluster, next cluster).
        """
        self._tree = tree
        self._level, self._level_gap = level, level_gap
        self._satisfaction = satisfaction
        self._kept: dict[int, tuple[PlannedCluster, ...]] = {}

    @classmethod
    def open(cls, transitions: Path, tree: ClusterTree, level: int, level_gap: int) -> Fallbacks:
        """Reads the table that was published with the plans."""
        table = pq.read_table(transitions, columns=["own_id", "node_id", "satisfaction"])
        own, node, satisfaction = (column.to_pylist() for column in table.columns)
        observed = dict(zip(zip(own, node, strict=True), satisfaction, strict=True))
        return cls(tree, level, level_gap, observed)

    def of(self, own: int) -> tuple[PlannedCluster, ...]:
        """At most 8 siblings, best first; those that were not observed last, by size."""
        kept = self._kept.get(own)
        if kept is None:
            kept = self._kept[own] = self._best(own)
        return kept

    def _best(self, own: int) -> tuple[PlannedCluster, ...]:
        nodes = self._tree.nodes

        def worth(node: int) -> tuple[float, int]:
            start, end = self._tree.slice(node)
            return self._satisfaction.get((own, node), 0.0), end - start

        above = nodes.ancestor(own, self._level - self._level_gap)
        siblings = [node for node in nodes.under(above, self._level) if node != own]
        siblings.sort(key=worth, reverse=True)
        return tuple(
            PlannedCluster(node, nodes.description[node], worth(node)[0], True)
            for node in siblings[:MAX_PLANNED_CLUSTERS]
        )


@dataclass(frozen=True)
class Serving:
    """What a planner server serves at a time; replaced as a whole.

    Attributes:
        version: of the release.
        trie: the descriptions that can be planned, for Resolve.
        level, level_gap: of the plans.
        store: plans by item.
        live: plans by the model; None where live planning is off.
        items: the catalogue by item ID, for live plans; empty if it was not given.
    """

    version: str
    versions: Versions
    tree: ClusterTree
    trie: DescriptionTrie
    level: int
    level_gap: int
    store: PlanStore
    fallbacks: Fallbacks
    live: LivePlanner | None
    items: Mapping[str, Item]

    def clusters_under(self, node_ids: Iterable[int]) -> set[int]:
        """The clusters of the planning level that are, or lie in, any of the nodes.

        Raises NotFound at a node that does not exist, InvalidRequest at one below the level.
        """
        nodes = self.tree.nodes
        found: set[int] = set()
        for node in node_ids:
            nodes.check(node, "exclude_node_ids")
            if nodes.level[node] > self.level:
                raise InvalidRequest(
                    f"must be at the planning level ({self.level}) or above it",
                    field="exclude_node_ids",
                    value=node,
                    remedy="Exclude its ancestor, or have its items denied by Retrieve.",
                )
            found.update(nodes.under(node, self.level))
        return found

    def fallback(self, item_id: str, own: int) -> Plan:
        """The plan of an item that has none: the siblings that satisfied most from its cluster."""
        return Plan(
            context_item_id=item_id,
            clusters=self.fallbacks.of(own),
            own_node_id=own,
            reasoning="",
            tree_version=self.versions.tree_version,
            planner_version="",
            planned_at_ms=0,
        )


def open_release(
    artifacts: Artifacts,
    catalogue: Path | None,
    version: str | None = None,
    *,
    live: LiveOptions | None,
    redis: str = "",
    verify: bool = True,
    metrics: LiveMetrics | None = None,
) -> Serving:
    """Opens tree and plans of a release and, unless ``live`` is None, workers with its planner.

    Args:
        metrics: told what live planning does.
        version: None: the current release.
        verify: whether files are compared with their hashes.
        catalogue: the data folder whose media live plans may read; None: they are made from
            requests' bytes alone.
        redis: URL of the Redis that has the release's plans; empty: the artefact's file is read.

    Raises:
        NotFound: there is no release, or not the part that it names, or Redis lacks its plans.
        NotReady: Redis cannot be reached.
        CorruptArtifact: a part is not what it says, or does not fit the others.
        InvalidData: the catalogue breaks its schema.
        InvalidRequest: the planner has no graphs, and live.runtime wants them.
    """
    if version is None:
        release = artifacts.current("release")
    else:
        release = artifacts.open("release", version)
    # The retriever is the other server's to read: its files are the largest.
    parts = {
        kind: artifacts.open(kind, release.inputs[kind], verify=verify)
        for kind in _PARTS
        if kind in release.inputs
    }
    if len(parts) < len(_PARTS) or any(
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
    items = {} if catalogue is None else {i.item_id: i for i in read_items(catalogue)}
    return Serving(
        version=release.version,
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
        fallbacks=Fallbacks.open(
            parts["plans"].file("transitions.parquet"), tree, level, level_gap
        ),
        live=_live(parts, tree, live, artifacts.root, catalogue, metrics) if live else None,
        items=items,
    )


def _store(plans: Artifact, redis: str) -> PlanStore:
    if not redis:
        return LmdbStore(plans.file(FILE))
    from serendip.planning.redis_store import RedisStore, connect

    return RedisStore(connect(redis), plans.version)


def _live(
    parts: Mapping[str, Artifact], tree: ClusterTree, options: LiveOptions, root: Path,
    catalogue: Path | None, metrics: LiveMetrics | None,
) -> LivePlanner:  # fmt: skip
    planner = parts["planner"]
    trained = PlannerConfig.model_validate(planner.config["planner"])
    plans = PlansConfig.model_validate(parts["plans"].config["plans"])
    # Whatever has planned in bulk, what plans live is this package's engine.
    plans = plans.model_copy(update={"engine": "serendip"})
    metrics = metrics if metrics is not None else LiveMetrics()
    setup = Setup(
        replace(planner, path=planner.path.resolve()),
        tree.nodes,
        plans.model_copy(update={"runtime": options.runtime}),
        options.threads or trained.threads,
        style_of(planner),
        trained.frames,
        load_content if catalogue is None else partial(load_inside, catalogue.resolve()),
    )
    kept = None
    if options.keeps:
        kept = KeptPlans(
            root,
            planner.version,
            plans_made_of(tree.version, planner, plans),
            trained.text_chars,
            on_kept=metrics.kept.inc,
            on_failed=metrics.keep_failures.inc,
        )
    return LivePlanner(setup, workers=options.workers, metrics=metrics, kept=kept)
