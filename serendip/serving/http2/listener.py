"""Takes connections: sockets, TLS, a bound on their number, and how they all end.

Knows no gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
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
_HANDSHAKE_S = 10.0
_RETRY_S = 0.1
_READ = 64 << 10  # bytes at once, between which other connections have their turn
_TO_CLOSE_S = 1.0  # for clients to take what was written, and to hang up

_log = logging.getLogger(__name__)


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
        self._accepting: list[asyncio.Task[None]] = []
        self._shaking: set[asyncio.Task[None]] = set()
        self._sockets = _bound(options.host, options.port, options.reuse_port)
        self.port: int = self._sockets[0].getsockname()[1]

    async def start(self) -> None:
        """Takes connections from now on."""
        for own in self._sockets:
            own.listen(_BACKLOG)
            self._accepting.append(asyncio.create_task(self._accept(own)))

    async def stop(self, grace_s: float) -> None:
        """Takes no more; returns when every call has ended, at most about ``grace_s`` later.

        Calls that take longer, or whose callers do not read, are cancelled.
        """
        for task in (*self._accepting, *self._shaking):
            task.cancel()
        await asyncio.gather(*self._accepting, *self._shaking, return_exceptions=True)
        for own in self._sockets:
            own.close()
        for connection in list(self._connections):
            connection.go_away()
        await self._gone(grace_s)
        tasks = list(self._calls.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_TO_CLOSE_S)
        for connection in list(self._connections):
            connection.close()
        await self._gone(_TO_CLOSE_S)
        for connection in list(self._connections):
            connection.abort()
        await self._gone(_TO_CLOSE_S)

    async def _gone(self, most_s: float) -> None:
        """Returns when there is no connection any more, and no call."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(most_s):
                while self._connections or self._calls.tasks:
                    await asyncio.sleep(0.005)

    async def _accept(self, own: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(own)
            except OSError as error:  # too many files, most likely: others may end meanwhile
                _log.error("a connection cannot be taken: %s", error)
                await asyncio.sleep(_RETRY_S)
                continue
            if self._max is not None and len(self._connections) + len(self._shaking) >= self._max:
                connection.close()
                continue
            task = asyncio.create_task(self._take(connection))
            self._shaking.add(task)
            task.add_done_callback(self._shaking.discard)

    async def _take(self, connection: socket.socket) -> None:
        """Shakes hands, which by TLS takes a while; the connection then lives by itself."""
        wait_s = None if self._tls is None else _HANDSHAKE_S
        try:
            connection.setblocking(False)
            transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
                self._connection, connection, ssl=self._tls, ssl_handshake_timeout=wait_s
            )
            if self._tls is None:  # asyncio's own: 256 KiB
                transport.max_size = _READ  # type: ignore[attr-defined]
        except OSError:  # no handshake, which ssl's errors are as well: the caller knows
            connection.close()

    def _connection(self) -> Connection[Head]:
        return Connection(self._calls, self._blocks, self._bounds, self._made, self._lost)

    def _made(self, connection: Connection[Head]) -> None:
        self._connections.add(connection)
        if self._age_s is not None:
            connection.age(self._age_s)

    def _lost(self, connection: Connection[Head]) -> None:
        self._connections.discard(connection)


def _bound(host: str, port: int, reuse_port: bool) -> list[socket.socket]:
    """Sockets for each address of a host that this machine has, all of one port.

    Args:
        host: "::" is every address, those of IPv4 as well.
        port: 0 takes a free one.

    Raises:
        OSError: an address is taken, or none can be bound.
    """
    found: list[socket.socket] = []
    lacking: OSError | None = None
    for family, kind, protocol, _, address in socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        own = None
        try:
            own = socket.socket(family, kind, protocol)
            own.setblocking(False)
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                own.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
            taken = found[0].getsockname()[1] if found else port
            own.bind((address[0], taken, *address[2:]))
            found.append(own)
        except OSError as error:
            if own is not None:
                own.close()
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                for other in found:
                    other.close()
                raise
            lacking = error
    if not found:
        raise lacking or OSError(f"{host} has no address")
    return found
