"""Frames of HTTP/2 as they lie on the wire (RFC 9113, sections 4 and 6), and what is no frame.

    length, 3 bytes | type | flags | stream, 4 bytes | payload

Knows no connection and no gRPC.
"""

from __future__ import annotations

import struct
from enum import IntEnum

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = range(5)
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(5, 10)

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
LAST_HEADERS = END_HEADERS | END_STREAM
PADDED = 0x8
WITH_PRIORITY = 0x20

HEADER_TABLE_SIZE = 1
ENABLE_PUSH = 2
MAX_CONCURRENT_STREAMS = 3
INITIAL_WINDOW_SIZE = 4
MAX_FRAME_SIZE = 5
MAX_HEADER_LIST_SIZE = 6

# What both sides may count on before SETTINGS say otherwise.
DEFAULT_WINDOW = 65_535
DEFAULT_FRAME = 16_384
DEFAULT_TABLE = 4096
LARGEST_FRAME = (1 << 24) - 1
LARGEST_WINDOW = (1 << 31) - 1
STREAM_MASK = LARGEST_WINDOW

_MOST_SETTINGS = 32

# The length is two fields, for struct has none of three bytes.
HEAD = struct.Struct(">HBBBL")
NUMBER = struct.Struct(">L")
SETTING = struct.Struct(">HL")
TWO_NUMBERS = struct.Struct(">LL")


class Reason(IntEnum):
    """Why a stream or a connection is ended (RFC 9113, section 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11


class ConnectionFault(Exception):
    """The peer broke the protocol, or a bound: the connection ends with a GOAWAY."""

    def __init__(self, reason: Reason, said: str) -> None:
        super().__init__(said)
        self.reason = reason


class StreamFault(Exception):
    """A request that is no request: its stream ends with RST_STREAM, the others go on."""

    def __init__(self, reason: Reason, said: str) -> None:
        super().__init__(said)
        self.reason = reason


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One frame."""
    n = len(payload)
    return HEAD.pack(n >> 8, n & 0xFF, kind, flags, stream_id) + payload


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    packed = b"".join([SETTING.pack(key, value) for key, value in values.items()])
    return frame(SETTINGS, 0, 0, packed)


def read_settings(payload: bytes) -> dict[int, int]:
    """What a SETTINGS frame says, the last of each. Raises ConnectionFault: it may not say so."""
    if len(payload) % SETTING.size:
        raise ConnectionFault(Reason.FRAME_SIZE_ERROR, "SETTINGS are pairs of 6 bytes")
    if len(payload) > _MOST_SETTINGS * SETTING.size:
        raise ConnectionFault(Reason.ENHANCE_YOUR_CALM, "too many settings at once")
    told: dict[int, int] = {}
    for key, value in SETTING.iter_unpack(payload):
        if key == INITIAL_WINDOW_SIZE and value > LARGEST_WINDOW:
            raise ConnectionFault(Reason.FLOW_CONTROL_ERROR, "a window of 2^31 or more")
        if key == MAX_FRAME_SIZE and not DEFAULT_FRAME <= value <= LARGEST_FRAME:
            raise ConnectionFault(Reason.PROTOCOL_ERROR, "frames of 2^14 to 2^24 - 1 bytes")
        told[key] = value
    return told


def window_update(stream_id: int, more: int) -> bytes:
    """A WINDOW_UPDATE frame; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream_id, NUMBER.pack(more))


def rst_stream(stream_id: int, reason: Reason) -> bytes:
    """A RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream_id, NUMBER.pack(reason))


def goaway(last_stream: int, reason: Reason, said: str = "") -> bytes:
    """A GOAWAY frame; ``said`` is for people."""
    payload = TWO_NUMBERS.pack(last_stream, reason) + said.encode()[:256]
    return frame(GOAWAY, 0, 0, payload)


def without_padding(payload: bytes, flags: int) -> bytes:
    """What a DATA or HEADERS frame carries. Raises ConnectionFault: more padding than payload."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(Reason.PROTOCOL_ERROR, "padding is longer than its frame")
    return payload[1 : len(payload) - payload[0]]
