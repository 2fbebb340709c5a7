"""A client of HTTP/2 that says what it is told to, right or wrong."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import hpack

from serendip.serving.http2 import frames as f

Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Frame:
    """What the server sent."""

    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def reason(self) -> f.Reason:
        """Of a RST_STREAM or a GOAWAY."""
        return f.Reason(struct.unpack(">L", self.payload[:8][-4:])[0])


def asked(path: str, *more: tuple[str, str]) -> Pairs:
    """The headers of a call."""
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "test"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *more,
    ]


def message(data: bytes) -> bytes:
    """A message that is not packed."""
    return struct.pack(">BL", 0, len(data)) + data


class Peer:
    """One connection.

    Args:
        table: bytes of the table of headers that it keeps; 0: its blocks have no state.
        settings: what it says of itself.
        tls: None: plain text.
        session: of TLS, to come back by.
        slowly: whether it sends byte by byte.
    """

    def __init__(
        self,
        address: str,
        *,
        table: int = 0,
        settings: dict[int, int] | None = None,
        preface: bytes = f.PREFACE,
        slowly: bool = False,
        tls: ssl.SSLContext | None = None,
        session: ssl.SSLSession | None = None,
    ) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=10)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            self._socket = tls.wrap_socket(self._socket, session=session, server_hostname=host)
        self._slowly = slowly
        self._got = b""
        self._encoder, self._decoder = hpack.Encoder(), hpack.Decoder()
        if table != 4096:
            self._encoder.header_table_size = table
        self.send(preface + f.settings(settings or {}))

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, data: bytes, timeout_s: float = 10) -> None:
        """Bytes as they are. Raises TimeoutError if the server does not take them."""
        self._socket.settimeout(timeout_s)
        if not self._slowly:
            self._socket.sendall(data)
            return
        for at in range(len(data)):
            self._socket.sendall(data[at : at + 1])

    def block(self, headers: Pairs) -> bytes:
        """A header block."""
        return bytes(self._encoder.encode(headers, huffman=True))

    def headers(self, stream: int, headers: Pairs, flags: int = f.END_HEADERS) -> None:
        """Begins a stream."""
        self.send(f.frame(f.HEADERS, flags, stream, self.block(headers)))

    def call(self, stream: int, headers: Pairs, body: bytes) -> None:
        """A whole request."""
        data = f.frame(f.DATA, f.END_STREAM, stream, body)
        self.send(f.frame(f.HEADERS, f.END_HEADERS, stream, self.block(headers)) + data)

    @property
    def session(self) -> ssl.SSLSession | None:
        """Of TLS."""
        return self._socket.session if isinstance(self._socket, ssl.SSLSocket) else None

    def frames(self) -> Iterator[Frame]:
        """What the server sends, until it hangs up; raises TimeoutError after ten seconds."""
        while True:
            while len(self._got) < 9 or len(self._got) < 9 + int.from_bytes(self._got[:3], "big"):
                try:
                    more = self._socket.recv(65536)
                except ConnectionError:
                    return
                if not more:
                    return
                self._got += more
            length = int.from_bytes(self._got[:3], "big")
            kind, flags, stream = struct.unpack(">BBL", self._got[3:9])
            payload, self._got = self._got[9 : 9 + length], self._got[9 + length :]
            yield Frame(kind, flags, stream, payload)

    def until(self, kind: int, stream: int | None = None) -> Frame:
        """The next frame of a kind."""
        for frame in self.frames():
            if frame.kind == kind and stream in (None, frame.stream):
                return frame
            if frame.kind == f.HEADERS:
                self._decoder.decode(frame.payload)
        raise EOFError("the server hung up")

    def answer(self, stream: int) -> tuple[dict[str, str], bytes]:
        """The fields and the body of an answer, whole."""
        fields: dict[str, str] = {}
        body = b""
        for frame in self.frames():
            if frame.kind == f.GOAWAY and frame.reason is not f.Reason.NO_ERROR:
                raise AssertionError(f"told to go away: {frame.payload[8:]!r}")
            if frame.stream != stream:
                continue
            if frame.kind == f.HEADERS:
                fields |= dict(self._decoder.decode(frame.payload))
            elif frame.kind == f.DATA:
                body += frame.payload
            elif frame.kind == f.RST_STREAM:
                raise AssertionError(f"reset: {frame.reason!r}")
            if frame.flags & f.END_STREAM and frame.kind in (f.HEADERS, f.DATA):
                return fields, body
        raise EOFError("the server hung up")

    def said_goodbye(self) -> Frame:
        """The GOAWAY that the server ends the connection with; and the end has come."""
        found = None
        for frame in self.frames():
            if frame.kind == f.GOAWAY:
                found = frame
        assert found is not None, "the server hung up without a word"
        return found
