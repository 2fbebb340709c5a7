"""The channel to a server behind: both fronts answer it, and what is no good server ends a call."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import toy
from google.rpc import code_pb2
from running import in_thread

from serendip.core import Overloaded
from serendip.serving.fronts import Front
from serendip.serving.handlers import Service
from serendip.serving.http2 import frames as f
from serendip.serving.http2.client import Channel, Target
from serendip.serving.http2.client_connection import CallFailed
from serendip.serving.http2.headers import literal
from serendip.serving.http2.messages import timeout_text
from serendip.serving.server import Running, ServerOptions
from serendip.v1 import retriever_pb2
from serendip.wire import error_from_rpc

PATH = f"/{toy.NAME}/Retrieve"


@pytest.fixture(params=list(Front))
def front(request: pytest.FixtureRequest) -> Front:
    return request.param


@contextmanager
def server(front: Front = Front.HTTP2, **options: Any) -> Iterator[tuple[Running, toy.Toy]]:
    servicers: list[toy.Toy] = []

    def services() -> list[Service]:
        servicers.append(toy.Toy())
        return servicers[0].services()

    with in_thread(services, ServerOptions(front=front, **options)) as running:
        yield running, servicers[0]


def channel(port: int, **options: Any) -> Channel:
    return Channel(Target("127.0.0.1", port, **options))


async def ask(
    to: Channel, behaviour: str, k: int = 7, timeout_s: float = 20, **options: Any
) -> Any:
    request = toy.request(behaviour, k).SerializeToString()
    raw = await to.unary(PATH, request, timeout_s, **options)
    return retriever_pb2.RetrieveResponse.FromString(raw)


def failure(code: str) -> Any:
    return pytest.raises(CallFailed, match=f"^{code}")


def test_a_call_is_answered_with_metadata_and_a_deadline(front: Front) -> None:
    async def main(port: int) -> None:
        async with channel(port) as to:
            sent = (("who", "me"), ("x-bin", b"\0\xff"))
            answer = await ask(to, "call", metadata=sent)
            assert 15_000 < answer.unknown_history_items < 21_000, "milliseconds to the deadline"
            assert "who=me" in {c.item_id for c in answer.candidates}

    with server(front) as (running, _):
        asyncio.run(main(running.port))


def test_more_calls_than_the_server_takes_at_a_time_wait_their_turn(front: Front) -> None:
    async def main(port: int) -> None:
        async with channel(port) as to:
            answers = await asyncio.gather(*(ask(to, "ok", k) for k in range(1, 301)))
            assert [a.unknown_history_items for a in answers] == list(range(1, 301))

    with server(front, max_streams=20) as (running, _):
        asyncio.run(main(running.port))


def test_a_typed_error_comes_back_as_it_was(front: Front) -> None:
    async def main(port: int) -> None:
        async with channel(port) as to:
            with failure("RESOURCE_EXHAUSTED") as caught:
                await ask(to, "overloaded")
            failed = caught.value
            error = error_from_rpc(failed.code, failed.details, failed.trailers)
            assert isinstance(error, Overloaded)
            assert error.retry_after_s == 0.25
            with failure("NOT_FOUND: node_ids: is unknown, got 77"):
                await ask(to, "not_found")

    with server(front) as (running, _):
        asyncio.run(main(running.port))


def test_large_messages_go_both_ways(front: Front) -> None:
    class Echo(toy.Toy):
        async def Retrieve(self, request: Any, call: Any) -> Any:
            return request.SerializeToString()

    async def main(port: int) -> None:
        async with channel(port) as to:
            for size in (10, 70_000, 3_000_000, 20_000_000):
                request = toy.request("x" * size).SerializeToString()
                assert await to.unary(PATH, request, 60) == request
        async with channel(port, max_response_bytes=1000) as to:
            with failure("RESOURCE_EXHAUSTED"):
                await to.unary(PATH, toy.request("x" * 2000).SerializeToString(), 20)

    options = ServerOptions(front=front)
    with in_thread(lambda: Echo().services(), options) as running:
        asyncio.run(main(running.port))


def test_a_call_ends_at_its_deadline_and_one_given_up_is_cancelled_there(front: Front) -> None:
    async def main(port: int, servicer: toy.Toy) -> None:
        async with channel(port) as to:
            began = time.monotonic()
            with failure("DEADLINE_EXCEEDED"):
                await ask(to, "wait", timeout_s=0.2)
            assert time.monotonic() - began < 5
            call = asyncio.create_task(ask(to, "wait"))
            await asyncio.sleep(0.1)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            until = time.monotonic() + 10
            while servicer.cancelled < 2 and time.monotonic() < until:
                await asyncio.sleep(0.01)
            assert servicer.cancelled == 2
            assert (await ask(to, "ok")).unknown_history_items == 7

    with server(front) as (running, servicer):
        asyncio.run(main(running.port, servicer))


def test_a_server_that_comes_back_is_found_again() -> None:
    async def main(port: int, stop: Callable[[], None], start: Callable[[], None]) -> None:
        async with channel(port) as to:
            await ask(to, "ok")
            await asyncio.to_thread(stop)
            began = time.monotonic()
            with failure("UNAVAILABLE"):
                await ask(to, "ok")
            assert time.monotonic() - began < 5, "nobody waits for a server that is away"
            await asyncio.to_thread(start)
            until = time.monotonic() + 10
            while True:
                try:
                    await ask(to, "ok")
                    break
                except CallFailed:
                    assert time.monotonic() < until
                    await asyncio.sleep(0.05)

    lives = [server()]
    running, _ = lives[0].__enter__()

    def stop() -> None:
        lives[-1].__exit__(None, None, None)

    def start() -> None:
        lives.append(server(port=running.port))
        lives[-1].__enter__()

    try:
        asyncio.run(main(running.port, stop, start))
    finally:
        stop()


def test_a_server_that_goes_away_between_two_calls_costs_no_call() -> None:
    async def main(port: int) -> None:
        async with channel(port) as to:
            until = time.monotonic() + 3
            while time.monotonic() < until:  # connections are renewed all the while
                await ask(to, "ok")

    with server(connection_age_s=0.2) as (running, _):
        asyncio.run(main(running.port))


def test_large_calls_at_once_wait_for_each_other_and_not_for_ever() -> None:
    class Echo(toy.Toy):
        async def Retrieve(self, request: Any, call: Any) -> Any:
            return request.SerializeToString()

    async def main(port: int) -> None:
        async with channel(port) as to:
            request = toy.request("x" * 1_000_000).SerializeToString()
            answers = await asyncio.gather(*(to.unary(PATH, request, 20) for _ in range(40)))
            assert set(answers) == {request}

    with in_thread(lambda: Echo().services()) as running:
        asyncio.run(main(running.port))


def test_who_waits_for_a_turn_is_first_come_first_served() -> None:
    async def main(port: int, servicer: toy.Toy) -> None:
        done: list[int] = []

        async def one(to: Channel, n: int) -> None:
            await ask(to, "ok")
            done.append(n)

        async with channel(port) as to:
            await ask(to, "ok")  # the bound is known
            await asyncio.gather(*(one(to, n) for n in range(200)))
            assert done == sorted(done)
            # One that gives up while it waits, or when its turn comes, costs no other's turn.
            calls = [asyncio.create_task(one(to, n)) for n in range(30)]
            await asyncio.sleep(0)
            for call in calls[3:20]:
                call.cancel()
            await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10)

    with server(max_streams=3) as (running, servicer):
        asyncio.run(main(running.port, servicer))


def test_a_call_whose_headers_are_too_large_costs_no_other() -> None:
    async def main(port: int) -> None:
        async with channel(port) as to:
            others = [asyncio.create_task(ask(to, "ok")) for _ in range(3)]
            with failure("INTERNAL"):
                await ask(to, "ok", metadata=(("x", "y" * 20_000),))
            await asyncio.gather(*others)

    with server() as (running, _):
        asyncio.run(main(running.port))


def test_a_channel_that_is_closed_ends_its_calls_and_makes_none() -> None:
    async def main(port: int) -> None:
        to = channel(port)
        call = asyncio.create_task(ask(to, "wait"))
        await asyncio.sleep(0.2)
        await asyncio.wait_for(to.close(), 5)
        with failure("UNAVAILABLE"):
            await call
        with failure("UNAVAILABLE"):
            await ask(to, "ok")
        assert not to._alive

    with server() as (running, _):
        asyncio.run(main(running.port))


def test_a_timeout_has_eight_digits_at_the_most() -> None:
    assert timeout_text(0) == "1u"
    assert timeout_text(0.25) == "250000u"
    assert timeout_text(99.9) == "99900000u"
    assert timeout_text(100) == "100000m"
    assert timeout_text(1e9) == "99999999m"


# --- servers that are no good --------------------------------------------------------------

HELLO = f.settings({})
OK_HEADERS = b"\x88" + literal(b"content-type", b"application/grpc")
LAST = f.END_HEADERS | f.END_STREAM
DATA = f.frame(f.DATA, 0, 1, struct.pack(">BL", 0, 2) + b"hi")


def headers(block: bytes, flags: int = f.END_HEADERS) -> bytes:
    return f.frame(f.HEADERS, flags, 1, block)


def trailers(*pairs: tuple[bytes, bytes]) -> bytes:
    return headers(b"".join([literal(*pair) for pair in pairs]), LAST)


BAD = {
    "nothing of HTTP/2": (b"HTTP/1.1 400 Bad Request\r\n\r\n", "UNAVAILABLE"),
    "a page for people": (HELLO + headers(b"\x8e") + DATA, "UNKNOWN"),
    "a page not found": (HELLO + headers(b"\x8d", LAST), "UNIMPLEMENTED"),
    "no status": (HELLO + headers(OK_HEADERS) + DATA + trailers((b"x", b"y")), "INTERNAL"),
    "a status that is none": (HELLO + trailers((b"grpc-status", b"x")), "INTERNAL"),
    "no message": (HELLO + headers(OK_HEADERS) + trailers((b"grpc-status", b"0")), "INTERNAL"),
    "half a message": (
        HELLO + headers(OK_HEADERS) + f.frame(f.DATA, 0, 1, b"\0\0\0\0\5ab")
        + trailers((b"grpc-status", b"0")),
        "INTERNAL",
    ),
    "two messages": (HELLO + headers(OK_HEADERS) + DATA * 2, "RESOURCE_EXHAUSTED"),
    "data that ends it": (
        HELLO + headers(OK_HEADERS) + f.frame(f.DATA, f.END_STREAM, 1, b"\0\0\0\0\0"),
        "INTERNAL",
    ),
    "a reset": (HELLO + f.rst_stream(1, f.Reason.INTERNAL_ERROR), "INTERNAL"),
    "a reset for no known reason": (HELLO + f.frame(f.RST_STREAM, 0, 1, b"\0\0\1\0"), "INTERNAL"),
    "another's stream": (HELLO + f.frame(f.DATA, 0, 9, b"x"), "INTERNAL"),
    "a broken block": (HELLO + headers(b"\xff"), "INTERNAL"),
    "a status that nobody knows": (HELLO + trailers((b"grpc-status", b"42")), "UNKNOWN"),
    "hints, and no more": (HELLO + headers(b"\x08\x03103"), "DEADLINE_EXCEEDED"),
    "a push": (HELLO + f.frame(f.PUSH_PROMISE, 4, 1, bytes(4)), "INTERNAL"),
}  # fmt: skip


@asynccontextmanager
async def bad_server(answer: bytes) -> AsyncIterator[tuple[int, list[int]]]:
    """Answers each request with these bytes; (its port, an entry for each request that came)."""
    came: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if answer.startswith(HELLO):
            writer.write(HELLO)
        while data := await reader.read(65536):
            if b"grpc-timeout" in data:
                came.append(1)
                writer.write(answer.removeprefix(HELLO))
            elif not answer.startswith(HELLO):
                writer.write(answer)
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield listening.sockets[0].getsockname()[1], came


def by(answer: bytes, then: Callable[[int, list[int]], Awaitable[None]]) -> None:
    async def main() -> None:
        async with bad_server(answer) as (port, came):
            await then(port, came)

    asyncio.run(main())


@pytest.mark.parametrize("what", BAD)
def test_a_server_that_is_no_good_fails_the_call_in_time(what: str) -> None:
    answer, code = BAD[what]

    async def call(port: int, came: list[int]) -> None:
        async with channel(port) as to:
            with failure(code):
                await to.unary(PATH, b"", 1)

    by(answer, call)


def test_what_was_refused_or_never_looked_at_is_tried_again() -> None:
    for answer, tries in (
        (f.rst_stream(1, f.Reason.REFUSED_STREAM), 2),  # the second is another stream's
        (f.goaway(0, f.Reason.NO_ERROR), 6),  # nothing was begun: some more may be tried
        (trailers((b"grpc-status", b"14")), 2),
    ):
        asked: list[int] = []

        async def call(port: int, came: list[int], asked: list[int] = asked) -> None:
            async with channel(port) as to:
                with pytest.raises(CallFailed):
                    await to.unary(PATH, b"", 2)
                asked += came

        by(HELLO + answer, call)
        assert len(asked) == tries


def test_a_full_queue_is_the_callers_to_wait_for() -> None:
    async def call(port: int, came: list[int]) -> None:
        async with channel(port) as to:
            began = time.monotonic()
            with failure("RESOURCE_EXHAUSTED: full"):
                await to.unary(PATH, b"", 10)
            assert time.monotonic() - began < 5

    by(HELLO + trailers((b"grpc-status", b"8"), (b"grpc-message", b"full")), call)


def test_nobody_there_is_unavailable_at_once_and_a_machine_that_is_silent_within_a_second() -> None:
    async def main() -> None:
        with socket.socket() as silent:  # takes connections, and says nothing
            silent.bind(("127.0.0.1", 0))
            port = silent.getsockname()[1]
            async with channel(port) as to:
                with failure("UNAVAILABLE"):
                    await to.unary(PATH, b"", 10)
            silent.listen()
            async with channel(port) as to:
                began = time.monotonic()
                calls = [to.unary(PATH, b"", 10) for _ in range(20)]
                outcomes = await asyncio.gather(*calls, return_exceptions=True)
                assert {o.code for o in outcomes} == {code_pb2.UNAVAILABLE}  # type: ignore[union-attr]
                assert time.monotonic() - began < 5

    asyncio.run(main())
