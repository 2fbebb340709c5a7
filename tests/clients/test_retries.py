"""Which failed calls the clients make again, and when."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from serendip_client import (
    AsyncSerendipClient,
    DeadlineSpent,
    NotReady,
    Overloaded,
    SerendipClient,
    SerendipError,
)

from serendip.v1 import planner_pb2, planner_pb2_grpc

FULL = grpc.StatusCode.RESOURCE_EXHAUSTED


class Planner(planner_pb2_grpc.PlannerServicer):
    """Ends calls as it is told, the last one well; remembers when each came."""

    def __init__(self) -> None:
        self.ends: list[tuple[grpc.StatusCode, str | None]] = []
        self.came: list[float] = []

    def Plan(self, request: Any, context: Any) -> planner_pb2.PlanResponse:
        self.came.append(time.monotonic())
        if self.ends:
            code, pushback = self.ends.pop(0)
            if pushback is not None:
                context.set_trailing_metadata((("grpc-retry-pushback-ms", pushback),))
            context.abort(code, "as told")
        return planner_pb2.PlanResponse()


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Planner, str]]:
    planner = Planner()
    server = grpc.server(ThreadPoolExecutor(4))
    planner_pb2_grpc.add_PlannerServicer_to_server(planner, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield planner, f"127.0.0.1:{port}"
    server.stop(0).wait()


Told = Callable[..., tuple[SerendipError | None, int]]


@pytest.fixture(params=["sync", "async", "hedging sync", "hedging async"])
def told(request: pytest.FixtureRequest, served: tuple[Planner, str]) -> Told:
    """Makes a call that the server ends as told; gives what it raised, and how often it came."""
    planner, address = served
    hedges = {"hedge": True} if "hedging" in request.param else {}

    async def asynchronous(timeout_s: float) -> None:
        async with AsyncSerendipClient(address, timeout_s=timeout_s, **hedges) as client:
            await client.plan(["a"])

    def call(*ends: tuple[grpc.StatusCode, str | None], timeout_s: float = 20) -> Any:
        planner.ends, planner.came = list(ends), []
        try:
            if "async" in request.param:
                asyncio.run(asynchronous(timeout_s))
            else:
                with SerendipClient(address, timeout_s=timeout_s, **hedges) as client:
                    client.plan(["a"])
        except SerendipError as error:
            return error, len(planner.came)
        return None, len(planner.came)

    return call


def test_a_full_server_is_asked_again_when_it_says(told: Told, served: Any) -> None:
    assert told((FULL, "50"), (FULL, "50")) == (None, 3)
    first, second, third = served[0].came
    assert second - first >= 0.05
    assert third - second >= 0.05


def test_three_tries_are_all(told: Told) -> None:
    error, came = told(*[(FULL, "5")] * 9)
    assert isinstance(error, Overloaded)
    assert isinstance(error.__cause__, grpc.RpcError)
    assert came == 3


@pytest.mark.parametrize("pushback", [None, "-1", "soon"])
def test_a_full_server_that_does_not_say_when_is_not_asked_again(
    told: Told, pushback: str | None
) -> None:
    error, came = told(*[(FULL, pushback)] * 3)
    assert isinstance(error, Overloaded)
    assert came == 1


def test_what_a_full_server_asks_for_beyond_the_deadline_is_not_waited_for(told: Told) -> None:
    began = time.monotonic()
    error, came = told((FULL, "60000"), timeout_s=30)
    assert isinstance(error, Overloaded)
    assert came == 1
    assert time.monotonic() - began < 30, "the call was waited for though it could not be made"


def test_a_server_that_is_away_is_asked_three_times(told: Told) -> None:
    error, came = told(*[(grpc.StatusCode.UNAVAILABLE, None)] * 9)
    assert isinstance(error, NotReady)
    assert came == 3


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("INTERNAL", SerendipError),
        ("DEADLINE_EXCEEDED", DeadlineSpent),
        ("CANCELLED", SerendipError),
    ],
)
def test_nothing_else_is_asked_again(told: Told, code: str, kind: type[SerendipError]) -> None:
    error, came = told(*[(grpc.StatusCode[code], "1")] * 3)
    assert type(error) is kind
    assert came == 1
