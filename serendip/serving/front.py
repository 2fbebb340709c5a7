"""The grpc.aio front: lets in, admits, decodes, counts, calls the servicer, makes errors statuses.

    call ──> known client? ──> admitted? ──> decode ──> servicer ──> encode ──> bytes
     UNAUTHENTICATED └─ RESOURCE_EXHAUSTED ─┘──── what was raised ────┴──> status with details

Knows no tier and no file.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, status_pb2

from serendip.core import InvalidRequest, SerendipError
from serendip.serving.admission import Admission
from serendip.serving.errors import status_of, trailers_of
from serendip.serving.guard import Guard
from serendip.serving.handlers import REQUEST_ID_KEY, Call, Method, Service
from serendip.serving.records import Records
from serendip.serving.telemetry import MethodMeter, ServerMetrics

_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class GrpcFront(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Serves our services from a grpc.aio server.

    Its methods are not registered with the server by name: each would be waited for by itself,
    and every call pays for the longer wait.

    Args:
        guard: asked before a request is read; None: anybody may call.
    """

    def __init__(
        self,
        services: Sequence[Service],
        metrics: ServerMetrics,
        admission: Admission,
        guard: Guard | None = None,
        records: Records | None = None,
    ) -> None:
        self._admission = admission
        self._guard = guard
        self._ways: dict[str, _Way] = {}
        for service in services:
            for method in service.methods:
                name = f"/{service.name}/{method.name}"
                door = _Door(name, metrics.calls.meter(name), records)
                self._ways[name] = _Way(door, method, admission)

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a call; None, which is UNIMPLEMENTED, if there is no such method."""
        way = self._ways.get(handler_call_details.method)
        if way is None:
            return None
        client = ""
        if self._guard is not None:
            client, refusal = self._guard.admit(handler_call_details.invocation_metadata)
            if refusal is not None:
                return way.door.refused(lambda: refusal, client)
        return way.full if self._admission.full else way.taken(client)


class _Door:
    """Where one method's calls come in: written down, and refused without their request."""

    def __init__(self, name: str, meter: MethodMeter, records: Records | None) -> None:
        self._name = name
        self._meter = meter
        self._records = records

    def refused(self, why: Callable[[], SerendipError], client: str = "") -> Any:
        """The handler of a call that is refused, by an error that is made when it comes.

        A stream, for the server then reads no request: a large one is not taken in to be refused.
        The rest of a call's way through grpc.aio is paid for all the same.
        """

        async def refuse(_: Any, context: Any) -> None:
            call = Call(None, context.invocation_metadata())
            begun = self.begin(call)
            error = why()
            status = status_of(error)
            try:
                await _abort(context, status, error, call)
            finally:
                self.end(begun, call, code_pb2.Code.Name(status.code), context, client, error)

        return grpc.stream_unary_rpc_method_handler(refuse)

    def begin(self, call: Call) -> tuple[float, Any]:
        """Notes a call that begins; returns what ``end`` wants to know."""
        started = self._meter.start()
        return started, None if self._records is None else self._records.begin(self._name, call)

    def end(
        self,
        begun: tuple[float, Any],
        call: Call,
        code: str,
        context: Any,
        client: str,
        error: Exception | None = None,
    ) -> float:
        """Notes how it ended; returns the seconds that it took."""
        seconds = self._meter.end(begun[0], code)
        if self._records is not None:
            who = _who(context, client)
            self._records.end(begun[1], self._name, call, code, seconds, who, error)
        return seconds


class _Way:
    """How one method's calls are taken.

    Attributes:
        full: the handler of a call that comes when no more are taken.
    """

    def __init__(self, door: _Door, method: Method, admission: Admission) -> None:
        self.door = door
        self._method = method
        self._admission = admission
        self._taken: dict[str, Any] = {}
        self.full = door.refused(admission.refused)

    def taken(self, client: str) -> Any:
        """The handler of a client's call."""
        handler = self._taken.get(client)
        if handler is None:
            take = partial(self._take, client=client)
            handler = self._taken[client] = grpc.unary_unary_rpc_method_handler(take)
        return handler

    async def _take(self, raw: bytes, context: Any, *, client: str) -> bytes:
        call, code = Call(_deadline(context), context.invocation_metadata()), "UNKNOWN"
        begun = self.door.begin(call)
        found, failure = 0, None
        try:
            found = self._admission.enter(call.deadline)
            response = self._method.encode(
                await self._method.handle(_decoded(self._method, raw), call)
            )
            context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
            code = "OK"
            return response
        except asyncio.CancelledError:
            # The server cancels a call whose deadline passed as it does one that was given up.
            call.cancelled = True
            code = "DEADLINE_EXCEEDED" if context.time_remaining() == 0 else "CANCELLED"
            raise
        except Exception as error:
            failure = error
            status = status_of(error, call.request_id)
            code = code_pb2.Code.Name(status.code)
            await _abort(context, status, error, call)
        finally:
            seconds = self.door.end(begun, call, code, context, client, failure)
            if found:
                self._admission.leave(found, seconds if code == "OK" else None)


def _decoded(method: Method, raw: bytes) -> Any:
    try:
        return method.decode(raw)
    except DecodeError as error:
        raise InvalidRequest(
            f"the request is no {method.name} message",
            remedy="Send it as the protos have it; text must be UTF-8.",
        ) from error


async def _abort(context: Any, status: status_pb2.Status, error: Exception, call: Call) -> NoReturn:
    trailers = (*trailers_of(status, error), (REQUEST_ID_KEY, call.request_id))
    await context.abort(_CODES[status.code], status.message, trailers)
    raise AssertionError("unreachable: abort raises")


def _deadline(context: Any) -> float | None:
    left = context.time_remaining()
    return None if left is None else time.monotonic() + left


def _who(context: Any, client: str) -> dict[str, str]:
    """Who calls: its token's name, or else its certificate's; and from which address."""
    if not client:
        names = context.auth_context().get("x509_common_name", ())
        client = names[0].decode(errors="replace") if names else ""
    peer: str = context.peer()
    address = peer.partition(":")[2].rpartition(":")[0] or peer  # ipv4:ADDRESS:PORT
    return {"client": client, "peer": address} if client else {"peer": address}


# --- servicers of the ecosystem ----------------------------------------------------------


class Counted:
    """A grpc.aio server as health and reflection see it: their calls are counted like ours.

    Args:
        guard: asked before a call is begun; None: anybody may call.
        records: of the calls that it refuses; the others' are not written down.
    """

    def __init__(
        self,
        server: Any,
        metrics: ServerMetrics,
        guard: Guard | None = None,
        records: Records | None = None,
    ) -> None:
        self._server = server
        self._metrics = metrics
        self._guard = guard
        self._records = records

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """What generated code registers a service with."""
        self._server.add_generic_rpc_handlers(
            [_CountedHandler(h, self._metrics, self._guard, self._records) for h in handlers]
        )

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Generated code registers its methods twice; once will do."""


class _CountedHandler(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(
        self,
        inner: grpc.GenericRpcHandler,
        metrics: ServerMetrics,
        guard: Guard | None,
        records: Records | None,
    ) -> None:
        self._inner = inner
        self._metrics = metrics
        self._guard = guard
        self._records = records
        self._wrapped: dict[str, tuple[Any, _Door]] = {}

    def service(self, handler_call_details: Any) -> Any:
        handler = self._inner.service(handler_call_details)
        if handler is None:  # no such method: a caller must not be able to make label values
            return None
        method: str = handler_call_details.method
        if method not in self._wrapped:
            meter = self._metrics.calls.meter(method, _grpc_type(handler))
            door = _Door(method, meter, self._records)
            self._wrapped[method] = _counted(handler, meter), door
        counted, door = self._wrapped[method]
        if self._guard is not None:
            client, refusal = self._guard.admit(handler_call_details.invocation_metadata)
            if refusal is not None:
                return door.refused(lambda: refusal, client)
        return counted


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
