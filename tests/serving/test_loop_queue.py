"""Calls that take long share the event loop with what comes meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import grpc
import toy
from running import in_thread

from serendip.serving.http2.loop_queue import LoopQueue
from serendip.serving.server import ServerOptions
from serendip.v1 import retriever_pb2_grpc

LONG_S = 0.01


def busy(seconds: float) -> None:
    """Keeps the loop, as parsing and encoding do."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def queued(queue: LoopQueue, calls: int, large: bool = False) -> None:
    for _ in range(calls):
        queue.join(time.monotonic(), large)


async def called(
    queue: LoopQueue, seconds: float, note: object, order: list[object], large: bool = False
) -> None:
    await queue.take(large)
    queue.leave(large)
    order.append(note)
    busy(seconds)


def test_long_calls_come_one_after_another_and_the_loop_reads_between_them() -> None:
    async def main() -> list[object]:
        order: list[object] = []
        queue = LoopQueue()
        readable, writable = await a_pipe(order)
        queued(queue, 4)
        calls = [called(queue, LONG_S, n, order) for n in range(4)]
        tasks = [asyncio.create_task(call) for call in calls]
        writable.write(b"x")
        await asyncio.gather(*tasks)
        readable.close()
        return order

    order = asyncio.run(main())
    assert [one for one in order if one != "read"] == [0, 1, 2, 3]
    assert order.index("read") < order.index(2), "what had come was read after the calls"


async def a_pipe(order: list[object]) -> tuple[asyncio.Server, asyncio.StreamWriter]:
    """A connection of this loop with itself, whose other end notes that it has read."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ready.set()
        while await reader.read(1):
            order.append("read")
        writer.close()

    ready = asyncio.Event()
    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    await ready.wait()
    return server, writer


def test_short_calls_share_a_pass_of_the_loop() -> None:
    async def main() -> int:
        order: list[object] = []
        passes = 0
        queue = LoopQueue()
        queued(queue, 50)
        tasks = [asyncio.create_task(called(queue, 0, n, order)) for n in range(50)]
        while not all(task.done() for task in tasks):
            passes += 1
            await asyncio.sleep(0)
        assert order == list(range(50))
        return passes

    assert asyncio.run(main()) < 25


def test_the_wait_is_told_by_how_long_turns_take_while_calls_wait() -> None:
    async def main() -> LoopQueue:
        queue = LoopQueue()
        assert queue.wait_s(False) == 0.0
        for _ in range(40):
            queued(queue, 3)
            await asyncio.gather(*(called(queue, 0.004, n, []) for n in range(3)))
        return queue

    queue = asyncio.run(main())
    assert queue.wait_s(False) == 0.0, "nobody waits"
    queued(queue, 9)
    assert 0.8 * 10 * 0.004 < queue.wait_s(False) < 1


def test_a_pause_of_the_process_says_little_of_calls() -> None:
    async def main() -> LoopQueue:
        queue = LoopQueue()
        queued(queue, 3)
        await asyncio.gather(*(called(queue, 0.3, n, []) for n in range(3)))
        return queue

    queue = asyncio.run(main())
    queued(queue, 1)
    assert queue.wait_s(False) < 0.01


def test_a_pace_that_was_high_is_learnt_again_where_only_one_call_is_let_in() -> None:
    async def main() -> LoopQueue:
        queue = LoopQueue()
        for _ in range(40):
            queued(queue, 3)
            await asyncio.gather(*(called(queue, LONG_S, n, []) for n in range(3)))
        assert queue.pace_s > 0.5 * LONG_S
        for _ in range(60):
            queued(queue, 1)
            await called(queue, 0, 0, [])
            await asyncio.sleep(0)
        return queue

    assert asyncio.run(main()).pace_s < 0.1 * LONG_S


def test_who_gives_up_in_the_queue_makes_no_pace_of_the_quiet_after() -> None:
    async def main() -> float:
        queue = LoopQueue()
        for _ in range(10):
            queued(queue, 2)
            await called(queue, 0, 0, [])
            queue.leave(False)  # the one that waited behind
            await asyncio.sleep(0.01)
        return queue.pace_s

    assert asyncio.run(main()) < 0.001


def test_small_calls_come_between_large_ones() -> None:
    async def main() -> list[object]:
        order: list[object] = []
        queue = LoopQueue()
        queued(queue, 24, large=True)
        large = [called(queue, 0.003, "large", order, large=True) for _ in range(24)]
        tasks = [asyncio.create_task(call) for call in large]
        while len(order) < 12:
            await asyncio.sleep(0)
        queued(queue, 1)
        await asyncio.create_task(called(queue, 0, "small", order))
        await asyncio.gather(*tasks)
        return order

    assert asyncio.run(main()).index("small") <= 15


def test_a_call_that_is_cancelled_in_the_queue_holds_up_no_other() -> None:
    async def main() -> list[object]:
        order: list[object] = []
        queue = LoopQueue()
        queued(queue, 6)
        tasks = [asyncio.create_task(called(queue, 0.003, n, order)) for n in range(6)]
        while not order:
            await asyncio.sleep(0)
        for n in (2, 3):
            tasks[n].cancel()
            queue.leave(False)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert queue.wait_s(False) == 0.0
        return order

    assert asyncio.run(main()) == [0, 1, 4, 5]


class Long(toy.Toy):
    """Each of whose calls keeps the event loop for a while."""

    async def Retrieve(self, request, call):  # type: ignore[no-untyped-def]
        time.sleep(LONG_S)
        return await super().Retrieve(request, call)


def test_of_more_long_calls_than_there_is_time_for_many_are_answered_in_time() -> None:
    """Three times what the loop can do, for a second or so; deadlines of 25 calls' time."""
    codes: Counter[grpc.StatusCode] = Counter()
    with (
        in_thread(lambda: Long().services(), ServerOptions(max_in_flight=64)) as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        stub = retriever_pb2_grpc.RetrieverStub(channel)
        calls = []
        for _ in range(300):
            calls.append(stub.Retrieve.future(toy.request("ok"), timeout=25 * LONG_S))
            time.sleep(LONG_S / 3)
        for call in calls:
            codes[call.code()] += 1
    assert codes[grpc.StatusCode.OK] > 30, codes
    assert codes[grpc.StatusCode.RESOURCE_EXHAUSTED] > 30, codes
