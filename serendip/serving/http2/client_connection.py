"""A connection to a server behind, as a caller has it: requests out, answers in.

It knows neither deadlines nor retries, which are the channel's (client.py).
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any

from google.rpc import code_pb2

from serendip.core import SerendipError
from serendip.serving.handlers import Metadata
from serendip.serving.http2 import frames as f
from serendip.serving.http2.endpoint import Endpoint
from serendip.serving.http2.frames import ConnectionFault, Reason, StreamFault
from serendip.serving.http2.headers import Blocks, HeaderReader
from serendip.serving.http2.messages import Messages, Outcome
from serendip.serving.http2.streams import Stream

_KEEPALIVE_S, _ANSWER_S = 10.0, 2.0
_MAX_UNSENT = 4 << 20
_LAST_STREAM = f.LARGEST_WINDOW - 2
# What a stream that was reset without a status has come to (gRPC over HTTP2, "Errors").
_CODES: dict[int, int] = {
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


class NotBegun(CallFailed):
    """A call that the server has not looked at, and says so: it may be made again at will."""


class _Stream(Stream):
    """A call that waits for its answer."""

    __slots__ = ("answer", "body", "messages", "outcome")

    def __init__(self, connection: ClientConnection, stream_id: int, max_bytes: int) -> None:
        super().__init__(connection, stream_id)
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.messages = Messages(max_bytes, "identity")
        self.body: bytes | None = None
        self.outcome: Outcome | None = None

    def fail(self, failed: CallFailed) -> None:
        """Ends the call, once."""
        if not self.answer.done():
            self.answer.set_exception(failed)


class ClientConnection(Endpoint[_Stream]):
    """A connection to the server.

    Attributes:
        ready: set once the server's settings have come, or the connection is lost.
        lost: set once it is.
    """

    def __init__(
        self,
        blocks: Blocks[Outcome],
        max_bytes: int,
        on_lost: Callable[[ClientConnection], None],
    ) -> None:
        super().__init__(HeaderReader(blocks), _KEEPALIVE_S, _ANSWER_S, _MAX_UNSENT)
        self._on_lost = on_lost
        self._blocks = blocks
        self._max_bytes = max_bytes
        self._next = 1
        self._max_streams = 100
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._granted = 0  # turns that were given and are not taken yet
        self._doubted = False  # whether a call was given up, and nothing has come since
        self._going = False
        self._why = "the connection was lost"
        self.ready = asyncio.Event()
        self.lost = asyncio.Event()

    @property
    def takes_calls(self) -> bool:
        """Whether a call may be begun."""
        return not self._going and not self._transport.is_closing()

    @property
    def why(self) -> str:
        """Why it takes none."""
        return self._why

    @property
    def asks(self) -> bool:
        """See ``Endpoint``: servers do not like to be asked by who has no calls."""
        return bool(self.streams) or self._doubted or self._transport.is_closing()

    async def call(self, block: bytes, body: bytes) -> bytes:
        """The answer to one request. Raises CallFailed."""
        if self._waiting or len(self.streams) + self._granted >= self._max_streams:
            await self._turn()
        if not self.takes_calls:
            raise NotBegun(code_pb2.UNAVAILABLE, self._why)
        if not self.streams and not self._doubted:
            self.heard = self._loop.time()  # silence is counted from here
        stream = _Stream(self, self._next, self._max_bytes)
        self._next += 2
        self._going = self._next >= _LAST_STREAM
        self.streams[stream.id] = stream
        if not stream.send_whole(block, body, b""):
            stream.send(block, body)
            stream.send_end(b"")
        try:
            return await stream.answer
        finally:
            if self.streams.get(stream.id) is stream:  # given up
                self._doubted = True
                self.write(f.rst_stream(stream.id, Reason.CANCEL))
                self._forget(stream)

    async def _turn(self) -> None:
        """Returns when one more call may be begun; who came first is first."""
        turn: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was this call's turn: the next one's, then
                self._granted -= 1
                self._let_in()
            raise
        self._granted -= 1

    # --- the transport's calls -----------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        self.begin(transport, f.PREFACE, {f.ENABLE_PUSH: 0})
        if tls is not None and tls.selected_alpn_protocol() != "h2":
            self._why = "the server speaks no HTTP/2"
            transport.abort()

    def pause_writing(self) -> None:
        # Unlike a server it reads on: two that wait for each other to read would wait for ever.
        self._full = True

    def data_received(self, data: bytes) -> None:
        self._doubted = False
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._going = True
        if exc is not None:
            self._why = f"{self._why} ({exc})"
        for stream in list(self.streams.values()):
            self._end(stream, CallFailed(code_pb2.UNAVAILABLE, self._why))
        self._let_in()
        self.ready.set()
        self.lost.set()
        self._on_lost(self)

    # --- frames in -----------------------------------------------------------------------------

    def on_settings(self, told: dict[int, int]) -> None:
        self._max_streams = told.get(f.MAX_CONCURRENT_STREAMS, self._max_streams)
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
            said = f"the server's headers are none: {fault}"
            self._end(stream, CallFailed(code_pb2.INTERNAL, said))
            return
        if not flags & f.END_STREAM and 100 <= (outcome.http_status or 0) < 200:
            return  # they say that others follow
        if outcome.http_status is not None:
            stream.messages = Messages(self._max_bytes, outcome.encoding)
            if outcome.http_status != 200 and not flags & f.END_STREAM:
                self.write(f.rst_stream(stream_id, Reason.CANCEL))  # a page for people follows
                self._end(stream, CallFailed(*outcome.status()))
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
            self._end(stream, CallFailed(code_pb2.RESOURCE_EXHAUSTED, str(error)))
            return
        if stream.all_received:
            self._end(stream, CallFailed(code_pb2.INTERNAL, "the server's answer has no status"))

    def on_unknown_stream(self, stream_id: int) -> None:
        if stream_id >= self._next or not stream_id & 1:
            raise ConnectionFault(Reason.PROTOCOL_ERROR, "a stream that never began")

    def on_reset(self, stream: _Stream, reason: int) -> None:
        said = f"the server reset the call (reason {reason})"
        if reason == Reason.REFUSED_STREAM:
            self._end(stream, NotBegun(code_pb2.UNAVAILABLE, said))
        else:
            self._end(stream, CallFailed(_CODES.get(reason, code_pb2.INTERNAL), said))

    def on_goaway(self, last_stream: int, reason: int, said: bytes) -> None:
        self._going = True
        if said:
            self._why = f"the server went away: {said[:200].decode(errors='replace')}"
        for stream in list(self.streams.values()):
            if stream.id > last_stream:  # it has not looked at them
                self._end(stream, NotBegun(code_pb2.UNAVAILABLE, self._why))
        self._let_in()
        if not self.streams:
            self.close()

    def on_fault(self, fault: ConnectionFault) -> None:
        self._why = f"the server broke the protocol: {fault}"
        self.write(f.goaway(0, fault.reason, str(fault)))
        self._going = True
        for stream in list(self.streams.values()):
            self._end(stream, CallFailed(code_pb2.INTERNAL, self._why))
        self.close()

    # --- the ends of calls -----------------------------------------------------------------------

    def _conclude(self, stream: _Stream, outcome: Outcome) -> None:
        code, details = outcome.status()
        if code:
            self._end(stream, CallFailed(code, details, outcome.pairs))
        elif stream.body is None or stream.messages.held_bytes:
            said = "the server's answer has no whole message"
            self._end(stream, CallFailed(code_pb2.INTERNAL, said))
        else:
            if not stream.answer.done():
                stream.answer.set_result(stream.body)
            self._forget(stream)

    def _end(self, stream: _Stream, failed: CallFailed) -> None:
        stream.fail(failed)
        self._forget(stream)

    def _forget(self, stream: _Stream) -> None:
        if stream.waits and not self._transport.is_closing():
            # It was answered before all of its request was sent, which is not sent any more.
            self.write(f.rst_stream(stream.id, Reason.CANCEL))
        stream.close()
        self.streams.pop(stream.id, None)
        self._let_in()
        if self._going and not self.streams:
            self.close()

    def _let_in(self) -> None:
        free = self._max_streams - len(self.streams) - self._granted
        while self._waiting and (free > 0 or not self.takes_calls):
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self._granted += 1
                free -= 1
