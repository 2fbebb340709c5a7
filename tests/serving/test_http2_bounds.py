"""What a client may ask of one connection: how much at a time, and how much that is no call."""

from __future__ import annotations

import asyncio
import gzip
import struct
from typing import Any

import grpc
import pytest
import toy
from http2_toy import OK, PATH, Servicer, answers, server, still_answers
from raw_http2 import Peer, asked, message
from running import in_thread

from serendip.serving.http2 import frames as f
from serendip.serving.http2.frames import Reason
from serendip.v1 import retriever_pb2_grpc

TOO_LARGE = asked(PATH, *[("x", "y" * 1000)] * 17)


def test_a_flood_of_calls_that_are_given_up_at_once_ends_the_connection() -> None:
    with server() as (running, _):
        with Peer(running.address) as peer:
            block = peer.block(asked(PATH))
            wait = message(toy.request("wait").SerializeToString())
            flood = [
                f.frame(f.HEADERS, f.END_HEADERS, stream, block)
                + f.frame(f.DATA, f.END_STREAM, stream, wait)
                + f.rst_stream(stream, Reason.CANCEL)
                for stream in range(1, 2401, 2)
            ]
            peer.send(b"".join(flood))
            # A server that hangs up on what it has not read may be heard as a reset.
            ended = [frame for frame in peer.frames() if frame.kind == f.GOAWAY]
            assert [frame.reason for frame in ended] in ([], [Reason.ENHANCE_YOUR_CALM])
        still_answers(running)


def test_who_gives_up_half_of_its_calls_may_go_on_for_long() -> None:
    with server() as (running, _), Peer(running.address) as peer:
        block = peer.block(asked(PATH))
        for stream in range(1, 12_001, 4):
            given_up = f.frame(f.HEADERS, f.END_HEADERS, stream, block)
            whole = f.frame(f.HEADERS, f.END_HEADERS, stream + 2, block)
            data = f.frame(f.DATA, f.END_STREAM, stream + 2, OK)
            peer.send(given_up + f.rst_stream(stream, Reason.CANCEL) + whole + data)
            answers(peer, stream + 2)


@pytest.mark.parametrize("what", ["data", "headers", "no window"])
def test_a_flood_of_calls_that_the_server_must_reset_ends_the_connection(what: str) -> None:
    """CVE-2025-8671, where the client has the server do what it may not do itself."""
    with server() as (running, _):
        with Peer(running.address) as peer:
            block = peer.block(asked(PATH))
            wait = message(toy.request("wait").SerializeToString())
            flood = b""
            for stream in range(1, 2801, 2):
                flood += f.frame(f.HEADERS, f.END_HEADERS, stream, block)
                flood += f.frame(f.DATA, f.END_STREAM, stream, wait)
                flood += {
                    "data": f.frame(f.DATA, f.END_STREAM, stream, b"x"),
                    "headers": f.frame(f.HEADERS, f.END_HEADERS, stream, block),
                    "no window": f.window_update(stream, 0),
                }[what]
            peer.send(flood)
            ended = [frame for frame in peer.frames() if frame.kind == f.GOAWAY]
            assert [frame.reason for frame in ended] in ([], [Reason.ENHANCE_YOUR_CALM])
        still_answers(running)


def test_callers_whose_deadlines_pass_are_no_flood() -> None:
    async def main(address: str) -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = retriever_pb2_grpc.RetrieverStub(channel)

            async def late() -> grpc.StatusCode:
                with pytest.raises(grpc.RpcError) as caught:
                    await stub.Retrieve(toy.request("wait"), timeout=0.1)
                return caught.value.code()

            for _ in range(15):
                codes = await asyncio.gather(*(late() for _ in range(150)))
                assert set(codes) == {grpc.StatusCode.DEADLINE_EXCEEDED}

    with server() as (running, _):
        asyncio.run(main(running.address))


def test_requests_that_come_and_are_not_read_are_bounded_together() -> None:
    packed = gzip.compress(toy.request("x" * (30 << 20)).SerializeToString())
    body = struct.pack(">BL", 1, len(packed)) + packed
    with server() as (running, _), Peer(running.address) as peer:
        block = peer.block(asked(PATH, ("grpc-encoding", "gzip")))
        for stream in (1, 3, 5):
            peer.send(f.frame(f.HEADERS, f.END_HEADERS, stream, block))
            for at in range(0, len(body), 16_000):
                peer.send(f.frame(f.DATA, 0, stream, body[at : at + 16_000]))
        fields, _ = peer.answer(5)
        assert fields["grpc-status"] == "8"
        assert "too many bytes together" in fields["grpc-message"]
        peer.send(f.frame(f.DATA, f.END_STREAM, 1))
        assert peer.answer(1)[0]["grpc-status"] == "0"


def test_a_request_that_never_comes_whole_ends_at_its_deadline() -> None:
    with server() as (running, _), Peer(running.address) as peer:
        peer.headers(1, asked(PATH, ("grpc-timeout", "100m")))
        peer.send(f.frame(f.DATA, 0, 1, OK[:3]))
        assert peer.answer(1)[0]["grpc-status"] == "4"


def test_an_answer_that_is_not_read_ends_at_its_deadline() -> None:
    own = {f.INITIAL_WINDOW_SIZE: 0}
    with server() as (running, _), Peer(running.address, settings=own) as peer:
        peer.call(1, asked(PATH, ("grpc-timeout", "100m")), OK)
        assert peer.until(f.RST_STREAM, 1).reason is Reason.CANCEL


def test_answers_that_wait_for_windows_are_bounded_together() -> None:
    class Large(Servicer):
        async def Retrieve(self, request: Any, call: Any) -> bytes:
            return bytes(30 << 20)

    own = {f.INITIAL_WINDOW_SIZE: 0}
    with (
        in_thread(lambda: Large().services()) as running,
        Peer(running.address, settings=own) as peer,
    ):
        for stream in (1, 3, 5, 7):
            peer.call(stream, asked(PATH), OK)
        reset = peer.until(f.RST_STREAM)
        assert (reset.stream, reset.reason) == (7, Reason.ENHANCE_YOUR_CALM)


@pytest.mark.parametrize("table", [0, 4096])
def test_headers_that_are_too_large_end_their_stream_alone(table: int) -> None:
    with server() as (running, _), Peer(running.address, table=table) as peer:
        peer.call(1, TOO_LARGE, OK)
        reset = peer.until(f.RST_STREAM)
        assert (reset.stream, reset.reason) == (1, Reason.ENHANCE_YOUR_CALM)
        peer.call(3, asked(PATH), OK)
        answers(peer, 3)


def test_who_does_not_read_is_not_read_from() -> None:
    """What a client that never reads makes the server hold is bounded by its streams."""
    own = {f.INITIAL_WINDOW_SIZE: f.LARGEST_WINDOW}
    with server() as (running, _), Peer(running.address, settings=own) as peer:
        peer.send(f.window_update(0, 1 << 30))
        block = peer.block(asked(PATH, *[("x", "y" * 1000)] * 12))
        body = message(toy.request("call").SerializeToString())
        call = [
            f.frame(f.HEADERS, f.END_HEADERS, stream, block)
            + f.frame(f.DATA, f.END_STREAM, stream, body)
            for stream in range(1, 40_001, 2)
        ]
        # 12 kB an answer, 240 MB in all: the socket is full long before.
        with pytest.raises(TimeoutError):
            peer.send(b"".join(call), timeout_s=1)
        still_answers(running)


def test_connections_beyond_the_bound_are_not_taken() -> None:
    with server(max_connections=1) as (running, _), Peer(running.address) as peer:
        peer.call(1, asked(PATH), OK)
        answers(peer, 1)
        try:
            with Peer(running.address) as second:
                assert list(second.frames()) == []
        except ConnectionError:
            pass  # reset already
        peer.call(3, asked(PATH), OK)
        answers(peer, 3)


def test_streams_beyond_the_bound_are_refused_and_the_others_answered() -> None:
    with server(max_streams=2) as (running, servicer), Peer(running.address) as peer:
        wait = message(toy.request("wait").SerializeToString())
        for stream in (1, 3, 5):
            peer.call(stream, asked(PATH), wait)
        refused = peer.until(f.RST_STREAM)
        assert (refused.stream, refused.reason) == (5, Reason.REFUSED_STREAM)
        servicer.let_go()
        for stream in (1, 3):
            answers(peer, stream)
        peer.call(7, asked(PATH), OK)
        answers(peer, 7)


def test_who_pings_too_often_is_told_so() -> None:
    with server() as (running, _):
        with Peer(running.address) as peer:
            for _ in range(4):
                peer.send(f.frame(f.PING, 0, 0, bytes(8)))
            goodbye = peer.said_goodbye()
            assert goodbye.reason is Reason.ENHANCE_YOUR_CALM
            assert goodbye.payload[8:] == b"too_many_pings"
        with Peer(running.address) as peer:  # who is sent answers may ask how fast they come
            for stream in range(1, 21, 2):
                peer.call(stream, asked(PATH), OK)
                answers(peer, stream)
                peer.send(f.frame(f.PING, 0, 0, bytes(8)))
                peer.until(f.PING)


def test_who_pings_while_a_large_answer_comes_is_not_sent_away() -> None:
    own = {f.INITIAL_WINDOW_SIZE: 100}
    with server() as (running, _), Peer(running.address, settings=own) as peer:
        call = message(toy.request("call").SerializeToString())
        peer.call(1, asked(PATH, *[("x", "y" * 100)] * 9), call)
        for _ in range(8):
            peer.until(f.DATA, 1)
            peer.send(f.frame(f.PING, 0, 0, bytes(8)) + f.window_update(1, 100))
            peer.until(f.PING)
