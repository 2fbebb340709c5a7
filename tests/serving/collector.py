"""An OpenTelemetry collector that keeps what it is sent: the real protocol, on a free port."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest


@dataclass
class Span:
    service: str
    name: str
    trace: str
    span: str
    parent: str
    kind: int
    status: int
    attributes: dict[str, Any]


@dataclass
class Collector:
    address: str = ""
    spans: list[Span] = field(default_factory=list)
    arrived: threading.Condition = field(default_factory=threading.Condition)

    def wait_for(self, count: int, within_s: float = 30) -> list[Span]:
        """Returns when so many spans have come."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.spans) >= count, within_s), self.spans
            return list(self.spans)

    def take(self, request: Any) -> None:
        with self.arrived:
            for resource in request.resource_spans:
                (service,) = [
                    a.value.string_value
                    for a in resource.resource.attributes
                    if a.key == "service.name"
                ]
                for scope in resource.scope_spans:
                    self.spans += [_read(service, span) for span in scope.spans]
            self.arrived.notify_all()


def _read(service: str, span: Any) -> Span:
    attributes = {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}
    return Span(
        service,
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.kind,
        span.status.code,
        attributes,
    )


@contextlib.contextmanager
def collector() -> Iterator[Collector]:
    service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    stubs = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc")
    kept = Collector()

    class Servicer(stubs.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:
            kept.take(request)
            return service.ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(2))
    stubs.add_TraceServiceServicer_to_server(Servicer(), server)
    kept.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield kept
    finally:
        server.stop(0).wait()
