"""A call that takes long is made a second time: who wins, who is cancelled, and how often."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from running import in_thread
from serendip_client import (
    AsyncSerendipClient,
    InvalidRequest,
    NotFound,
    NotReady,
    SerendipClient,
    SerendipError,
)
from serendip_client.hedging import Hedging

from serendip.serving.handlers import Call, service_of
from serendip.v1 import planner_pb2


class Planner:
    """Answers calls by their place in the row: at once, once so many have come, or never."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.slow: set[int] = set()
        self.until = 10**9
        self.forever: set[int] = set()
        self.failures: dict[int, Exception] = {}
        self.came = 0
        self.cancelled = threading.Event()

    async def GetCluster(self, request: Any, call: Call) -> planner_pb2.GetClusterResponse:
        place, self.came = self.came, self.came + 1
        if place in self.slow | self.forever:
            try:
                while self.came < self.until or place in self.forever:
                    await asyncio.sleep(0.005)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if place in self.failures:
            raise self.failures[place]
        return planner_pb2.GetClusterResponse(
            cluster=planner_pb2.Cluster(node_id=place), tree_version="t"
        )

    async def PlanContent(self, request: Any, call: Call) -> planner_pb2.PlanContentResponse:
        self.came += 1
        await asyncio.sleep(0.2)
        return planner_pb2.PlanContentResponse()


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Planner, str]]:
    planner = Planner()
    service = planner_pb2.DESCRIPTOR.services_by_name["Planner"]
    with in_thread(lambda: [service_of(service, planner)]) as running:
        yield planner, running.address


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest, served: tuple[Planner, str]) -> Callable[..., Any]:
    """Asks so many times in a row, of one client; gives the answers and errors."""
    planner, address = served
    planner.begin()

    def call(count: int = 1, method: str = "get_cluster", **options: Any) -> list[Any]:
        options = {"timeout_s": 20.0, **options}
        arguments = (0,) if method == "get_cluster" else ("title",)
        answers: list[Any] = []
        # Looked at before the client is closed, which cancels whatever is still open.
        then = options.pop("then", lambda: None)
        if request.param == "sync":
            with SerendipClient(address, **options) as client:
                for _ in range(count):
                    try:
                        answers.append(getattr(client, method)(*arguments))
                    except SerendipError as error:
                        answers.append(error)
                assert then() in (None, True)
            return answers

        async def main() -> None:
            async with AsyncSerendipClient(address, **options) as client:
                for _ in range(count):
                    try:
                        answers.append(await getattr(client, method)(*arguments))
                    except SerendipError as error:
                        answers.append(error)
                assert await asyncio.to_thread(then) in (None, True)

        asyncio.run(main())
        return answers

    return call


def test_the_second_call_wins_and_the_first_is_cancelled(ask: Any, served: Any) -> None:
    planner, _ = served
    planner.slow = {0}
    (answer,) = ask(hedge_after_s=0.05, then=lambda: planner.cancelled.wait(10))
    assert answer.node_id == 1, "the second call's answer"
    assert planner.came == 2


def test_without_hedging_nothing_is_asked_twice(ask: Any, served: Any) -> None:
    planner, _ = served
    planner.slow = {1}
    connected, error = ask(2, timeout_s=1.5)
    assert connected.node_id == 0
    assert "DEADLINE" in repr(error.__cause__)
    assert planner.came == 2


def test_the_first_may_still_win_and_the_second_is_cancelled(ask: Any, served: Any) -> None:
    planner, _ = served
    planner.slow, planner.until = {0}, 2
    planner.forever = {1}
    (answer,) = ask(hedge_after_s=0.05, then=lambda: planner.cancelled.wait(10))
    assert answer.node_id == 0
    assert planner.came == 2


def test_what_failed_at_once_is_not_hedged(ask: Any, served: Any) -> None:
    planner, _ = served
    planner.failures = {0: NotFound("is no node")}
    (error,) = ask(hedge_after_s=10.0)
    assert isinstance(error, NotFound)
    assert planner.came == 1


def test_a_failure_of_one_waits_for_the_other_unless_both_would_fail(ask: Any, served: Any) -> None:
    planner, _ = served
    planner.slow = {0}
    planner.failures = {1: NotFound("is no node")}
    (error,) = ask(hedge_after_s=0.05, then=lambda: planner.cancelled.wait(10))
    assert isinstance(error, NotFound), "the first would have said the same"
    planner.begin()
    planner.slow, planner.until = {0}, 4
    planner.failures = {at: NotReady("is away") for at in (1, 2, 3)}
    (answer,) = ask(hedge_after_s=0.05)
    assert answer.node_id == 0
    assert planner.came == 4, "the second call was tried three times, as UNAVAILABLE is"


def test_at_most_one_call_in_ten_is_made_twice(ask: Any, served: Any) -> None:
    planner, _ = served
    planner.slow = set(range(1000))
    answers = ask(12, hedge_after_s=0.01, timeout_s=0.05)
    assert len(answers) == 12
    assert planner.came <= 12 + 1 + 1


def test_the_dearest_call_is_never_made_twice(ask: Any, served: Any) -> None:
    planner, _ = served
    ask(method="plan_content", hedge_after_s=0.02)
    assert planner.came == 1


def test_how_long_is_long_is_learnt_of_each_method() -> None:
    hedging = Hedging()
    for ms in range(1, 20):
        assert hedging.begin("Plan") is None, "too few are known"
        hedging.answered("Plan", ms / 1000)
    hedging.answered("Plan", 0.020)
    assert hedging.begin("Plan") == 0.019, "95 of 100 were sooner, or as soon"
    assert hedging.begin("Retrieve") is None
    for _ in range(500):
        hedging.answered("Plan", 1.0)
    assert hedging.begin("Plan") == 1.0, "of the recent ones"
    assert hedging.begin("PlanContent") is None


def test_the_budget_is_a_tenth_of_the_calls_and_holds_ten() -> None:
    hedging = Hedging(0.1)
    second = 0
    for _ in range(200):
        hedging.begin("Plan")
        second += hedging.spend()
    assert 19 <= second <= 21
    for _ in range(1000):
        hedging.begin("Plan")
    assert sum(hedging.spend() for _ in range(100)) == 10


def test_a_wait_of_nothing_is_refused() -> None:
    for after_s in (0.0, -1.0, float("nan")):
        with pytest.raises(InvalidRequest, match="hedge_after_s"):
            SerendipClient("127.0.0.1:1", hedge_after_s=after_s)


def test_with_hedging_a_quick_server_is_asked_once(ask: Any, served: Any) -> None:
    planner, _ = served
    answers = ask(40, hedge_after_s=30.0)
    assert [answer.node_id for answer in answers] == list(range(40))
    assert planner.came == 40
