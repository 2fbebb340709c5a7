"""Metrics: the grpc_server_* families, batches, artefact versions, and the page that shows them.

Names and labels are those of the ecosystem's gRPC middlewares, so that its dashboards fit. Knows
no tier; every collector registers with the registry it is given, never with a global one.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable
from itertools import accumulate
from socketserver import ThreadingMixIn
from typing import Any, NamedTuple
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from serendip.core import InvalidRequest

# Seconds, 0.1 ms to 10 s: a lookup stands at the left end, a live plan at the right one.
SECONDS = (
    *(1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 7.5e-3),
    *(0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
)
_EDGES = (*map(str, SECONDS), "+Inf")
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class ServerMetrics:
    """The collectors of one server; make one a registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.calls = CallMetrics(registry)
        self.refused = Counter(
            "serendip_refused",
            "Calls refused before they were begun: too many in flight, late, or stopping.",
            ("reason",),
            registry=registry,
        )
        self._versions = Gauge(
            "serendip_artifact_info",
            "1 for every artefact version that answers are made from.",
            ("kind", "version"),
            registry=registry,
        )
        self._shown: dict[str, str] = {}

    def set_versions(self, **versions: str) -> None:
        """Shows ``kind=version`` and no longer the version of that kind that stood before.

        An empty version shows none of its kind. Kinds that are not named stay as they are.
        """
        for kind, version in versions.items():
            before = self._shown.pop(kind, "")
            if version:
                self._versions.labels(kind, version).set(1)
                self._shown[kind] = version
            if before and before != version:
                self._versions.remove(kind, before)


class BatchMetrics:
    """What a batcher does, as its ``Observer``; see serving/batching.py.

    Args:
        prefix: of its names.
        rows: the name of the batches' rows, after the prefix.
    """

    def __init__(
        self, registry: CollectorRegistry, prefix: str = "serendip_batch", rows: str = "rows"
    ) -> None:
        self._rows = Histogram(
            f"{prefix}_{rows}", "Rows run in one batch.", buckets=ROWS, registry=registry
        )
        self._wait = Histogram(
            f"{prefix}_wait_seconds",
            "Seconds from a call's arrival at the queue to its first row's batch.",
            buckets=SECONDS,
            registry=registry,
        )
        self._dropped = Counter(
            f"{prefix}_dropped_rows",
            "Rows dropped before they ran: their call's deadline had passed, or it was cancelled.",
            ("reason",),
            registry=registry,
        )
        self._refused = Counter(
            f"{prefix}_refused_rows",
            "Rows refused: the queue was full, the wait too long, or they would have been late.",
            ("reason",),
            registry=registry,
        )
        for reason in ("expired", "cancelled"):
            self._dropped.labels(reason)
        for reason in ("rows", "wait", "late"):
            self._refused.labels(reason)
        self._waiting = Gauge(
            f"{prefix}_waiting_rows", "Rows that wait for a batch now.", registry=registry
        )

    def watch(self, waiting: Callable[[], int]) -> None:
        """Shows a queue's depth, asked at each scrape."""
        self._waiting.set_function(waiting)

    def ran(self, rows: int) -> None:
        self._rows.observe(rows)

    def waited(self, seconds: float) -> None:
        self._wait.observe(seconds)

    def dropped(self, why: str, rows: int) -> None:
        self._dropped.labels(why).inc(rows)

    def refused(self, why: str, rows: int) -> None:
        self._refused.labels(why).inc(rows)


# --- counting calls ----------------------------------------------------------------------


class CallMetrics(Collector):
    """The grpc_server_* families, made of what the methods have counted when somebody scrapes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._meters: list[MethodMeter] = []
        registry.register(self)

    def meter(self, method: str, grpc_type: str = "unary") -> MethodMeter:
        """What counts one method's calls.

        Args:
            method: its full name, /SERVICE/METHOD.
        """
        made = MethodMeter(method, grpc_type)
        self._meters.append(made)
        return made

    def collect(self) -> Iterable[Metric]:
        """The families as they stand now."""
        names = ("grpc_type", "grpc_service", "grpc_method")
        started = CounterMetricFamily(
            "grpc_server_started", "Calls started on the server.", labels=names
        )
        handled = CounterMetricFamily(
            "grpc_server_handled",
            "Calls completed on the server, by code, failed and cancelled ones too.",
            labels=(*names, "grpc_code"),
        )
        seconds = HistogramMetricFamily(
            "grpc_server_handling_seconds",
            "Seconds from the handler's start to its end.",
            labels=names,
        )
        for meter in list(self._meters):
            meter.add_to(started, handled, seconds)
        return started, handled, seconds


class MethodMeter:
    """Counts and times one method's calls, in plain numbers of the event loop's thread.

    An increment of a metric takes a lock, and every call would pay for five of them.
    """

    def __init__(self, method: str, grpc_type: str) -> None:
        """See ``CallMetrics.meter``."""
        service, _, name = method.removeprefix("/").rpartition("/")
        self._labels = (grpc_type, service, name)
        self._started = 0
        # So that a rate of errors has its denominator from the first scrape.
        self._handled = {"OK": 0}
        self._buckets = [0] * (len(SECONDS) + 1)  # the last one: longer than all
        self._seconds = 0.0

    def start(self) -> float:
        """Counts a call that begins; returns what ``end`` wants to know."""
        self._started += 1
        return time.perf_counter()

    def end(self, started: float, code: str) -> float:
        """Counts a call that ends, by its code's name; returns the seconds that it took."""
        seconds = time.perf_counter() - started
        self._seconds += seconds
        self._buckets[bisect_left(SECONDS, seconds)] += 1
        self._handled[code] = self._handled.get(code, 0) + 1
        return seconds

    def add_to(
        self,
        started: CounterMetricFamily,
        handled: CounterMetricFamily,
        seconds: HistogramMetricFamily,
    ) -> None:
        """Adds what was counted so far; any thread's."""
        started.add_metric(self._labels, self._started)
        for code, count in list(self._handled.items()):
            handled.add_metric((*self._labels, code), count)
        upto = list(accumulate(self._buckets))
        seconds.add_metric(self._labels, list(zip(_EDGES, upto, strict=True)), self._seconds)


# --- the page ----------------------------------------------------------------------------


class MetricsServer(NamedTuple):
    """A running /metrics page, and the port that it is bound to."""

    server: WSGIServer
    port: int

    def close(self) -> None:
        """Stops serving and closes the port; blocks for at most a tenth of a second."""
        self.server.shutdown()
        self.server.server_close()


class _Page(ThreadingMixIn, WSGIServer):
    # A connection that says nothing keeps neither a scrape nor a stop waiting.
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    timeout = 5  # seconds of silence, after which a connection is closed

    def log_message(self, format: str, *args: Any) -> None:
        """A scrape every few seconds is no news."""


def start_metrics_server(registry: CollectorRegistry, port: int, host: str) -> MetricsServer:
    """Serves ``registry`` as http://host:port/metrics from a thread of its own.

    Args:
        port: 0 takes a free one.

    Raises:
        InvalidRequest: the address cannot be bound.
    """
    try:
        server = make_server(host, port, make_wsgi_app(registry), _Page, _Quiet)
    except (OSError, OverflowError) as error:
        raise InvalidRequest(
            f"cannot listen on {host}: {error}",
            field="metrics_port",
            value=port,
            remedy="Choose another port, or 0 for any free one.",
        ) from error
    threading.Thread(target=server.serve_forever, args=(0.1,), name="metrics", daemon=True).start()
    return MetricsServer(server, server.server_port)
