"""Metrics: the grpc_server_* families, batches, artefact versions, and the page that shows them.

Names and labels are those of the ecosystem's gRPC middlewares, so that its dashboards fit. Knows
no tier; every collector registers with the registry it is given, never with a global one.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app

from serendip.core import InvalidRequest

# Seconds, 0.1 ms to 10 s: a lookup stands at the left end, a live plan at the right one.
SECONDS = (
    *(1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 7.5e-3),
    *(0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

_CODE_OF_NUMBER: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}


class ServerMetrics:
    """The collectors of one server; make one a registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        call = ("grpc_type", "grpc_service", "grpc_method")
        self.started = Counter(
            "grpc_server_started", "Calls started on the server.", call, registry=registry
        )
        self.handled = Counter(
            "grpc_server_handled",
            "Calls completed on the server, by code, failed and cancelled ones too.",
            (*call, "grpc_code"),
            registry=registry,
        )
        self.seconds = Histogram(
            "grpc_server_handling_seconds",
            "Seconds from the handler's start to its end.",
            call,
            buckets=SECONDS,
            registry=registry,
        )
        self._versions = Gauge(
            "serendip_artifact_info",
            "1 for every artefact version that answers are made from.",
            ("kind", "version"),
            registry=registry,
        )
        self._shown: dict[str, str] = {}

    def set_versions(self, **versions: str) -> None:
        """Shows ``kind=version`` and no longer the version of that kind that stood before.

        An empty version shows none of its kind. Kinds that are not named stay as they are.
        """
        for kind, version in versions.items():
            before = self._shown.pop(kind, "")
            if version:
                self._versions.labels(kind, version).set(1)
                self._shown[kind] = version
            if before and before != version:
                self._versions.remove(kind, before)


class BatchMetrics:
    """Rows a batch and rows that wait, of one batcher; ``observe`` is its ``on_batch``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._rows = Histogram(
            "serendip_batch_rows", "Rows run in one batch.", buckets=ROWS, registry=registry
        )
        self._waiting = Gauge(
            "serendip_batch_waiting_rows",
            "Rows that waited when the last batch was taken.",
            registry=registry,
        )

    def observe(self, rows: int, waiting: int) -> None:
        self._rows.observe(rows)
        self._waiting.set(waiting)


# --- counting calls ----------------------------------------------------------------------


@grpc.aio.ServerInterceptor.register
class TelemetryInterceptor:
    """Counts and times every call; to stand outside of what sets the final code."""

    def __init__(self, metrics: ServerMetrics) -> None:
        self._metrics = metrics
        self._wrapped: dict[str, tuple[Any, Any]] = {}

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        handler = await continuation(handler_call_details)
        method: str = handler_call_details.method
        if handler is None:  # no such method: a caller must not be able to make label values
            return None
        known = self._wrapped.get(method)
        if known is not None and known[0] is handler:
            return known[1]
        wrapped = _counted(handler, _MethodMeter(self._metrics, method, _grpc_type(handler)))
        self._wrapped[method] = (handler, wrapped)
        return wrapped


class _MethodMeter:
    """One method's label children, each looked up once."""

    def __init__(self, metrics: ServerMetrics, method: str, grpc_type: str) -> None:
        service, _, name = method.removeprefix("/").rpartition("/")
        self._labels = (grpc_type, service, name)
        self._metrics = metrics
        self._started = metrics.started.labels(*self._labels)
        self._seconds = metrics.seconds.labels(*self._labels)
        self._handled: dict[str, Any] = {}
        self._child("OK")  # so that a rate of errors has its denominator from the first scrape

    def _child(self, code: str) -> Any:
        if code not in self._handled:
            self._handled[code] = self._metrics.handled.labels(*self._labels, code)
        return self._handled[code]

    def start(self) -> float:
        self._started.inc()
        return time.perf_counter()

    def end(self, started: float, code: str) -> None:
        self._seconds.observe(time.perf_counter() - started)
        self._child(code).inc()


def _grpc_type(handler: Any) -> str:
    request = "client" if handler.request_streaming else ""
    response = "server" if handler.response_streaming else ""
    return {"": "unary", "client": "client_stream", "server": "server_stream"}.get(
        request + response, "bidi_stream"
    )


def _counted(handler: Any, meter: _MethodMeter) -> Any:
    name = ("stream" if handler.request_streaming else "unary") + (
        "_stream" if handler.response_streaming else "_unary"
    )
    behavior = getattr(handler, name)

    async def call(request: Any, context: Any) -> Any:
        started, code = meter.start(), "UNKNOWN"
        try:
            response = await behavior(request, context)
            code = _code(context, "OK")
            return response
        except BaseException as error:
            code = _code_of_failure(context, error)
            raise
        finally:
            meter.end(started, code)

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        started, code = meter.start(), "UNKNOWN"
        try:
            async for response in behavior(request, context):
                yield response
            code = _code(context, "OK")
        except BaseException as error:
            code = _code_of_failure(context, error)
            raise
        finally:
            meter.end(started, code)

    # The server looks at the function's kind to learn how to drive it.
    wrapper: Any = stream if inspect.isasyncgenfunction(behavior) else call
    return getattr(grpc, f"{name}_rpc_method_handler")(
        wrapper,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


def _code_of_failure(context: Any, error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        # The server cancels a call whose deadline passed as it does one that was given up.
        return "DEADLINE_EXCEEDED" if context.time_remaining() == 0 else "CANCELLED"
    return _code(context, "UNKNOWN")


def _code(context: Any, unset: str) -> str:
    code = context.code()
    if code is None:
        return unset
    if not isinstance(code, grpc.StatusCode):
        return _CODE_OF_NUMBER.get(code, "UNKNOWN")
    name: str = code.name
    return name


# --- the page ----------------------------------------------------------------------------


class MetricsServer(NamedTuple):
    """A running /metrics page, and the port that it is bound to."""

    server: WSGIServer
    port: int

    def close(self) -> None:
        """Stops serving and closes the port; blocks for at most a tenth of a second."""
        self.server.shutdown()
        self.server.server_close()


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """A scrape every few seconds is no news."""


def start_metrics_server(registry: CollectorRegistry, port: int, host: str) -> MetricsServer:
    """Serves ``registry`` as http://host:port/metrics from a thread of its own.

    Args:
        port: 0 takes a free one.

    Raises:
        InvalidRequest: the address cannot be bound.
    """
    try:
        server = make_server(host, port, make_wsgi_app(registry), handler_class=_Quiet)
    except (OSError, OverflowError) as error:
        raise InvalidRequest(
            f"cannot listen on {host}: {error}",
            field="metrics_port",
            value=port,
            remedy="Choose another port, or 0 for any free one.",
        ) from error
    threading.Thread(target=server.serve_forever, args=(0.1,), name="metrics", daemon=True).start()
    return MetricsServer(server, server.server_port)
