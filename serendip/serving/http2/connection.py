"""One connection of HTTP/2: frames in, calls out, and everything that a peer may do wrong.

    bytes ──> frames ──> headers: a Stream is opened, and its receiver made by the application
                    ├──> data: handed to the receiver, credit given back
                    ├──> reset, or the connection is lost: the receiver is told
                    └──> settings, pings, window updates, go away
    answers ──> as the windows allow ──> one write for all that was answered at once

It knows no gRPC: an ``Application`` makes of a request's headers what is to be done with it. All
runs in one event loop's thread.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from serendip.serving.http2 import frames as f
from serendip.serving.http2.bounds import Bounds, Patience
from serendip.serving.http2.frames import ConnectionFault, Reason, StreamFault
from serendip.serving.http2.headers import MAX_BLOCK, MAX_LIST, Blocks, HeaderReader

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

_STREAM_WINDOW = 1 << 20
_WINDOW = 16 << 20
_GOING_S = 1.0  # for a client to have read that it should go away


class Receiver(Protocol):
    """What is done with one request; told by the connection, in the event loop's thread."""

    def data(self, payload: bytes, ended: bool) -> None:
        """More of the request's body; ``ended``: and there is no more."""

    def gone(self) -> None:
        """The caller has given up, or its connection is lost: nothing can be sent any more."""


class Application(Protocol[T_contra]):
    """Makes receivers."""

    def open(self, stream: Stream, head: T_contra) -> Receiver | None:
        """A request begins. None: it has been answered already, and its body is not wanted."""


class Stream:
    """One call's way back to its caller.

    Attributes:
        id: its number.
        closed: whether nothing can be sent any more.
    """

    __slots__ = (
        "_all_received", "_connection", "_on_drained", "_pending", "_trailers", "_unread",
        "_window", "closed", "id", "receiver",
    )  # fmt: skip

    def __init__(self, connection: Connection[Any], stream_id: int, window: int) -> None:
        self._connection = connection
        self.id = stream_id
        self._window = window
        self._pending: bytearray | None = None  # what the windows do not allow yet
        self._trailers: bytes | None = None
        self._all_received = False
        self._unread = 0
        self._on_drained: Callable[[], None] | None = None
        self.closed = False
        self.receiver: Receiver | None = None

    @property
    def connection(self) -> Connection[Any]:
        """The connection that it is of."""
        return self._connection

    def answer(self, headers: bytes, body: bytes, trailers: bytes) -> None:
        """Sends a whole response, and closes the stream.

        Args:
            headers, trailers: header blocks.
            body: of any length; waits here while the windows are shut.
        """
        if self.closed:
            return
        connection, n = self._connection, len(body)
        if self._window >= n and connection.may_send(n):
            self._window -= n
            connection.send_answer(self, headers, body, trailers)
            return
        self.send(headers, body)
        self.end(trailers)

    def send(self, headers: bytes, body: bytes) -> None:
        """Sends a part of a response.

        Args:
            headers: a header block before the first part; empty: none.
        """
        if self.closed:
            return
        if headers:
            self._connection.write(f.frame(f.HEADERS, f.END_HEADERS, self.id, headers))
        if body:
            if self._pending is None:
                self._pending = bytearray()
            self._pending += body
            self._connection.pump(self)

    def end(self, trailers: bytes) -> None:
        """Ends the response by its trailers, once its parts are sent; also its only block."""
        if self.closed:
            return
        self._trailers = trailers
        if not self._pending:
            self._connection.finish(self)

    def reset(self, reason: Reason) -> None:
        """Ends the stream without an answer, or what is left of it; its receiver is told."""
        if not self.closed:
            self._connection.write(f.rst_stream(self.id, reason))
            self._connection.drop(self)

    def reset_by_server(self) -> None:
        """Ends a call that the server gives up, as the caller would."""
        self.reset(Reason.CANCEL)

    async def drained(self) -> None:
        """Returns when all parts are sent, or the stream is closed."""
        while self._pending and not self.closed:
            drained = asyncio.Event()
            self._on_drained = drained.set
            await drained.wait()
        self._on_drained = None


class Connection(asyncio.Protocol, Generic[T]):
    """See the module.

    Args:
        blocks: header blocks that connections have in common.
        on_made, on_lost: told with this connection; ``on_made`` returns whether it is taken.
    """

    def __init__(
        self,
        application: Application[T],
        blocks: Blocks[T],
        bounds: Bounds,
        on_made: Callable[[Connection[T]], bool],
        on_lost: Callable[[Connection[T]], None],
    ) -> None:
        self._application = application
        self._blocks = blocks
        self._bounds = bounds
        self._on_made = on_made
        self._on_lost = on_lost
        self._reader = HeaderReader(blocks)
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._streams: dict[int, Stream] = {}
        self._highest = 0  # number of the last stream that the peer began
        self._refused_above = f.LARGEST_WINDOW  # streams beyond it are not looked at
        self._begun = False
        self._rest = b""
        self._block: list[bytes] | None = None  # of a header block whose end has not come
        self._block_flags = self._block_stream = self._block_bytes = 0
        self._unread = 0  # bytes of data since the peer was given credit
        self._window = f.DEFAULT_WINDOW  # bytes that may be sent
        self._peer_window = f.DEFAULT_WINDOW  # of a new stream
        self._peer_frame = f.DEFAULT_FRAME
        self._blocked: dict[int, Stream] = {}
        self._out: list[bytes] = []
        self._corked = self._flushing = self._full = False
        self._going: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._heard = self._loop.time()
        self._asked: float | None = None
        self._patience = Patience(self._heard)
        self._answered = self._answered_at_ping = 0
        self._last_ping, self._early_pings = -1e9, 0
        self.held_bytes = 0  # of requests that have not come whole; kept by the application

    # --- the transport's calls -------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() != "h2":
            transport.abort()
            return
        if not self._on_made(self):
            transport.abort()
            return
        bounds = self._bounds
        transport.set_write_buffer_limits(high=bounds.max_unsent_bytes)
        hello = {
            f.HEADER_TABLE_SIZE: 0,
            f.MAX_CONCURRENT_STREAMS: bounds.max_streams,
            f.INITIAL_WINDOW_SIZE: _STREAM_WINDOW,
            f.MAX_HEADER_LIST_SIZE: MAX_LIST,
        }
        transport.write(f.settings(hello) + f.window_update(0, _WINDOW - f.DEFAULT_WINDOW))
        self._timer = self._loop.call_later(bounds.keepalive_s, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._timer, self._going):
            if timer is not None:
                timer.cancel()
        for stream in list(self._streams.values()):
            self.drop(stream)
        self._on_lost(self)

    def pause_writing(self) -> None:
        # Who does not read is not read from: what it may have the server hold is bounded.
        self._full = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._full = False
        if not self._transport.is_closing():
            self._transport.resume_reading()
        self._pump_all()

    def data_received(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        self._heard = self._loop.time()
        if self._rest:
            data = self._rest + data
        self._corked = True
        at, end = 0, len(data)
        try:
            if not self._begun:
                at = self._begin(data)
                if not self._begun:
                    self._rest = data
                    return
            unpack = f.HEAD.unpack_from
            while end - at >= 9:
                high, low, kind, flags, stream_id = unpack(data, at)
                length = high << 8 | low
                if length > f.DEFAULT_FRAME:
                    raise ConnectionFault(Reason.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
                start = at + 9
                if end - start < length:
                    break
                at = start + length
                self._frame(kind, flags, stream_id & f.STREAM_MASK, data[start:at])
            self._rest = data[at:]
        except ConnectionFault as fault:
            self._fail(fault)
        finally:
            self._corked = False
            self.flush()

    # --- frames in ---------------------------------------------------------------------------

    def _begin(self, data: bytes) -> int:
        preface = f.PREFACE
        if len(data) < len(preface):
            if not preface.startswith(data):
                raise ConnectionFault(Reason.PROTOCOL_ERROR, "this is a server of HTTP/2")
            return 0
        if not data.startswith(preface):
            raise ConnectionFault(Reason.PROTOCOL_ERROR, "this is a server of HTTP/2")
        self._begun = True
        return len(preface)

    def _frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block is not None and (kind != f.CONTINUATION or stream_id != self._block_stream):
            raise ConnectionFault(Reason.PROTOCOL_ERROR, "a header block was left open")
        if kind == f.DATA:
            self._data(flags, stream_id, payload)
        elif kind == f.HEADERS:
            payload = f.without_padding(payload, flags)
            if flags & f.WITH_PRIORITY:
                payload = payload[5:]
            if flags & f.END_HEADERS:
                self._headers(flags, stream_id, payload)
            else:
                self._block, self._block_bytes = [payload], len(payload)
                self._block_flags, self._block_stream = flags, stream_id
        elif kind == f.CONTINUATION:
            self._continuation(flags, payload)
        elif kind == f.WINDOW_UPDATE:
            self._window_update(stream_id, payload)
        elif kind == f.RST_STREAM:
            self._reset(stream_id, payload)
        elif kind == f.PING:
            self._ping(flags, stream_id, payload)
        elif kind == f.SETTINGS:
            self._settings(flags, stream_id, payload)
        elif kind == f.GOAWAY:
            # The client begins no more streams; those that are open go on.
            self._refused_above = min(self._refused_above, self._highest)
            self._close_if_going()
        elif kind == f.PUSH_PROMISE:
            raise ConnectionFault(Reason.PROTOCOL_ERROR, "a client pushes nothing")
        else:  # PRIORITY, and what is not known
            self._bear()

    def _data(self, flags: int, stream_id: int, payload: bytes) -> None:
        n = len(payload)
        # Credit is given as data is read, of which padding is a part: windows bound what is on
        # its way, and what is kept the application bounds.
        self._unread += n
        if self._unread > _WINDOW // 2:
            self.write(f.window_update(0, self._unread))
            self._unread = 0
        if flags & f.PADDED:
            payload = f.without_padding(payload, flags)
        stream = self._streams.get(stream_id)
        if stream is None:
            self._must_have_begun(stream_id)
            return  # it has ended here, which its peer did not know yet
        if stream._all_received or stream.receiver is None:
            if stream._all_received:
                stream.reset(Reason.STREAM_CLOSED)
            return
        if flags & f.END_STREAM:
            stream._all_received = True
        else:
            if not payload:
                self._bear()
            stream._unread += n
            if stream._unread > _STREAM_WINDOW // 2:
                self.write(f.window_update(stream_id, stream._unread))
                stream._unread = 0
        stream.receiver.data(payload, stream._all_received)

    def _continuation(self, flags: int, payload: bytes) -> None:
        if self._block is None:
            raise ConnectionFault(Reason.PROTOCOL_ERROR, "there is no block to continue")
        self._bear()
        self._block.append(payload)
        self._block_bytes += len(payload)
        if self._block_bytes > MAX_BLOCK:
            raise ConnectionFault(
                Reason.ENHANCE_YOUR_CALM, f"a header block has more than {MAX_BLOCK} bytes"
            )
        if flags & f.END_HEADERS:
            block, self._block = b"".join(self._block), None
            self._headers(self._block_flags, self._block_stream, block)

    def _headers(self, flags: int, stream_id: int, block: bytes) -> None:
        reader = self._reader
        ended = bool(flags & f.END_STREAM)
        head = self._blocks.known.get(block) if reader.stateless else None
        fault = None
        if head is None:
            if len(block) > MAX_BLOCK:
                raise ConnectionFault(Reason.ENHANCE_YOUR_CALM, "a header block is too large")
            # Whatever becomes of the stream: the block may change what later ones mean.
            try:
                head = reader.read(block)
            except StreamFault as e:
                fault = e
        if stream_id <= self._highest:
            self._trailers(stream_id, ended)
            return
        if not stream_id & 1:
            raise ConnectionFault(Reason.PROTOCOL_ERROR, "a client's streams have odd numbers")
        if self._highest >= self._refused_above:
            return  # it was told to go away: it takes this call elsewhere
        self._highest = stream_id
        if fault is not None:
            self._bear()
            self.write(f.rst_stream(stream_id, fault.reason))
            return
        if len(self._streams) >= self._bounds.max_streams:
            self._bear()
            self.write(f.rst_stream(stream_id, Reason.REFUSED_STREAM))
            return
        assert head is not None
        stream = Stream(self, stream_id, self._peer_window)
        stream._all_received = ended
        self._streams[stream_id] = stream
        receiver = stream.receiver = self._application.open(stream, head)
        if ended and receiver is not None and not stream.closed:
            receiver.data(b"", True)

    def _trailers(self, stream_id: int, ended: bool) -> None:
        """A second header block of a stream: gRPC has none of clients, HTTP/2 has."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if not ended or stream._all_received:
            stream.reset(Reason.PROTOCOL_ERROR)
            return
        stream._all_received = True
        if stream.receiver is not None:
            stream.receiver.data(b"", True)

    def _reset(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(Reason.FRAME_SIZE_ERROR, "a RST_STREAM has 4 bytes")
        self._must_have_begun(stream_id)
        self._bear()
        stream = self._streams.get(stream_id)
        if stream is not None:
            self.drop(stream)

    def _must_have_begun(self, stream_id: int) -> None:
        # Of a client that was told to go away, streams are not looked at any more.
        if not stream_id & 1 or (stream_id > self._highest and self._refused_above > self._highest):
            raise ConnectionFault(Reason.PROTOCOL_ERROR, "a stream that never began")

    def _window_update(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(Reason.FRAME_SIZE_ERROR, "a WINDOW_UPDATE has 4 bytes")
        more = f.NUMBER.unpack(payload)[0] & f.STREAM_MASK
        if not stream_id:
            self._window += more
            if not more or self._window > f.LARGEST_WINDOW:
                raise ConnectionFault(Reason.FLOW_CONTROL_ERROR, "a window grows by 1 to 2^31 - 1")
            if self._blocked:
                self._pump_all()
            return
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        stream._window += more
        if not more or stream._window > f.LARGEST_WINDOW:
            stream.reset(Reason.FLOW_CONTROL_ERROR)
        elif stream._pending:
            self.pump(stream)

    def _settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id or len(payload) % 6 or (flags & f.ACK and payload):
            raise ConnectionFault(Reason.FRAME_SIZE_ERROR, "SETTINGS are pairs of 6 bytes")
        if flags & f.ACK:
            return
        self._bear()
        for key, value in f.SETTING.iter_unpack(payload):
            if key == f.INITIAL_WINDOW_SIZE:
                if value > f.LARGEST_WINDOW:
                    raise ConnectionFault(Reason.FLOW_CONTROL_ERROR, "a window of 2^31 or more")
                more, self._peer_window = value - self._peer_window, value
                for stream in self._streams.values():
                    stream._window += more
            elif key == f.MAX_FRAME_SIZE:
                if not f.DEFAULT_FRAME <= value <= f.LARGEST_FRAME:
                    raise ConnectionFault(Reason.PROTOCOL_ERROR, "frames of 2^14 to 2^24 - 1")
                self._peer_frame = value
        self.write(f.frame(f.SETTINGS, f.ACK, 0))
        self._pump_all()

    def _ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id or len(payload) != 8:
            raise ConnectionFault(Reason.FRAME_SIZE_ERROR, "a PING has 8 bytes")
        if flags & f.ACK:
            if payload == _GOING:
                self._go()
            return
        self._bear()
        now = self._heard
        if self._answered != self._answered_at_ping:
            self._early_pings = 0  # who is sent answers may ask how fast they come
        elif now - self._last_ping < self._bounds.min_ping_s:
            self._early_pings += 1
            if self._early_pings > 2:
                raise ConnectionFault(Reason.ENHANCE_YOUR_CALM, "too_many_pings")
        self._answered_at_ping, self._last_ping = self._answered, now
        self.write(f.frame(f.PING, f.ACK, 0, payload))

    def _bear(self) -> None:
        if not self._patience.spend(self._heard):
            raise ConnectionFault(Reason.ENHANCE_YOUR_CALM, "too many frames that are no call")

    def _fail(self, fault: ConnectionFault) -> None:
        self._out.append(f.goaway(self._highest, fault.reason, str(fault)))
        self._rest = b""
        for stream in list(self._streams.values()):
            self.drop(stream)
        self.flush()
        self._transport.close()

    # --- frames out --------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Sends frames: with all else that is sent before the event loop goes on."""
        self._out.append(data)
        if not self._corked and not self._flushing:
            self._flushing = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Hands the transport what has been written."""
        self._flushing = False
        out = self._out
        if out:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))
            out.clear()

    def may_send(self, n: int) -> bool:
        """Whether n bytes of data fit the connection's window."""
        return self._window >= n and not self._full

    def send_answer(self, stream: Stream, headers: bytes, body: bytes, trailers: bytes) -> None:
        """Sends all of an answer whose body fits the windows."""
        n, stream_id = len(body), stream.id
        self._window -= n
        pack = f.HEAD.pack
        out = [pack(0, len(headers), f.HEADERS, f.END_HEADERS, stream_id), headers]
        if n <= self._peer_frame:
            out += (pack(n >> 8, n & 0xFF, f.DATA, 0, stream_id), body)
        else:
            for at in range(0, n, self._peer_frame):
                out.append(f.frame(f.DATA, 0, stream_id, body[at : at + self._peer_frame]))
        m = len(trailers)
        out += (pack(m >> 8, m & 0xFF, f.HEADERS, _LAST_HEADERS, stream_id), trailers)
        self.write(b"".join(out))
        self.forget(stream)

    def pump(self, stream: Stream) -> None:
        """Sends what the windows allow of a stream's parts, and its end if they were all."""
        pending = stream._pending
        while pending and not self._full:
            n = min(len(pending), self._window, stream._window, self._peer_frame)
            if n <= 0:
                break
            self._window -= n
            stream._window -= n
            self.write(f.frame(f.DATA, 0, stream.id, bytes(pending[:n])))
            del pending[:n]
        if pending:
            self._blocked[stream.id] = stream
            return
        self._blocked.pop(stream.id, None)
        if stream._on_drained is not None:
            stream._on_drained()
        if stream._trailers is not None:
            self.finish(stream)

    def _pump_all(self) -> None:
        # Who waited longest is first; who is still blocked afterwards goes to the end.
        for stream in list(self._blocked.values()):
            if self._full or self._window <= 0:
                break
            self._blocked.pop(stream.id, None)
            self.pump(stream)

    def finish(self, stream: Stream) -> None:
        """Sends a stream's trailers, and forgets it."""
        assert stream._trailers is not None
        self.write(f.frame(f.HEADERS, _LAST_HEADERS, stream.id, stream._trailers))
        self.forget(stream)

    def forget(self, stream: Stream) -> None:
        """Closes a stream that has been answered."""
        if not stream._all_received:
            # The answer came before the request's end: the rest need not be sent.
            self.write(f.rst_stream(stream.id, Reason.NO_ERROR))
        self._answered += 1
        self._patience.earn()
        stream.closed = True
        self._streams.pop(stream.id, None)
        self._blocked.pop(stream.id, None)
        if stream._on_drained is not None:
            stream._on_drained()
        self._close_if_going()

    def drop(self, stream: Stream) -> None:
        """Closes a stream that will not be answered."""
        stream.closed = True
        self._streams.pop(stream.id, None)
        self._blocked.pop(stream.id, None)
        if stream._on_drained is not None:
            stream._on_drained()
        if stream.receiver is not None:
            stream.receiver.gone()
        self._close_if_going()

    # --- life --------------------------------------------------------------------------------

    def age(self, seconds: float) -> None:
        """Has the connection go away once it is about so old."""
        self._going = self._loop.call_later(seconds * random.uniform(0.9, 1.1), self.go_away)

    def go_away(self) -> None:
        """Asks the client to begin no more calls here; closes when the last has ended."""
        if self._refused_above < f.LARGEST_WINDOW or self._transport.is_closing():
            return
        # First a hint, and a ping: what the client sent before it had read it is still answered.
        self.write(f.goaway(f.LARGEST_WINDOW, Reason.NO_ERROR, "going away"))
        self.write(f.frame(f.PING, 0, 0, _GOING))
        if self._going is not None:
            self._going.cancel()
        self._going = self._loop.call_later(_GOING_S, self._go)

    def _go(self) -> None:
        if self._refused_above == f.LARGEST_WINDOW:
            self._refused_above = self._highest
            self.write(f.goaway(self._highest, Reason.NO_ERROR, "going away"))
            self._close_if_going()

    def _close_if_going(self) -> None:
        if not self._streams and self._refused_above < f.LARGEST_WINDOW:
            self._loop.call_soon(self._close)

    def _close(self) -> None:
        if not self._streams:
            self.flush()
            self._transport.close()

    def close(self) -> None:
        """Closes at once; calls that are open are dropped."""
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        """Closes at once, and throws away what was not sent."""
        self._transport.abort()

    @property
    def idle(self) -> bool:
        """Whether no call is open."""
        return not self._streams

    def peer(self) -> str:
        """The address that the client calls from; empty where it has none."""
        name = self._transport.get_extra_info("peername")
        return str(name[0]) if isinstance(name, tuple) else ""

    def peer_certificate(self) -> dict[str, Any]:
        """The client's certificate as ssl tells it; empty: it showed none."""
        return self._transport.get_extra_info("peercert") or {}

    def _look(self) -> None:
        """Every so often: asks a silent peer whether it is there, and leaves one that is not."""
        now, keepalive_s = self._loop.time(), self._bounds.keepalive_s
        silent_s = now - self._heard
        if self._asked is not None and self._heard <= self._asked:
            self._transport.abort()
            return
        self._asked = None
        if silent_s >= keepalive_s:
            self._asked = now
            self.write(f.frame(f.PING, 0, 0, _THERE))
            silent_s = 0.0
        self._timer = self._loop.call_later(max(0.001, keepalive_s - silent_s), self._look)


_LAST_HEADERS = f.END_HEADERS | f.END_STREAM
_GOING, _THERE = b"go away?", b"there  ?"
