"""Calls to a server behind, without leaving the event loop: one connection, kept and renewed.

    call ──> connected? ──> sent ──> answered
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
from collections import deque
from dataclasses import dataclass
from typing import Any

from google.rpc import code_pb2

from serendip.core import SerendipError
from serendip.serving.handlers import Metadata
from serendip.serving.http2 import frames as f
from serendip.serving.http2.endpoint import Endpoint
from serendip.serving.http2.frames import ConnectionFault, Reason, StreamFault
from serendip.serving.http2.headers import Blocks, HeaderReader, literal
from serendip.serving.http2.messages import (
    Messages,
    Outcome,
    encoded_pairs,
    message,
    read_outcome,
    timeout_text,
)
from serendip.serving.http2.streams import Stream

_BACKOFF_S, _MOST_BACKOFF_S = 0.1, 1.0
_TO_CONNECT_S = 1.0
_RETRY_AFTER_S = 0.02
_KEEPALIVE_S, _ANSWER_S = 10.0, 2.0
_MAX_UNSENT = 4 << 20
_LAST_STREAM = f.LARGEST_WINDOW - 2
# What a stream that was reset without a status has come to (gRPC over HTTP2, "Errors").
_CODES: dict[int, int] = {
    Reason.REFUSED_STREAM: code_pb2.UNAVAILABLE,
    Reason.CANCEL: code_pb2.CANCELLED,
    Reason.ENHANCE_YOUR_CALM: code_pb2.RESOURCE_EXHAUSTED,
}


class CallFailed(Exception):
    """A call that was not answered with OK.

    Attributes:
        code: a number of google.rpc.Code.
        details: what the server, or this side, says of it.
        trailers: pairs that came with it, those of names that end in -bin as bytes.
    """

    def __init__(self, code: int, details: str, trailers: Metadata = ()) -> None:
        super().__init__(f"{code_pb2.Code.Name(code)}: {details}")
        self.code, self.details, self.trailers = code, details, trailers


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
        self._connection: _Connection | None = None
        self._connecting: asyncio.Task[_Connection] | None = None
        self._backoff_s = 0.0
        self._not_before = 0.0
        self._why = ""
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
        try:
            async with asyncio.timeout(timeout_s):
                try:
                    return await self._tried(path, request, until, metadata)
                except CallFailed as failed:
                    if (
                        failed.code != code_pb2.UNAVAILABLE
                    ):  # a full queue is the caller's to wait for
                        raise
                await asyncio.sleep(_RETRY_AFTER_S)
                return await self._tried(path, request, until, metadata)
        except TimeoutError:
            raise CallFailed(code_pb2.DEADLINE_EXCEEDED, "the deadline passed") from None

    async def close(self) -> None:
        """Ends the connection; calls that are open fail."""
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        if self._connection is not None:
            self._connection.close()
            await self._connection.lost.wait()

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
        return await connection.call(block, message(request))

    async def _connected(self) -> _Connection:
        """A connection that takes calls. Raises CallFailed: there is none."""
        if self._connecting is None:
            left_s = self._not_before - time.monotonic()
            if left_s > 0:
                raise CallFailed(code_pb2.UNAVAILABLE, f"{self._target.authority}: {self._why}")
            self._connecting = asyncio.create_task(self._connect())
            self._connecting.add_done_callback(self._settle)
        # Each waits for the same try, and none ends it for the others.
        return await asyncio.shield(self._connecting)

    def _settle(self, task: asyncio.Task[_Connection]) -> None:
        self._connecting = None
        if not task.cancelled():
            task.exception()  # whoever waited has it

    async def _connect(self) -> _Connection:
        target = self._target
        try:
            async with asyncio.timeout(_TO_CONNECT_S):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: _Connection(self._blocks, target.max_response_bytes),
                    target.host,
                    target.port,
                    ssl=target.tls,
                    happy_eyeballs_delay=0.25,
                )
                await connection.ready.wait()
                if not connection.takes_calls:
                    raise ConnectionError("it hung up at once")
        except (OSError, TimeoutError) as error:
            self._backoff_s = min(_MOST_BACKOFF_S, 2 * self._backoff_s or _BACKOFF_S)
            self._not_before = time.monotonic() + self._backoff_s
            self._why = str(error) or "no connection within a second"
            raise CallFailed(code_pb2.UNAVAILABLE, f"{target.authority}: {self._why}") from error
        self._backoff_s = 0.0
        self._connection = connection
        return connection


class _Stream(Stream):
    """A call that waits for its answer."""

    __slots__ = ("answer", "body", "messages", "outcome")

    def __init__(self, connection: _Connection, stream_id: int, max_bytes: int) -> None:
        super().__init__(connection, stream_id)
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.messages = Messages(max_bytes, "identity")
        self.body: bytes | None = None
        self.outcome: Outcome | None = None

    def fail(self, code: int, details: str, trailers: Metadata = ()) -> None:
        """Ends the call, once."""
        if not self.answer.done():
            self.answer.set_exception(CallFailed(code, details, trailers))


class _Connection(Endpoint[_Stream]):
    """A connection to the server.

    Attributes:
        ready: set once the server's settings have come, or the connection is lost.
        lost: set once it is.
    """

    def __init__(self, blocks: Blocks[Outcome], max_bytes: int) -> None:
        super().__init__(HeaderReader(blocks), _KEEPALIVE_S, _ANSWER_S, _MAX_UNSENT)
        self._blocks = blocks
        self._max_bytes = max_bytes
        self._next = 1
        self._max_streams = 100
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._going = False
        self._why = "the connection was lost"
        self.ready = asyncio.Event()
        self.lost = asyncio.Event()

    @property
    def takes_calls(self) -> bool:
        """Whether a call may be begun."""
        return not self._going and self._next < _LAST_STREAM and not self._transport.is_closing()

    @property
    def asks(self) -> bool:
        """See ``Endpoint``: servers do not like to be asked by who has no calls."""
        return bool(self.streams)

    async def call(self, block: bytes, body: bytes) -> bytes:
        """The answer to one request. Raises CallFailed."""
        while len(self.streams) >= self._max_streams:
            turn: asyncio.Future[None] = self._loop.create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():  # it was this call's turn: the next one's, then
                    self._let_in()
                raise
        if not self.takes_calls:
            raise CallFailed(code_pb2.UNAVAILABLE, self._why)
        if not self.streams:
            self.heard = self._loop.time()  # silence is counted from here
        stream = _Stream(self, self._next, self._max_bytes)
        self._next += 2
        self.streams[stream.id] = stream
        if not stream.send_whole(block, body, b""):
            stream.send(block, body)
            stream.send_end(b"")
        try:
            return await stream.answer
        finally:
            if self.streams.get(stream.id) is stream:  # given up
                self.write(f.rst_stream(stream.id, Reason.CANCEL))
                self._forget(stream)

    # --- the transport's calls -----------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        self.begin(transport, f.PREFACE, {f.ENABLE_PUSH: 0})
        if tls is not None and tls.selected_alpn_protocol() != "h2":
            self._why = "the server speaks no HTTP/2"
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._going = True
        said = self._why if exc is None else f"{self._why} ({exc})"
        for stream in list(self.streams.values()):
            self._end(stream, code_pb2.UNAVAILABLE, said)
        self.ready.set()
        self.lost.set()

    # --- frames in -----------------------------------------------------------------------------

    def on_settings(self, told: dict[int, int]) -> None:
        self._max_streams = max(1, told.get(f.MAX_CONCURRENT_STREAMS, self._max_streams))
        self._let_in()
        self.ready.set()

    def on_headers(self, flags: int, stream_id: int, block: bytes) -> None:
        reader, fault = self._reader, None
        outcome = self._blocks.known.get(block) if reader.stateless else None
        try:
            outcome = reader.read(block) if outcome is None else outcome
        except StreamFault as e:
            fault = e
        stream = self.streams.get(stream_id)
        if stream is None:
            self.on_unknown_stream(stream_id)
            return
        if fault is not None or outcome is None:
            self.write(f.rst_stream(stream_id, Reason.PROTOCOL_ERROR))
            self._end(stream, code_pb2.INTERNAL, f"the server's headers are none: {fault}")
            return
        if outcome.http_status is not None:
            stream.messages = Messages(self._max_bytes, outcome.encoding)
            if outcome.http_status != 200 and not flags & f.END_STREAM:
                self.write(f.rst_stream(stream_id, Reason.CANCEL))  # a page for people follows
                self._end(stream, *outcome.status())
                return
        if flags & f.END_STREAM:
            stream.all_received = True
            self._conclude(stream, outcome)

    def on_data(self, stream: _Stream, payload: bytes) -> None:
        try:
            for raw in stream.messages.add(payload):
                if stream.body is not None:
                    raise SerendipError("the server sent more than one message")
                stream.body = raw
        except SerendipError as error:
            self.write(f.rst_stream(stream.id, Reason.CANCEL))
            self._end(stream, code_pb2.RESOURCE_EXHAUSTED, str(error))
            return
        if stream.all_received:
            self._end(stream, code_pb2.INTERNAL, "the server's answer has no status")

    def on_unknown_stream(self, stream_id: int) -> None:
        if stream_id >= self._next or not stream_id & 1:
            raise ConnectionFault(Reason.PROTOCOL_ERROR, "a stream that never began")

    def on_reset(self, stream: _Stream, reason: int) -> None:
        if stream.answer.done():
            self._forget(stream)
            return
        self._end(
            stream,
            _CODES.get(reason, code_pb2.INTERNAL),
            f"the server reset the call (reason {reason})",
        )

    def on_goaway(self, last_stream: int, reason: int, said: bytes) -> None:
        self._going = True
        if said:
            self._why = f"the server went away: {said[:200].decode(errors='replace')}"
        for stream in list(self.streams.values()):
            if stream.id > last_stream:  # it has not looked at them
                self._end(stream, code_pb2.UNAVAILABLE, self._why)
        self._let_in()
        self._close_if_done()

    def on_fault(self, fault: ConnectionFault) -> None:
        self._why = f"the server broke the protocol: {fault}"
        self.write(f.goaway(0, fault.reason, str(fault)))
        self._going = True
        for stream in list(self.streams.values()):
            self._end(stream, code_pb2.INTERNAL, self._why)
        self.close()

    # --- the ends of calls -----------------------------------------------------------------------

    def _conclude(self, stream: _Stream, outcome: Outcome) -> None:
        code, details = outcome.status()
        if code:
            self._end(stream, code, details, outcome.pairs)
        elif stream.body is None or stream.messages.held_bytes:
            self._end(stream, code_pb2.INTERNAL, "the server's answer has no whole message")
        else:
            if not stream.answer.done():
                stream.answer.set_result(stream.body)
            self._forget(stream)

    def _end(self, stream: _Stream, code: int, details: str, trailers: Metadata = ()) -> None:
        stream.fail(code, details, trailers)
        self._forget(stream)

    def _forget(self, stream: _Stream) -> None:
        stream.close()
        self.streams.pop(stream.id, None)
        self._let_in()
        self._close_if_done()

    def _let_in(self) -> None:
        free = len(self._waiting) if self._going else self._max_streams - len(self.streams)
        while self._waiting and free > 0:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                free -= 1

    def _close_if_done(self) -> None:
        if self._going and not self.streams and not self._transport.is_closing():
            self.close()
