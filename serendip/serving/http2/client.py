"""Calls to a server behind, without leaving the event loop: one connection, kept and renewed.

    call ──> connected? ──> sent ──> answered
                 │             ├ not looked at: made again, a few times
                 │             └ UNAVAILABLE: tried once more, for no call does harm twice
                 └ no: one try at a time, at most a second; before the next one, UNAVAILABLE

A channel of grpc.aio hands every call to a thread and back, which takes longer than all that is
done here. Its policy is that of gRPC's channels: deadlines, one retry of what was UNAVAILABLE, a
backoff between connections, and a ping where a server that has calls is silent.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass

from google.rpc import code_pb2

from serendip.serving.handlers import Metadata
from serendip.serving.http2.client_connection import CallFailed, ClientConnection, NotBegun
from serendip.serving.http2.headers import Blocks, literal
from serendip.serving.http2.messages import (
    Outcome,
    encoded_pairs,
    message,
    read_outcome,
    timeout_text,
)

_BACKOFF_S, _MOST_BACKOFF_S = 0.1, 1.0
_TO_CONNECT_S = 1.0
_NEXT_ADDRESS_S = 0.1
_TO_CLOSE_S = 1.0
_RETRY_AFTER_S, _MOST_RETRY_S = 0.02, 0.5  # doubled each time
_MOST_HEADERS = 8192  # bytes; servers take 8 to 16 KiB, and not every one refuses the call alone


@dataclass(frozen=True)
class Target:
    """Where calls go.

    Attributes:
        tls: None: plain text.
        max_response_bytes: a larger answer is RESOURCE_EXHAUSTED.
    """

    host: str
    port: int
    tls: ssl.SSLContext | None = None
    max_response_bytes: int = 64 << 20

    @property
    def authority(self) -> str:
        """As requests name it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Channel:
    """Calls one server; to be made, used and closed in one event loop."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._connection: ClientConnection | None = None
        self._alive: set[ClientConnection] = set()
        self._connecting: asyncio.Task[ClientConnection] | None = None
        self._backoff_s = 0.0
        self._not_before = 0.0
        self._why = ""
        self._closed = False
        self._blocks: Blocks[Outcome] = Blocks(read_outcome)
        scheme = b"\x87" if target.tls is not None else b"\x86"  # https, http
        self._head = b"\x83" + scheme + literal(b":authority", target.authority.encode())
        self._tail = literal(b"te", b"trailers") + literal(b"content-type", b"application/grpc")

    async def unary(
        self, path: str, request: bytes, timeout_s: float, metadata: Metadata = ()
    ) -> bytes:
        """The answer's bytes.

        Args:
            path: /SERVICE/METHOD.
            timeout_s: seconds for all tries together.

        Raises:
            CallFailed: it was not OK; DEADLINE_EXCEEDED if it took too long.
        """
        until = time.monotonic() + timeout_s
        tries, wait_s = 2, _RETRY_AFTER_S
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    try:
                        return await self._tried(path, request, until, metadata)
                    except NotBegun:
                        if wait_s > _MOST_RETRY_S or self._closed:
                            raise
                    except CallFailed as failed:
                        tries -= 1
                        # A full queue, which is another code, is the caller's to wait for.
                        if failed.code != code_pb2.UNAVAILABLE or not tries or self._closed:
                            raise
                    await asyncio.sleep(wait_s)
                    wait_s *= 2
        except TimeoutError:
            raise CallFailed(code_pb2.DEADLINE_EXCEEDED, "the deadline passed") from None

    async def close(self) -> None:
        """Ends its connections; calls that are open fail, and none is made any more."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        for connection in self._alive:
            connection.close()
        lost = [asyncio.create_task(connection.lost.wait()) for connection in self._alive]
        if lost:
            await asyncio.wait(lost, timeout=_TO_CLOSE_S)
            for connection in self._alive:
                connection.abort()
            await asyncio.wait(lost)

    async def __aenter__(self) -> Channel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _tried(self, path: str, request: bytes, until: float, metadata: Metadata) -> bytes:
        connection = self._connection
        if connection is None or not connection.takes_calls:
            connection = await self._connected()
        timeout = timeout_text(max(0.0, until - time.monotonic())).encode()
        block = b"".join(
            (
                self._head,
                literal(b":path", path.encode()),
                self._tail,
                literal(b"grpc-timeout", timeout),
                encoded_pairs(metadata),
            )
        )
        if len(block) > _MOST_HEADERS:
            raise CallFailed(code_pb2.INTERNAL, f"the call's headers have {len(block)} bytes")
        return await connection.call(block, message(request))

    async def _connected(self) -> ClientConnection:
        """A connection that takes calls. Raises CallFailed: there is none."""
        if self._closed:
            raise CallFailed(code_pb2.UNAVAILABLE, "the channel was closed")
        if self._connecting is None:
            left_s = self._not_before - time.monotonic()
            if left_s > 0:
                raise CallFailed(code_pb2.UNAVAILABLE, f"{self._target.authority}: {self._why}")
            self._connecting = asyncio.create_task(self._connect())
            self._connecting.add_done_callback(self._settle)
        connecting = self._connecting
        try:
            # Each waits for the same try, and none ends it for the others.
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            if connecting.cancelled():
                raise CallFailed(code_pb2.UNAVAILABLE, "the channel was closed") from None
            raise

    def _settle(self, task: asyncio.Task[ClientConnection]) -> None:
        self._connecting = None
        if not task.cancelled():
            task.exception()  # whoever waited has it

    async def _connect(self) -> ClientConnection:
        target = self._target
        try:
            async with asyncio.timeout(_TO_CONNECT_S):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: ClientConnection(
                        self._blocks, target.max_response_bytes, self._alive.discard
                    ),
                    target.host,
                    target.port,
                    ssl=target.tls,
                    happy_eyeballs_delay=_NEXT_ADDRESS_S,
                )
                self._alive.add(connection)
                await self._made_ready(connection)
        except (OSError, ValueError, TimeoutError) as error:  # ValueError: no name of a host
            self._backoff_s = min(_MOST_BACKOFF_S, 2 * self._backoff_s or _BACKOFF_S)
            self._not_before = time.monotonic() + self._backoff_s
            self._why = str(error) or "no connection within a second"
            raise CallFailed(code_pb2.UNAVAILABLE, f"{target.authority}: {self._why}") from error
        self._backoff_s = 0.0
        self._connection = connection
        return connection

    async def _made_ready(self, connection: ClientConnection) -> None:
        """Returns when the server has said its first words. Raises ConnectionError: it hung up."""
        try:
            await connection.ready.wait()
        except BaseException:
            connection.abort()
            raise
        if not connection.takes_calls:
            raise ConnectionError(connection.why)
