"""What gRPC makes of HTTP/2: heads, messages, statuses.

As in "gRPC over HTTP2" (github.com/grpc/grpc, doc/PROTOCOL-HTTP2.md). Knows no connection.
"""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from google.rpc import code_pb2

from serendip.core import InvalidRequest, SerendipError
from serendip.serving.handlers import Metadata
from serendip.serving.http2.frames import Reason, StreamFault
from serendip.serving.http2.headers import Pair, literal

PREFIX = struct.Struct(">BL")

# What both carry by themselves: the status 200 of HTTP and the type of the content.
RESPONSE = b"\x88" + literal(b"content-type", b"application/grpc")
_NO_GRPC = b"\x08\x03415" + literal(b"content-type", b"text/plain")
_NO_POST = b"\x08\x03405" + literal(b"content-type", b"text/plain")
_OK = literal(b"grpc-status", b"0")
# What a client's message may be packed by.
_ACCEPTED = literal(b"grpc-accept-encoding", b"identity,deflate,gzip")
_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}

_UNITS_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_NOT_METADATA = frozenset(("te", "content-type", "connection", "host"))
_PLAIN = frozenset(range(0x20, 0x7F)) - {0x25}


@dataclass(frozen=True)
class Head:
    """What a request's headers say.

    Attributes:
        path: /SERVICE/METHOD.
        timeout_s: seconds that the caller waits from now on; None: without end.
        encoding: by which its messages may be packed.
        metadata: the caller's pairs, in order; of names that end in -bin the bytes.
        refusal: where it is no gRPC, the header block that says so; else empty.
    """

    path: str
    timeout_s: float | None = None
    encoding: str = "identity"
    metadata: Metadata = ()
    refusal: bytes = b""


def read_head(fields: Sequence[Pair]) -> Head:
    """The head of a request.

    Raises:
        StreamFault: the fields are no request of HTTP/2.
    """
    method = path = content_type = ""
    timeout_s, encoding = None, "identity"
    metadata: list[tuple[str, str | bytes]] = []
    for raw_name, raw_value in fields:
        name, value = raw_name.decode("latin-1"), raw_value.decode(errors="replace")
        if name[:1] == ":":
            if metadata or content_type:
                raise _malformed("a pseudo-header after others")
            if name == ":method":
                method = value
            elif name == ":path":
                path = value
            elif name not in (":scheme", ":authority"):
                raise _malformed("an unknown pseudo-header")
        elif name != name.lower():
            raise _malformed("a header's name in upper case")
        elif name == "content-type":
            content_type = value
        elif name == "grpc-timeout":
            timeout_s = _timeout_s(value)
        elif name == "grpc-encoding":
            encoding = value
        elif name.endswith("-bin"):
            metadata += [(name, _from_base64(part)) for part in value.split(",")]
        elif name not in _NOT_METADATA and not name.startswith("grpc-"):
            metadata.append((name, value))
    if not method or not path:
        raise _malformed("no :method, or no :path")
    refusal = b""
    if method != "POST":
        refusal = _NO_POST
    elif not content_type.startswith("application/grpc"):
        refusal = _NO_GRPC
    return Head(path, timeout_s, encoding, tuple(metadata), refusal)


def message(data: bytes) -> bytes:
    """A message as it travels: not packed, after its length."""
    return PREFIX.pack(0, len(data)) + data


def ok_trailers(request_id: bytes) -> bytes:
    """The header block after an answer.

    Args:
        request_id: ASCII, at most 128 bytes.
    """
    return _OK + (_REQUEST_ID + _LENGTHS[len(request_id)] + request_id if request_id else b"")


def failed_trailers(code: int, said: str, more: Sequence[tuple[str, str | bytes]]) -> bytes:
    """The header block after a response whose call failed in its middle."""
    block = literal(b"grpc-status", str(code).encode())
    if said:
        block += literal(b"grpc-message", _percent_encoded(said))
    return block + encoded_pairs(more)


def encoded_pairs(pairs: Sequence[tuple[str, str | bytes]]) -> bytes:
    """Metadata as a part of a header block."""
    return b"".join(
        [
            literal(
                name.encode(),
                base64.b64encode(value).rstrip(b"=")
                if isinstance(value, bytes)
                else value.encode(),
            )
            for name, value in pairs
        ]
    )


def timeout_text(seconds: float) -> str:
    """A ``grpc-timeout``: eight digits at the most."""
    micros = max(1, int(seconds * 1e6))
    return f"{micros}u" if micros < 10**8 else f"{min(micros // 1000, 10**8 - 1)}m"


def failed(code: int, said: str, more: Sequence[tuple[str, str | bytes]]) -> bytes:
    """The only header block of a call that failed."""
    return RESPONSE + _ACCEPTED + failed_trailers(code, said, more)


# What a status of HTTP stands for where there is none of gRPC's (doc/http-grpc-status-mapping.md).
_OF_HTTP = {
    400: code_pb2.INTERNAL, 401: code_pb2.UNAUTHENTICATED, 403: code_pb2.PERMISSION_DENIED,
    404: code_pb2.UNIMPLEMENTED, 429: code_pb2.UNAVAILABLE, 502: code_pb2.UNAVAILABLE,
    503: code_pb2.UNAVAILABLE, 504: code_pb2.UNAVAILABLE,
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What the headers or the trailers of a response say.

    Attributes:
        http_status: None in trailers.
        code: of gRPC; None: it is not said here.
        encoding: by which messages may be packed.
        pairs: the server's own, in order; of names that end in -bin the bytes.
    """

    http_status: int | None = None
    code: int | None = None
    details: str = ""
    encoding: str = "identity"
    pairs: Metadata = ()

    def status(self) -> tuple[int, str]:
        """The code and the details that a call ends with, if these are its last headers."""
        if self.code is not None:
            known = self.code in code_pb2.Code.values()
            return self.code if known else int(code_pb2.UNKNOWN), self.details
        if self.http_status not in (None, 200):
            code = _OF_HTTP.get(self.http_status or 0, code_pb2.UNKNOWN)
            return code, f"the server answered with {self.http_status} of HTTP"
        return code_pb2.INTERNAL, "the server's answer has no status"


def read_outcome(fields: Sequence[Pair]) -> Outcome:
    """What a response's header block says. Raises StreamFault: it is none."""
    http_status = code = None
    details, encoding = "", "identity"
    pairs: list[tuple[str, str | bytes]] = []
    for raw_name, raw_value in fields:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        if name == ":status":
            http_status = _number(value)
        elif name == "grpc-status":
            code = _number(value)
        elif name == "grpc-message":
            details = unquote(value, errors="replace")
        elif name == "grpc-encoding":
            encoding = value
        elif name.endswith("-bin"):
            pairs += [(name, _from_base64(part)) for part in value.split(",")]
        elif name not in _NOT_METADATA and name[:1] != ":":
            pairs.append((name, value))
    return Outcome(http_status, code, details, encoding, tuple(pairs))


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 3:
        raise _malformed("a status that is no number")
    return int(text)


class TooLarge(SerendipError):
    """A message beyond the bound: RESOURCE_EXHAUSTED, and no better when it is tried again."""


class Messages:
    """Takes a request's body apart, as it comes.

    Args:
        max_bytes: of a message, packed and unpacked.
        encoding: by which those may be packed that say they are.
    """

    __slots__ = ("_encoding", "_have", "_max", "_need")

    def __init__(self, max_bytes: int, encoding: str) -> None:
        self._max = max_bytes
        self._encoding = encoding
        self._have = bytearray()
        self._need = PREFIX.size

    @property
    def held_bytes(self) -> int:
        """Of a message that has not come whole."""
        return len(self._have)

    def add(self, payload: bytes) -> list[bytes]:
        """The messages that have come whole with this.

        Raises:
            TooLarge: a message has more than ``max_bytes``; known by its length, before it comes.
            InvalidRequest: it is packed in a way that is not known, or not packed so.
        """
        have = self._have
        have += payload
        found: list[bytes] = []
        while len(have) >= self._need:
            packed, n = PREFIX.unpack_from(have)
            if n > self._max:
                raise too_large(n, self._max)
            self._need = PREFIX.size + n
            if len(have) < self._need:
                break
            raw = bytes(have[PREFIX.size : self._need])
            del have[: self._need]
            self._need = PREFIX.size
            found.append(self._unpacked(raw) if packed else raw)
        return found

    def _unpacked(self, raw: bytes) -> bytes:
        bits = _WINDOW_BITS.get(self._encoding)
        if bits is None:
            raise InvalidRequest(
                "a message is packed in a way that is not known here",
                field="grpc-encoding",
                value=self._encoding,
                remedy="Use gzip, deflate or identity.",
            )
        unpacker = zlib.decompressobj(bits)
        try:
            data = unpacker.decompress(raw, self._max + 1)
        except zlib.error as e:
            raise InvalidRequest(
                f"a message is not packed as it says ({e})",
                field="grpc-encoding",
                value=self._encoding,
            ) from e
        if len(data) > self._max:
            raise too_large(len(data), self._max)
        if not unpacker.eof:
            raise InvalidRequest(
                "a packed message is cut short", field="grpc-encoding", value=self._encoding
            )
        return data


def too_large(n: int, most: int) -> TooLarge:
    """What a caller is told whose message is beyond the bound."""
    return TooLarge(f"a message of {n} bytes, at most {most} are taken")


def _timeout_s(value: str) -> float:
    digits, unit = value[:-1], value[-1:]
    if not 1 <= len(digits) <= 8 or not digits.isascii() or not digits.isdigit():
        raise _malformed("grpc-timeout is no number of at most 8 digits")
    if unit not in _UNITS_S:
        raise _malformed("grpc-timeout has no unit")
    return int(digits) * _UNITS_S[unit]


def _from_base64(text: str) -> bytes:
    text = text.strip()
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as e:
        raise _malformed("a -bin header that is not base64") from e


def _percent_encoded(text: str) -> bytes:
    raw = text.encode(errors="replace")
    if all(byte in _PLAIN for byte in raw):
        return raw
    return b"".join([bytes((b,)) if b in _PLAIN else b"%%%02X" % b for b in raw])


def _malformed(said: str) -> StreamFault:
    return StreamFault(Reason.PROTOCOL_ERROR, said)


_REQUEST_ID = literal(b"x-request-id", b"")[:-1]
_LENGTHS = [literal(b"", b"x" * n)[2 : -n or None] for n in range(129)]
