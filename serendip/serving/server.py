"""The life of a server: bind, serve, be healthy, say so, stop without losing a call.

    bind ──> SERVING ──> "NAME ready on HOST:PORT" ──> signal ──> NOT_SERVING ──> drain ──> exit 0
      └─ InvalidRequest: the port is taken       new calls: answered, lame_s long ┘└ UNAVAILABLE

Knows no tier: the caller brings its services, and closes what their servicers hold after the drain.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter

from serendip.serving.admission import Admission
from serendip.serving.fronts import Front, listener_of
from serendip.serving.guard import Guard, Rate
from serendip.serving.handlers import Service
from serendip.serving.health import HEALTH_NAME, Health
from serendip.serving.logs import CallLog, LogCalls
from serendip.serving.records import Records
from serendip.serving.reflection import reflection_service
from serendip.serving.telemetry import MetricsServer, ServerMetrics, start_metrics_server
from serendip.serving.tls import Pem, TlsFiles
from serendip.serving.tracing import Otlp, Tracer
from serendip.serving.watched_file import WatchedFiles, refreshing


@dataclass(frozen=True)
class ServerOptions:
    """How a server meets the world.

    Attributes:
        host: address to listen on, for calls and for metrics.
        port: for calls; 0 takes a free one.
        front: what speaks gRPC with callers.
        metrics_port: for http://host:port/metrics; 0 takes a free one, None serves none.
        max_request_bytes, max_response_bytes: larger messages are RESOURCE_EXHAUSTED; a request
            is refused by its length, before it is taken in.
        max_in_flight: calls that are worked on at a time; the next one is refused at once.
        refuses_late: whether a call is refused that by the recent pace of all calls would miss its
            deadline; for servers whose calls are alike. One that would wait too long for the event
            loop is refused in any case.
        max_pending: of grpcio's front: calls that may wait in gRPC's core, where no code of ours
            sees them. Beyond it the core ends some of them as CANCELLED, beyond twice as many all;
            that costs next to nothing, where a refusal costs as much as a small answer there.
        max_streams: calls that one connection may have open; a client keeps the others to itself
            until one of these has ended.
        max_connections: connections that are taken; None takes any number.
        connection_age_s: age at which a connection is asked to go away once its calls have ended,
            so that connections spread anew over those who share a port; None: never.
        keepalive_s: seconds of silence after which a connection is asked whether it is alive; it
            has as long to answer.
        grace_s: seconds that calls in flight get to end in when the server stops.
        lame_s: seconds for which a stopping server says NOT_SERVING and still takes calls, so
            that balancers can look away first.
        reuse_port: whether several processes may share the port (SO_REUSEPORT).
        tls: certificate and key, and for mTLS the roots of callers' certificates; None serves plain
            text.
        tokens: file of bearer tokens, one of which every call but those of health must carry; None:
            none need to.
        rate: of each client that ``tokens`` names; None: any.
        log_calls: which calls have a line in the log.
        otlp: where spans are sent; None: none are made.
    """

    host: str = "127.0.0.1"
    port: int = 0
    front: Front = Front.HTTP2
    metrics_port: int | None = None
    max_request_bytes: int = 32 << 20
    max_response_bytes: int = 32 << 20
    max_in_flight: int = 1024
    refuses_late: bool = False
    max_pending: int = 1024
    max_streams: int = 200
    max_connections: int | None = None
    connection_age_s: float | None = None
    keepalive_s: float = 60.0
    grace_s: float = 10.0
    lame_s: float = 0.0
    reuse_port: bool = False
    tls: TlsFiles | None = None
    tokens: Path | None = None
    rate: Rate | None = None
    log_calls: LogCalls = LogCalls.NONE
    otlp: Otlp | None = None


@dataclass(frozen=True)
class Running:
    """A server that serves.

    Attributes:
        port: what it is bound to.
        metrics_port: where its metrics are, None if they are off.
        metrics: its collectors; ``set_versions`` shows what answers are made from.
    """

    name: str
    host: str
    port: int
    metrics_port: int | None
    metrics: ServerMetrics
    _health: Health

    @property
    def address(self) -> str:
        """HOST:PORT, as a channel takes it."""
        return _address(self.host, self.port)

    def line(self) -> str:
        """What a person, or a script that waits for the server, reads when it is ready."""
        text = f"{self.name} ready on {self.address}"
        if self.metrics_port is None:
            return text
        return f"{text}, metrics http://{_address(self.host, self.metrics_port)}/metrics"

    async def set_serving(self, service: str, serving: bool) -> None:
        """Sets one service's health; "" is the server as a whole."""
        self._health.set(service, serving)


@contextlib.asynccontextmanager
async def serve(
    name: str,
    services: Sequence[Service],
    options: ServerOptions | None = None,
    *,
    registry: CollectorRegistry | None = None,
) -> AsyncIterator[Running]:
    """Serves while the block runs, then stops gracefully; every call has ended after it.

    Args:
        name: of the server, for people.
        services: what is served, beside health and reflection.
        registry: takes the server's metrics; a new one if None.

    Raises:
        InvalidRequest: a port cannot be bound, a file of certificates or tokens cannot be used, or
            spans cannot be made; names the option.
    """
    options = options if options is not None else ServerOptions()
    registry = registry if registry is not None else CollectorRegistry()
    metrics = ServerMetrics(registry)
    tls = None if options.tls is None else _watched(options.tls, registry)
    guard = None if options.tokens is None else Guard(options.tokens, options.rate, registry)
    records = _records(name, options)
    health = Health()
    admission = Admission(
        options.max_in_flight,
        options.refuses_late,
        on_refused=lambda why: metrics.refused.labels(why).inc(),
    )
    names = tuple(service.name for service in services)
    served = (*services, health.service(), reflection_service((*names, HEALTH_NAME)))
    listener = listener_of(options, served, metrics, admission, guard, records, tls)
    page: MetricsServer | None = None
    if options.metrics_port is not None:
        page = start_metrics_server(registry, options.metrics_port, options.host)
    files: list[WatchedFiles[Any]] = [] if tls is None else [tls]
    if guard is not None:
        files.append(guard.watched)
    try:
        with refreshing(files):
            await listener.start()
            for service in ("", *names):
                health.set(service, True)
            yield Running(
                name=name,
                host=options.host,
                port=listener.port,
                metrics_port=page.port if page else None,
                metrics=metrics,
                _health=health,
            )
    finally:
        health.stop()
        if options.lame_s:
            await asyncio.sleep(options.lame_s)
        await admission.close()
        await listener.stop(options.grace_s)
        if page:
            await asyncio.to_thread(page.close)
        if records:
            await asyncio.to_thread(records.close)


async def serve_until_signal(
    name: str,
    services: Sequence[Service],
    options: ServerOptions,
    *,
    registry: CollectorRegistry | None = None,
    on_ready: Callable[[Running], None] | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT, then stops gracefully and returns; exit with 0 then.

    Prints one line to standard output when ready: ``NAME ready on HOST:PORT, metrics URL``.

    Args:
        on_ready: called before that line, with the running server.

    Raises:
        InvalidRequest: a port cannot be bound; names the option.
    """
    # What there is now lives on. Collections that went through it, some hundred thousand objects,
    # would hold up all calls for up to 75 ms every few seconds.
    gc.collect()
    gc.freeze()
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    # From before the server is ready, and until it has stopped: a signal sent twice, by a shell
    # and by a supervisor, still ends in a drain.
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    try:
        async with serve(name, services, options, registry=registry) as running:
            if on_ready is not None:
                on_ready(running)
            print(running.line(), flush=True)
            await stopped.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _watched(tls: TlsFiles, registry: CollectorRegistry) -> WatchedFiles[Pem]:
    failures = Counter(
        "serendip_tls_failures",
        "Times that a file of certificate, key or roots had changed and could not be used.",
        registry=registry,
    )
    return WatchedFiles("certificate", tls.paths, tls.read, failures.inc)


def _records(name: str, options: ServerOptions) -> Records | None:
    log = None if options.log_calls is LogCalls.NONE else CallLog(options.log_calls)
    tracer = None if options.otlp is None else Tracer(options.otlp, name)
    return None if log is None and tracer is None else Records(log, tracer)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
