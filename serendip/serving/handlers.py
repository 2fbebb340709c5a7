"""What stands between a front and the servicers: services, methods, and the call.

A servicer is a plain object whose methods take (decoded request, ``Call``) and return a response,
or its bytes where it encodes by itself, or raise an error of core. A front speaks a protocol and
drives them: ``http2`` is this project's own, ``grpcio_front.py`` is grpc.aio's. Knows no gRPC, so
that either can be put before the same servicers.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError

from serendip.core import InvalidRequest

Metadata = tuple[tuple[str, str | bytes], ...]

REQUEST_ID_KEY = "x-request-id"
_TRACE_KEYS = ("traceparent", "tracestate")
_safe = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}").fullmatch
# What this process makes are its own eight digits and a number: random ones cost more.
_own = os.urandom(4).hex()
_count = itertools.count()


class Call:
    """One call, as its servicer sees it.

    Attributes:
        deadline: time.monotonic() in seconds after which nobody wants the answer; None if the
            caller set none.
        cancelled: whether the caller has given it up; the servicer's coroutine is cancelled as
            well, this is for what it has handed to threads.
        metadata: pairs that the caller sent along, in order; keys are in lower case.
        request_id: the caller's, or one made here; 1 to 128 ASCII characters.
        trace: what the trace is passed on by: the caller's own pairs, or this server's.
        rows, version: how many rows it has, and the release that answers; for the log, where a
            servicer says so.
    """

    __slots__ = ("cancelled", "deadline", "metadata", "request_id", "rows", "trace", "version")

    def __init__(self, deadline: float | None = None, metadata: Metadata = ()) -> None:
        self.deadline = deadline
        self.cancelled = False
        self.metadata = metadata
        self.rows = 0
        self.version = ""
        self.trace: Metadata | None = None
        for key, value in metadata:
            if key == REQUEST_ID_KEY and isinstance(value, str) and _safe(value):
                self.request_id = value
                break
        else:
            self.request_id = f"{_own}{next(_count):08x}"

    @property
    def onward(self) -> Metadata:
        """What a call that this one makes takes along: the request ID, and the trace."""
        trace = self.trace
        if trace is None:  # who takes no part in a trace hands it on as it came
            trace = tuple([pair for pair in self.metadata if _is_trace(*pair)])
        return ((REQUEST_ID_KEY, self.request_id), *trace)


def _is_trace(key: str, value: str | bytes) -> bool:
    # What is no text of a header would have the call that carries it on refused; W3C has at most
    # 512 characters.
    return (
        key in _TRACE_KEYS
        and isinstance(value, str)
        and len(value) <= 512
        and value.isascii()
        and value.isprintable()
    )


Handle = Callable[[Any, Call], Awaitable[Any]]
HandleStream = Callable[[AsyncIterator[Any], Call], AsyncIterator[Any]]


@dataclass(frozen=True)
class Method:
    """A method that is served; one request, one response.

    Attributes:
        decode: a request's bytes to its message; raises google.protobuf's DecodeError.
        encode: a response to its bytes; bytes are passed on.
    """

    name: str
    handle: Handle
    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]


@dataclass(frozen=True)
class StreamMethod:
    """A method that takes requests and gives responses one after another.

    Attributes:
        grpc_type: as metrics call it: server_stream or bidi_stream.
    """

    name: str
    handle: HandleStream
    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]
    grpc_type: str


def decoded(method: Method | StreamMethod, raw: bytes) -> Any:
    """A request of a method. Raises InvalidRequest: the bytes are none."""
    try:
        return method.decode(raw)
    except DecodeError as error:
        raise InvalidRequest(
            f"the request is no {method.name} message",
            remedy="Send it as the protos have it; text must be UTF-8.",
        ) from error


@dataclass(frozen=True)
class Service:
    """A service by its full name, with the methods that are served.

    Attributes:
        guarded: whether its calls need a token, where others do.
        admitted: whether its calls are bounded in number, and written down.
        max_request_bytes: of its own, where they are fewer than the server's; None: the server's.
    """

    name: str
    methods: tuple[Method | StreamMethod, ...]
    guarded: bool = True
    admitted: bool = True
    max_request_bytes: int | None = None


def service_of(
    descriptor: ServiceDescriptor,
    servicer: object,
    decode: Mapping[str, Callable[[bytes], Any]] | None = None,
) -> Service:
    """The service that a servicer serves: the methods of the descriptor that it has.

    A method that it lacks is not served: a front answers it as unimplemented.

    Args:
        decode: of methods by name; of others it is their message's own.
    """
    methods = []
    for method in descriptor.methods:
        handle = getattr(servicer, method.name, None)
        if handle is None:
            continue
        own = message_factory.GetMessageClass(method.input_type).FromString
        methods.append(Method(method.name, handle, (decode or {}).get(method.name, own), encoded))
    return Service(descriptor.full_name, tuple(methods))


def encoded(response: Any) -> bytes:
    """A response's bytes; bytes are passed on."""
    return response if isinstance(response, bytes) else bytes(response.SerializeToString())
