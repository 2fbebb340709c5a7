"""Typed errors to gRPC statuses, once, and the interceptor that does it for every call.

Knows no tier, no request and no metric. What is not an error of core is a fault of the server:
its text stays here, in the log, under an ID that the caller is told.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from serendip.core import (
    DeadlineSpent,
    InvalidRequest,
    NotFound,
    NotReady,
    Overloaded,
    SerendipError,
    WrongTree,
)

OK_STATUS = status_pb2.Status()
PUSHBACK_KEY = "grpc-retry-pushback-ms"

# Trailing metadata has about 8 KiB, percent-encoding makes 3 bytes of one, and the text of an
# invalid field travels three times.
MAX_MESSAGE_BYTES = 800

_log = logging.getLogger(__name__)

# The first class that fits holds; InvalidData and MediaError are InvalidRequests.
_CODES: tuple[tuple[type[SerendipError], int], ...] = (
    (InvalidRequest, code_pb2.INVALID_ARGUMENT),
    (NotFound, code_pb2.NOT_FOUND),
    (WrongTree, code_pb2.FAILED_PRECONDITION),
    (Overloaded, code_pb2.RESOURCE_EXHAUSTED),
    (DeadlineSpent, code_pb2.DEADLINE_EXCEEDED),
    (NotReady, code_pb2.UNAVAILABLE),
)


def status_of(error: BaseException) -> status_pb2.Status:
    """The status that tells a caller of an error: for a whole call, or for one row of it.

    InvalidRequest carries a BadRequest naming the field, Overloaded a RetryInfo. What is no error
    of core (and CorruptArtifact, which is none of the caller's) is INTERNAL with an error ID; it
    is logged here, with its traceback.
    """
    code = next((code for kind, code in _CODES if isinstance(error, kind)), None)
    if code is None:
        error_id = uuid.uuid4().hex[:12]
        _log.error("internal error %s", error_id, exc_info=error)
        return status_pb2.Status(
            code=code_pb2.INTERNAL, message=f"internal error {error_id}: see the server's log"
        )
    status = status_pb2.Status(code=code, message=_shortened(str(error)))
    if isinstance(error, InvalidRequest) and error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=_shortened(error.field),
            description=_shortened(str(error).removeprefix(f"{error.field}: ")),
        )
        _attach(status, error_details_pb2.BadRequest(field_violations=[violation]))
    elif isinstance(error, Overloaded):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(_milliseconds(error))
        _attach(status, retry)
    return status


def _attach(status: status_pb2.Status, detail: Message) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)


def _milliseconds(error: Overloaded) -> int:
    return max(1, round(error.retry_after_s * 1000))


def _shortened(text: str) -> str:
    raw = text.encode(errors="replace")
    if len(raw) <= MAX_MESSAGE_BYTES:
        return raw.decode()
    return raw[: MAX_MESSAGE_BYTES - 3].decode(errors="ignore") + "..."


Behavior = Callable[[Any, Any], Awaitable[Any]]


@grpc.aio.ServerInterceptor.register
class ErrorInterceptor:
    """Ends a unary call that raises with the error's rich status.

    A cancelled call and one that aborted by itself pass through as they are; so do streams, whose
    servicers (health, reflection) are not ours.
    """

    def __init__(self) -> None:
        self._wrapped: dict[str, tuple[Any, Any]] = {}

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        # One wrapper a method, not one a call.
        known = self._wrapped.get(handler_call_details.method)
        if known is not None and known[0] is handler:
            return known[1]
        wrapped = grpc.unary_unary_rpc_method_handler(
            _aborting(handler.unary_unary),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
        self._wrapped[handler_call_details.method] = (handler, wrapped)
        return wrapped


def _aborting(behavior: Behavior) -> Behavior:
    async def call(request: Any, context: Any) -> Any:
        try:
            return await behavior(request, context)
        except grpc.aio.AbortError:
            raise
        except NotImplementedError as error:
            # A generated servicer's method that nobody overrode has set its code before.
            if context.code() == grpc.StatusCode.UNIMPLEMENTED:
                await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not served here")
            await _abort(context, error)
        except Exception as error:  # CancelledError is none: it passes
            await _abort(context, error)

    return call


async def _abort(context: Any, error: Exception) -> None:
    status = rpc_status.to_status(status_of(error))
    trailing = tuple(context.trailing_metadata()) + tuple(status.trailing_metadata)
    if isinstance(error, Overloaded):
        trailing += ((PUSHBACK_KEY, str(_milliseconds(error))),)
    await context.abort(status.code, status.details, trailing)
