"""Spans of real calls, as a real collector gets them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import Any

import grpc
import pytest
import toy
from collector import collector
from running import in_thread

from serendip.core import InvalidRequest
from serendip.serving.handlers import Call, Service, service_of
from serendip.serving.server import ServerOptions
from serendip.serving.tracing import Otlp, Tracer
from serendip.v1 import planner_pb2, planner_pb2_grpc, retriever_pb2_grpc

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SERVER, ERROR = 2, 2  # SPAN_KIND_SERVER, STATUS_CODE_ERROR


def services() -> list[Service]:
    return toy.Toy().services()


class Asking:
    """A planner that asks the toy behind it, and takes along what a call takes along."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address)

    async def Plan(self, request: Any, call: Call) -> planner_pb2.PlanResponse:
        stub = retriever_pb2_grpc.RetrieverStub(self._channel)
        await stub.Retrieve(toy.request("ok"), timeout=10, metadata=call.onward)
        return planner_pb2.PlanResponse()


def test_two_tiers_make_one_trace_below_the_caller_s() -> None:
    descriptor = planner_pb2.DESCRIPTOR.services_by_name["Planner"]
    with collector() as sent:
        options = ServerOptions(otlp=Otlp(sent.address))
        with (
            in_thread(services, options, name="retriever") as behind,
            in_thread(
                lambda: [service_of(descriptor, Asking(behind.address))], options, name="planner"
            ) as running,
            grpc.insecure_channel(running.address) as channel,
        ):
            metadata = [("traceparent", f"00-{TRACE}-{CALLER}-01"), ("x-request-id", "ours")]
            plan = planner_pb2_grpc.PlannerStub(channel).Plan
            plan(planner_pb2.PlanRequest(), timeout=10, metadata=metadata)
        # Stopping sends what is left: nothing waits for the next batch.
        spans = {span.service: span for span in sent.wait_for(2)}
    planner, retriever = spans["serendip-planner"], spans["serendip-retriever"]
    assert planner.trace == retriever.trace == TRACE
    assert planner.parent == CALLER
    assert retriever.parent == planner.span
    assert planner.name == "serendip.v1.Planner/Plan"
    assert (planner.kind, planner.status) == (SERVER, 0)
    for span, service, method in (
        (planner, "serendip.v1.Planner", "Plan"),
        (retriever, "serendip.v1.Retriever", "Retrieve"),
    ):
        assert span.attributes == {
            "rpc.system": "grpc",
            "rpc.service": service,
            "rpc.method": method,
            "rpc.grpc.status_code": 0,
            "serendip.request_id": "ours",
        }


def test_a_span_tells_the_status_and_whose_fault_it_was() -> None:
    told = {"ok": (0, 0), "invalid_request": (3, 0), "overloaded": (8, 0), "bug": (13, ERROR)}
    with collector() as sent:
        with (
            in_thread(services, ServerOptions(otlp=Otlp(sent.address))) as running,
            grpc.insecure_channel(running.address) as channel,
        ):
            stub = retriever_pb2_grpc.RetrieverStub(channel)
            for behaviour in told:
                metadata = [("x-request-id", behaviour)]
                with contextlib.suppress(grpc.RpcError):
                    stub.Retrieve(toy.request(behaviour), timeout=10, metadata=metadata)
        spans = list(sent.spans)  # a server that has stopped has sent them
    assert {
        s.attributes["serendip.request_id"]: (s.attributes["rpc.grpc.status_code"], s.status)
        for s in spans
    } == told
    assert len({s.trace for s in spans}) == len(told), "each begins a trace of its own"
    assert {s.parent for s in spans} == {""}


def test_who_is_not_sampled_by_its_caller_or_the_share_sends_nothing() -> None:
    with collector() as sent:
        with (
            in_thread(services, ServerOptions(otlp=Otlp(sent.address, share=0))) as running,
            grpc.insecure_channel(running.address) as channel,
        ):
            stub = retriever_pb2_grpc.RetrieverStub(channel)
            for flag in (None, "00", "01", None):
                pairs = [("traceparent", f"00-{TRACE}-{CALLER}-{flag}")] if flag else []
                stub.Retrieve(toy.request("ok"), timeout=10, metadata=pairs)
        (span,) = sent.wait_for(1)
    assert (span.trace, span.parent) == (TRACE, CALLER), "the caller's decision holds"


def test_a_collector_that_is_away_holds_up_no_call_and_no_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serendip.serving.tracing._TO_SEND_S", 0.5)
    with (
        in_thread(services, ServerOptions(otlp=Otlp("127.0.0.1:1"))) as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        stub = retriever_pb2_grpc.RetrieverStub(channel)
        for _ in range(3):
            assert stub.Retrieve(toy.request("ok"), timeout=5).unknown_history_items == 7


def test_without_the_extra_the_flag_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(InvalidRequest, match=r"--otlp: needs the extra 'tracing'.*pip install"):
        Tracer(Otlp("127.0.0.1:1"), "planner")


def test_without_the_flag_nothing_of_opentelemetry_is_loaded() -> None:
    program = (
        "import sys, serendip.serving.server, serendip.serving.program\n"
        "print(*[m for m in sys.modules if m.startswith('opentelemetry')])"
    )
    run = [sys.executable, "-c", program]
    done = subprocess.run(run, check=True, capture_output=True, text=True)
    assert done.stdout.split() == []
