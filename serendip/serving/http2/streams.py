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
    blocked: dict[int, Stream]

    def write(self, data: bytes) -> None: ...

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
        unread: bytes of data since the other side was given credit.
    """

    __slots__ = (
        "_end", "_endpoint", "_on_drained", "_pending", "_window",
        "all_received", "closed", "id", "unread",
    )  # fmt: skip

    def __init__(self, endpoint: Way, stream_id: int) -> None:
        self._endpoint = endpoint
        self.id = stream_id
        self._window = endpoint.peer_window
        self._pending: bytearray | None = None  # what the windows do not allow yet
        self._end = b""  # a frame that is sent when that is
        self._on_drained: Callable[[], None] | None = None
        self.all_received = False
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
            end: the frame that ends it; empty: the last of the body's does.
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
            self._endpoint.write(f.frame(f.HEADERS, f.END_HEADERS, self.id, headers))
        if body:
            if self._pending is None:
                self._pending = bytearray()
            self._pending += body
            self.pump()

    def send_end(self, end: bytes) -> None:
        """Sends the frame that ends this half, once all parts are sent."""
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
            endpoint.write(f.frame(f.DATA, 0, self.id, bytes(pending[:n])))
            del pending[:n]
        endpoint.blocked.pop(self.id, None)
        if pending:
            endpoint.blocked[self.id] = self
            return
        self._tell()
        if self._end:
            self._finish()

    def close(self) -> None:
        """Nothing is sent any more; who waits for ``drained`` goes on."""
        self.closed = True
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
        self._endpoint.write(self._end)
        self._endpoint.sent_all(self)
