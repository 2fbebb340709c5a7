"""The rows of a Plan call: from the store, else live, else the fallback, cut to what is wanted.

    store ──has it──> options ──k are left──> as it lies, or cut
      │ lacks it      ↑ │ too few are left
      ├──> kept live ─┘ │
      │ nor there       │
      └──────> live <───┘
                 │ no media, no time, no model
                 └──> what was left of the stored plan, else the fallback, else NOT_FOUND

Knows no gRPC.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from planner_server.deadlines import waits_until
from planner_server.encode import encode_row, encode_stored, head_of
from planner_server.plan_metrics import PlanMetrics
from planner_server.release import Serving
from serendip.core import (
    MAX_PLANNED_CLUSTERS,
    Constraint,
    CorruptArtifact,
    NotFound,
    PlanSource,
    SerendipError,
)
from serendip.planning.live_worker import Query
from serendip.planning.lmdb_store import LmdbStore
from serendip.planning.plan_store import plan_message, planned_at_s
from serendip.serving.errors import status_of
from serendip.v1 import common_pb2, planner_pb2, recommender_pb2
from serendip.wire_plans import constraint_from_proto, plan_to_proto


@dataclass(frozen=True)
class Wanted:
    """What a request wants of each plan.

    Attributes:
        k: clusters.
        exclude: clusters of the planning level that may not be among them.
        min_score: of stored and live plans; None: any.
    """

    k: int
    constraint: Constraint
    exclude: frozenset[int]
    min_score: float | None
    reasoning: bool

    @classmethod
    def of(cls, request: planner_pb2.PlanRequest, serving: Serving) -> Wanted:
        """Reads a checked request. Raises NotFound where it names an unknown node."""
        return cls._read(request, serving, request.k, not request.no_reasoning)

    @classmethod
    def by_recommendation(
        cls, request: recommender_pb2.RecommendRequest, serving: Serving
    ) -> Wanted:
        """As ``of`` reads what a recommendation asks for (``wire_recommend.to_plan_request``)."""
        return cls._read(request, serving, MAX_PLANNED_CLUSTERS, True)

    @classmethod
    def _read(
        cls,
        request: planner_pb2.PlanRequest | recommender_pb2.RecommendRequest,
        serving: Serving,
        k: int,
        reasoning: bool,
    ) -> Wanted:
        excluded = request.exclude_node_ids
        return cls(
            k=k,
            constraint=constraint_from_proto(request.constraint),
            exclude=frozenset(serving.clusters_under(excluded)) if excluded else frozenset(),
            min_score=request.min_score if request.HasField("min_score") else None,
            reasoning=reasoning,
        )

    @property
    def all(self) -> bool:
        """Whether a stored plan is answered as it lies, whatever is in it."""
        return (
            self.k == MAX_PLANNED_CLUSTERS
            and self.reasoning
            and self.min_score is None
            and not self.exclude
            and self.constraint is not Constraint.SIBLINGS
        )

    @property
    def _all_clusters(self) -> bool:
        """Whether ``may_have`` is true of every cluster."""
        return not self.exclude and self.constraint is not Constraint.SIBLINGS

    def may_have(self, cluster: common_pb2.PlannedCluster) -> bool:
        """Whether the constraint and the exclusions leave a cluster, whatever its score."""
        return cluster.node_id not in self.exclude and (
            cluster.serendipitous or self.constraint is not Constraint.SIBLINGS
        )

    def lacks(self, plan: planner_pb2.Plan) -> bool:
        """Whether a plan made for these options could have more clusters than this one's."""
        if self._all_clusters:
            return False
        left = sum(map(self.may_have, plan.clusters))
        return left < min(self.k, len(plan.clusters))

    def leaves_some(self, plan: planner_pb2.Plan) -> bool:
        """Whether the constraint and the exclusions leave anything of a plan."""
        return any(map(self.may_have, plan.clusters))

    def cut(self, plan: planner_pb2.Plan, source: PlanSource) -> int:
        """Takes out what is not wanted; returns how many clusters the options left out."""
        least = None if source is PlanSource.FALLBACK else self.min_score
        clusters = plan.clusters
        before = len(clusters)
        if least is not None or not self._all_clusters:
            for at in reversed(range(before)):
                cluster = clusters[at]
                if not self.may_have(cluster) or (least is not None and cluster.score < least):
                    del clusters[at]
        left_out = before - len(clusters)
        del clusters[self.k :]
        if not self.reasoning:
            plan.ClearField("reasoning")
        return left_out


class PlanRows:
    """Answers for one release."""

    def __init__(self, serving: Serving, metrics: PlanMetrics) -> None:
        self._serving = serving
        self._metrics = metrics
        metrics.serves(serving.store.info().count)
        versions = serving.versions
        of_no_plans = replace(versions, plans_version="")
        self._heads = {
            PlanSource.STORE: head_of(PlanSource.STORE, versions),
            PlanSource.LIVE: head_of(PlanSource.LIVE, of_no_plans),
            PlanSource.FALLBACK: head_of(
                PlanSource.FALLBACK, replace(versions, planner_version="")
            ),
        }
        self._head_of_kept = head_of(PlanSource.STORE, of_no_plans)

    async def rows(self, ids: Sequence[str], wanted: Wanted, deadline: float | None) -> list[bytes]:
        """One serialised PlanRow an item, in order: stored plans at once, the others together.

        Args:
            deadline: time.monotonic() in seconds; None: there is none.
        """
        stored = await self._stored(ids)
        rows = self._as_they_lie(stored) if wanted.all else [b""] * len(ids)
        if all(rows):
            return rows
        return await self._filled(rows, ids, stored, [wanted] * len(ids), deadline)

    async def of_each(
        self, ids: Sequence[str], wanted: Sequence[Wanted], deadline: float | None
    ) -> list[bytes]:
        """As ``rows``, with options of its own for each item."""
        stored = await self._stored(ids)
        whole = [data if own.all else None for data, own in zip(stored, wanted, strict=True)]
        return await self._filled(self._as_they_lie(whole), ids, stored, wanted, deadline)

    async def _filled(
        self,
        rows: list[bytes],
        ids: Sequence[str],
        stored: Sequence[bytes | None],
        wanted: Sequence[Wanted],
        deadline: float | None,
    ) -> list[bytes]:
        """The rows, with those made that are empty."""
        now_s = int(time.time())
        rest = []
        for at, row in enumerate(rows):
            if not row:
                rows[at] = self._cut(ids[at], stored[at], wanted[at], deadline, now_s)
                if not rows[at]:
                    rest.append(at)
        if rest:
            made = await asyncio.gather(
                *(self._made(ids[at], stored[at], wanted[at], deadline) for at in rest)
            )
            for at, row in zip(rest, made, strict=True):
                rows[at] = row
        return rows

    def _as_they_lie(self, stored: Sequence[bytes | None]) -> list[bytes]:
        """The row of each stored plan, whole; empty where there is none, or it cannot be read."""
        now_s = int(time.time())
        head = self._heads[PlanSource.STORE]
        ages: list[int] = []

        def row(data: bytes | None) -> bytes:
            if data is None:
                return b""
            try:
                age_s = now_s - planned_at_s(data)
            except CorruptArtifact:  # which _cut says
                return b""
            ages.append(age_s)
            return encode_stored(data, head, age_s)

        rows = list(map(row, stored))
        self._metrics.stored(ages)
        return rows

    async def _stored(self, ids: Sequence[str]) -> list[bytes | None]:
        store = self._serving.store
        if isinstance(store, LmdbStore):  # a mapped file: a thread would take longer than the read
            return store.get_many(ids)
        return await asyncio.to_thread(store.get_many, ids)

    def _cut(
        self, item_id: str, data: bytes | None, wanted: Wanted, deadline: float | None, now_s: int
    ) -> bytes:
        """A stored plan's row by the options, or the fallback's; empty where a live one may be."""
        try:
            if data is None:
                if self._serving.live is not None and item_id in self._serving.items:
                    return b""
                return self._second_best(item_id, self._own(item_id), wanted)
            stored = plan_message(data)
            if wanted.lacks(stored) and self._may_live(item_id, deadline):
                return b""
            return self._left_of(stored, wanted, now_s)
        except Exception as e:
            self._metrics.row(None)
            return _failed(e)

    async def _made(
        self,
        item_id: str,
        data: bytes | None,
        wanted: Wanted,
        deadline: float | None,
    ) -> bytes:
        """The row of an item, ``data`` being its stored plan."""
        try:
            own = self._own(item_id)
            kept = await self._kept(item_id, own) if data is None else None
            found = data if kept is None else kept
            stored = None if found is None else plan_message(found)
            if stored is not None and not (
                wanted.lacks(stored) and self._may_live(item_id, deadline)
            ):
                return self._left_of(stored, wanted, kept=kept is not None)
            try:
                live = await self._live(item_id, own, wanted, deadline)
            except SerendipError:  # no time, no media, nothing left to plan
                if stored is None and own is None:
                    raise
                live = None
            if live is not None:
                return self._row(plan_message(live), PlanSource.LIVE, wanted)
            if stored is not None:
                return self._left_of(stored, wanted, kept=kept is not None)
            return self._second_best(item_id, own, wanted)
        except Exception as e:  # a row's failure is that row's status, whatever it is
            self._metrics.row(None)
            return _failed(e)

    def _own(self, item_id: str) -> int | None:
        return self._serving.tree.node_of(item_id, self._serving.level)

    def _second_best(self, item_id: str, own: int | None, wanted: Wanted) -> bytes:
        """The fallback's row. Raises NotFound: there is none."""
        if own is None:
            raise NotFound(
                "neither the plans nor the tree have it",
                field="context_item_ids",
                value=item_id,
                remedy="Send its title and thumbnail to PlanContent.",
            )
        fallback = plan_to_proto(self._serving.fallback(item_id, own))
        return self._row(fallback, PlanSource.FALLBACK, wanted)

    def _left_of(
        self, stored: planner_pb2.Plan, wanted: Wanted, now_s: int | None = None, kept: bool = False
    ) -> bytes:
        """A stored plan's row; the fallback's where constraint and exclusions leave none of it."""
        if not wanted.leaves_some(stored) and stored.HasField("own_node_id"):
            item_id, own = stored.context_item_id, stored.own_node_id
            fallback = plan_to_proto(self._serving.fallback(item_id, own))
            if wanted.leaves_some(fallback):
                return self._row(fallback, PlanSource.FALLBACK, wanted)
        return self._row(stored, PlanSource.STORE, wanted, now_s, kept)

    async def _kept(self, item_id: str, own: int | None) -> bytes | None:
        """The live plan of an earlier call, if its item is still what it was made of."""
        live = self._serving.live
        kept = None if live is None else live.kept
        item = self._serving.items.get(item_id)
        if kept is None or item is None or item_id not in kept:
            return None
        return await asyncio.to_thread(kept.get, item, own)  # it looks at the item's files

    def _may_live(self, item_id: str, deadline: float | None) -> bool:
        """Whether a live plan is worth a try: there is a model, the item's media, and time."""
        live = self._serving.live
        if live is None or item_id not in self._serving.items:
            return False
        return deadline is None or time.monotonic() + live.batch_s < waits_until(deadline)

    async def _live(
        self, item_id: str, own: int | None, wanted: Wanted, deadline: float | None
    ) -> bytes | None:
        """A serialised live plan for what is wanted; None: there is no model, media or time.

        Raises:
            SerendipError: it was tried, and failed.
        """
        serving = self._serving
        if serving.live is None or not self._may_live(item_id, deadline):
            return None
        query = Query(
            serving.items[item_id],
            own,
            exclude=tuple(sorted(wanted.exclude)),
            constraint=wanted.constraint,
        )
        # In time for the other rows to be answered, and for this one to have its second best.
        until = None if deadline is None else waits_until(deadline)
        return await serving.live.plan(query, until)

    def _row(
        self,
        plan: planner_pb2.Plan,
        source: PlanSource,
        wanted: Wanted,
        now_s: int | None = None,
        kept: bool = False,
    ) -> bytes:
        """A serialised PlanRow; a plan that was ``kept`` is of no plans artefact."""
        left_out = wanted.cut(plan, source)
        head = self._head_of_kept if kept else self._heads[source]
        age_s = None
        if source is PlanSource.STORE:
            now_s = int(time.time()) if now_s is None else now_s
            age_s = max(0, now_s - plan.planned_at.seconds)
        self._metrics.row(source, left_out, age_s or 0)
        return encode_row(plan.SerializeToString(), head, age_s, left_out)


def _failed(error: Exception) -> bytes:
    data: bytes = planner_pb2.PlanRow(status=status_of(error)).SerializeToString()
    return data
