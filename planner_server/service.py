"""The planner's servicer: Plan, PlanContent, Resolve, and the tree.

    Plan ──> store ──miss──> live ──cannot──> fallback ──unknown item──> NOT_FOUND

Recommend is recommend.py's. Knows no file: everything comes opened, as Serving.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from google.rpc import code_pb2
from prometheus_client import CollectorRegistry

from planner_server.content import read_content
from planner_server.descriptions import Descriptions, ResolveMetrics, resolve, words_of
from planner_server.encode import encode_response
from planner_server.limits import MAX_PAGE, MAX_TEXTS, limits
from planner_server.live import LivePlanner
from planner_server.plan_metrics import PlanMetrics
from planner_server.plan_rows import PlanRows, Wanted
from planner_server.recommend import RecommenderService
from planner_server.release import Serving
from serendip.core import (
    InvalidRequest,
    NotReady,
    SerendipError,
    WrongTree,
    check_length,
    check_range,
)
from serendip.planning.live_worker import Query
from serendip.planning.plan_store import plan_message
from serendip.serving.handlers import Call, Service, service_of
from serendip.serving.server import Running, ServerOptions
from serendip.tree.cluster_tree import LEVELS, ClusterTree, Nodes
from serendip.v1 import planner_pb2, recommender_pb2
from serendip.wire import check_plan_request, versions_to_proto

_PAGE = 100


class PlannerService:
    """Serves one release's plans and tree.

    Args:
        registry: takes the service's metrics; a new one if None.
        recommends: whether Recommender is served beside it.
        request_bytes: what the front takes, for GetInfo to tell.
    """

    def __init__(
        self,
        serving: Serving,
        registry: CollectorRegistry | None = None,
        *,
        recommends: bool = False,
        request_bytes: int = ServerOptions.max_request_bytes,
    ) -> None:
        registry = registry if registry is not None else CollectorRegistry()
        self._metrics = PlanMetrics(registry)
        self._resolved = ResolveMetrics(registry)
        self._recommends, self._limits = recommends, limits(request_bytes)
        self.swap(serving)

    @property
    def serving(self) -> Serving:
        """What is served now."""
        return self._serving

    @property
    def tree_version(self) -> str:
        """What is planned under now."""
        return self._serving.versions.tree_version

    @property
    def version(self) -> str:
        """Of the release that is served now."""
        return self._serving.version

    def swap(self, serving: Serving) -> None:
        """Serves something else from the next call on; to be called by the event loop's thread."""
        self._serving = serving
        self._rows = PlanRows(serving, self._metrics)
        self._descriptions = Descriptions(serving.tree.nodes)

    async def Plan(self, request: planner_pb2.PlanRequest, call: Call) -> bytes:
        """Plans for catalogue items; every row by itself."""
        call.rows, call.version = len(request.context_item_ids), self._serving.version
        check_plan_request(request)
        self._check_tree(request.tree_version)
        wanted = Wanted.of(request, self._serving)
        rows = await self._rows.rows(list(request.context_item_ids), wanted, call.deadline)
        return encode_response(rows)

    async def PlanContent(
        self, request: planner_pb2.PlanContentRequest, call: Call
    ) -> planner_pb2.PlanContentResponse:
        """A live plan for an item that the catalogue does not have."""
        self._check_tree(request.tree_version)
        check_range(request.k, "k", 1, 8)
        versions = self._serving.versions  # of the model that is asked, whatever is swapped in
        query = Query(read_content(request), exclude=self._excluded(request))
        plan = plan_message(await self._live().plan(query, call.deadline))
        del plan.clusters[request.k :]
        return planner_pb2.PlanContentResponse(
            plan=plan, versions=versions_to_proto(replace(versions, plans_version=""))
        )

    async def Resolve(
        self, request: planner_pb2.ResolveRequest, call: Call
    ) -> planner_pb2.ResolveResponse:
        """Texts to nodes."""
        self._check_tree(request.tree_version)
        check_length(tuple(request.texts), "texts", 1, MAX_TEXTS)
        serving = self._serving
        # A thread's: the first call of a release hashes every description.
        rows = await asyncio.to_thread(resolve, serving.trie, request.texts)
        self._resolved.count(rows)
        matched = sum(row.status.code == code_pb2.OK for row in rows)
        return planner_pb2.ResolveResponse(
            rows=rows,
            match_rate=matched / len(rows),
            tree_version=serving.versions.tree_version,
        )

    async def ListClusters(
        self, request: planner_pb2.ListClustersRequest, call: Call
    ) -> planner_pb2.ListClustersResponse:
        """The tree, page by page."""
        tree = self._serving.tree  # of all that follows, whatever is swapped in meanwhile
        nodes = _listed(tree.nodes, request)
        size = request.page_size or _PAGE
        check_range(size, "page_size", 1, MAX_PAGE)
        words = words_of(request.query)
        # A page's token is the first node of the next one: nothing is searched twice.
        found = await self._descriptions.first(nodes, words, size + 1)
        return planner_pb2.ListClustersResponse(
            clusters=[_cluster(tree, n) for n in found[:size]],
            next_page_token=str(found[size]) if len(found) > size else "",
            tree_version=tree.version,
        )

    async def GetCluster(
        self, request: planner_pb2.GetClusterRequest, call: Call
    ) -> planner_pb2.GetClusterResponse:
        """One node."""
        tree = self._serving.tree
        node = tree.nodes.check(request.node_id)
        return planner_pb2.GetClusterResponse(
            cluster=_cluster(tree, node), tree_version=tree.version
        )

    async def GetInfo(
        self, request: planner_pb2.PlannerGetInfoRequest, call: Call
    ) -> planner_pb2.PlannerGetInfoResponse:
        """Versions, level and size."""
        serving = self._serving
        return planner_pb2.PlannerGetInfoResponse(
            versions=versions_to_proto(serving.versions),
            level=serving.level,
            level_gap=serving.level_gap,
            prompt_style=serving.live.style if serving.live else "",
            plan_count=serving.store.info().count,
            cluster_count=len(serving.tree.nodes.at_level(serving.level)),
            limits=self._limits,
            recommends=self._recommends,
        )

    async def plans_for(
        self, requests: Sequence[recommender_pb2.RecommendRequest], deadline: float
    ) -> list[planner_pb2.PlanRow | SerendipError]:
        """What recommendations follow, each by its own options; one look-up for all."""
        wanted = [self._wanted(request) for request in requests]
        good = [
            (request.context_item_id, one)
            for request, one in zip(requests, wanted, strict=True)
            if isinstance(one, Wanted)
        ]
        ids, options = [item_id for item_id, _ in good], [one for _, one in good]
        rows = iter(await self._rows.of_each(ids, options, deadline))
        return [
            planner_pb2.PlanRow.FromString(next(rows)) if isinstance(one, Wanted) else one
            for one in wanted
        ]

    # --- checks and pieces -----------------------------------------------------------------

    def _check_tree(self, tree_version: str) -> None:
        serving = self._serving.versions.tree_version
        if tree_version and tree_version != serving:
            raise WrongTree(
                f"is not served here; served is {serving}",
                field="tree_version",
                value=tree_version,
                remedy="Ask again with that one, or leave it empty.",
            )

    def _wanted(self, request: recommender_pb2.RecommendRequest) -> Wanted | SerendipError:
        try:
            return Wanted.by_recommendation(request, self._serving)
        except SerendipError as e:
            return e

    def _live(self) -> LivePlanner:
        if self._serving.live is None:
            raise NotReady(
                "live planning is off", remedy="Start the planner server without --no-live."
            )
        return self._serving.live

    def _excluded(self, request: planner_pb2.PlanContentRequest) -> tuple[int, ...]:
        nodes = self._serving.tree.nodes
        for node in request.exclude_node_ids:
            nodes.check(node, "exclude_node_ids")
            if nodes.level[node] != self._serving.level:
                raise InvalidRequest(
                    f"must be at the planning level ({self._serving.level})",
                    field="exclude_node_ids",
                    value=node,
                    remedy="ListClusters with that level names the clusters.",
                )
        return tuple(request.exclude_node_ids)


def services(planner: PlannerService, recommender: RecommenderService | None) -> list[Service]:
    """What the planner server serves; Recommend only with a retriever's address."""
    served = [service_of(planner_pb2.DESCRIPTOR.services_by_name["Planner"], planner)]
    if recommender is not None:
        descriptor = recommender_pb2.DESCRIPTOR.services_by_name["Recommender"]
        served.append(service_of(descriptor, recommender))
    return served


def show_versions(running: Running, serving: Serving) -> None:
    """Puts what is served into the running server's metrics."""
    versions = serving.versions
    running.metrics.set_versions(
        tree=versions.tree_version,
        planner=versions.planner_version,
        plans=versions.plans_version,
    )


def _listed(nodes: Nodes, request: planner_pb2.ListClustersRequest) -> range:
    """The nodes that a request is about, from its page on; consecutive, whatever it asks."""
    level = request.level if request.HasField("level") else None
    if level is not None:
        check_range(level, "level", 0, LEVELS)
    if request.HasField("parent_node_id"):
        listed = nodes.children(nodes.check(request.parent_node_id, "parent_node_id"))
        if listed and level not in (None, int(nodes.level[listed.start])):
            listed = range(0)
    else:
        listed = range(len(nodes)) if level is None else nodes.at_level(level)
    return range(max(listed.start, _page_start(request.page_token)), listed.stop)


def _cluster(tree: ClusterTree, node: int) -> planner_pb2.Cluster:
    start, end = tree.slice(node)
    return planner_pb2.Cluster(
        node_id=node,
        level=int(tree.nodes.level[node]),
        parent_node_id=int(tree.nodes.parent[node]),
        description=tree.nodes.description[node],
        item_count=end - start,
    )


def _page_start(token: str) -> int:
    if not token:
        return 0
    if not token.isascii() or not token.isdigit() or len(token) > 10:
        raise InvalidRequest(
            "is no page token",
            field="page_token",
            value=token,
            remedy="Send the next_page_token of the page before.",
        )
    return int(token)
