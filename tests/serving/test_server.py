"""The life of a server: health, reflection, stopping, signals."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import grpc
import pytest
import toy
from google.protobuf import descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from running import in_thread

from serendip.core import InvalidRequest
from serendip.serving.handlers import Service
from serendip.serving.server import ServerOptions, serve
from serendip.v1 import retriever_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def services() -> list[Service]:
    return toy.Toy().services()


def test_a_call_is_answered() -> None:
    with in_thread(services) as running, grpc.insecure_channel(running.address) as channel:
        assert running.port > 0
        assert running.line() == f"test ready on 127.0.0.1:{running.port}"
        response = retriever_pb2_grpc.RetrieverStub(channel).Retrieve(toy.request("ok"), timeout=5)
        assert response.unknown_history_items == 7


def test_a_servicer_may_encode_by_itself() -> None:
    with in_thread(services) as running, grpc.insecure_channel(running.address) as channel:
        stub = retriever_pb2_grpc.RetrieverStub(channel)
        assert stub.Retrieve(toy.request("bytes"), timeout=5).unknown_history_items == 3


def test_health_is_told_by_service_and_flips_on_stop() -> None:
    async def main() -> None:
        servicer = toy.Toy()
        options = ServerOptions(grace_s=5)
        seen: list[int] = []
        async with serve("test", servicer.services(), options) as running:
            channel = grpc.aio.insecure_channel(running.address)
            stub = health_pb2_grpc.HealthStub(channel)
            for service in ("", toy.NAME):
                request = health_pb2.HealthCheckRequest(service=service)
                assert (await stub.Check(request, timeout=5)).status == SERVING
            with pytest.raises(grpc.RpcError) as caught:
                await stub.Check(health_pb2.HealthCheckRequest(service="nope"), timeout=5)
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            await running.set_serving(toy.NAME, False)
            request = health_pb2.HealthCheckRequest(service=toy.NAME)
            assert (await stub.Check(request, timeout=5)).status == NOT_SERVING

            async def watch() -> None:
                try:
                    async for response in stub.Watch(health_pb2.HealthCheckRequest()):
                        seen.append(response.status)
                except grpc.RpcError:
                    pass

            watching = asyncio.create_task(watch())
            while not seen:
                await asyncio.sleep(0.005)
            began = time.monotonic()
        assert time.monotonic() - began < 2, "a watcher held up the stop"
        await asyncio.wait_for(watching, 5)
        assert seen == [SERVING, NOT_SERVING]
        await channel.close()

    asyncio.run(main())


def test_a_stop_lets_calls_in_flight_finish_and_takes_no_new_ones() -> None:
    async def main() -> None:
        servicer = toy.Toy()
        stopping = asyncio.Event()

        async def life() -> None:
            async with serve("test", servicer.services(), ServerOptions(grace_s=10)) as running:
                address.set_result(running.address)
                await stopping.wait()

        address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        server = asyncio.create_task(life())
        async with grpc.aio.insecure_channel(await address) as channel:
            stub = retriever_pb2_grpc.RetrieverStub(channel)
            in_flight = stub.Retrieve(toy.request("wait"), timeout=10)
            await servicer.entered.wait()
            stopping.set()
            await asyncio.sleep(0.1)
            assert not server.done(), "the stop did not wait"
            async with grpc.aio.insecure_channel(await address) as late:
                with pytest.raises(grpc.RpcError) as caught:
                    await retriever_pb2_grpc.RetrieverStub(late).Retrieve(
                        toy.request("ok"), timeout=2
                    )
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            servicer.release.set()
            assert (await in_flight).unknown_history_items == 7
            await asyncio.wait_for(server, 5)

    asyncio.run(main())


def test_a_stop_ends_after_its_grace() -> None:
    async def main() -> None:
        servicer = toy.Toy()
        async with serve("test", servicer.services(), ServerOptions(grace_s=0.1)) as running:
            channel = grpc.aio.insecure_channel(running.address)
            stuck = retriever_pb2_grpc.RetrieverStub(channel).Retrieve(toy.request("wait"))
            await servicer.entered.wait()
            began = time.monotonic()
        assert time.monotonic() - began < 3
        with pytest.raises(grpc.RpcError):
            await stuck
        await channel.close()

    asyncio.run(main())


def test_a_lame_server_says_so_and_still_answers() -> None:
    async def main() -> None:
        stopping = asyncio.Event()
        address: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def life() -> None:
            async with serve("test", toy.Toy().services(), ServerOptions(lame_s=3)) as running:
                address.set_result(running.address)
                await stopping.wait()

        server = asyncio.create_task(life())
        async with grpc.aio.insecure_channel(await address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            await health.Check(health_pb2.HealthCheckRequest(), timeout=5)
            stopping.set()
            request = health_pb2.HealthCheckRequest(service=toy.NAME)
            while (await health.Check(request, timeout=5)).status != NOT_SERVING:
                await asyncio.sleep(0.01)
            stub = retriever_pb2_grpc.RetrieverStub(channel)
            assert (await stub.Retrieve(toy.request("ok"), timeout=5)).unknown_history_items == 7
            await asyncio.wait_for(server, 15)

    asyncio.run(main())


def test_a_taken_port_is_a_typed_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InvalidRequest) as caught, in_thread(services, ServerOptions(port=port)):
            pass
    assert caught.value.field == "port"
    assert str(port) in str(caught.value)


def test_two_servers_share_a_port_only_if_told_to() -> None:
    with in_thread(services, ServerOptions(reuse_port=True)) as first:
        shared = ServerOptions(port=first.port, reuse_port=True)
        with in_thread(services, shared) as second:
            assert second.port == first.port
        with pytest.raises(InvalidRequest), in_thread(services, ServerOptions(port=first.port)):
            pass


def test_a_message_over_the_limit_is_refused() -> None:
    options = ServerOptions(max_request_bytes=1000)
    with in_thread(services, options) as running, grpc.insecure_channel(running.address) as channel:
        stub = retriever_pb2_grpc.RetrieverStub(channel)
        request = toy.request("ok")
        request.deny_item_ids.append("x" * 2000)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Retrieve(request, timeout=5)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_call_is_built_by_reflection_alone() -> None:
    with in_thread(services) as running, grpc.insecure_channel(running.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert set(database.get_services()) == {
            toy.NAME,
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }
        pool = descriptor_pool.DescriptorPool(database)
        method = pool.FindServiceByName(toy.NAME).methods_by_name["Retrieve"]
        request = message_factory.GetMessageClass(method.input_type)
        response = message_factory.GetMessageClass(method.output_type)
        call = channel.unary_unary(
            f"/{toy.NAME}/Retrieve",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        assert call(request(k=3), timeout=5).unknown_history_items == 3


@pytest.mark.parametrize(
    ("symbol", "found"),
    [
        (toy.NAME, True),
        (f"{toy.NAME}.Retrieve", True),  # what ghz asks for
        (f"{toy.NAME}.Nope", False),
        ("serendip.v1.Nope.Retrieve", False),
        ("Retrieve", False),
    ],
)
def test_reflection_knows_methods(symbol: str, found: bool) -> None:
    with in_thread(services) as running, grpc.insecure_channel(running.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)
        (response,) = stub.ServerReflectionInfo(iter([request]), timeout=5)
    if found:
        files = response.file_descriptor_response.file_descriptor_proto
        assert any(b"serendip/v1/retriever.proto" in file for file in files)
    else:
        assert response.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


def test_a_servicer_is_told_what_it_may_know_of_the_call() -> None:
    with in_thread(services) as running, grpc.insecure_channel(running.address) as channel:
        stub = retriever_pb2_grpc.RetrieverStub(channel)
        answer = stub.Retrieve(toy.request("call"), timeout=20, metadata=[("who", "me")])
        # Milliseconds to the deadline; gRPC rounds what it sends up.
        assert 15_000 < answer.unknown_history_items < 21_000
        assert "who=me" in {c.item_id for c in answer.candidates}
        assert stub.Retrieve(toy.request("call")).unknown_history_items == -1000, "it set none"


def test_bytes_that_are_no_request_are_the_callers_fault() -> None:
    with in_thread(services) as running, grpc.insecure_channel(running.address) as channel:
        call = channel.unary_unary(f"/{toy.NAME}/Retrieve")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff\xff\xff", timeout=5)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "Retrieve" in caught.value.details()


PROGRAM = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
import toy
from serendip.serving.server import ServerOptions, serve_until_signal

async def main():
    servicer = toy.Toy()
    asyncio.get_running_loop().call_later(0.8, servicer.release.set)
    await serve_until_signal("toy", servicer.services(), ServerOptions(metrics_port=0))

asyncio.run(main())
"""


def await_calls(metrics: str, count: int) -> None:
    """Waits until so many calls have reached the servicer."""
    began = f'grpc_server_started_total{{grpc_method="Retrieve",grpc_service="{toy.NAME}",'
    until = time.monotonic() + 10
    while time.monotonic() < until:
        with urllib.request.urlopen(metrics, timeout=5) as page:
            lines = page.read().decode().splitlines()
        if any(line.startswith(began) and float(line.split()[-1]) >= count for line in lines):
            return
        time.sleep(0.02)
    raise TimeoutError(f"no {count} calls within 10 s")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_exits_0(number: signal.Signals) -> None:
    folder = toy.__file__.rpartition("/")[0]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("toy ready on 127.0.0.1:"), process.communicate()
        address, _, metrics = line.removeprefix("toy ready on ").strip().partition(", metrics ")
        assert metrics.startswith("http://127.0.0.1:")
        assert metrics.endswith("/metrics")
        with grpc.insecure_channel(address) as channel:
            stub = retriever_pb2_grpc.RetrieverStub(channel)
            in_flight = stub.Retrieve.future(toy.request("wait"), timeout=10)
            await_calls(metrics, 1)
            process.send_signal(number)
            process.send_signal(number)
            assert in_flight.result().unknown_history_items == 7
        _, errors = process.communicate(timeout=10)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors
    finally:
        process.kill()
        process.communicate()


def test_a_server_leaves_what_it_started_with_out_of_its_collections() -> None:
    """A collection that goes through all modules and releases stops every call meanwhile."""
    program = PROGRAM.replace("ServerOptions(metrics_port=0))", "ServerOptions(), on_ready=told)")
    program = program.replace(
        "async def main", "import gc, os\ndef told(_): print(gc.get_freeze_count(), flush=True)\n"
        "async def main",
    )  # fmt: skip
    folder = toy.__file__.rpartition("/")[0]
    process = subprocess.Popen(
        [sys.executable, "-c", program, folder], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert int(process.stdout.readline()) > 10_000
    finally:
        process.kill()
        process.communicate()
