"""Both tiers as toys whose answers are obvious; they remember the requests they got."""

from __future__ import annotations

import asyncio
from typing import Any

from serendip import wire, wire_plans, wire_recommend
from serendip.core import (
    AttributeType,
    Candidate,
    InvalidRequest,
    NotFound,
    Overloaded,
    Plan,
    PlannedCluster,
    PlanSource,
    Retrieval,
    SerendipError,
    Versions,
    WrongTree,
)
from serendip.serving.errors import OK_STATUS, status_of
from serendip.serving.handlers import Call, Service, service_of
from serendip.v1 import planner_pb2, recommender_pb2, retriever_pb2
from serendip.wire_filters import attributes_to_proto

TREE = "0123456789ab"
PLANNER_VERSIONS = Versions(tree_version=TREE, planner_version="p", plans_version="q")
RETRIEVER_VERSIONS = Versions(tree_version=TREE, retriever_version="r", order_version="o")
NODES = 25


def plan_of(item: str, k: int) -> Plan:
    clusters = tuple([PlannedCluster(node, f"cluster {node}", -node, True) for node in (4, 6, 5)])
    return Plan(item, clusters[:k], 3, "because", TREE, "p", 1_700_000_000_123)


class Planner:
    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.metadata: list[Any] = []
        self.failures: list[Exception] = []

    def _note(self, request: Any, call: Call) -> None:
        self.requests.append(request)
        self.metadata.append(dict(call.metadata))
        if self.failures:
            raise self.failures.pop(0)

    async def Plan(self, request: Any, call: Call) -> planner_pb2.PlanResponse:
        self._note(request, call)
        wire.check_plan_request(request)
        if request.tree_version not in ("", TREE):
            raise WrongTree(f"is not open here, but: {TREE}", field="tree_version")
        rows = []
        for item in request.context_item_ids:
            if item == "slow":
                await asyncio.sleep(10)
            if item == "unknown":
                error = NotFound("is unknown", field="context_item_ids", value=item)
                rows.append(planner_pb2.PlanRow(status=status_of(error)))
                continue
            plan = plan_of(item, request.k)
            if item == "empty":
                plan = plan_of(item, 0)
            row = planner_pb2.PlanRow(
                status=OK_STATUS,
                plan=wire_plans.plan_to_proto(plan),
                source=wire_plans.source_to_proto(PlanSource.STORE),
                versions=wire.versions_to_proto(PLANNER_VERSIONS),
            )
            row.age.FromMilliseconds(1500)
            rows.append(row)
        return planner_pb2.PlanResponse(rows=rows)

    async def PlanContent(self, request: Any, call: Call) -> planner_pb2.PlanContentResponse:
        self._note(request, call)
        plan = wire_plans.plan_to_proto(plan_of("", request.k))
        plan.ClearField("own_node_id")
        return planner_pb2.PlanContentResponse(
            plan=plan, versions=wire.versions_to_proto(PLANNER_VERSIONS)
        )

    async def Resolve(self, request: Any, call: Call) -> planner_pb2.ResolveResponse:
        self._note(request, call)
        known = {"cluster 0": 0, "cluster 4": 4}
        rows = [
            planner_pb2.ResolveRow(status=OK_STATUS, node_id=known[text])
            if text in known
            else planner_pb2.ResolveRow(status=status_of(NotFound("no such description")))
            for text in request.texts
        ]
        return planner_pb2.ResolveResponse(rows=rows, match_rate=0.5, tree_version=TREE)

    async def ListClusters(self, request: Any, call: Call) -> planner_pb2.ListClustersResponse:
        self._note(request, call)
        start = int(request.page_token or 0)
        stop = min(start + request.page_size, NODES)
        return planner_pb2.ListClustersResponse(
            clusters=[
                one
                for one in map(cluster, range(start, stop))
                if all(word in one.description for word in request.query.split())
            ],
            next_page_token=str(stop) if stop < NODES else "",
            tree_version=TREE,
        )

    async def GetCluster(self, request: Any, call: Call) -> planner_pb2.GetClusterResponse:
        self._note(request, call)
        if not 0 <= request.node_id < NODES:
            raise NotFound("is no node", field="node_id", value=request.node_id)
        return planner_pb2.GetClusterResponse(cluster=cluster(request.node_id), tree_version=TREE)

    async def GetInfo(self, request: Any, call: Call) -> planner_pb2.PlannerGetInfoResponse:
        self._note(request, call)
        return planner_pb2.PlannerGetInfoResponse(
            versions=wire.versions_to_proto(PLANNER_VERSIONS),
            level=4,
            level_gap=1,
            prompt_style="video_cot",
            plan_count=7,
            cluster_count=NODES,
            limits=planner_pb2.PlannerLimits(context_items=256, video_seconds=60.0),
            recommends=True,
        )


class Recommender:
    """Composes as a planner server does, over objects instead of a second channel."""

    def __init__(self, planner: Planner, retriever: Retriever) -> None:
        self._planner, self._retriever = planner, retriever

    async def plans_for(self, requests: Any, deadline: float) -> list[Any]:
        call = Call(deadline)
        asked = [wire_recommend.to_plan_request([request]) for request in requests]
        return [(await self._planner.Plan(one, call)).rows[0] for one in asked]

    async def _composed(self, requests: Any, call: Call) -> list[Any]:
        composition = wire_recommend.composed(requests)
        answer: Any = None
        while True:
            try:
                wish = composition.send(answer)
            except StopIteration as done:
                return list(done.value)
            if isinstance(wish, wire_recommend.Plans):
                answer = await self.plans_for(wish.requests, 0.0)
            elif isinstance(wish, wire_recommend.Items):
                answer = [await self._retrieved(raw, call) for raw in wish.requests]
            else:
                answer = TREE

    async def _retrieved(self, raw: bytes, call: Call) -> Any:
        request = retriever_pb2.RetrieveRequest.FromString(raw)
        try:
            return (await self._retriever.Retrieve(request, call)).SerializeToString()
        except SerendipError as error:
            return error

    async def Recommend(self, request: Any, call: Call) -> bytes:
        (outcome,) = await self._composed([request], call)
        if isinstance(outcome, SerendipError):
            raise outcome
        return bytes(outcome)

    async def RecommendBatch(
        self, request: Any, call: Call
    ) -> recommender_pb2.RecommendBatchResponse:
        rows = [
            recommender_pb2.RecommendRow(status=status_of(outcome))
            if isinstance(outcome, SerendipError)
            else recommender_pb2.RecommendRow(
                status=OK_STATUS,
                response=recommender_pb2.RecommendResponse.FromString(outcome),
            )
            for outcome in await self._composed(list(request.requests), call)
        ]
        return recommender_pb2.RecommendBatchResponse(rows=rows)


class Retriever:
    def __init__(self) -> None:
        self.requests: list[Any] = []

    async def Retrieve(self, request: Any, call: Call) -> retriever_pb2.RetrieveResponse:
        self.requests.append(request)
        return self._answer(request)

    async def RetrieveBatch(self, request: Any, call: Call) -> retriever_pb2.RetrieveBatchResponse:
        rows = []
        self.requests.append(request)
        for one in request.requests:
            try:
                rows.append(retriever_pb2.RetrieveRow(status=OK_STATUS, response=self._answer(one)))
            except InvalidRequest as error:
                rows.append(retriever_pb2.RetrieveRow(status=status_of(error)))
        return retriever_pb2.RetrieveBatchResponse(rows=rows)

    async def GetInfo(self, request: Any, context: Any) -> retriever_pb2.RetrieverGetInfoResponse:
        return retriever_pb2.RetrieverGetInfoResponse(
            versions=wire.versions_to_proto(RETRIEVER_VERSIONS),
            tree_versions=[TREE],
            item_count=1000,
            max_history=50,
            dimensions=65,
            attributes=attributes_to_proto({"age": AttributeType.INTEGER}),
            fresh_item_count=3,
            deleted_item_count=2,
            withheld_item_count=1,
        )

    def _answer(self, request: Any) -> retriever_pb2.RetrieveResponse:
        query = wire.query_from_proto(request)
        if 99 in query.node_ids:
            raise InvalidRequest("is a bad node", field="node_ids", value=99)
        found = [Candidate(f"item-{i}", 1.0 - i / 1024, query.node_ids[0]) for i in range(query.k)]
        widened_to = query.widen_node_ids[:1]
        return wire.retrieval_to_proto(
            Retrieval(tuple(found), widened_to, len(query.history)), RETRIEVER_VERSIONS
        )


def cluster(node: int) -> planner_pb2.Cluster:
    return planner_pb2.Cluster(
        node_id=node,
        level=0 if node == 0 else 1,
        parent_node_id=-1 if node == 0 else 0,
        description=f"cluster {node}" if node else "",
        item_count=100 * node,
    )


class Tiers:
    """All three services; on one server, or on two."""

    def __init__(self) -> None:
        self.planner = Planner()
        self.retriever = Retriever()
        self.recommender = Recommender(self.planner, self.retriever)

    def planner_services(self) -> list[Service]:
        return [
            service_of(planner_pb2.DESCRIPTOR.services_by_name["Planner"], self.planner),
            service_of(
                recommender_pb2.DESCRIPTOR.services_by_name["Recommender"], self.recommender
            ),
        ]

    def retriever_services(self) -> list[Service]:
        return [service_of(retriever_pb2.DESCRIPTOR.services_by_name["Retriever"], self.retriever)]


FULL = Overloaded("9 rows are waiting", retry_after_s=0.25)
