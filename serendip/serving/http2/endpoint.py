"""One end of a connection of HTTP/2: what a server's and a client's have in common.

    bytes ──> frames ──> headers, data, resets: the side's own
                    └──> settings, pings, window updates: here
    what is sent ──> as the windows allow ──> one write for all that was sent at once

Knows neither side and no gRPC. All runs in one event loop's thread.
"""

from __future__ import annotations

import asyncio
from typing import Any, Generic, TypeVar

from serendip.serving.http2 import frames as f
from serendip.serving.http2.frames import ConnectionFault, Reason
from serendip.serving.http2.headers import MAX_BLOCK, MAX_LIST, HeaderReader
from serendip.serving.http2.streams import Stream

STREAM_WINDOW = 1 << 20
_WINDOW = 16 << 20
_THERE = b"there  ?"
_YOUNG_S = 0.05
_LINGER_S = 0.2


S = TypeVar("S", bound=Stream)


class Endpoint(asyncio.Protocol, Generic[S]):
    """See the module.

    Args:
        keepalive_s: seconds of silence after which the other side is asked whether it is there.
        answer_s: seconds that it has to answer.
        max_unsent_bytes: beyond this, nothing more is read from a peer until it has read.

    Attributes:
        peer_window: bytes that may be sent on a new stream.
        streams: those that are open, by number.
        blocked: those whose data waits for the connection's window, who waited longest first.
        unsent: bytes of data that wait for a window.
        sent: frames of headers and data that were sent.
        heard: the event loop's time when something came last.
    """

    preface_bytes = 0  # that stand before the first frame

    def __init__(
        self, reader: HeaderReader[Any], keepalive_s: float, answer_s: float, max_unsent_bytes: int
    ) -> None:
        self._reader = reader
        self._keepalive_s, self._answer_s = keepalive_s, answer_s
        self._max_unsent = max_unsent_bytes
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._rest = b""
        self._block: list[bytes] | None = None  # of a header block whose end has not come
        self._block_flags = self._block_stream = self._block_bytes = 0
        self._unread = 0  # bytes of data since the peer was given credit
        self._window = f.DEFAULT_WINDOW  # bytes that may be sent
        self._peer_frame = f.DEFAULT_FRAME
        self._out: list[bytes] = []
        self._out_bytes = self._stuck = 0
        self._corked = self._flushing = self._full = self._deaf = self._lost = False
        self._timer: asyncio.TimerHandle | None = None
        self._asked: float | None = None
        self.peer_window = f.DEFAULT_WINDOW
        self.streams: dict[int, S] = {}
        self.blocked: dict[int, Stream] = {}
        self.unsent = self.sent = 0
        self._owed = b""  # an instruction that the next header block must begin with
        self.heard = self._loop.time()

    # --- a side's own ------------------------------------------------------------------------

    def on_preface(self, data: bytes) -> int | None:
        """Where frames begin in what came first; None: not enough has come."""
        return 0

    def on_headers(self, flags: int, stream_id: int, block: bytes) -> None:
        """A whole header block has come."""
        raise NotImplementedError

    def on_data(self, stream: S, payload: bytes) -> None:
        """Data of a stream that is open has come; ``all_received`` says whether it was the last."""
        raise NotImplementedError

    def on_unknown_stream(self, stream_id: int) -> None:
        """A frame has come of a stream that is not open. Raises ConnectionFault: nor ever was."""
        raise NotImplementedError

    def on_reset(self, stream: S, reason: int) -> None:
        """The other side has given up a stream."""
        raise NotImplementedError

    def on_goaway(self, last_stream: int, reason: int, said: bytes) -> None:
        """The other side is leaving."""
        raise NotImplementedError

    def on_settings(self, told: dict[int, int]) -> None:
        """The other side's settings hold."""

    def on_ping(self, payload: bytes) -> None:
        """The other side asks whether this one is there."""

    def on_pong(self, payload: bytes) -> None:
        """The other side has answered a ping."""

    def on_noise(self) -> None:
        """A frame that brings no call forward. Raises ConnectionFault: there were too many."""

    def on_fault(self, fault: ConnectionFault) -> None:
        """The other side broke the protocol, or a bound: the connection ends."""
        raise NotImplementedError

    def sent_all(self, stream: Any) -> None:
        """All was sent that is to be sent on a stream."""

    @property
    def asks(self) -> bool:
        """Whether a silent peer is to be asked now."""
        return True

    # --- the transport's calls -------------------------------------------------------------

    def begin(self, transport: Any, hello: bytes, settings: dict[int, int]) -> None:
        """Says the first words."""
        self._transport = transport
        transport.set_write_buffer_limits(high=self._max_unsent)
        settings = {
            f.HEADER_TABLE_SIZE: 0,
            f.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            f.MAX_HEADER_LIST_SIZE: MAX_LIST,
            **settings,
        }
        credit = f.window_update(0, _WINDOW - f.DEFAULT_WINDOW)
        transport.write(hello + f.settings(settings) + credit)
        self._timer = self._loop.call_later(self._keepalive_s, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        if self._timer is not None:
            self._timer.cancel()

    def pause_writing(self) -> None:
        # Who does not read is not read from: what it may have this side hold is bounded.
        self._full = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._full = False
        self.heard = self._loop.time()  # it has read
        if not self._transport.is_closing():
            self._transport.resume_reading()
        self._pump_all()

    def data_received(self, data: bytes) -> None:
        if self._deaf or self._transport.is_closing():
            return
        self.heard = self._loop.time()
        if self._rest:
            data = self._rest + data
        self._corked = True
        at, end = 0, len(data)
        try:
            if self.preface_bytes:
                begin = self.on_preface(data)
                if begin is None:
                    self._rest = data
                    return
                self.preface_bytes, at = 0, begin
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
            self.on_fault(fault)
        finally:
            self._corked = False
            self.flush()

    # --- frames in ---------------------------------------------------------------------------

    def _frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block is not None and (kind != f.CONTINUATION or stream_id != self._block_stream):
            raise ConnectionFault(Reason.PROTOCOL_ERROR, "a header block was left open")
        if kind == f.DATA:
            self._data(flags, stream_id, payload)
        elif kind == f.HEADERS:
            payload = f.without_padding(payload, flags)
            payload = payload[5:] if flags & f.WITH_PRIORITY else payload
            if flags & f.END_HEADERS:
                self.on_headers(flags, stream_id, payload)
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
            if stream_id or len(payload) < 8:
                raise ConnectionFault(Reason.FRAME_SIZE_ERROR, "a GOAWAY has 8 bytes or more")
            last, reason = f.TWO_NUMBERS.unpack_from(payload)
            self.on_goaway(last & f.STREAM_MASK, reason, payload[8:])
        elif kind == f.PUSH_PROMISE:
            raise ConnectionFault(Reason.PROTOCOL_ERROR, "nothing may be pushed")
        else:  # PRIORITY, and what is not known
            self.on_noise()

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
        stream = self.streams.get(stream_id)
        if stream is None:
            self.on_unknown_stream(stream_id)
            return
        if stream.all_received:
            self.punish(stream, Reason.STREAM_CLOSED)
            return
        if flags & f.END_STREAM:
            stream.all_received = True
        else:
            if not payload:
                self.on_noise()
            stream.unread += n
            if stream.unread > STREAM_WINDOW // 2:
                self.write(f.window_update(stream_id, stream.unread))
                stream.unread = 0
        self.on_data(stream, payload)

    def _continuation(self, flags: int, payload: bytes) -> None:
        if self._block is None:
            raise ConnectionFault(Reason.PROTOCOL_ERROR, "there is no block to continue")
        self.on_noise()
        self._block.append(payload)
        self._block_bytes += len(payload)
        if self._block_bytes > MAX_BLOCK:
            raise ConnectionFault(
                Reason.ENHANCE_YOUR_CALM, f"a header block has more than {MAX_BLOCK} bytes"
            )
        if flags & f.END_HEADERS:
            block, self._block = b"".join(self._block), None
            self.on_headers(self._block_flags, self._block_stream, block)

    def _reset(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(Reason.FRAME_SIZE_ERROR, "a RST_STREAM has 4 bytes")
        stream = self.streams.get(stream_id)
        if stream is None:
            self.on_noise()
            self.on_unknown_stream(stream_id)
            return
        if self.heard - stream.begun < _YOUNG_S:  # who waited may have lost patience
            self.on_noise()
        self.on_reset(stream, f.NUMBER.unpack(payload)[0])

    def _window_update(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(Reason.FRAME_SIZE_ERROR, "a WINDOW_UPDATE has 4 bytes")
        more = f.NUMBER.unpack(payload)[0] & f.STREAM_MASK
        if not stream_id:
            self._window += more
            if not more or self._window > f.LARGEST_WINDOW:
                raise ConnectionFault(Reason.FLOW_CONTROL_ERROR, "a window grows by 1 to 2^31 - 1")
            self._pump_all()
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            return
        if not stream.widen(more) or not more:
            self.punish(stream, Reason.FLOW_CONTROL_ERROR)
        elif stream.waits:
            stream.pump()

    def _settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id or (flags & f.ACK and payload):
            raise ConnectionFault(Reason.FRAME_SIZE_ERROR, "SETTINGS of a stream, or in an ACK")
        if flags & f.ACK:
            return
        self.on_noise()
        told, before = f.read_settings(payload), self.peer_window
        self.peer_window = told.get(f.INITIAL_WINDOW_SIZE, before)
        self._peer_frame = told.get(f.MAX_FRAME_SIZE, self._peer_frame)
        if told.get(f.HEADER_TABLE_SIZE, f.DEFAULT_TABLE) < f.DEFAULT_TABLE:
            # Blocks here use no table, and must agree to a smaller one (RFC 7541, section 4.2).
            self._owed = b"\x20"
        self.write(f.frame(f.SETTINGS, f.ACK, 0))
        self.on_settings(told)
        if more := self.peer_window - before:
            for stream in list(self.streams.values()):
                if not stream.widen(more):
                    raise ConnectionFault(Reason.FLOW_CONTROL_ERROR, "a window of 2^31 or more")
                if more > 0 and stream.waits:
                    stream.pump()

    def _ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id or len(payload) != 8:
            raise ConnectionFault(Reason.FRAME_SIZE_ERROR, "a PING has 8 bytes")
        if flags & f.ACK:
            self.on_pong(payload)
            return
        self.on_ping(payload)
        self.write(f.frame(f.PING, f.ACK, 0, payload))

    # --- frames out --------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Sends frames: with all else that is sent before the event loop goes on."""
        self._out.append(data)
        self._out_bytes += len(data)
        if self._out_bytes > self._max_unsent:
            self.flush()  # the transport says when it has enough
        elif not self._corked and not self._flushing:
            self._flushing = True
            self._loop.call_soon(self.flush)

    def write_headers(self, stream_id: int, flags: int, block: bytes) -> None:
        """Sends a header block."""
        self.sent += 1
        if self._owed:
            block, self._owed = self._owed + block, b""
        self.write(f.frame(f.HEADERS, flags, stream_id, block))

    def flush(self) -> None:
        """Hands the transport what has been written."""
        self._flushing = False
        out = self._out
        if not out:
            return
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        self._out_bytes = 0
        if not self._transport.is_closing():
            self._transport.write(data)

    def may_send(self, n: int) -> bool:
        """Whether n bytes of data fit the connection's window."""
        return self._window >= n and not self._full

    def allowed(self, n: int) -> int:
        """Takes of the connection's window what one frame of at most n bytes may have."""
        n = 0 if self._full else max(0, min(n, self._window, self._peer_frame))
        self._window -= n
        self.sent += 1
        return n

    def send_whole(self, stream_id: int, headers: bytes, body: bytes, end: bytes) -> None:
        """Sends all of a stream's half whose body fits the windows; see ``Stream.send_whole``."""
        n, most = len(body), self._peer_frame
        self._window -= n
        self.sent += 1
        if self._owed:
            headers, self._owed = self._owed + headers, b""
        pack = f.HEAD.pack
        m, last = len(headers), 0 if end else f.END_STREAM
        out = [pack(m >> 8, m & 0xFF, f.HEADERS, f.END_HEADERS, stream_id), headers]
        if n <= most:
            out += (pack(n >> 8, n & 0xFF, f.DATA, last, stream_id), body)
        else:
            for at in range(0, n, most):
                flags = last if at + most >= n else 0
                out.append(f.frame(f.DATA, flags, stream_id, body[at : at + most]))
        if end:
            m = len(end)
            out += (pack(m >> 8, m & 0xFF, f.HEADERS, f.LAST_HEADERS, stream_id), end)
        self.write(b"".join(out))

    def reset(self, stream: S, reason: Reason) -> None:
        """Ends a stream; the side is told as if its peer had."""
        self.write(f.rst_stream(stream.id, reason))
        self.on_reset(stream, reason)

    def punish(self, stream: S, reason: Reason) -> None:
        """Ends a stream for what its peer has done, which costs it as a reset of its own does."""
        self.on_noise()
        self.reset(stream, reason)

    def _pump_all(self) -> None:
        for stream in list(self.blocked.values()):
            if self._full or self._window <= 0:
                break
            stream.pump()  # who is still blocked afterwards goes to the end

    # --- life --------------------------------------------------------------------------------

    def close(self) -> None:
        """Closes once what was written has gone; may be called again."""
        self.flush()
        if not self._transport.is_closing():  # by TLS a second time would be an error
            self._transport.close()
            self._loop.call_later(_LINGER_S, self._end_closing)

    def _end_closing(self) -> None:
        """By TLS both sides say goodbye, which some clients never do."""
        if self._lost:
            return
        if self._transport.get_write_buffer_size():
            self._loop.call_later(_LINGER_S, self._end_closing)
        else:
            self._transport.abort()

    def hang_up(self) -> None:
        """Closes, and listens to nothing meanwhile: what comes late must not undo what was said."""
        self._deaf = True
        self.flush()
        self._loop.call_later(_LINGER_S, self.close)

    def abort(self) -> None:
        """Closes at once, and throws away what was not sent."""
        self._transport.abort()

    def _look(self) -> None:
        """Every so often: asks a silent peer whether it is there, and leaves one that is not."""
        now = self._loop.time()
        left, stuck = self._transport.get_write_buffer_size(), self._stuck
        self._stuck = left
        if self._asked is not None and self.heard <= self._asked and not left < stuck:
            self._transport.abort()
            return
        self._asked = None
        left_s = self._keepalive_s - (now - self.heard)
        if left_s <= 0:
            left_s = self._keepalive_s
            if self.asks:
                self._asked, left_s = now, self._answer_s
                self.write(f.frame(f.PING, 0, 0, _THERE))
        self._timer = self._loop.call_later(max(0.001, left_s), self._look)
