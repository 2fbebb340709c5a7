"""grpc.health.v1: whether a server, and each of its services, takes calls. Knows no front."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from grpc_health.v1 import health_pb2

from serendip.core import NotFound
from serendip.serving.handlers import Call, Method, Service, StreamMethod, encoded

HEALTH_NAME = "grpc.health.v1.Health"
_MAX_BYTES = 4096  # of a request, which is a name; anybody may send one

_Response: Any = health_pb2.HealthCheckResponse
_decode = health_pb2.HealthCheckRequest.FromString


class Health:
    """What is told; to be used by one event loop."""

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {}
        self._changed = asyncio.Event()
        self._stopped = False

    def set(self, service: str, serving: bool) -> None:
        """Sets one service's health; "" is the server as a whole."""
        if not self._stopped:
            self._statuses[service] = _Response.SERVING if serving else _Response.NOT_SERVING
            self._tell()

    def stop(self) -> None:
        """NOT_SERVING for good, for every service; who watches is told, and the watch ends."""
        for service in self._statuses:
            self._statuses[service] = _Response.NOT_SERVING
        self._stopped = True
        self._tell()

    def service(self) -> Service:
        """What a front serves: whoever balances or restarts servers need not be known to them."""
        check = Method("Check", self._check, _decode, encoded)
        watch = StreamMethod("Watch", self._watch, _decode, encoded, "server_stream")
        return Service(
            HEALTH_NAME, (check, watch), guarded=False, admitted=False, max_request_bytes=_MAX_BYTES
        )

    async def _check(self, request: Any, call: Call) -> Any:
        status = self._statuses.get(request.service)
        if status is None:
            raise NotFound("is not served here", field="service", value=request.service)
        return _Response(status=status)

    async def _watch(self, requests: AsyncIterator[Any], call: Call) -> AsyncIterator[Any]:
        async for request in requests:
            told = None
            while True:
                changed = self._changed
                status = self._statuses.get(request.service, _Response.SERVICE_UNKNOWN)
                if status != told:
                    told = status
                    yield _Response(status=status)
                if self._stopped:
                    # A watch never ends by itself, and a stop waits for every call.
                    return
                await changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
