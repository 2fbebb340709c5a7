"""Header blocks (HPACK, RFC 7541): read quickly where they have no state, else by ``hpack``.

A server that announces a table of 0 bytes has its clients send blocks that mean the same wherever
they stand. Such a block is read once and remembered: most calls of a client have the same one.
Until a client has shrunk its table, and for one that never does, the library ``hpack`` keeps the
state.

What is written never refers to a table. Knows no connection and no gRPC.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import hpack
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

from serendip.serving.http2.frames import ConnectionFault, Reason, StreamFault

Pair = tuple[bytes, bytes]
T = TypeVar("T")

MAX_BLOCK = 32_768  # bytes of one block, all its frames together
MAX_LIST = 16_384  # of its fields by RFC 9113, section 6.5.2: 32 bytes more each

_MAX_REMEMBERED = 2048  # blocks, and texts
_MAX_WORTH = 1024  # bytes of a block that is remembered
_MAX_FIELDS = 40
_STATIC: tuple[Pair, ...] = HeaderTable.STATIC_TABLE


class Blocks(Generic[T]):
    """Blocks without state that were read before, of all connections.

    Args:
        read: the fields of a block to what they mean; may raise StreamFault.
    """

    def __init__(self, read: Callable[[list[Pair]], T]) -> None:
        self.read = read
        self.known: dict[bytes, T] = {}

    def meaning(self, block: bytes) -> T:
        """What a block without state means.

        Raises:
            ConnectionFault: it is none.
            StreamFault: it has more than MAX_LIST, or its fields are no request.
        """
        fields = read_stateless(block)
        found = self.read(fields)
        if len(block) <= _MAX_WORTH and len(fields) <= _MAX_FIELDS:
            if len(self.known) >= _MAX_REMEMBERED:
                self.known.clear()
            self.known[block] = found
        return found


class HeaderReader(Generic[T]):
    """Reads the blocks of one connection, in their order.

    Attributes:
        stateless: whether the client's table is gone, so that ``Blocks.known`` may be asked.
    """

    def __init__(self, blocks: Blocks[T]) -> None:
        self._blocks = blocks
        # Beyond this the state is lost, and with it the connection.
        self._decoder = hpack.Decoder(max_header_list_size=4 * MAX_LIST)
        self.stateless = False

    def read(self, block: bytes) -> T:
        """What a block means.

        Raises:
            ConnectionFault: the block cannot be read.
            StreamFault: it has more than MAX_LIST, or its fields are no request.
        """
        if self.stateless:
            return self._blocks.meaning(block)
        try:
            fields = self._decoder.decode(block, raw=True)
        except hpack.OversizedHeaderListError as e:
            raise ConnectionFault(Reason.ENHANCE_YOUR_CALM, str(_too_large())) from e
        except hpack.HPACKError as e:
            raise _broken(str(e)) from e
        self.stateless = self._decoder.header_table_size == 0
        if sum([32 + len(name) + len(value) for name, value in fields]) > MAX_LIST:
            raise _too_large()
        return self._blocks.read([(bytes(name), bytes(value)) for name, value in fields])


def literal(name: bytes, value: bytes) -> bytes:
    """A field as a literal that no table remembers and whose name is in none."""
    return b"\x00" + _integer(len(name), 7) + name + _integer(len(value), 7) + value


def read_stateless(block: bytes) -> list[Pair]:
    """The fields of a block whose table has 0 bytes.

    Raises:
        ConnectionFault: it refers to a table, or is cut short.
        StreamFault: it has more than MAX_LIST; the rest of it is not read.
    """
    fields: list[Pair] = []
    size = at = 0
    try:
        while at < len(block):
            first = block[at]
            if first & 0x80:
                index, at = _read_integer(block, at, 0x7F)
                if not index:
                    raise _broken("there is no field 0")
                pair = _STATIC[index - 1]
            elif first & 0xE0 == 0x20:
                index, at = _read_integer(block, at, 0x1F)
                if index or fields:
                    raise _broken("a table of 0 bytes was agreed on")
                continue
            else:
                # With or without a wish to be remembered, which a table of 0 bytes cannot grant.
                index, at = _read_integer(block, at, 0x3F if first & 0x40 else 0x0F)
                if index:
                    name = _STATIC[index - 1][0]
                else:
                    name, at = _read_text(block, at)
                value, at = _read_text(block, at)
                pair = name, value
            size += 32 + len(pair[0]) + len(pair[1])
            if size > MAX_LIST:
                raise _too_large()
            fields.append(pair)
    except IndexError as e:
        raise _broken("it is cut short, or names a field that no table has") from e
    return fields


def _read_integer(block: bytes, at: int, mask: int) -> tuple[int, int]:
    value = block[at] & mask
    at += 1
    if value < mask:
        return value, at
    for shift in (0, 7, 14, 21):
        more = block[at]
        at += 1
        value += (more & 0x7F) << shift
        if not more & 0x80:
            return value, at
    raise _broken("a number has more than four bytes")


_texts: dict[bytes, bytes] = {}


def _read_text(block: bytes, at: int) -> tuple[bytes, int]:
    coded = block[at] & 0x80
    length, at = _read_integer(block, at, 0x7F)
    end = at + length
    if end > len(block):
        raise IndexError
    text = block[at:end]
    if not coded:
        return text, end
    known = _texts.get(text)
    if known is None:
        try:
            known = bytes(decode_huffman(text))
        except hpack.HPACKError as e:
            raise _broken(str(e)) from e
        if len(text) <= _MAX_WORTH:
            if len(_texts) >= _MAX_REMEMBERED:
                _texts.clear()
            _texts[text] = known
    return known, end


def _integer(value: int, bits: int) -> bytes:
    most = (1 << bits) - 1
    if value < most:
        return bytes((value,))
    coded = bytearray((most,))
    value -= most
    while value > 0x7F:
        coded.append(value & 0x7F | 0x80)
        value >>= 7
    coded.append(value)
    return bytes(coded)


def _too_large() -> StreamFault:
    return StreamFault(
        Reason.ENHANCE_YOUR_CALM, f"the headers of a call have more than {MAX_LIST} bytes"
    )


def _broken(said: str) -> ConnectionFault:
    return ConnectionFault(Reason.COMPRESSION_ERROR, f"a header block cannot be read: {said}")
