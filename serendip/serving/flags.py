"""The flags that both servers have, once: ``ServerFlags``, and how a command comes to take them.

Loads no gRPC, so that --help comes at once.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from serendip.core import InvalidRequest
from serendip.serving.fronts import Front
from serendip.serving.logs import LogCalls, LogFormat

if TYPE_CHECKING:
    from serendip.serving.server import ServerOptions

_SECURE = "Who may call"
_TOLD = "Logs and traces"
_BOUNDS = "Bounds"

# gRPC's core takes a C int: of milliseconds, of bytes, and of twice the calls that may wait.
_MOST_S = 2_147_483
_MOST_MIB = 2047
_MOST_COUNT = 1_000_000_000


@dataclass(frozen=True)
class ServerFlags:
    """What both servers are started with; each flag says what it is by its help."""

    host: Annotated[str, Option(help="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Option(help="Port for gRPC; 0: any free one.")] = 0
    front: Annotated[
        Front, Option(help="What speaks gRPC: http2 is this project's own, grpcio gRPC's.")
    ] = Front.HTTP2
    metrics_port: Annotated[
        int | None,
        Option(help="Port of /metrics; worker n has it + n; 0: any free one each; unset: none."),
    ] = None
    workers: Annotated[
        int, Option(min=1, max=256, help="Processes that share the port: one a core.")
    ] = 1
    poll_s: Annotated[
        float, Option(min=0.05, help="Seconds between two looks at the current release.")
    ] = 1
    lame_s: Annotated[
        float, Option(min=0, help="Seconds of NOT_SERVING before a stop takes no more calls.")
    ] = 0
    grace_s: Annotated[
        float, Option(min=0, help="Seconds that calls in flight get to end in at a stop.")
    ] = 10

    max_in_flight: Annotated[
        int,
        Option(
            min=1,
            help="Calls a process works on at a time; more are refused.",
            rich_help_panel=_BOUNDS,
        ),
    ] = 1024
    max_pending: Annotated[
        int,
        Option(
            min=1,
            max=_MOST_COUNT,
            help="Calls that may wait in grpcio's front, unseen by the process.",
            rich_help_panel=_BOUNDS,
        ),
    ] = 1024
    max_streams: Annotated[
        int,
        Option(
            min=1,
            max=_MOST_COUNT,
            help="Calls that one connection may have open at a time.",
            rich_help_panel=_BOUNDS,
        ),
    ] = 200
    max_connections: Annotated[
        int | None,
        Option(
            min=1,
            max=_MOST_COUNT,
            help="Connections a process takes; unset: any number.",
            rich_help_panel=_BOUNDS,
        ),
    ] = None
    connection_age_s: Annotated[
        float | None,
        Option(
            min=1,
            max=_MOST_S,
            help="Age at which a connection is renewed, seconds; unset: never.",
            rich_help_panel=_BOUNDS,
        ),
    ] = None
    max_request_mib: Annotated[
        float,
        Option(min=0.01, max=_MOST_MIB, help="Largest request, MiB.", rich_help_panel=_BOUNDS),
    ] = 32
    keepalive_s: Annotated[
        float,
        Option(
            min=1,
            max=_MOST_S,
            help="Silence after which a connection is probed, seconds.",
            rich_help_panel=_BOUNDS,
        ),
    ] = 60

    tls_cert: Annotated[
        Path | None,
        Option(help="PEM file of the server's certificate: serves TLS.", rich_help_panel=_SECURE),
    ] = None
    tls_key: Annotated[
        Path | None, Option(help="PEM file of its private key.", rich_help_panel=_SECURE)
    ] = None
    tls_client_ca: Annotated[
        Path | None,
        Option(
            help="PEM file of authorities: every caller must show a certificate of one (mTLS).",
            rich_help_panel=_SECURE,
        ),
    ] = None
    tokens: Annotated[
        Path | None,
        Option(
            help="File of NAME TOKEN lines: every call but health's must carry one.",
            rich_help_panel=_SECURE,
        ),
    ] = None
    rate_limit: Annotated[
        float | None,
        Option(
            help="Calls a second that each name in --tokens may make of a process; unset: any.",
            rich_help_panel=_SECURE,
        ),
    ] = None
    rate_burst: Annotated[
        float | None,
        Option(
            help="Calls at once after a silence; unset: a second's worth.", rich_help_panel=_SECURE
        ),
    ] = None

    log_format: Annotated[
        LogFormat, Option(help="How lines on standard error look.", rich_help_panel=_TOLD)
    ] = LogFormat.TEXT
    log_calls: Annotated[
        LogCalls | None,
        Option(
            help="Calls that have a line; unset: errors with json, none with text.",
            rich_help_panel=_TOLD,
        ),
    ] = None
    otlp: Annotated[
        str,
        Option(
            help="HOST:PORT, or https://HOST:PORT, of an OpenTelemetry collector: sends spans.",
            rich_help_panel=_TOLD,
        ),
    ] = ""
    otlp_share: Annotated[
        float,
        Option(min=0, max=1, help="Of the traces that begin here, sent.", rich_help_panel=_TOLD),
    ] = 1

    worker: Annotated[int | None, Option(hidden=True)] = None
    turns: Annotated[int | None, Option(hidden=True)] = None

    def options(self) -> ServerOptions:
        """What a server is started with; reads the files once, so that a bad one ends it at once.

        Raises:
            InvalidRequest: a number is not finite, flags do not fit together, or a file cannot be
                used; names the flag.
        """
        from serendip.serving.guard import Rate
        from serendip.serving.server import ServerOptions
        from serendip.serving.tls import TlsFiles
        from serendip.serving.tokens import read_tokens
        from serendip.serving.tracing import Otlp

        self._check_finite()
        tls = TlsFiles(self.tls_cert, self.tls_key, self.tls_client_ca)
        tls.read()
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise InvalidRequest(
                "needs --tls-cert and --tls-key as well",
                field="--tls-client-ca",
                value=str(self.tls_client_ca),
                remedy="Name the server's own certificate.",
            )
        if self.tokens is not None:
            read_tokens(self.tokens)
        calls = self.log_calls
        if calls is None:
            calls = LogCalls.ERRORS if self.log_format is LogFormat.JSON else LogCalls.NONE
        limit = self._limit()
        return ServerOptions(
            host=self.host,
            port=self.port,
            front=self.front,
            metrics_port=self.metrics_port,
            max_request_bytes=round(self.max_request_mib * (1 << 20)),
            max_in_flight=self.max_in_flight,
            max_pending=self.max_pending,
            max_streams=self.max_streams,
            max_connections=self.max_connections,
            connection_age_s=self.connection_age_s,
            keepalive_s=self.keepalive_s,
            grace_s=self.grace_s,
            lame_s=self.lame_s,
            reuse_port=self.worker is not None,
            tls=None if self.tls_cert is None else tls,
            tokens=self.tokens,
            rate=None if limit is None else Rate(*limit),
            log_calls=calls,
            otlp=Otlp(self.otlp, self.otlp_share) if self.otlp else None,
        )

    def _check_finite(self) -> None:
        # "inf" is a float to the command line, and not every flag has a largest value.
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise InvalidRequest(
                    "must be a finite number",
                    field=f"--{field.name.replace('_', '-')}",
                    value=value,
                    remedy="Choose a number.",
                )

    def _limit(self) -> tuple[float, float] | None:
        """Calls a second, and at once."""
        if self.rate_limit is None:
            if self.rate_burst is not None:
                raise InvalidRequest(
                    "needs --rate-limit as well", field="--rate-burst", value=self.rate_burst
                )
            return None
        if self.tokens is None:
            raise InvalidRequest(
                "needs --tokens as well",
                field="--rate-limit",
                value=self.rate_limit,
                remedy="It holds for a client by name: behind a proxy all have one address.",
            )
        burst = self.rate_burst if self.rate_burst is not None else max(1.0, self.rate_limit)
        return self.rate_limit, burst


def with_server_flags(**defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator: a command that takes ``server: ServerFlags`` takes each of its flags instead.

    Args:
        defaults: of flags that are this server's own.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = typing.get_type_hints(ServerFlags, include_extras=True)
        flags = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=defaults.get(field.name, field.default),
                annotation=hints[field.name],
            )
            for field in dataclasses.fields(ServerFlags)
        ]
        own = inspect.signature(command, eval_str=True).parameters
        kept = [parameter for name, parameter in own.items() if name != "server"]

        @functools.wraps(command)
        def with_flags(**values: Any) -> None:
            server = ServerFlags(**{flag.name: values.pop(flag.name) for flag in flags})
            command(**values, server=server)

        shown: Any = with_flags
        shown.__signature__ = inspect.Signature([*kept, *flags])
        shown.__annotations__ = {p.name: p.annotation for p in (*kept, *flags)}
        return with_flags

    return decorate
