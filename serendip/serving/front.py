"""The grpc.aio front: decodes, admits, counts, calls the servicer, and makes its errors statuses.

    bytes ──> admitted? ──> decode ──> servicer ──> encode ──> bytes
       RESOURCE_EXHAUSTED └──── what was raised ────┴──> status with details

Knows no tier and no file.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, status_pb2

from serendip.core import InvalidRequest
from serendip.serving.admission import Admission
from serendip.serving.errors import status_of, trailers_of
from serendip.serving.handlers import Call, Method, Service
from serendip.serving.telemetry import MethodMeter, ServerMetrics

_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class GrpcFront(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Serves our services from a grpc.aio server.

    Its methods are not registered with the server by name: each would be waited for by itself,
    and every call pays for the longer wait.
    """

    def __init__(
        self, services: Sequence[Service], metrics: ServerMetrics, admission: Admission
    ) -> None:
        self._admission = admission
        self._taking: dict[str, Any] = {}
        self._refusing: dict[str, Any] = {}
        for service in services:
            for method in service.methods:
                name = f"/{service.name}/{method.name}"
                meter = MethodMeter(metrics, name)
                self._taking[name] = grpc.unary_unary_rpc_method_handler(
                    _taking(method, meter, admission)
                )
                # A stream, for the server then reads no request: a large one is not taken in to
                # be refused. The rest of a call's way through grpc.aio is paid for all the same.
                self._refusing[name] = grpc.stream_unary_rpc_method_handler(
                    _refusing(meter, admission)
                )

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a call; None, which is UNIMPLEMENTED, if there is no such method."""
        handlers = self._refusing if self._admission.full else self._taking
        return handlers.get(handler_call_details.method)


def _taking(method: Method, meter: MethodMeter, admission: Admission) -> Any:
    async def call(raw: bytes, context: Any) -> bytes:
        started, code = meter.start(), "UNKNOWN"
        ours = Call(_deadline(context), context.invocation_metadata)
        found = 0
        try:
            found = admission.enter(ours.deadline)
            response = method.encode(await method.handle(_decoded(method, raw), ours))
            code = "OK"
            return response
        except asyncio.CancelledError:
            # The server cancels a call whose deadline passed as it does one that was given up.
            ours.cancelled = True
            code = "DEADLINE_EXCEEDED" if context.time_remaining() == 0 else "CANCELLED"
            raise
        except Exception as error:
            status = status_of(error)
            code = code_pb2.Code.Name(status.code)
            await _abort(context, status, error)
        finally:
            seconds = meter.end(started, code)
            if found:
                admission.leave(found, seconds if code == "OK" else None)

    return call


def _refusing(meter: MethodMeter, admission: Admission) -> Any:
    async def call(_: Any, context: Any) -> None:
        started = meter.start()
        error = admission.refused()
        status = status_of(error)
        try:
            await _abort(context, status, error)
        finally:
            meter.end(started, code_pb2.Code.Name(status.code))

    return call


def _decoded(method: Method, raw: bytes) -> Any:
    try:
        return method.decode(raw)
    except DecodeError as error:
        raise InvalidRequest(
            f"the request is no {method.name} message",
            remedy="Send it as the protos have it; text must be UTF-8.",
        ) from error


async def _abort(context: Any, status: status_pb2.Status, error: Exception) -> NoReturn:
    await context.abort(_CODES[status.code], status.message, trailers_of(status, error))
    raise AssertionError("unreachable: abort raises")


def _deadline(context: Any) -> float | None:
    left = context.time_remaining()
    return None if left is None else time.monotonic() + left


# --- servicers of the ecosystem ----------------------------------------------------------


class Counted:
    """A grpc.aio server as health and reflection see it: their calls are counted like ours."""

    def __init__(self, server: Any, metrics: ServerMetrics) -> None:
        self._server = server
        self._metrics = metrics

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """What generated code registers a service with."""
        self._server.add_generic_rpc_handlers([_CountedHandler(h, self._metrics) for h in handlers])

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Generated code registers its methods twice; once will do."""


class _CountedHandler(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, inner: grpc.GenericRpcHandler, metrics: ServerMetrics) -> None:
        self._inner = inner
        self._metrics = metrics
        self._wrapped: dict[str, Any] = {}

    def service(self, handler_call_details: Any) -> Any:
        handler = self._inner.service(handler_call_details)
        if handler is None:  # no such method: a caller must not be able to make label values
            return None
        method: str = handler_call_details.method
        if method not in self._wrapped:
            meter = MethodMeter(self._metrics, method, _grpc_type(handler))
            self._wrapped[method] = _counted(handler, meter)
        return self._wrapped[method]


def _grpc_type(handler: Any) -> str:
    request = "client" if handler.request_streaming else ""
    response = "server" if handler.response_streaming else ""
    return {"": "unary", "client": "client_stream", "server": "server_stream"}.get(
        request + response, "bidi_stream"
    )


def _counted(handler: Any, meter: MethodMeter) -> Any:
    name = ("stream" if handler.request_streaming else "unary") + (
        "_stream" if handler.response_streaming else "_unary"
    )
    behavior: Callable[[Any, Any], Any] = getattr(handler, name)

    async def call(request: Any, context: Any) -> Any:
        return await _count(behavior(request, context), meter, context)

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


async def _count(answer: Awaitable[Any], meter: MethodMeter, context: Any) -> Any:
    started, code = meter.start(), "UNKNOWN"
    try:
        response = await answer
        code = _code(context, "OK")
        return response
    except BaseException as error:
        code = _code_of_failure(context, error)
        raise
    finally:
        meter.end(started, code)


def _code_of_failure(context: Any, error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "DEADLINE_EXCEEDED" if context.time_remaining() == 0 else "CANCELLED"
    return _code(context, "UNKNOWN")


def _code(context: Any, unset: str) -> str:
    code = context.code()
    if code is None:
        return unset
    if not isinstance(code, grpc.StatusCode):
        code = _CODES.get(code, grpc.StatusCode.UNKNOWN)
    name: str = code.name
    return name
