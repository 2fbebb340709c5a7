"""The Retriever service: decode, call, encode.

This module knows no file and no model: rankers come in by ``Serving``, and what they raise is
made a status by serving.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import status_pb2
from prometheus_client import CollectorRegistry, Counter, Histogram

from retriever_server.encode import encode_retrieval, encode_rows
from serendip.core import (
    Retrieval,
    RetrievalQuery,
    SerendipError,
    Versions,
    WrongTree,
    check_length,
)
from serendip.retrieval.ranker import ClusterRanker
from serendip.serving import server as life
from serendip.serving.batching import Batcher
from serendip.serving.errors import status_of
from serendip.serving.server import Running, ServerOptions
from serendip.serving.telemetry import BatchMetrics
from serendip.v1 import retriever_pb2
from serendip.wire import query_from_proto, versions_to_proto

SERVICE_NAME: str = retriever_pb2.DESCRIPTOR.services_by_name["Retriever"].full_name
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

    def observe(self, query: RetrievalQuery, retrieval: Retrieval) -> None:
        self._candidates.observe(len(retrieval.candidates))
        if retrieval.widened_to:
            self._widened.inc()
        if retrieval.unknown_history_items == len(query.history):
            self._cold.inc()


@dataclass(frozen=True)
class Serving:
    """What a server serves at a time; replaced as a whole.

    Attributes:
        release: versions of the current release.
        rankers: those that are open, by tree_version, newest first; not empty.
    """

    release: Versions
    rankers: dict[str, ClusterRanker]

    @property
    def newest(self) -> ClusterRanker:
        return next(iter(self.rankers.values()))

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
    """Retrieve, RetrieveBatch, GetInfo over one batch thread; responses are their bytes."""

    def __init__(
        self, serving: Serving, registry: CollectorRegistry, *, max_batch: int = MAX_BATCH
    ):
        self._serving = serving
        self._metrics = RetrieverMetrics(registry)
        self._batcher: Batcher[Row, Retrieval] = Batcher(
            self._run,
            max_batch=max_batch,
            max_wait_s=MAX_WAIT_S,
            on_batch=self._metrics.batch.observe,
            name="retriever",
        )

    async def Retrieve(self, request: retriever_pb2.RetrieveRequest, context: Any) -> bytes:
        """Candidates for one user."""
        row = self._read(request)
        retrieval = await self._batcher.submit(row, _deadline(context))
        return self._answer(row, retrieval)

    async def RetrieveBatch(
        self, request: retriever_pb2.RetrieveBatchRequest, context: Any
    ) -> bytes:
        """Candidates for many users; each row fails by itself."""
        rows = self._read_all(request)
        outcomes = await self._run_readable(rows, _deadline(context))
        return encode_rows([self._row(*pair) for pair in outcomes])

    async def GetInfo(self, request: retriever_pb2.RetrieverGetInfoRequest, context: Any) -> bytes:
        """Versions and size."""
        serving = self._serving
        response = retriever_pb2.RetrieverGetInfoResponse(
            versions=versions_to_proto(serving.release),
            tree_versions=list(serving.rankers),
            item_count=serving.newest.item_count,
            max_history=serving.newest.max_history,
            dimensions=serving.newest.dimensions,
        )
        return response.SerializeToString()

    def register(self, server: Any) -> Sequence[str]:
        """Adds the service to a grpc.aio server; returns its full name."""
        requests: dict[str, Any] = {
            "Retrieve": retriever_pb2.RetrieveRequest,
            "RetrieveBatch": retriever_pb2.RetrieveBatchRequest,
            "GetInfo": retriever_pb2.RetrieverGetInfoRequest,
        }
        # Not the generated registration: that serialises messages, and responses are bytes here.
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                getattr(self, name), request_deserializer=request.FromString
            )
            for name, request in requests.items()
        }
        generic = grpc.method_handlers_generic_handler(SERVICE_NAME, handlers)
        server.add_generic_rpc_handlers((generic,))
        return (SERVICE_NAME,)

    def show_versions(self, running: Running) -> None:
        """Puts what is served into the running server's metrics."""
        release = self._serving.release
        running.metrics.set_versions(
            tree=release.tree_version,
            retriever=release.retriever_version,
            order=release.order_version,
        )

    async def close(self) -> None:
        """Ends the batch thread; to be called after the drain."""
        await self._batcher.close()

    # --- decode --------------------------------------------------------------------------

    def _read(self, request: retriever_pb2.RetrieveRequest) -> Row:
        query = query_from_proto(request)
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
    ) -> list[tuple[Row | None, Retrieval | Exception]]:
        """Runs the rows that could be read; pairs every row with what came of it, in order."""
        readable = [row for row in rows if not isinstance(row, SerendipError)]
        results = iter(await self._batcher.submit_many(readable, deadline))
        return [
            (None, row) if isinstance(row, SerendipError) else (row, next(results)) for row in rows
        ]

    def _run(self, rows: list[Row]) -> Sequence[Retrieval | Exception]:
        """One batch, in the batch thread; rows of one ranker run together."""
        places: dict[ClusterRanker, list[int]] = {}
        for at, (ranker, _) in enumerate(rows):
            places.setdefault(ranker, []).append(at)
        results: dict[int, Retrieval | Exception] = {}
        for ranker, at_rows in places.items():
            found = ranker.retrieve([rows[at][1] for at in at_rows])
            results.update(zip(at_rows, found, strict=True))
        return [results[at] for at in range(len(rows))]

    # --- encode --------------------------------------------------------------------------

    def _answer(self, row: Row, retrieval: Retrieval) -> bytes:
        ranker, query = row
        self._metrics.observe(query, retrieval)
        return encode_retrieval(retrieval, ranker.versions)

    def _row(self, row: Row | None, result: Retrieval | Exception) -> bytes | status_pb2.Status:
        if row is None or isinstance(result, Exception):
            assert isinstance(result, Exception)
            return status_of(result)
        return self._answer(row, result)


@contextlib.asynccontextmanager
async def serve(serving: Serving, options: ServerOptions | None = None) -> AsyncIterator[Running]:
    """Serves while the block runs. Raises InvalidRequest if a port cannot be bound."""
    registry = CollectorRegistry()
    async with (
        _service(serving, registry) as service,
        life.serve("retriever", service.register, options, registry=registry) as running,
    ):
        service.show_versions(running)
        yield running


async def serve_until_signal(serving: Serving, options: ServerOptions) -> None:
    """Serves until SIGTERM or SIGINT. Raises InvalidRequest if a port cannot be bound."""
    registry = CollectorRegistry()
    async with _service(serving, registry) as service:
        await life.serve_until_signal(
            "retriever",
            service.register,
            options,
            registry=registry,
            on_ready=service.show_versions,
        )


@contextlib.asynccontextmanager
async def _service(
    serving: Serving, registry: CollectorRegistry
) -> AsyncIterator[RetrieverService]:
    service = RetrieverService(serving, registry)
    try:
        yield service
    finally:
        await service.close()


def _deadline(context: Any) -> float | None:
    """The caller's deadline on the monotonic clock, in seconds; None if it set none."""
    left = context.time_remaining()
    return None if left is None else time.monotonic() + float(left)
