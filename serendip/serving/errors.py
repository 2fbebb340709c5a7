"""Typed errors to statuses, once: for a whole call of any front, or for one row of it.

Knows no front, no tier and no metric. What is not an error of core is a fault of the server: its
text stays here, in the log, under an ID that the caller is told.
"""

from __future__ import annotations

import logging
import uuid

from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from serendip.core import (
    DeadlineSpent,
    InvalidRequest,
    NotFound,
    NotReady,
    Overloaded,
    SerendipError,
    Unauthenticated,
    WrongTree,
)

OK_STATUS = status_pb2.Status()
DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"

# Trailing metadata has about 8 KiB, percent-encoding makes 3 bytes of one, and the text of an
# invalid field travels three times.
MAX_MESSAGE_BYTES = 800

Trailer = tuple[str, str | bytes]

_log = logging.getLogger(__name__)

# The first class that fits holds; InvalidData and MediaError are InvalidRequests.
_CODES: tuple[tuple[type[SerendipError], int], ...] = (
    (InvalidRequest, code_pb2.INVALID_ARGUMENT),
    (NotFound, code_pb2.NOT_FOUND),
    (WrongTree, code_pb2.FAILED_PRECONDITION),
    (Overloaded, code_pb2.RESOURCE_EXHAUSTED),
    (DeadlineSpent, code_pb2.DEADLINE_EXCEEDED),
    (NotReady, code_pb2.UNAVAILABLE),
    (Unauthenticated, code_pb2.UNAUTHENTICATED),
)


def status_of(error: BaseException, request_id: str = "") -> status_pb2.Status:
    """The status that tells a caller of an error: for a whole call, or for one row of it.

    InvalidRequest carries a BadRequest naming the field, Overloaded a RetryInfo. What is no error
    of core (and CorruptArtifact, which is none of the caller's) is INTERNAL with an error ID; it
    is logged here, with its traceback.

    Args:
        request_id: of the call, to stand beside the error ID; empty: it is not known.
    """
    code = next((code for kind, code in _CODES if isinstance(error, kind)), None)
    if code is None:
        error_id = uuid.uuid4().hex[:12]
        said = f"internal error {error_id}" + (f" of request {request_id}" if request_id else "")
        _log.error("%s", said, exc_info=error)
        return status_pb2.Status(code=code_pb2.INTERNAL, message=f"{said}: see the server's log")
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


def trailers_of(status: status_pb2.Status, error: BaseException) -> tuple[Trailer, ...]:
    """What goes with the status of a whole call: its details, and when a retry is welcome."""
    trailers: tuple[Trailer, ...] = ((DETAILS_KEY, status.SerializeToString()),)
    if isinstance(error, Overloaded):
        trailers += ((PUSHBACK_KEY, str(_milliseconds(error))),)
    return trailers


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
