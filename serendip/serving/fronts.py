"""Which front takes the calls: this project's own HTTP/2, or grpcio's server.

Loads neither before one is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from serendip.core import InvalidRequest

if TYPE_CHECKING:
    from serendip.serving.admission import Admission
    from serendip.serving.guard import Guard
    from serendip.serving.handlers import Service
    from serendip.serving.records import Records
    from serendip.serving.server import ServerOptions
    from serendip.serving.telemetry import ServerMetrics
    from serendip.serving.tls import Pem
    from serendip.serving.watched_file import WatchedFiles


class Front(StrEnum):
    """What speaks gRPC with callers; both serve the same calls."""

    HTTP2 = "http2"
    GRPCIO = "grpcio"


class Listener(Protocol):
    """A port that is bound, and takes calls once it is started.

    Attributes:
        port: what it is bound to.
    """

    port: int

    async def start(self) -> None:
        """Takes calls from now on."""

    async def stop(self, grace_s: float) -> None:
        """Takes no more; returns when all have ended, cancelled if they take longer than that."""


def listener_of(
    options: ServerOptions,
    services: Sequence[Service],
    metrics: ServerMetrics,
    admission: Admission,
    guard: Guard | None,
    records: Records | None,
    tls: WatchedFiles[Pem] | None,
) -> Listener:
    """The listener of ``options.front``.

    Raises:
        InvalidRequest: the port cannot be bound.
    """
    told = services, metrics, admission, guard, records
    try:
        if options.front is Front.GRPCIO:
            from serendip.serving.grpcio_front import GrpcioFront, GrpcioListener

            return GrpcioListener(GrpcioFront(*told), options, tls)
        from serendip.serving.http2.calls import Calls
        from serendip.serving.http2.listener import Http2Listener

        return Http2Listener(
            Calls(
                *told,
                max_request_bytes=options.max_request_bytes,
                max_response_bytes=options.max_response_bytes,
            ),
            options,
            tls,
        )
    except (OSError, OverflowError, RuntimeError) as error:
        raise InvalidRequest(
            f"cannot listen on {options.host}",
            field="port",
            value=options.port,
            remedy="Stop what has it, choose another port, or 0 for any free one.",
        ) from error
