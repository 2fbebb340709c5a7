"""The Retriever service: decode, call, encode.

This module knows no file and no model: rankers come in by ``Serving``, and what they raise is
made a status by serving.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

from google.rpc import status_pb2
from prometheus_client import CollectorRegistry, Counter, Histogram

from retriever_server.decode import decode_batch, decode_request, read_query
from retriever_server.encode import encode_found, encode_rows
from serendip.core import (
    RetrievalQuery,
    SerendipError,
    Versions,
    WrongTree,
    check_length,
)
from serendip.retrieval.found import Found
from serendip.retrieval.ranker import ClusterRanker
from serendip.serving.batching import Batcher
from serendip.serving.errors import status_of
from serendip.serving.handlers import Call, Service, service_of
from serendip.serving.telemetry import BatchMetrics, ServerMetrics
from serendip.v1 import retriever_pb2
from serendip.wire import versions_to_proto
from serendip.wire_filters import attributes_to_proto

MAX_BATCH = 16
MAX_REQUESTS = 256
MAX_WAIT_S = 5.0

_CANDIDATES = (0, 1, 5, 10, 20, 50, 100, 200, 500, 1000)


class RetrieverMetrics:
    """The collectors of retrievals; make one a registry."""

    def __init__(self, registry: CollectorRegistry):
        self.batch = BatchMetrics(registry)
        self._candidates = Histogram(
            "serendip_retrieve_candidates",
            "Candidates a retrieval.",
            buckets=_CANDIDATES,
            registry=registry,
        )
        self._widened = Counter(
            "serendip_retrieve_widened",
            "Retrievals that widened beyond the requested nodes.",
            registry=registry,
        )
        self._cold = Counter(
            "serendip_retrieve_cold",
            "Retrievals without one known item in the history.",
            registry=registry,
        )
        self._hits = Counter(
            "serendip_user_cache_hits",
            "Histories whose user vector was kept from an earlier request.",
            registry=registry,
        )
        self._misses = Counter(
            "serendip_user_cache_misses",
            "Histories that the cache of user vectors did not have.",
            registry=registry,
        )

    def observe(self, query: RetrievalQuery, found: Found) -> None:
        self._candidates.observe(len(found))
        if found.widened_to:
            self._widened.inc()
        if found.unknown_history_items == len(query.history):
            self._cold.inc()

    def count_users(self, hits: int, misses: int) -> None:
        """Adds what the cache of user vectors had, and had not."""
        self._hits.inc(hits)
        self._misses.inc(misses)


@dataclass(frozen=True)
class Serving:
    """What a server serves at a time; replaced as a whole.

    Attributes:
        version: of the current release.
        release: versions of its parts.
        rankers: those that are open, by tree_version, newest first; not empty.
    """

    version: str
    release: Versions
    rankers: dict[str, ClusterRanker]

    @property
    def newest(self) -> ClusterRanker:
        return next(iter(self.rankers.values()))

    def beside(self, other: Serving) -> Serving:
        """This one, with the newest ranker of another tree that ``other`` has open.

        Two trees at most: whoever planned under the tree before is answered through a swap.
        """
        more = ((t, r) for t, r in other.rankers.items() if t not in self.rankers)
        return replace(self, rankers=dict([next(iter(self.rankers.items())), *islice(more, 1)]))

    def ranker(self, tree_version: str) -> ClusterRanker:
        """Raises WrongTree, naming the tree versions that are open."""
        ranker = self.rankers.get(tree_version)
        if ranker is None:
            raise WrongTree(
                f"is not open here; open are {', '.join(self.rankers)}",
                field="tree_version",
                value=tree_version,
                remedy="Plan again under one of them.",
            )
        return ranker


# One row on its way through the batcher: the ranker is bound when the request is read, so that
# a release that comes in meanwhile does not change what the node IDs mean.
Row = tuple[ClusterRanker, RetrievalQuery]


class RetrieverService:
    """Retrieve, RetrieveBatch, GetInfo over one batch thread; retrievals are answered in bytes."""

    def __init__(
        self, serving: Serving, registry: CollectorRegistry, *, max_batch: int = MAX_BATCH
    ):
        self._serving = serving
        self._metrics = RetrieverMetrics(registry)
        self._batcher: Batcher[Row, Found] = Batcher(
            self._run,
            max_batch=max_batch,
            max_wait_s=MAX_WAIT_S,
            observer=self._metrics.batch,
            name="retriever",
        )
        self._metrics.batch.watch(lambda: self._batcher.waiting)

    async def Retrieve(self, request: retriever_pb2.RetrieveRequest, call: Call) -> bytes:
        """Candidates for one user."""
        call.version = self._serving.version
        row = self._read(request)
        return self._answer(row, await self._batcher.submit(row, call.deadline))

    async def RetrieveBatch(self, request: retriever_pb2.RetrieveBatchRequest, call: Call) -> bytes:
        """Candidates for many users; each row fails by itself."""
        call.rows, call.version = len(request.requests), self._serving.version
        rows = self._read_all(request)
        outcomes = await self._run_readable(rows, call.deadline)
        return encode_rows([self._row(*pair) for pair in outcomes])

    async def GetInfo(
        self, request: retriever_pb2.RetrieverGetInfoRequest, call: Call
    ) -> retriever_pb2.RetrieverGetInfoResponse:
        """Versions and size."""
        serving, ranker = self._serving, self._serving.newest
        return retriever_pb2.RetrieverGetInfoResponse(
            versions=versions_to_proto(serving.release),
            tree_versions=list(serving.rankers),
            item_count=ranker.item_count,
            max_history=ranker.max_history,
            dimensions=ranker.dimensions,
            attributes=attributes_to_proto(ranker.attributes),
            fresh_item_count=ranker.fresh_count,
            deleted_item_count=ranker.deleted_count,
            withheld_item_count=ranker.withheld_count,
        )

    def services(self) -> list[Service]:
        """What a front serves."""
        descriptor = retriever_pb2.DESCRIPTOR.services_by_name["Retriever"]
        decode = {"Retrieve": decode_request, "RetrieveBatch": decode_batch}
        return [service_of(descriptor, self, decode)]

    @property
    def serving(self) -> Serving:
        """What is served now."""
        return self._serving

    def swap(self, serving: Serving) -> None:
        """Serves something else from the next call on; to be called by the event loop's thread.

        A call that has been read keeps the ranker that it was read for.
        """
        self._serving = serving

    async def close(self) -> None:
        """Ends the batch thread; to be called after the drain."""
        await self._batcher.close()

    # --- decode --------------------------------------------------------------------------

    def _read(self, request: retriever_pb2.RetrieveRequest) -> Row:
        query = read_query(request)
        return self._serving.ranker(request.tree_version), query

    def _read_all(self, request: retriever_pb2.RetrieveBatchRequest) -> list[Row | SerendipError]:
        check_length(tuple(request.requests), "requests", 1, MAX_REQUESTS)
        rows: list[Row | SerendipError] = []
        for one in request.requests:
            try:
                rows.append(self._read(one))
            except SerendipError as e:
                rows.append(e)
        return rows

    # --- call ----------------------------------------------------------------------------

    async def _run_readable(
        self, rows: list[Row | SerendipError], deadline: float | None
    ) -> list[tuple[Row | None, Found | Exception]]:
        """Runs the rows that could be read; pairs every row with what came of it, in order."""
        readable = [row for row in rows if not isinstance(row, SerendipError)]
        results = iter(await self._batcher.submit_many(readable, deadline))
        return [
            (None, row) if isinstance(row, SerendipError) else (row, next(results)) for row in rows
        ]

    def _run(self, rows: list[Row]) -> Sequence[Found | Exception]:
        """One batch, in the batch thread; rows of one ranker run together."""
        places: dict[ClusterRanker, list[int]] = {}
        for at, (ranker, _) in enumerate(rows):
            places.setdefault(ranker, []).append(at)
        results: dict[int, Found | Exception] = {}
        for ranker, at_rows in places.items():
            hits, misses = ranker.users.hits, ranker.users.misses
            found = ranker.find([rows[at][1] for at in at_rows])
            self._metrics.count_users(ranker.users.hits - hits, ranker.users.misses - misses)
            results.update(zip(at_rows, found, strict=True))
        return [results[at] for at in range(len(rows))]

    # --- encode --------------------------------------------------------------------------

    def _answer(self, row: Row, found: Found) -> bytes:
        ranker, query = row
        self._metrics.observe(query, found)
        return encode_found(found, ranker.versions)

    def _row(self, row: Row | None, result: Found | Exception) -> bytes | status_pb2.Status:
        if row is None or isinstance(result, Exception):
            assert isinstance(result, Exception)
            return status_of(result)
        return self._answer(row, result)


def show_versions(metrics: ServerMetrics, serving: Serving) -> None:
    """Puts what is served into a server's metrics."""
    before = [tree for tree in serving.rankers if tree != serving.release.tree_version]
    metrics.set_versions(
        release=serving.version,
        tree=serving.release.tree_version,
        tree_before=before[0] if before else "",
        retriever=serving.release.retriever_version,
        order=serving.release.order_version,
    )
