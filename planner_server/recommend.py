"""Recommend and RecommendBatch: this server's plans, then a retriever over a channel.

What is asked of whom, and what becomes of the answers, is serendip.wire_recommend's; this module
asks, and knows what the time allows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from google.rpc import code_pb2
from prometheus_client import CollectorRegistry, Histogram

from planner_server.deadlines import waits_until
from serendip.core import (
    DeadlineSpent,
    NotReady,
    SerendipError,
    Unauthenticated,
    check_length,
)
from serendip.serving.errors import status_of
from serendip.serving.handlers import Call, Metadata
from serendip.serving.http2.client import Channel
from serendip.serving.http2.client_connection import CallFailed
from serendip.serving.telemetry import SECONDS
from serendip.v1 import planner_pb2, recommender_pb2
from serendip.wire import error_from_rpc
from serendip.wire_bytes import LENGTH_PREFIXED, field, key
from serendip.wire_recommend import (
    MAX_RECOMMENDATIONS,
    PLANNER_SHARE,
    Answer,
    Items,
    Plans,
    batches,
    composed,
    rows_of,
)

# Where the caller sets no deadline: a call that never hangs.
_LONGEST_S = 10.0

_RETRIEVE = "/serendip.v1.Retriever/Retrieve"
_RETRIEVE_BATCH = "/serendip.v1.Retriever/RetrieveBatch"
_ROW = key("rows", recommender_pb2.RecommendBatchResponse, LENGTH_PREFIXED)
_RESPONSE = key("response", recommender_pb2.RecommendRow, LENGTH_PREFIXED)
_OK = field(key("status", recommender_pb2.RecommendRow, LENGTH_PREFIXED), b"")


class Planned(Protocol):
    """The plans that are followed; PlannerService is one."""

    async def plans_for(
        self, requests: Sequence[recommender_pb2.RecommendRequest], deadline: float
    ) -> list[planner_pb2.PlanRow | SerendipError]:
        """A row or an error a request, before a deadline in seconds of time.monotonic()."""

    @property
    def tree_version(self) -> str:
        """What is planned under now."""

    @property
    def version(self) -> str:
        """Of the release that is served now."""


class RecommenderService:
    """One call for both levels, over a channel to a retriever server; answers in bytes.

    Of the time that a call has, planning gets three quarters at most: a live plan that takes
    longer gives way to the second best, and the retriever has the rest.

    Args:
        registry: takes the service's metrics; a new one if None.
        own: what a call to the retriever carries of this server's own: its token.
    """

    def __init__(
        self,
        planner: Planned,
        channel: Channel,
        registry: CollectorRegistry | None = None,
        own: Callable[[], Metadata] = tuple,
    ) -> None:
        self._planner = planner
        self._own = own
        seconds = Histogram(
            "serendip_recommend_seconds",
            "Seconds of each part of a Recommend or a RecommendBatch.",
            ("part",),
            buckets=SECONDS,
            registry=registry if registry is not None else CollectorRegistry(),
        )
        self._planning, self._retrieving = seconds.labels("plan"), seconds.labels("retrieve")
        self._retriever = channel

    async def Recommend(self, request: recommender_pb2.RecommendRequest, call: Call) -> bytes:
        """Plans, then retrieves from the plan."""
        (outcome,) = await self._composed([request], call)
        if isinstance(outcome, SerendipError):
            raise outcome
        return outcome

    async def RecommendBatch(
        self, request: recommender_pb2.RecommendBatchRequest, call: Call
    ) -> bytes:
        """Recommends to many users; each row fails by itself."""
        requests = tuple(request.requests)
        call.rows = len(requests)
        check_length(requests, "requests", 1, MAX_RECOMMENDATIONS)
        return encode_rows(await self._composed(requests, call))

    async def _composed(
        self, requests: Sequence[recommender_pb2.RecommendRequest], call: Call
    ) -> list[Answer]:
        call.version = self._planner.version
        metadata = (*call.onward, *self._own())
        if call.deadline is not None:  # at which the front ends the call
            return await self._driven(requests, call.deadline, metadata)
        until = time.monotonic() + _LONGEST_S
        try:
            async with asyncio.timeout_at(until):  # an event loop's time is monotonic
                return await self._driven(requests, until, metadata)
        except TimeoutError:
            raise DeadlineSpent("there was no answer in time") from None

    async def _driven(
        self,
        requests: Sequence[recommender_pb2.RecommendRequest],
        until: float,
        metadata: Metadata,
    ) -> list[Answer]:
        composition = composed(requests)
        answer: Any = None
        while True:
            try:
                wish = composition.send(answer)
            except StopIteration as done:
                outcomes: list[Answer] = done.value
                return outcomes
            if isinstance(wish, Plans):
                began = time.monotonic()
                answer = await self._planner.plans_for(
                    wish.requests, began + PLANNER_SHARE * (until - began)
                )
                self._planning.observe(time.monotonic() - began)
            elif isinstance(wish, Items):
                began = time.monotonic()
                answer = await self._retrieved(wish.requests, until, metadata)
                self._retrieving.observe(time.monotonic() - began)
            else:
                answer = self._planner.tree_version

    async def _retrieved(
        self, requests: Sequence[bytes], until: float, metadata: Metadata
    ) -> list[Answer]:
        if len(requests) == 1:
            try:
                return [await self._asked(_RETRIEVE, requests[0], until, metadata)]
            except SerendipError as error:
                return [error]
        answers: list[Answer] = []
        for count, batch in batches(requests):
            try:
                raw = await self._asked(_RETRIEVE_BATCH, batch, until, metadata)
                answers += rows_of(raw, count)
            except SerendipError as error:
                answers += [error] * count
        return answers

    async def _asked(self, path: str, request: bytes, until: float, metadata: Metadata) -> bytes:
        try:
            return await self._retriever.unary(path, request, _left_s(until), metadata)
        except CallFailed as failed:
            raise _typed(failed) from failed


def encode_rows(outcomes: Iterable[Answer]) -> bytes:
    """A RecommendBatchResponse of serialised responses and errors."""
    rows = []
    for outcome in outcomes:
        if isinstance(outcome, bytes):
            rows.append(_OK + field(_RESPONSE, outcome))
        else:
            rows.append(recommender_pb2.RecommendRow(status=status_of(outcome)).SerializeToString())
    return b"".join([field(_ROW, row) for row in rows])


def _left_s(until: float) -> float:
    """Seconds for the retriever; what it does not answer in is said in time."""
    return max(0.001, waits_until(until) - time.monotonic())


def _typed(failed: CallFailed) -> SerendipError:
    if failed.code == code_pb2.UNIMPLEMENTED:  # a server of another kind, or an older one
        return NotReady(
            f"what is at the retriever's address is none ({failed.details})",
            remedy="Look at --retriever.",
        )
    typed = error_from_rpc(failed.code, failed.details, failed.trailers)
    if isinstance(typed, Unauthenticated):  # none of the caller's, whose own token was good
        return NotReady(
            "the retriever does not take this server's token",
            remedy="Look at --retriever-token-file.",
        )
    return typed
