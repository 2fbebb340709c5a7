"""HTTP/2 by hand, for a client that sends requests and never reads an answer."""

from __future__ import annotations

import socket
import struct

_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_STREAM, _END_HEADERS = 1, 4


def opened(address: str) -> socket.socket:
    """A connection that has said its preface; nothing is ever read from it."""
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, b""))
    return connection


def call(connection: socket.socket, number: int, request: bytes) -> None:
    """Sends one Retrieve; ``number`` counts from 0.

    Raises OSError when the server has had enough.
    """
    stream = 2 * number + 1
    headers = b"".join(
        _literal(name, value)
        for name, value in (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/serendip.v1.Retriever/Retrieve"),
            (":authority", "test"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        )
    )
    message = b"\0" + struct.pack(">I", len(request)) + request
    connection.sendall(
        _frame(_HEADERS, _END_HEADERS, stream, headers)
        + _frame(_DATA, _END_STREAM, stream, message)
    )


def _literal(name: str, value: str) -> bytes:
    # A literal field without indexing and without Huffman coding (RFC 7541, section 6.2.2).
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload
