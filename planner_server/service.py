"""The planner's servicers: Plan, PlanContent, Resolve, the tree, and Recommend.

    Plan ──> store ──miss──> live ──cannot──> fallback ──unknown item──> NOT_FOUND
    Recommend ──> Plan ──> retriever's Retrieve

Knows no file: everything comes opened, as Serving.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import grpc
from google.rpc import code_pb2
from prometheus_client import CollectorRegistry

from planner_server.encode import encode_response
from planner_server.live import LivePlanner, LiveQuery
from planner_server.plan_metrics import PlanMetrics
from planner_server.plan_rows import PlanRows, Wanted
from planner_server.release import Serving
from serendip.catalog.media import decode_image
from serendip.core import (
    MAX_PLANNED_CLUSTERS,
    Constraint,
    InvalidRequest,
    NotFound,
    NotReady,
    Unauthenticated,
    WrongTree,
    check_length,
    check_range,
)
from serendip.planning.prompt import Content
from serendip.serving.errors import OK_STATUS, status_of
from serendip.serving.handlers import Call, Metadata, Service, service_of
from serendip.serving.server import Running
from serendip.v1 import planner_pb2, recommender_pb2, retriever_pb2_grpc
from serendip.wire import (
    check_plan_request,
    check_recommend_request,
    error_from_rpc,
    error_from_status,
    to_recommend_response,
    to_retrieve_request,
    versions_to_proto,
)
from serendip.wire_plans import constraint_from_proto, plan_to_proto

_PAGE, _MAX_PAGE = 100, 1000
_RECOMMEND_S = 10.0  # where the caller sets no deadline: a call that never hangs


class PlannerService:
    """Serves one release's plans and tree.

    Args:
        registry: takes the service's metrics; a new one if None.
    """

    def __init__(self, serving: Serving, registry: CollectorRegistry | None = None) -> None:
        self._metrics = PlanMetrics(registry if registry is not None else CollectorRegistry())
        self.swap(serving)

    @property
    def serving(self) -> Serving:
        """What is served now."""
        return self._serving

    def swap(self, serving: Serving) -> None:
        """Serves something else from the next call on; to be called by the event loop's thread."""
        self._serving = serving
        self._rows = PlanRows(serving, self._metrics)

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
        query = LiveQuery(
            await asyncio.to_thread(_content, request), exclude=self._excluded(request)
        )
        plan = await self._live().plan(query, call.deadline)
        return planner_pb2.PlanContentResponse(
            plan=plan_to_proto(replace(plan, clusters=plan.clusters[: request.k])),
            versions=versions_to_proto(replace(self._serving.versions, plans_version="")),
        )

    async def Resolve(
        self, request: planner_pb2.ResolveRequest, call: Call
    ) -> planner_pb2.ResolveResponse:
        """Texts to nodes."""
        self._check_tree(request.tree_version)
        check_length(tuple(request.texts), "texts", 1, 1024)
        rows = [self._resolve(text, at) for at, text in enumerate(request.texts)]
        matched = sum(row.status.code == code_pb2.OK for row in rows)
        return planner_pb2.ResolveResponse(
            rows=rows,
            match_rate=matched / len(rows),
            tree_version=self._serving.versions.tree_version,
        )

    async def ListClusters(
        self, request: planner_pb2.ListClustersRequest, call: Call
    ) -> planner_pb2.ListClustersResponse:
        """The tree, page by page."""
        nodes = self._listed(request)
        size = request.page_size or _PAGE
        check_range(size, "page_size", 1, _MAX_PAGE)
        start = _page_start(request.page_token)
        rest = [n for n in nodes if n >= start]
        return planner_pb2.ListClustersResponse(
            clusters=[self._cluster(n) for n in rest[:size]],
            next_page_token=str(rest[size]) if len(rest) > size else "",
            tree_version=self._serving.versions.tree_version,
        )

    async def GetCluster(
        self, request: planner_pb2.GetClusterRequest, call: Call
    ) -> planner_pb2.GetClusterResponse:
        """One node."""
        node = self._serving.tree.nodes.check(request.node_id)
        return planner_pb2.GetClusterResponse(
            cluster=self._cluster(node), tree_version=self._serving.versions.tree_version
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
            prompt_style=serving.live.planner.config.style if serving.live else "",
            plan_count=serving.store.info().count,
            cluster_count=len(serving.tree.nodes.at_level(serving.level)),
        )

    async def plan_one(
        self, item_id: str, constraint: Constraint, deadline: float
    ) -> planner_pb2.PlanRow:
        """The row that a recommendation follows.

        Raises:
            SerendipError: there is no plan, or the constraint leaves nothing of it.
        """
        wanted = Wanted(MAX_PLANNED_CLUSTERS, constraint, frozenset(), None, reasoning=True)
        (data,) = await self._rows.rows([item_id], wanted, deadline)
        row: planner_pb2.PlanRow = planner_pb2.PlanRow.FromString(data)
        if error := error_from_status(row.status):
            raise error
        if not row.plan.clusters and row.plan.HasField("own_node_id"):
            return self._rows.fallback(item_id, row.plan.own_node_id, wanted)
        return row

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

    def _resolve(self, text: str, at: int) -> planner_pb2.ResolveRow:
        if len(text.encode()) > 2000:
            long = InvalidRequest("at most 2,000 bytes", field=f"texts[{at}]", value=text)
            return planner_pb2.ResolveRow(status=status_of(long))
        node = self._serving.trie.resolve(text)
        if node is None:
            absent = NotFound("no description equals it", field=f"texts[{at}]", value=text)
            return planner_pb2.ResolveRow(status=status_of(absent))
        return planner_pb2.ResolveRow(status=OK_STATUS, node_id=node)

    def _listed(self, request: planner_pb2.ListClustersRequest) -> Sequence[int]:
        nodes = self._serving.tree.nodes
        level = request.level if request.HasField("level") else None
        if level is not None:
            check_range(level, "level", 0, 4)
        if not request.HasField("parent_node_id"):
            return range(len(nodes)) if level is None else nodes.at_level(level)
        children = nodes.children(nodes.check(request.parent_node_id, "parent_node_id"))
        return [n for n in children if level is None or nodes.level[n] == level]

    def _cluster(self, node: int) -> planner_pb2.Cluster:
        nodes = self._serving.tree.nodes
        start, end = self._serving.tree.slice(node)
        return planner_pb2.Cluster(
            node_id=node,
            level=int(nodes.level[node]),
            parent_node_id=int(nodes.parent[node]),
            description=nodes.description[node],
            item_count=end - start,
        )


class RecommenderService:
    """One call for both levels, over a channel to a retriever server."""

    def __init__(self, planner: PlannerService, channel: Any, own: Callable[[], Metadata]) -> None:
        """
        Args:
            own: what a call to the retriever carries of this server's own: its token.
        """
        self._planner = planner
        self._own = own
        stub: Any = retriever_pb2_grpc.RetrieverStub
        self._retriever = stub(channel)

    async def Recommend(
        self, request: recommender_pb2.RecommendRequest, call: Call
    ) -> recommender_pb2.RecommendResponse:
        """Plans, then retrieves from the plan."""
        call.version = self._planner.serving.version
        check_recommend_request(request)
        deadline = call.deadline or time.monotonic() + _RECOMMEND_S
        constraint = constraint_from_proto(request.constraint)
        row = await self._planner.plan_one(request.context_item_id, constraint, deadline)
        metadata = (*call.onward, *self._own())
        response = await self._retrieve(to_retrieve_request(request, row.plan), deadline, metadata)
        return to_recommend_response(row, response)

    async def _retrieve(self, request: Any, deadline: float, metadata: Metadata) -> Any:
        try:
            return await self._retriever.Retrieve(
                request, timeout=max(0.001, deadline - time.monotonic()), metadata=metadata
            )
        except grpc.aio.AioRpcError as e:
            trailers = e.trailing_metadata() or ()
            error = error_from_rpc(e.code().value[0], e.details() or "", trailers)
            if isinstance(error, Unauthenticated):  # none of the caller's, whose token was good
                raise NotReady(
                    "the retriever does not take this server's token",
                    remedy="Look at --retriever-token-file.",
                ) from e
            raise error from e


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


def _content(request: planner_pb2.PlanContentRequest) -> Content:
    """Decodes a request's pictures within their bounds."""
    if not 1 <= len(request.title.encode()) <= 2000:
        raise InvalidRequest(
            "must be 1 to 2,000 bytes", field="title", value=request.title, remedy="Shorten it."
        )
    if len(request.text.encode()) > 20_000:
        raise InvalidRequest("at most 20,000 bytes", field="text", remedy="Shorten it.")
    check_length(tuple(request.frames), "frames", 0, 32)
    return Content(
        title=request.title,
        text=request.text,
        cover=_picture(request.thumbnail, "thumbnail") if request.thumbnail else None,
        frames=tuple(_picture(f, f"frames[{i}]") for i, f in enumerate(request.frames)),
    )


def _picture(data: bytes, field: str) -> Any:
    try:
        return decode_image(data, max_side=896)
    except InvalidRequest as e:
        raise InvalidRequest(e.message, field=field, value=e.value, remedy=e.remedy) from e


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
