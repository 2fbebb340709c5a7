"""Which calls are taken: a bounded number, and none that would be late."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import grpc
import pytest
import toy
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry

from serendip.core import InvalidRequest, Overloaded
from serendip.serving.admission import FREE, Admission
from serendip.serving.server import ServerOptions, serve
from serendip.v1 import retriever_pb2_grpc


def busy(admission: Admission, calls: int, seconds: float) -> None:
    """Teaches it: a while with ``calls`` in flight, each of which takes ``seconds``."""
    found = [admission.enter(None) for _ in range(calls)]
    for _ in range(500):
        admission.leave(found.pop(0), seconds)
        found.append(admission.enter(None))
    for one in found:
        admission.leave(one, None)


def test_no_more_are_taken_than_may_be_in_flight() -> None:
    told: Counter[str] = Counter()
    admission = Admission(2, on_refused=lambda why: told.update([why]))
    first = admission.enter(None)
    admission.enter(None)
    assert admission.full
    with pytest.raises(Overloaded) as caught:
        admission.enter(None)
    assert 0 < caught.value.retry_after_s < 30
    admission.leave(first, None)
    admission.enter(None)
    assert told == {"in_flight": 1}
    with pytest.raises(InvalidRequest):
        Admission(0)


def test_the_pace_is_seconds_a_call_however_many_share_the_server() -> None:
    admission = Admission(1000)
    busy(admission, 100, 0.2)
    assert admission.pace_s == pytest.approx(0.002, rel=0.1)
    busy(admission, 10, 0.02)
    assert admission.pace_s == pytest.approx(0.002, rel=0.1)
    busy(admission, 10, 0.002)
    assert admission.pace_s == pytest.approx(0.0002, rel=0.1)


def test_what_would_be_late_is_refused_and_what_would_not_is_taken() -> None:
    told: Counter[str] = Counter()
    admission = Admission(1000, on_refused=lambda why: told.update([why]))
    busy(admission, 100, 0.2)
    for _ in range(100):
        admission.enter(None)
    with pytest.raises(Overloaded) as caught:
        admission.enter(time.monotonic() + 0.25)  # 101 calls of 2 ms, and a margin
    assert 0.1 < caught.value.retry_after_s < 1
    admission.enter(time.monotonic() + 1)
    assert told == {"late": 1}


def test_few_calls_are_never_refused_by_an_estimate() -> None:
    admission = Admission(1000)
    busy(admission, 1, 5.0)
    for _ in range(FREE):
        admission.enter(time.monotonic() + 0.001)
    with pytest.raises(Overloaded):
        admission.enter(time.monotonic() + 0.001)


def test_calls_that_are_unlike_each_other_share_no_estimate() -> None:
    admission = Admission(100, refuses_late=False)
    busy(admission, 99, 5.0)
    for _ in range(99):
        admission.enter(time.monotonic() + 0.001)


def test_a_full_server_refuses_at_once_and_says_when_to_come_back() -> None:
    registry = CollectorRegistry()

    async def main() -> None:
        servicer = toy.Toy()
        options = ServerOptions(max_in_flight=1)
        async with (
            serve("test", servicer.services(), options, registry=registry) as running,
            grpc.aio.insecure_channel(running.address) as channel,
        ):
            stub = retriever_pb2_grpc.RetrieverStub(channel)
            first = stub.Retrieve(toy.request("wait"), timeout=10)
            await servicer.entered.wait()
            for _ in range(3):
                began = time.monotonic()
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.Retrieve(toy.request("ok"), timeout=10)
                assert time.monotonic() - began < 1
                error = caught.value
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                (packed,) = rpc_status.from_call(error).details
                assert packed.Unpack(error_details_pb2.RetryInfo())
                assert int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) > 0
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(f"/{toy.NAME}/Nope")(b"", timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            servicer.release.set()
            await first
            assert (await stub.Retrieve(toy.request("ok"))).unknown_history_items == 7

    asyncio.run(main())
    labels = {"grpc_type": "unary", "grpc_service": toy.NAME, "grpc_method": "Retrieve"}
    read = registry.get_sample_value
    assert read("serendip_refused_total", {"reason": "in_flight"}) == 3
    refused = {**labels, "grpc_code": "RESOURCE_EXHAUSTED"}
    assert read("grpc_server_handled_total", refused) == 3
    assert read("grpc_server_started_total", labels) == 5


def test_a_call_that_was_given_up_leaves_room() -> None:
    async def main() -> None:
        servicer = toy.Toy()
        async with (
            serve("test", servicer.services(), ServerOptions(max_in_flight=1)) as running,
            grpc.aio.insecure_channel(running.address) as channel,
        ):
            stub = retriever_pb2_grpc.RetrieverStub(channel)
            call = stub.Retrieve(toy.request("wait"))
            await servicer.entered.wait()
            call.cancel()
            while not servicer.cancelled:
                await asyncio.sleep(0.005)
            assert (await stub.Retrieve(toy.request("ok"), timeout=5)).unknown_history_items == 7

    asyncio.run(main())
