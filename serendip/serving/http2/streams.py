"""What is sent on one stream, as far as the windows allow (RFC 9113, section 5.2).

Knows neither side and no gRPC.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from serendip.serving.http2 import frames as f


class Way(Protocol):
    """The connection of a stream; see ``Endpoint``."""

    peer_window: int
    heard: float
    blocked: dict[int, Stream]

    unsent: int

    def write(self, data: bytes) -> None: ...

    def write_headers(self, stream_id: int, flags: int, block: bytes) -> None: ...

    def may_send(self, n: int) -> bool: ...

    def allowed(self, n: int) -> int: ...

    def send_whole(self, stream_id: int, headers: bytes, body: bytes, end: bytes) -> None: ...

    def sent_all(self, stream: Any) -> None: ...


class Stream:
    """One call's way to the other side.

    Attributes:
        id: its number.
        closed: whether nothing can be sent any more.
        all_received: whether the other side has ended its half.
        begun: the event loop's time when it began.
        unread: bytes of data since the other side was given credit.
    """

    __slots__ = (
        "_end", "_endpoint", "_on_drained", "_pending", "_window",
        "all_received", "begun", "closed", "id", "unread",
    )  # fmt: skip

    def __init__(self, endpoint: Way, stream_id: int) -> None:
        self._endpoint = endpoint
        self.id = stream_id
        self._window = endpoint.peer_window
        self._pending: bytearray | None = None  # what the windows do not allow yet
        self._end: bytes | None = None  # the trailers that follow; empty: there are none
        self._on_drained: Callable[[], None] | None = None
        self.all_received = False
        self.begun = endpoint.heard
        self.unread = 0
        self.closed = False

    def widen(self, more: int) -> bool:
        """Lets so many more bytes be sent; returns whether the window is still one."""
        self._window += more
        return self._window <= f.LARGEST_WINDOW

    def send_whole(self, headers: bytes, body: bytes, end: bytes) -> bool:
        """Sends all that there is to send, if the windows allow it; returns whether they do.

        Args:
            headers: a header block.
            end: the trailers; empty: there are none.
        """
        endpoint, n = self._endpoint, len(body)
        if self._window < n or not endpoint.may_send(n):
            return False
        self._window -= n
        endpoint.send_whole(self.id, headers, body, end)
        return True

    def send(self, headers: bytes, body: bytes) -> None:
        """Sends a part, as the windows allow.

        Args:
            headers: a header block before the first part; empty: none.
        """
        if self.closed:
            return
        if headers:
            self._endpoint.write_headers(self.id, f.END_HEADERS, headers)
        if body:
            if self._pending is None:
                self._pending = bytearray()
            self._pending += body
            self._endpoint.unsent += len(body)
            self.pump()

    def send_end(self, end: bytes) -> None:
        """Ends this half by its trailers, once all parts are sent; empty: there are none."""
        if self.closed:
            return
        self._end = end
        if not self._pending:
            self._finish()

    def pump(self) -> None:
        """Sends what the windows allow, and the end if that was all."""
        pending, endpoint = self._pending, self._endpoint
        while pending and (n := endpoint.allowed(min(len(pending), self._window))):
            self._window -= n
            endpoint.unsent -= n
            endpoint.write(f.frame(f.DATA, 0, self.id, bytes(pending[:n])))
            del pending[:n]
        endpoint.blocked.pop(self.id, None)
        if pending:
            # A stream that its own window shuts is not looked at when the connection's opens.
            if self._window > 0:
                endpoint.blocked[self.id] = self
            return
        self._tell()
        if self._end is not None:
            self._finish()

    @property
    def waits(self) -> bool:
        """Whether parts are not sent yet."""
        return bool(self._pending)

    def close(self) -> None:
        """Nothing is sent any more; who waits for ``drained`` goes on."""
        self.closed = True
        if self._pending:
            self._endpoint.unsent -= len(self._pending)
        self._pending = None
        self._endpoint.blocked.pop(self.id, None)
        self._tell()

    async def drained(self) -> None:
        """Returns when all parts are sent, or the stream is closed."""
        while self._pending and not self.closed:
            drained = asyncio.Event()
            self._on_drained = drained.set
            await drained.wait()
        self._on_drained = None

    def _tell(self) -> None:
        if self._on_drained is not None:
            self._on_drained()

    def _finish(self) -> None:
        if self._end:
            self._endpoint.write_headers(self.id, f.END_HEADERS | f.END_STREAM, self._end)
        else:
            self._endpoint.write(f.frame(f.DATA, f.END_STREAM, self.id))
        self._endpoint.sent_all(self)
