"""Recommend where a tier has nothing, takes too long, is away, dies, or is a release behind."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import both_tiers
import grpc
import pytest
from both_tiers import planner_server, retriever_service
from serendip_client import (
    AsyncSerendipClient,
    DeadlineSpent,
    NotReady,
    PlanSource,
    RecommendQuery,
    WrongTree,
)

from planner_server import recommend
from serendip.core import Item
from serendip.serving.handlers import Call, service_of
from serendip.serving.server import ServerOptions, serve
from serendip.v1 import planner_pb2, recommender_pb2, recommender_pb2_grpc, retriever_pb2

TREE, NEXT = both_tiers.tree_of("a" * 12), both_tiers.tree_of("9" * 12)
STORED = TREE.item_ids[0]
WITHOUT = TREE.item_ids[1]
LONG_S = 60.0  # who answers sooner than a test may last has not waited for a deadline


@pytest.fixture(scope="module")
def serving(tmp_path_factory: Any) -> Any:
    return both_tiers.planner_serving(TREE, tmp_path_factory.mktemp("plans"))


@pytest.fixture(scope="module")
def following(tmp_path_factory: Any) -> Any:
    return both_tiers.planner_serving(NEXT, tmp_path_factory.mktemp("plans"))


def running(body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await body()

    asyncio.run(bounded())


def services_of(retriever: Any) -> Any:
    return [service_of(retriever_pb2.DESCRIPTOR.services_by_name["Retriever"], retriever)]


class Cable:
    """A TCP port before another one, whose connections can be cut."""

    def __init__(self) -> None:
        self.begun = 0
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []

    @contextlib.asynccontextmanager
    async def to(self, address: str) -> AsyncIterator[str]:
        host, port = address.rsplit(":", 1)

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.begun += 1
            there, back = await asyncio.open_connection(host, int(port))
            self._writers += [writer, back]
            for source, sink in ((reader, back), (there, writer)):
                self._tasks.append(asyncio.create_task(_pump(source, sink)))

        self.server = await asyncio.start_server(connected, "127.0.0.1", 0)
        try:
            yield f"127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        finally:
            self.server.close()
            self.cut()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()


@contextlib.contextmanager
def kept_free(port: int) -> Iterator[None]:
    """Nobody is given a port that nobody listens at; who asks for it by number may have it."""
    with socket.socket() as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.bind(("127.0.0.1", port))
        yield


# --- the retriever -----------------------------------------------------------------------------


def test_a_retriever_that_is_away_is_told_at_once_and_found_again(serving: Any) -> None:
    async def body() -> None:
        real = retriever_service(TREE)
        async with serve("retriever", real.services()) as retriever:
            address, port = retriever.address, retriever.port
            async with planner_server(serving, address) as (planner, _):
                client = AsyncSerendipClient(planner.address, timeout_s=LONG_S)
                async with client:
                    assert (await client.recommend([], STORED, 3)).candidates
        with kept_free(port):
            async with planner_server(serving, address) as (planner, _):
                client = AsyncSerendipClient(planner.address, address, timeout_s=LONG_S)
                async with client:
                    for via in ("server", "client"):
                        with pytest.raises(NotReady):
                            await client.recommend([], STORED, 3, via=via)
                    rows = await client.recommend_batch([RecommendQuery([], STORED, 3)] * 2)
                    assert [type(row.error) for row in rows] == [NotReady, NotReady]
                    (row,) = await client.plan([STORED])
                    assert row.source is PlanSource.STORE
                    options = ServerOptions(port=port)
                    async with serve("retriever", retriever_service(TREE).services(), options):
                        while True:
                            with contextlib.suppress(NotReady):
                                assert (await client.recommend([], STORED, 3)).candidates
                                break

    running(body)


def test_a_server_of_another_kind_at_the_retrievers_address_is_named(serving: Any) -> None:
    async def body() -> None:
        async with (
            planner_server(serving, "127.0.0.1:1") as (other, _),
            planner_server(serving, other.address) as (planner, _),
            AsyncSerendipClient(planner.address, timeout_s=LONG_S) as client,
        ):
            with pytest.raises(NotReady, match="Look at --retriever"):
                await client.recommend([], STORED, 3)

    running(body)


class Waits:
    """A retriever whose calls wait until they are released, or for ever."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.release = asyncio.Event()
        self.calls = 0
        self.cancelled = 0

    async def Retrieve(self, request: Any, call: Call) -> Any:
        self.calls += 1
        self.entered.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return retriever_pb2.RetrieveResponse()

    RetrieveBatch = Retrieve


def test_a_retriever_that_never_answers_costs_the_callers_deadline_and_no_more(
    serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        waits = Waits()
        async with (
            serve("retriever", services_of(waits)) as retriever,
            planner_server(serving, retriever.address) as (planner, _),
        ):
            for via in ("server", "client"):
                async with AsyncSerendipClient(
                    planner.address, retriever.address, timeout_s=0.3
                ) as client:
                    with pytest.raises(DeadlineSpent):
                        await client.recommend([], STORED, 3, via=via)
            # What is kept of the time to answer in is a share of it, and machines stall.
            async with AsyncSerendipClient(planner.address, timeout_s=4) as client:
                rows = await client.recommend_batch(
                    [RecommendQuery([], STORED, 3), RecommendQuery([], "nobody", 3)]
                )
                assert isinstance(rows[0].error, DeadlineSpent), "in time, and as a row"
            monkeypatch.setattr(recommend, "_LONGEST_S", 0.3)
            async with grpc.aio.insecure_channel(planner.address) as channel:
                request = recommender_pb2.RecommendRequest(context_item_id=STORED, k=1)
                with pytest.raises(grpc.aio.AioRpcError) as error:  # without a deadline
                    await recommender_pb2_grpc.RecommenderStub(channel).Recommend(request)
                assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            while waits.cancelled < waits.calls:  # nobody's work is gone on with
                await asyncio.sleep(0.01)

    running(body)


def test_a_caller_who_gives_up_is_worked_for_no_longer(serving: Any) -> None:
    async def body() -> None:
        waits = Waits()
        async with (
            serve("retriever", services_of(waits)) as retriever,
            planner_server(serving, retriever.address) as (planner, _),
            AsyncSerendipClient(planner.address, timeout_s=LONG_S) as client,
        ):
            asking = asyncio.ensure_future(client.recommend([], STORED, 3))
            await waits.entered.wait()
            asking.cancel()
            while not waits.cancelled:
                await asyncio.sleep(0.01)

    running(body)


def test_a_machine_that_takes_connections_and_says_nothing_is_away(serving: Any) -> None:
    async def body() -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        swallowing = await asyncio.start_server(silent, "127.0.0.1", 0)
        port = swallowing.sockets[0].getsockname()[1]
        async with (
            planner_server(serving, f"127.0.0.1:{port}") as (planner, _),
            AsyncSerendipClient(planner.address, timeout_s=15) as client,
        ):
            with pytest.raises(NotReady):
                await client.recommend([], STORED, 3)
        swallowing.close()

    running(body)


def test_a_connection_that_breaks_under_a_call_is_tried_once_more(serving: Any) -> None:
    async def body() -> None:
        waits, cable = Waits(), Cable()
        async with (
            serve("retriever", services_of(waits)) as retriever,
            cable.to(retriever.address) as address,
            planner_server(serving, address) as (planner, _),
            # A caller who tries nothing again.
            grpc.aio.insecure_channel(planner.address, [("grpc.enable_retries", 0)]) as channel,
        ):
            stub: Any = recommender_pb2_grpc.RecommenderStub(channel)
            request = recommender_pb2.RecommendRequest(context_item_id=STORED, k=1)
            asking = asyncio.ensure_future(stub.Recommend(request, timeout=LONG_S))
            await waits.entered.wait()
            waits.release.set()  # whoever comes next is answered
            cable.cut()
            assert (await asking).source == planner_pb2.PLAN_SOURCE_STORE
            assert (waits.calls, cable.begun) == (2, 2)

            waits.release.clear()
            waits.entered.clear()
            asking = asyncio.ensure_future(stub.Recommend(request, timeout=LONG_S))
            await waits.entered.wait()
            cable.server.close()
            cable.cut()
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await asking
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE

    running(body)


# --- versions in step ----------------------------------------------------------------------------


@pytest.mark.parametrize("via", ["server", "client"])
def test_a_retriever_on_another_tree_is_named_with_its_trees(serving: Any, via: Any) -> None:
    async def body() -> None:
        async with (
            serve("retriever", retriever_service(NEXT).services()) as retriever,
            planner_server(serving, retriever.address) as (planner, _),
            AsyncSerendipClient(planner.address, retriever.address, timeout_s=LONG_S) as client,
        ):
            with pytest.raises(WrongTree) as caught:
                await client.recommend([], STORED, 3, via=via)
            said = str(caught.value)
            assert f"planned under {TREE.version}" in said
            assert f"open are {NEXT.version}" in said
            (row,) = await client.recommend_batch([RecommendQuery([], STORED, 3)], via=via)
            assert isinstance(row.error, WrongTree)

    running(body)


@pytest.mark.parametrize("via", ["server", "client"])
def test_a_release_that_comes_between_the_two_tiers_is_followed(
    serving: Any, following: Any, via: Any
) -> None:
    async def body() -> None:
        real = retriever_service(NEXT)
        seen = []

        class Swaps:
            async def Retrieve(self, request: Any, call: Call) -> Any:
                seen.append(request.tree_version)
                planner.swap(following)
                return await real.Retrieve(request, call)

        async with (
            serve("retriever", services_of(Swaps())) as retriever,
            planner_server(serving, retriever.address) as (front, planner),
            AsyncSerendipClient(front.address, retriever.address, timeout_s=LONG_S) as client,
        ):
            answer = await client.recommend([], STORED, 3, via=via)
            assert seen == [TREE.version, NEXT.version]
            assert answer.versions.tree_version == answer.plan.tree_version == NEXT.version

    running(body)


# --- the planner ---------------------------------------------------------------------------


class Slow:
    """A live planner that is not done before any deadline; it remembers how long it had."""

    batch_s = 0.0
    kept = None

    def __init__(self) -> None:
        self.had: list[float] = []

    async def plan(self, query: Any, deadline: float) -> Any:
        self.had.append(deadline - time.monotonic())
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.Event().wait()
        except TimeoutError:
            raise DeadlineSpent("the plan was not made in time") from None


@pytest.mark.parametrize("via", ["server", "client"])
def test_a_live_plan_leaves_the_retriever_its_time(serving: Any, via: Any) -> None:
    async def body() -> None:
        slow = Slow()
        live: Any = replace(serving, live=slow, items={WITHOUT: Item(WITHOUT, "title")})
        async with (
            serve("retriever", retriever_service(TREE).services()) as retriever,
            planner_server(live, retriever.address) as (planner, _),
            AsyncSerendipClient(planner.address, retriever.address, timeout_s=4.0) as client,
        ):
            rows = await client.recommend_batch(
                [RecommendQuery([], item, 3) for item in (WITHOUT, STORED, WITHOUT)], via=via
            )
            sources = [row.require().source for row in rows]
            assert sources == [PlanSource.FALLBACK, PlanSource.STORE, PlanSource.FALLBACK]
            assert all(len(row.require().candidates) == 3 for row in rows)
        assert len(slow.had) == 2
        assert all(0 < had < 0.75 * 4.0 for had in slow.had)

    running(body)
