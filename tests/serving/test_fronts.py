"""Both fronts serve the same calls in the same way; gRPC's own clients ask."""

from __future__ import annotations

import asyncio
import gzip
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
import toy
from google.rpc import code_pb2, error_details_pb2
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry, generate_latest
from running import in_thread

from serendip.serving.fronts import Front
from serendip.serving.handlers import Service
from serendip.serving.server import Running, ServerOptions
from serendip.v1 import retriever_pb2, retriever_pb2_grpc

CALL = f"/{toy.NAME}/Retrieve"


@pytest.fixture(params=list(Front))
def front(request: pytest.FixtureRequest) -> Front:
    return request.param


@contextmanager
def server(front: Front, **options: Any) -> Iterator[tuple[Running, Any, toy.Toy]]:
    """A running server, a stub of it, and its servicer."""
    servicers: list[toy.Toy] = []

    def services() -> list[Service]:
        servicers.append(toy.Toy())
        return servicers[0].services()

    registry = CollectorRegistry()
    with (
        in_thread(services, ServerOptions(front=front, **options), registry=registry) as running,
        grpc.insecure_channel(running.address, [("grpc.max_receive_message_length", -1)]) as way,
    ):
        yield running, retriever_pb2_grpc.RetrieverStub(way), servicers[0]


def failure(call: Callable[[], object]) -> grpc.Call:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value  # type: ignore[return-value]


def test_every_typed_error_is_its_status(front: Front) -> None:
    wanted = {
        "invalid_request": "INVALID_ARGUMENT", "invalid_data": "INVALID_ARGUMENT",
        "media": "INVALID_ARGUMENT", "not_found": "NOT_FOUND", "wrong_tree": "FAILED_PRECONDITION",
        "overloaded": "RESOURCE_EXHAUSTED", "deadline": "DEADLINE_EXCEEDED",
        "not_ready": "UNAVAILABLE", "corrupt": "INTERNAL", "bug": "INTERNAL",
    }  # fmt: skip
    assert set(wanted) == set(toy.ERRORS)
    with server(front) as (_, stub, _):
        for behaviour, code in wanted.items():
            error = failure(lambda b=behaviour: stub.Retrieve(toy.request(b), timeout=20))
            assert error.code().name == code
            assert toy.SECRET not in error.details()
            status = rpc_status.from_call(error)
            assert status.code == code_pb2.Code.Value(code)


def test_an_overload_says_when_to_come_back(front: Front) -> None:
    with server(front) as (_, stub, _):
        error = failure(lambda: stub.Retrieve(toy.request("overloaded"), timeout=20))
        retry = error_details_pb2.RetryInfo()
        (detail,) = rpc_status.from_call(error).details
        assert detail.Unpack(retry)
        assert retry.retry_delay.ToMilliseconds() == 250
        assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "250"


def test_metadata_comes_as_it_was_sent(front: Front) -> None:
    sent = [("who", "me"), ("who", "you"), ("x-bin", bytes(range(256))), ("empty", "")]
    seen: list[Any] = []

    class Seen(toy.Toy):
        async def Retrieve(self, request: Any, call: Any) -> Any:
            seen.extend(call.metadata)
            return await super().Retrieve(request, call)

    options = ServerOptions(front=front)
    with (
        in_thread(lambda: Seen().services(), options) as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        stub = retriever_pb2_grpc.RetrieverStub(channel)
        stub.Retrieve(toy.request("ok"), timeout=20, metadata=sent)
    assert [pair for pair in seen if pair[0] in {"who", "x-bin", "empty"}] == sent
    assert not [key for key, _ in seen if key.startswith((":", "grpc-timeout", "te"))]


def test_a_request_id_is_taken_or_made_and_sent_back(front: Front) -> None:
    with server(front) as (_, stub, _):
        _, call = stub.Retrieve.with_call(
            toy.request("ok"), timeout=20, metadata=[("x-request-id", "a-1")]
        )
        assert dict(call.trailing_metadata())["x-request-id"] == "a-1"
        _, call = stub.Retrieve.with_call(toy.request("ok"), timeout=20)
        assert len(dict(call.trailing_metadata())["x-request-id"]) == 16
        error = failure(lambda: stub.Retrieve(toy.request("bug"), timeout=20))
        assert dict(error.trailing_metadata())["x-request-id"] in error.details()


def test_a_deadline_cancels_the_call_and_is_counted_as_one(front: Front) -> None:
    registry = CollectorRegistry()
    made: list[toy.Toy] = []

    def services() -> list[Service]:
        made.append(toy.Toy())
        return made[0].services()

    options = ServerOptions(front=front)
    with (
        in_thread(services, options, registry=registry) as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        stub = retriever_pb2_grpc.RetrieverStub(channel)
        error = failure(lambda: stub.Retrieve(toy.request("wait"), timeout=0.2))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        stub.Retrieve(toy.request("ok"), timeout=20)
        assert made[0].cancelled == 1
    text = generate_latest(registry).decode()
    # A caller whose clock is first gives up; whose is first is chance.
    ended = [line for line in text.splitlines() if line.startswith("grpc_server_handled_total")]
    codes = {line.partition('grpc_code="')[2].partition('"')[0] for line in ended}
    assert codes & {"DEADLINE_EXCEEDED", "CANCELLED"}


def test_a_caller_that_gives_up_cancels_its_call(front: Front) -> None:
    with server(front) as (_, stub, servicer):
        call = stub.Retrieve.future(toy.request("wait"), timeout=20)
        ready = threading.Event()
        threading.Thread(target=lambda: (_await(servicer.entered), ready.set())).start()
        assert ready.wait(10)
        call.cancel()
        until = 200
        while not servicer.cancelled and until:
            ready.clear()
            ready.wait(0.02)
            until -= 1
        assert servicer.cancelled == 1


def _await(event: asyncio.Event) -> None:
    while not event.is_set():
        threading.Event().wait(0.005)


def test_an_unknown_method_is_unimplemented_and_makes_no_label(front: Front) -> None:
    with server(front) as (running, _, _), grpc.insecure_channel(running.address) as channel:
        for path in ("/nope/Nope", f"/{toy.NAME}/Nope", "/", "/a"):
            error = failure(lambda p=path: channel.unary_unary(p)(b"", timeout=20))
            assert error.code() is grpc.StatusCode.UNIMPLEMENTED


def test_large_messages_go_both_ways_whole(front: Front) -> None:
    draw = random.Random(5)

    class Echo(toy.Toy):
        async def Retrieve(self, request: Any, call: Any) -> Any:
            answer = retriever_pb2.RetrieveResponse()
            for item_id in request.deny_item_ids:
                answer.candidates.add(item_id=item_id)
            return answer

    options = ServerOptions(front=front, max_request_bytes=8 << 20)
    with (
        in_thread(lambda: Echo().services(), options) as running,
        grpc.insecure_channel(running.address, [("grpc.max_receive_message_length", -1)]) as way,
    ):
        stub = retriever_pb2_grpc.RetrieverStub(way)
        requests = []
        for size in (1, 16_384, 65_536, 1_000_000, 6_000_000):
            request = toy.request("ok")
            request.deny_item_ids.extend(
                ["".join(draw.choices("abc", k=100)) for _ in range(max(1, size // 100))]
            )
            requests.append(request)
        calls = [stub.Retrieve.future(r, timeout=60) for r in requests * 3]
        for request, call in zip(requests * 3, calls, strict=True):
            got = [c.item_id for c in call.result().candidates]
            assert got == list(request.deny_item_ids)


def test_messages_beyond_the_bounds_are_refused_whichever_way(front: Front) -> None:
    bounds = {"max_request_bytes": 10_000, "max_response_bytes": 10_000}
    with server(front, **bounds) as (_, stub, _):
        request = toy.request("ok")
        request.deny_item_ids.append("x" * 20_000)
        error = failure(lambda: stub.Retrieve(request, timeout=20))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        much = [("x", "y" * 700)] * 10  # what "call" sends back, with names twice as long
        answer = stub.Retrieve(toy.request("call"), timeout=20, metadata=much[:2])
        assert answer.ByteSize() > 1400
        more = [("x" * 30 + str(n), "y" * 300) for n in range(40)]
        error = failure(lambda: stub.Retrieve(toy.request("call"), timeout=20, metadata=more))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert stub.Retrieve(toy.request("ok"), timeout=20).unknown_history_items == 7


@pytest.mark.parametrize("packing", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_a_packed_request_is_unpacked(front: Front, packing: grpc.Compression) -> None:
    with server(front) as (_, stub, _):
        request = toy.request("ok")
        request.deny_item_ids.extend(["x" * 100] * 1000)
        answer = stub.Retrieve(request, timeout=20, compression=packing)
        assert answer.unknown_history_items == 7


def test_a_packed_request_is_bounded_unpacked(front: Front) -> None:
    with server(front, max_request_bytes=100_000) as (_, stub, _):
        bomb = toy.request("ok")
        bomb.deny_item_ids.extend(["x" * 100] * 5000)
        assert len(gzip.compress(bomb.SerializeToString())) < 10_000
        error = failure(lambda: stub.Retrieve(bomb, timeout=20, compression=grpc.Compression.Gzip))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_many_calls_at_once_get_their_own_answers(front: Front) -> None:
    async def main(address: str) -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = retriever_pb2_grpc.RetrieverStub(channel)
            requests = [toy.request("ok", k) for k in range(1, 1001)]
            answers = await asyncio.gather(*(stub.Retrieve(r, timeout=60) for r in requests))
            assert [a.unknown_history_items for a in answers] == list(range(1, 1001))

    with server(front, max_streams=1000) as (running, _, _):
        asyncio.run(main(running.address))


def test_text_beyond_ascii_comes_through_in_a_message(front: Front) -> None:
    class Says(toy.Toy):
        async def Retrieve(self, request: Any, call: Any) -> Any:
            raise toy.NotFound("größer als 100 % — «雪»\n", field="node_ids")

    options = ServerOptions(front=front)
    with (
        in_thread(lambda: Says().services(), options) as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        stub = retriever_pb2_grpc.RetrieverStub(channel)
        error = failure(lambda: stub.Retrieve(toy.request("ok"), timeout=20))
        assert "größer als 100 % — «雪»\n" in error.details()
