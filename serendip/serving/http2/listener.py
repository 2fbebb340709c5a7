"""Takes connections: sockets, TLS, a bound on their number, and how they all end.

Knows no gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

from serendip.serving.http2.bounds import Bounds
from serendip.serving.http2.calls import Calls
from serendip.serving.http2.connection import Connection
from serendip.serving.http2.headers import Blocks
from serendip.serving.http2.messages import Head, read_head
from serendip.serving.tls import Pem, server_context
from serendip.serving.watched_file import WatchedFiles

if TYPE_CHECKING:
    from serendip.serving.server import ServerOptions

_BACKLOG = 1024
_HANDSHAKE_S = 20.0
_TO_CLOSE_S = 1.0  # for clients to take what was written, and to hang up


class Http2Listener:
    """A port that takes connections once it is started.

    Args:
        tls: None: plain text.

    Raises:
        OSError, OverflowError: the port cannot be bound.
    """

    def __init__(self, calls: Calls, options: ServerOptions, tls: WatchedFiles[Pem] | None) -> None:
        self._calls = calls
        self._bounds = Bounds(
            max_streams=options.max_streams,
            keepalive_s=options.keepalive_s,
            # Clients may ask as often as the server does.
            min_ping_s=min(options.keepalive_s, 10.0),
        )
        self._max = options.max_connections
        self._age_s = options.connection_age_s
        self._tls = None if tls is None else server_context(tls)
        self._blocks: Blocks[Head] = Blocks(read_head)
        self._connections: set[Connection[Head]] = set()
        self._servers: list[asyncio.Server] = []
        self._sockets = _bound(options.host, options.port, options.reuse_port)
        self.port: int = self._sockets[0].getsockname()[1]

    async def start(self) -> None:
        """Takes connections from now on."""
        loop = asyncio.get_running_loop()
        wait = None if self._tls is None else _HANDSHAKE_S
        for own in self._sockets:
            server = await loop.create_server(
                self._connection,
                sock=own,
                backlog=_BACKLOG,
                ssl=self._tls,
                ssl_handshake_timeout=wait,
            )
            self._servers.append(server)

    async def stop(self, grace_s: float) -> None:
        """Takes no more; returns when every call has ended, at most about ``grace_s`` later.

        Calls that take longer are cancelled, and their connections closed.
        """
        for server in self._servers:
            server.close()
        for own in self._sockets:
            own.close()
        for connection in list(self._connections):
            connection.go_away()
        if self._calls.tasks:
            await asyncio.wait(list(self._calls.tasks), timeout=grace_s)
        for task in list(self._calls.tasks):
            task.cancel()
        if self._calls.tasks:
            await asyncio.wait(list(self._calls.tasks), timeout=_TO_CLOSE_S)
        # Answers that the windows hold back have until then, as calls have.
        await self._closed(_TO_CLOSE_S)
        for connection in list(self._connections):
            connection.abort()
        await self._closed(_TO_CLOSE_S)

    async def _closed(self, most_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(most_s):
                while self._connections:
                    for connection in list(self._connections):
                        if connection.idle:
                            connection.close()
                    await asyncio.sleep(0.005)

    def _connection(self) -> Connection[Head]:
        return Connection(self._calls, self._blocks, self._bounds, self._made, self._lost)

    def _made(self, connection: Connection[Head]) -> bool:
        if self._max is not None and len(self._connections) >= self._max:
            return False
        self._connections.add(connection)
        if self._age_s is not None:
            connection.age(self._age_s)
        return True

    def _lost(self, connection: Connection[Head]) -> None:
        self._connections.discard(connection)


def _bound(host: str, port: int, reuse_port: bool) -> list[socket.socket]:
    """Sockets for each address of a host, all of one port.

    Args:
        port: 0 takes a free one.

    Raises:
        OSError: an address cannot be bound, or there is none.
    """
    found: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            own = socket.socket(family, kind, protocol)
            found.append(own)
            own.setblocking(False)
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                own.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            taken = found[0].getsockname()[1] if len(found) > 1 else port
            own.bind((address[0], taken, *address[2:]))
    except OSError:
        for own in found:
            own.close()
        raise
    if not found:
        raise OSError(f"{host} has no address")
    return found
