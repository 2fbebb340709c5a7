"""What a scrape of a real server tells about the calls that were made."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import grpc
import pytest
import toy
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry
from running import in_thread

from serendip.core import InvalidRequest
from serendip.serving import telemetry
from serendip.serving.server import ServerOptions, serve
from serendip.serving.telemetry import BatchMetrics, ServerMetrics, start_metrics_server
from serendip.v1 import retriever_pb2_grpc

RETRIEVE = {"grpc_type": "unary", "grpc_service": toy.NAME, "grpc_method": "Retrieve"}


def reader(registry: CollectorRegistry) -> Callable[..., float | None]:
    def read(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, {**RETRIEVE, **labels})

    return read


def test_every_call_is_counted_by_the_code_that_its_caller_got() -> None:
    registry = CollectorRegistry()
    calls = ["ok", "ok", "ok", "not_found", "bug", "overloaded", "overloaded"]
    codes: dict[str, int] = {}
    with (
        in_thread(lambda: toy.Toy().services(), registry=registry) as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        stub = retriever_pb2_grpc.RetrieverStub(channel)
        for behaviour in calls:
            try:
                stub.Retrieve(toy.request(behaviour), timeout=5)
                code = "OK"
            except grpc.RpcError as error:
                code = error.code().name
            codes[code] = codes.get(code, 0) + 1
        with pytest.raises(grpc.RpcError):
            channel.unary_unary("/made.up.Service/Name")(b"", timeout=5)
    read = reader(registry)
    assert codes == {
        "OK": 3,
        "NOT_FOUND": 1,
        "INTERNAL": 1,
        "RESOURCE_EXHAUSTED": 2,
    }
    assert {c: read("grpc_server_handled_total", grpc_code=c) for c in codes} == codes
    assert read("grpc_server_started_total") == len(calls)
    assert read("grpc_server_handling_seconds_count") == len(calls)
    shown = {sample.labels.get("grpc_service") for m in registry.collect() for sample in m.samples}
    assert "made.up.Service" not in shown, "callers can make label values"


def test_cancelled_and_late_calls_are_counted_as_such() -> None:
    registry = CollectorRegistry()
    read = reader(registry)

    async def main() -> None:
        servicer = toy.Toy()
        async with (
            serve("test", servicer.services(), registry=registry) as running,
            grpc.aio.insecure_channel(running.address) as channel,
        ):
            stub = retriever_pb2_grpc.RetrieverStub(channel)
            call = stub.Retrieve(toy.request("wait"))
            await servicer.entered.wait()
            assert read("grpc_server_started_total") == 1
            assert read("grpc_server_handling_seconds_count") == 0
            call.cancel()
            await until(lambda: read("grpc_server_handled_total", grpc_code="CANCELLED") == 1)
            servicer.entered.clear()
            late = stub.Retrieve(toy.request("wait"), timeout=2)
            await asyncio.wait_for(servicer.entered.wait(), 10)
            with pytest.raises(grpc.RpcError) as caught:
                await late
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED

            # A caller whose deadline passes takes its call back: the server may see that first.
            def ended() -> float:
                codes = ("CANCELLED", "DEADLINE_EXCEEDED")
                return sum(read("grpc_server_handled_total", grpc_code=c) or 0 for c in codes)

            await until(lambda: ended() == 2)
            await until(lambda: servicer.cancelled == 2)  # work for nobody has ended

    asyncio.run(main())


def test_streams_are_counted() -> None:
    registry = CollectorRegistry()

    async def main() -> None:
        async with (
            serve("test", toy.Toy().services(), registry=registry) as running,
            grpc.aio.insecure_channel(running.address) as channel,
        ):
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            await watch.read()
            watch.cancel()
            labels = {
                "grpc_type": "server_stream",
                "grpc_service": "grpc.health.v1.Health",
                "grpc_method": "Watch",
            }
            assert registry.get_sample_value("grpc_server_started_total", labels) == 1
            await until(
                lambda: (
                    registry.get_sample_value(
                        "grpc_server_handled_total", {**labels, "grpc_code": "CANCELLED"}
                    )
                    == 1
                )
            )

    asyncio.run(main())


async def until(condition: Callable[[], Any]) -> None:
    """Cancellation reaches a server in its own time."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.005)


def test_latency_has_buckets_where_lookups_and_live_plans_lie() -> None:
    registry = CollectorRegistry()
    meter = ServerMetrics(registry).calls.meter("/s/m")
    for seconds in (0.0015, 4.0):
        assert meter.end(time.perf_counter() - seconds, "OK") >= seconds

    def upto(edge: str) -> float | None:
        return registry.get_sample_value(
            "grpc_server_handling_seconds_bucket",
            {"grpc_type": "unary", "grpc_service": "s", "grpc_method": "m", "le": edge},
        )

    # The first of them took a little longer than that on a busy machine.
    assert (upto("0.001"), upto("2.0"), upto("5.0"), upto("+Inf")) == (0, 1, 2, 2)
    assert {upto(edge) for edge in ("0.0001", "0.0002", "0.0005")} == {0}


def test_the_page_is_scraped_over_http() -> None:
    options = ServerOptions(metrics_port=0)
    with (
        in_thread(lambda: toy.Toy().services(), options) as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        retriever_pb2_grpc.RetrieverStub(channel).Retrieve(toy.request("ok"), timeout=5)
        url = running.line().rpartition(" ")[2]
        with urllib.request.urlopen(url, timeout=5) as response:
            text = response.read().decode()
    assert (
        'grpc_server_handled_total{grpc_code="OK",grpc_method="Retrieve",'
        'grpc_service="serendip.v1.Retriever",grpc_type="unary"} 1.0' in text
    )
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url, timeout=5)


def test_a_connection_that_says_nothing_holds_up_neither_scrape_nor_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(telemetry._Quiet, "timeout", 60)  # that it is given up shall not help
    page = start_metrics_server(CollectorRegistry(), 0, "127.0.0.1")
    closing = threading.Thread(target=page.close, daemon=True)
    with socket.create_connection(("127.0.0.1", page.port)):
        url = f"http://127.0.0.1:{page.port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as response:
            assert response.status == 200
        closing.start()
        closing.join(10)
        assert not closing.is_alive(), "the stop waits for it"


def test_a_connection_that_says_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < (telemetry._Quiet.timeout or 0) <= 5
    monkeypatch.setattr(telemetry._Quiet, "timeout", 0.1)
    page = start_metrics_server(CollectorRegistry(), 0, "127.0.0.1")
    try:
        with socket.create_connection(("127.0.0.1", page.port), timeout=10) as silent:
            assert silent.recv(1) == b""
    finally:
        page.close()


def test_a_taken_metrics_port_is_a_typed_error() -> None:
    page = start_metrics_server(CollectorRegistry(), 0, "127.0.0.1")
    try:
        with pytest.raises(InvalidRequest, match="metrics_port"):
            start_metrics_server(CollectorRegistry(), page.port, "127.0.0.1")
    finally:
        page.close()
    start_metrics_server(CollectorRegistry(), page.port, "127.0.0.1").close()


def test_versions_replace_each_other() -> None:
    registry = CollectorRegistry()
    metrics = ServerMetrics(registry)
    metrics.set_versions(tree="aaa", retriever="bbb")
    metrics.set_versions(tree="ccc")
    metrics.set_versions(tree="ccc")

    def shown(kind: str, version: str) -> float | None:
        return registry.get_sample_value(
            "serendip_artifact_info", {"kind": kind, "version": version}
        )

    assert (shown("tree", "aaa"), shown("tree", "ccc"), shown("retriever", "bbb")) == (None, 1, 1)
    metrics.set_versions(retriever="")
    assert shown("retriever", "bbb") is None


def test_batches_are_measured() -> None:
    registry = CollectorRegistry()
    BatchMetrics(registry, "serendip_live", rows="batch_rows").ran(1)  # beside the other
    assert registry.get_sample_value("serendip_live_batch_rows_sum") == 1
    metrics = BatchMetrics(registry)
    metrics.watch(lambda: 5)
    metrics.ran(3)
    metrics.waited(0.004)
    metrics.dropped("expired", 2)
    metrics.refused("late", 7)
    read = registry.get_sample_value
    assert read("serendip_batch_rows_sum") == 3
    assert read("serendip_batch_waiting_rows") == 5
    assert read("serendip_batch_wait_seconds_sum") == 0.004
    assert read("serendip_batch_dropped_rows_total", {"reason": "expired"}) == 2
    assert read("serendip_batch_dropped_rows_total", {"reason": "cancelled"}) == 0
    assert read("serendip_batch_refused_rows_total", {"reason": "late"}) == 7
