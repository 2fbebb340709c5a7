"""OpenTelemetry: one span a call, the child of the caller's, sent to a collector by OTLP.

Loads opentelemetry (extra ``tracing``) when a Tracer is made, and not before.
"""

from __future__ import annotations

import os
import socket
import threading
from dataclasses import dataclass
from typing import Any

from serendip.core import InvalidRequest
from serendip.serving.handlers import Call

_TO_SEND_S = 3.0

# By the semantic conventions of RPC spans: these are the server's errors, the others the caller's.
_ERRORS = frozenset(
    ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
)


@dataclass(frozen=True)
class Otlp:
    """Where spans are sent.

    Attributes:
        endpoint: HOST:PORT in plain text, or https://HOST:PORT.
        share: of the traces that begin here, 0 to 1; of others the caller has decided.
    """

    endpoint: str
    share: float = 1.0


class Tracer:
    """Makes spans; what it cannot send it drops, and a call never waits for it.

    Args:
        server: "planner" or "retriever".

    Raises:
        InvalidRequest: the extra is not installed, or the endpoint is none.
    """

    def __init__(self, otlp: Otlp, server: str) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as e:
            raise InvalidRequest(
                f"needs the extra 'tracing' ({e})",
                field="--otlp",
                value=otlp.endpoint,
                remedy="pip install 'serendip[tracing]', or leave the flag out.",
            ) from e
        resource = Resource.create(
            {
                "service.name": f"serendip-{server}",
                "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
            }
        )
        self._provider = TracerProvider(
            resource=resource,
            sampler=ParentBased(TraceIdRatioBased(otlp.share)),
            shutdown_on_exit=False,
        )
        secure = otlp.endpoint.startswith("https://")
        self._exporter = OTLPSpanExporter(endpoint=otlp.endpoint, insecure=not secure)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("serendip")
        self._propagator = TraceContextTextMapPropagator()
        self._in_context = trace.set_span_in_context
        self._kind = trace.SpanKind.SERVER
        self._error = trace.Status(trace.StatusCode.ERROR)

    def start(self, method: str, call: Call) -> Any:
        """Begins a call's span, and has the call pass it on.

        Args:
            method: /SERVICE/METHOD.
        """
        name = method.removeprefix("/")
        service, _, short = name.rpartition("/")
        sent = {key: value for key, value in call.metadata if isinstance(value, str)}
        span = self._tracer.start_span(
            name,
            self._propagator.extract(sent),
            self._kind,
            {
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": short,
                "serendip.request_id": call.request_id,
            },
        )
        onward: dict[str, str] = {}
        self._propagator.inject(onward, self._in_context(span))
        call.trace = tuple(onward.items())
        return span

    def end(self, span: Any, code: str, number: int) -> None:
        """Ends a span.

        Args:
            code, number: of the status.
        """
        span.set_attribute("rpc.grpc.status_code", number)
        if code in _ERRORS:
            span.set_status(self._error)
        span.end()

    def close(self) -> None:
        """Sends what is left, for three seconds at the most; blocks."""
        # The provider would wait for a collector that is away for half a minute.
        given_up = threading.Timer(_TO_SEND_S, self._exporter.shutdown)
        given_up.start()
        self._provider.shutdown()
        given_up.cancel()
