"""grpc.aio as a front: lets in, admits, decodes, counts, calls the servicer, errors to statuses.

    call ──> known client? ──> admitted? ──> decode ──> servicer ──> encode ──> bytes
     UNAUTHENTICATED └─ RESOURCE_EXHAUSTED ─┘──── what was raised ────┴──> status with details

Knows no tier and no file.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from google.rpc import code_pb2, status_pb2

from serendip.core import SerendipError
from serendip.serving.admission import Admission
from serendip.serving.door import Door
from serendip.serving.errors import status_of, trailers_of
from serendip.serving.guard import Guard
from serendip.serving.handlers import (
    REQUEST_ID_KEY,
    Call,
    Method,
    Service,
    StreamMethod,
    decoded,
)
from serendip.serving.records import Records
from serendip.serving.telemetry import ServerMetrics
from serendip.serving.tls import Pem, server_credentials
from serendip.serving.watched_file import WatchedFiles

if TYPE_CHECKING:
    from serendip.serving.server import ServerOptions

_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class GrpcioFront(grpc.GenericRpcHandler):  # type: ignore[misc]
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
        self._ways: dict[str, _Way] = {}
        for service in services:
            for method in service.methods:
                name = f"/{service.name}/{method.name}"
                kind = method.grpc_type if isinstance(method, StreamMethod) else "unary"
                meter = metrics.calls.meter(name, kind)
                refusals = Door(name, meter, records)
                door = refusals if service.admitted else Door(name, meter, None)
                own = admission if service.admitted else None
                asked = guard if service.guarded else None
                self._ways[name] = _Way(method, door, refusals, own, asked)

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a call; None, which is UNIMPLEMENTED, if there is no such method."""
        way = self._ways.get(handler_call_details.method)
        return None if way is None else way.handler(handler_call_details.invocation_metadata)


class GrpcioListener:
    """A port that takes calls once it is started; see ``fronts.Listener``.

    Raises:
        RuntimeError: the port cannot be bound.
    """

    def __init__(
        self, front: GrpcioFront, options: ServerOptions, tls: WatchedFiles[Pem] | None
    ) -> None:
        self._server: Any = grpc.aio.server(options=_channel_arguments(options))
        self._server.add_generic_rpc_handlers([front])
        host = options.host
        address = f"[{host}]:{options.port}" if ":" in host else f"{host}:{options.port}"
        if tls is None:
            self.port: int = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, server_credentials(tls))

    async def start(self) -> None:
        """Takes calls from now on."""
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Takes no more; returns when all have ended, cancelled if they take longer than that."""
        await self._server.stop(grace_s)


class _Way:
    """How one method's calls are taken."""

    def __init__(
        self,
        method: Method | StreamMethod,
        door: Door,
        refusals: Door,
        admission: Admission | None,
        guard: Guard | None,
    ) -> None:
        self._method = method
        self._door = door
        self._refusals = refusals
        self._admission = admission
        self._guard = guard
        self._taken: dict[str, Any] = {}

    def handler(self, metadata: Any) -> Any:
        """The handler of a call that comes with this metadata."""
        client = ""
        if self._guard is not None:
            client, refusal = self._guard.admit(metadata)
            if refusal is not None:
                return self._refused(lambda: refusal, client)
        if self._admission is not None and self._admission.full:
            return self._refused(self._admission.refused, client)
        handler = self._taken.get(client)
        if handler is None:
            if isinstance(self._method, Method):
                take: Any = partial(self._take, self._method, client=client)
                handler = grpc.unary_unary_rpc_method_handler(take)
            else:
                take = partial(_stream, self._door, self._method)
                handler = grpc.stream_stream_rpc_method_handler(_as_generator(take))
            self._taken[client] = handler
        return handler

    def _refused(self, why: Callable[[], SerendipError], client: str) -> Any:
        """The handler of a call that is refused, by an error that is made when it comes.

        A stream, for the server then reads no request: a large one is not taken in to be refused.
        The rest of a call's way through grpc.aio is paid for all the same.
        """

        async def refuse(_: Any, context: Any) -> None:
            call, door = Call(None, context.invocation_metadata()), self._refusals
            begun = door.begin(call)
            error = why()
            status = status_of(error)
            try:
                await _abort(context, status, error, call)
            finally:
                name = code_pb2.Code.Name(status.code)
                door.end(begun, call, name, _who(context, client), error)

        return grpc.stream_unary_rpc_method_handler(refuse)

    async def _take(self, method: Method, raw: bytes, context: Any, *, client: str) -> bytes:
        call, code = Call(_deadline(context), context.invocation_metadata()), "UNKNOWN"
        begun = self._door.begin(call)
        found, failure = 0, None
        try:
            if self._admission is not None:
                found = self._admission.enter(call.deadline)
            response = method.encode(await method.handle(decoded(method, raw), call))
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
            who = _who(context, client) if self._door.asks_who else {}
            seconds = self._door.end(begun, call, code, who, failure)
            if found and self._admission is not None:
                self._admission.leave(found, seconds if code == "OK" else None)


async def _stream(
    door: Door, method: StreamMethod, raws: AsyncIterator[bytes], context: Any
) -> AsyncIterator[bytes]:
    call, code = Call(_deadline(context), context.invocation_metadata()), "UNKNOWN"
    begun = door.begin(call)

    async def requests() -> AsyncIterator[Any]:
        async for raw in raws:
            yield method.decode(raw)

    try:
        async for response in method.handle(requests(), call):
            yield method.encode(response)
        code = "OK"
    except (asyncio.CancelledError, GeneratorExit):
        code = "DEADLINE_EXCEEDED" if context.time_remaining() == 0 else "CANCELLED"
        raise
    finally:
        door.end(begun, call, code, {})


def _as_generator(take: Any) -> Any:
    # The server looks at the function's kind to learn how to drive it.
    async def stream(raws: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for response in take(raws, context):
            yield response

    return stream


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


def _channel_arguments(options: ServerOptions) -> list[tuple[str, int]]:
    """What the gRPC core is told."""
    milliseconds = round(options.keepalive_s * 1000)
    arguments = [
        ("grpc.so_reuseport", int(options.reuse_port)),
        ("grpc.max_receive_message_length", options.max_request_bytes),
        ("grpc.max_send_message_length", options.max_response_bytes),
        ("grpc.server.max_pending_requests", options.max_pending),
        ("grpc.server.max_pending_requests_hard_limit", 2 * options.max_pending),
        ("grpc.max_concurrent_streams", options.max_streams),
        ("grpc.keepalive_time_ms", milliseconds),
        ("grpc.keepalive_timeout_ms", milliseconds),
        ("grpc.http2.ping_timeout_ms", milliseconds),
        # Clients may ask as often as the server does; others are told to go away.
        ("grpc.http2.min_ping_interval_without_data_ms", min(milliseconds, 10_000)),
    ]
    if options.max_connections is not None:
        arguments.append(("grpc.max_allowed_incoming_connections", options.max_connections))
    if options.connection_age_s is not None:
        arguments.append(("grpc.max_connection_age_ms", round(options.connection_age_s * 1000)))
    return arguments
