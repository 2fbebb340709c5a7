"""A client's connection, as the server has it: calls in, answers out, and what a client does wrong.

    headers ──> a stream is opened, and its receiver made by the application
    data ──> the receiver
    reset, or the connection is lost ──> the receiver is told

It knows no gRPC: an ``Application`` makes of a request's headers what is to be done with it.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from serendip.serving.http2 import frames as f
from serendip.serving.http2 import streams
from serendip.serving.http2.bounds import Bounds, Patience
from serendip.serving.http2.endpoint import Endpoint
from serendip.serving.http2.frames import ConnectionFault, Reason, StreamFault
from serendip.serving.http2.headers import MAX_BLOCK, Blocks, HeaderReader

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

_GOING_S = 1.0  # for a client to have read that it should go away
_TURNS = 30
_GOING, _GONE = b"go away?", b"read it?"


class Receiver(Protocol):
    """What is done with one request; told by the connection, in the event loop's thread."""

    def data(self, payload: bytes, ended: bool) -> None:
        """More of the request's body; ``ended``: and there is no more."""

    def gone(self) -> None:
        """Nothing can be sent any more: all was, or the caller has given up, or is lost."""


class Application(Protocol[T_contra]):
    """Makes receivers."""

    def open(self, stream: Stream, head: T_contra) -> Receiver | None:
        """A request begins. None: it has been answered already, and its body is not wanted."""


class Stream(streams.Stream):
    """One call's way back to its caller."""

    __slots__ = ("connection", "receiver")

    def __init__(self, connection: Connection[Any], stream_id: int) -> None:
        super().__init__(connection, stream_id)
        self.connection = connection
        self.receiver: Receiver | None = None

    def answer(self, headers: bytes, body: bytes, trailers: bytes) -> None:
        """Sends a whole response, and closes the stream.

        Args:
            headers, trailers: header blocks.
            body: of any length; waits here while the windows are shut.
        """
        if self.closed:
            return
        if self.send_whole(headers, body, trailers):
            self.connection.sent_all(self)
        elif self.connection.unsent > self.connection.max_unsent_data:
            self.connection.reset(self, Reason.ENHANCE_YOUR_CALM)
        else:
            self.send(headers, body)
            self.send_end(trailers)

    def end(self, trailers: bytes) -> None:
        """Ends the response by its trailers, once its parts are sent; also its only block."""
        self.send_end(trailers)

    def cancel(self) -> None:
        """Ends a call that the server gives up; its receiver is told."""
        if not self.closed:
            self.connection.reset(self, Reason.CANCEL)


class Connection(Endpoint[Stream], Generic[T]):
    """See the module.

    Args:
        blocks: header blocks that connections have in common.
        on_made, on_lost: told with this connection.

    Attributes:
        held_bytes: of requests that are not read yet; kept by the application.
        max_unsent_data: bytes of answers that may wait for the client's windows.
    """

    preface_bytes = len(f.PREFACE)

    def __init__(
        self,
        application: Application[T],
        blocks: Blocks[T],
        bounds: Bounds,
        on_made: Callable[[Connection[T]], None],
        on_lost: Callable[[Connection[T]], None],
    ) -> None:
        super().__init__(
            HeaderReader(blocks), bounds.keepalive_s, bounds.keepalive_s, bounds.max_unsent_bytes
        )
        self._application = application
        self._blocks = blocks
        self._bounds = bounds
        self._on_made = on_made
        self._on_lost = on_lost
        self._highest = 0  # number of the last stream that the peer began
        self._refused_above = f.LARGEST_WINDOW  # streams beyond it are not looked at
        self._closing = False
        self._going: asyncio.TimerHandle | None = None
        self._peer, self._certificate = "", dict[str, Any]()
        self._patience = Patience(self.heard)
        self._sent_at_ping = 0
        self._last_ping, self._early_pings = -1e9, 0
        self.held_bytes = 0
        self.max_unsent_data = bounds.max_unsent_data

    # --- the transport's calls -------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        self._on_made(self)
        if tls is not None and tls.selected_alpn_protocol() != "h2":
            transport.abort()
            return
        # Asked now: a transport that is lost has forgotten them.
        name = transport.get_extra_info("peername")
        self._peer = str(name[0]) if isinstance(name, tuple) else ""
        self._certificate = transport.get_extra_info("peercert") or {}
        self.begin(transport, b"", {f.MAX_CONCURRENT_STREAMS: self._bounds.max_streams})

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._going is not None:
            self._going.cancel()
        self._drop_all()
        self._on_lost(self)

    # --- frames in ---------------------------------------------------------------------------

    def on_preface(self, data: bytes) -> int | None:
        preface = f.PREFACE
        if not data.startswith(preface[: len(data)]):
            raise ConnectionFault(Reason.PROTOCOL_ERROR, "this is a server of HTTP/2")
        return len(preface) if len(data) >= len(preface) else None

    def on_headers(self, flags: int, stream_id: int, block: bytes) -> None:
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
        if not stream_id & 1:
            raise ConnectionFault(Reason.PROTOCOL_ERROR, "a client's streams have odd numbers")
        if stream_id <= self._highest:
            self._second_block(stream_id, ended)
            return
        if self._highest >= self._refused_above:
            return  # it was told to go away: it takes this call elsewhere
        self._highest = stream_id
        if fault is not None or len(self.streams) >= self._bounds.max_streams:
            self.on_noise()
            reason = Reason.REFUSED_STREAM if fault is None else fault.reason
            self.write(f.rst_stream(stream_id, reason))
            return
        assert head is not None
        stream = Stream(self, stream_id)
        stream.all_received = ended
        self.streams[stream_id] = stream
        receiver = stream.receiver = self._application.open(stream, head)
        if ended and receiver is not None and not stream.closed:
            receiver.data(b"", True)

    def _second_block(self, stream_id: int, ended: bool) -> None:
        """Trailers of a client: gRPC has none, HTTP/2 has."""
        stream = self.streams.get(stream_id)
        if stream is None:
            self.on_noise()
            return
        if not ended or stream.all_received:
            self.punish(stream, Reason.PROTOCOL_ERROR)
            return
        stream.all_received = True
        self.on_data(stream, b"")

    def on_data(self, stream: Stream, payload: bytes) -> None:
        if stream.receiver is not None:
            stream.receiver.data(payload, stream.all_received)

    def on_unknown_stream(self, stream_id: int) -> None:
        # It has ended here, which its peer did not know yet; of a client that was told to go away,
        # later ones are not looked at either.
        begun = stream_id <= self._highest or self._refused_above <= self._highest
        if not begun or not stream_id & 1:
            raise ConnectionFault(Reason.PROTOCOL_ERROR, "a stream that never began")

    def on_reset(self, stream: Stream, reason: int) -> None:
        self._drop(stream)
        self._close_if_going()

    def on_goaway(self, last_stream: int, reason: int, said: bytes) -> None:
        """It speaks of streams that a server begins, of which there are none."""

    def on_ping(self, payload: bytes) -> None:
        now = self.heard
        if self.sent != self._sent_at_ping:
            self._early_pings = 0  # who is sent answers may ask how fast they come
            self._sent_at_ping, self._last_ping = self.sent, now
            return
        self.on_noise()
        if now - self._last_ping < self._bounds.min_ping_s:
            self._early_pings += 1
            if self._early_pings > 2:
                raise ConnectionFault(Reason.ENHANCE_YOUR_CALM, "too_many_pings")
        self._sent_at_ping, self._last_ping = self.sent, now

    def on_pong(self, payload: bytes) -> None:
        if payload == _GOING:
            self._go()
        elif payload == _GONE and self.idle:
            self.close()

    def on_noise(self) -> None:
        if not self._patience.spend(self.heard):
            raise ConnectionFault(Reason.ENHANCE_YOUR_CALM, "too many frames that are no call")

    def on_fault(self, fault: ConnectionFault) -> None:
        self.write(f.goaway(self._highest, fault.reason, str(fault)))
        self._drop_all()
        self.hang_up()

    # --- the ends of streams, and of the connection --------------------------------------------

    def sent_all(self, stream: Stream) -> None:
        if not stream.all_received:
            # The answer came before the request's end: the rest need not be sent.
            self.write(f.rst_stream(stream.id, Reason.NO_ERROR))
        self._patience.earn()
        stream.close()
        self.streams.pop(stream.id, None)
        receiver, stream.receiver = stream.receiver, None  # nor waits for a collector of cycles
        if receiver is not None:
            receiver.gone()
        self._close_if_going()

    def _drop(self, stream: Stream) -> None:
        """Closes a stream that will not be answered."""
        stream.close()
        self.streams.pop(stream.id, None)
        receiver, stream.receiver = stream.receiver, None
        if receiver is not None:
            receiver.gone()

    def _drop_all(self) -> None:
        for stream in list(self.streams.values()):
            self._drop(stream)

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
        if self.idle and self._refused_above < f.LARGEST_WINDOW and not self._closing:
            # Not before the client has read its last answer: what it sends until then would have
            # the kernel throw away what is on its way to it.
            self._closing = True
            self.write(f.frame(f.PING, 0, 0, _GONE))
            self._going = self._loop.call_later(_GOING_S, self._close_if_silent, _TURNS)

    def _close_if_silent(self, turns: int) -> None:
        """Closes, unless the client still reads, which is heard; in the end in any case."""
        if turns and self._loop.time() - self.heard < _GOING_S:
            self._going = self._loop.call_later(_GOING_S, self._close_if_silent, turns - 1)
        else:
            self.close()

    @property
    def idle(self) -> bool:
        """Whether no call is open."""
        return not self.streams

    @property
    def peer(self) -> str:
        """The address that the client calls from; empty where it has none."""
        return self._peer

    @property
    def peer_certificate(self) -> dict[str, Any]:
        """The client's certificate as ssl tells it; empty: it showed none."""
        return self._certificate
