"""Header blocks: what is read quickly is what the library reads, and nothing else is believed."""

from __future__ import annotations

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serendip.serving.http2.frames import ConnectionFault, Reason, StreamFault
from serendip.serving.http2.headers import (
    MAX_LIST,
    Blocks,
    HeaderReader,
    literal,
    read_stateless,
)

NAMES = st.sampled_from([b":path", b":method", b"te", b"x-request-id", b"accept", b"a" * 200])
VALUES = st.one_of(st.sampled_from([b"POST", b"trailers", b""]), st.binary(max_size=300))
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=12)


def without_state() -> hpack.Encoder:
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    return encoder


@given(fields=FIELDS, huffman=st.booleans())
def test_a_block_without_state_is_read_as_the_library_reads_it(
    fields: list[tuple[bytes, bytes]], huffman: bool
) -> None:
    block = bytes(without_state().encode(fields, huffman=huffman))
    assert read_stateless(block) == fields


@given(fields=FIELDS, sensitive=st.booleans())
def test_a_field_may_forbid_that_it_is_remembered(
    fields: list[tuple[bytes, bytes]], sensitive: bool
) -> None:
    marked = [(*field, sensitive) for field in fields]
    assert read_stateless(bytes(without_state().encode(marked))) == fields


@given(name=st.binary(max_size=400), value=st.binary(max_size=400))
def test_what_is_written_is_read_by_the_library(name: bytes, value: bytes) -> None:
    (field,) = hpack.Decoder().decode(literal(name, value), raw=True)
    assert (field[0], field[1]) == (name, value)


@given(block=st.binary(max_size=200))
def test_any_bytes_are_fields_or_a_fault(block: bytes) -> None:
    try:
        ours = read_stateless(block)
    except ConnectionFault:
        return
    decoder = hpack.Decoder()
    decoder.header_table_size = decoder.max_allowed_table_size = 0
    assert ours == [(bytes(n), bytes(v)) for n, v in decoder.decode(block, raw=True)]


@pytest.mark.parametrize(
    "block",
    [
        b"\x80",  # there is no field 0
        b"\xbe",  # 62 is the first of a table that is empty
        b"\x7e\x01a",  # a name from there
        b"\x3f\xe1\x1f",  # a table of 4096 bytes
        b"\x00\x05ab",  # cut short
        b"\xff\xff\xff\xff\xff\xff",  # a number without end
        b"\x00\x81\xffa",  # Huffman that ends in nothing
    ],
)
def test_a_block_that_is_wrong_is_a_fault(block: bytes) -> None:
    with pytest.raises(ConnectionFault) as caught:
        read_stateless(block)
    assert caught.value.reason is Reason.COMPRESSION_ERROR


def test_fields_are_bounded_however_few_bytes_say_them() -> None:
    # One byte says :path /index.html, 48 bytes as the protocol counts.
    with pytest.raises(StreamFault) as caught:
        read_stateless(b"\x85" * (MAX_LIST // 48 + 1))
    assert caught.value.reason is Reason.ENHANCE_YOUR_CALM


def reader() -> HeaderReader[tuple[tuple[bytes, bytes], ...]]:
    return HeaderReader(Blocks(tuple))


def test_a_client_that_keeps_its_table_is_understood() -> None:
    encoder, own = hpack.Encoder(), reader()
    fields = ((b":path", b"/a"), (b"x", b"y"))
    first, second = (bytes(encoder.encode(fields)) for _ in range(2))
    assert len(second) < len(first), "the second names the first's entries"
    assert own.read(first) == own.read(second) == fields
    assert not own.stateless


def test_a_client_that_drops_its_table_is_read_quickly_from_then_on() -> None:
    encoder, own = hpack.Encoder(), reader()
    own.read(bytes(encoder.encode([(b"x", b"y")])))
    encoder.header_table_size = 0
    assert own.read(bytes(encoder.encode([(b"x", b"z")]))) == ((b"x", b"z"),)
    assert own.stateless
    assert own.read(bytes(encoder.encode([(b"x", b"z")]))) == ((b"x", b"z"),)


def test_a_block_is_read_once_for_all_connections() -> None:
    read: list[object] = []

    def count(fields: list[tuple[bytes, bytes]]) -> int:
        read.append(fields)
        return len(read)

    blocks: Blocks[int] = Blocks(count)
    block = bytes(without_state().encode([(b"x", b"y")]))
    assert blocks.meaning(block) == 1
    assert blocks.known == {block: 1}


def test_blocks_that_are_remembered_are_bounded_in_number_and_size() -> None:
    blocks: Blocks[object] = Blocks(list)
    for n in range(5000):
        blocks.meaning(literal(b"x-request-id", str(n).encode()))
    assert len(blocks.known) <= 2048
    large = literal(b"x", b"y" * 2000)
    blocks.meaning(large)
    assert large not in blocks.known
