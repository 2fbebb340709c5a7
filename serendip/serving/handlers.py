"""What stands between a front and the servicers: services, methods, and the call.

A servicer is a plain object whose methods take (decoded request, ``Call``) and return a response,
or its bytes where it encodes by itself, or raise an error of core. A front speaks a protocol and
drives them: ``front.py`` is grpc.aio's. Knows no gRPC, so that another front can be put before the
same servicers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import ServiceDescriptor

Metadata = tuple[tuple[str, str | bytes], ...]


class Call:
    """One call, as its servicer sees it.

    Attributes:
        deadline: time.monotonic() in seconds after which nobody wants the answer; None if the
            caller set none.
        cancelled: whether the caller has given it up; the servicer's coroutine is cancelled as
            well, this is for what it has handed to threads.
    """

    __slots__ = ("_metadata", "cancelled", "deadline")

    def __init__(
        self, deadline: float | None = None, metadata: Callable[[], Metadata] = lambda: ()
    ) -> None:
        self.deadline = deadline
        self.cancelled = False
        self._metadata = metadata

    @property
    def metadata(self) -> Metadata:
        """Pairs that the caller sent along, in order; keys are in lower case."""
        return self._metadata()


Handle = Callable[[Any, Call], Awaitable[Any]]


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
class Service:
    """A service by its full name, with the methods that are served."""

    name: str
    methods: tuple[Method, ...]


def service_of(descriptor: ServiceDescriptor, servicer: object) -> Service:
    """The service that a servicer serves: the methods of the descriptor that it has.

    A method that it lacks is not served: a front answers it as unimplemented.
    """
    methods = []
    for method in descriptor.methods:
        handle = getattr(servicer, method.name, None)
        if handle is None:
            continue
        request = message_factory.GetMessageClass(method.input_type)
        methods.append(Method(method.name, handle, request.FromString, _encoded))
    return Service(descriptor.full_name, tuple(methods))


def _encoded(response: Any) -> bytes:
    return response if isinstance(response, bytes) else bytes(response.SerializeToString())
