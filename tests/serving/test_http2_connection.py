"""One connection of HTTP/2: what a peer may say, and what ends it. The peer is raw_http2.py's."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import hpack
import pytest
import toy
from http2_toy import OK, PATH, answers, server, still_answers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_http2 import Peer, asked, message

from serendip.serving.http2 import frames as f
from serendip.serving.http2.frames import Reason
from serendip.serving.server import Running


@pytest.mark.parametrize("table", [0, 4096])
def test_a_call_is_answered_whatever_table_of_headers_a_client_keeps(table: int) -> None:
    with server() as (running, _), Peer(running.address, table=table) as peer:
        for stream in (1, 3, 5):
            peer.call(stream, asked(PATH), OK)
            answers(peer, stream)


def test_a_call_that_comes_byte_by_byte_is_answered() -> None:
    with server() as (running, _), Peer(running.address, slowly=True) as peer:
        for stream in (1, 3):
            peer.call(stream, asked(PATH), OK)
            answers(peer, stream)


def test_headers_and_data_may_come_in_pieces_padded_and_with_a_priority() -> None:
    with server() as (running, _), Peer(running.address) as peer:
        block = peer.block(asked(PATH))
        first = b"\x03" + bytes(5) + block[:10] + bytes(3)
        peer.send(f.frame(f.HEADERS, f.PADDED | f.WITH_PRIORITY, 1, first))
        peer.send(f.frame(f.CONTINUATION, 0, 1, block[10:20]))
        peer.send(f.frame(f.CONTINUATION, f.END_HEADERS, 1, block[20:]))
        for at in range(len(OK)):
            peer.send(f.frame(f.DATA, f.PADDED, 1, b"\x02" + OK[at : at + 1] + b"\0\0"))
        peer.send(f.frame(f.DATA, f.END_STREAM, 1))
        answers(peer, 1)


def test_trailers_of_a_client_end_its_request() -> None:
    with server() as (running, _), Peer(running.address) as peer:
        peer.headers(1, asked(PATH))
        peer.send(f.frame(f.DATA, 0, 1, OK))
        peer.headers(1, [("x", "y")], f.END_HEADERS | f.END_STREAM)
        answers(peer, 1)


def test_an_answer_waits_for_the_windows_and_takes_no_more_than_they_allow() -> None:
    own = {f.INITIAL_WINDOW_SIZE: 100}
    with server() as (running, _), Peer(running.address, settings=own) as peer:
        call = message(toy.request("call").SerializeToString())
        peer.call(1, asked(PATH, *[("x", "y" * 100)] * 9), call)
        assert len(peer.until(f.DATA, 1).payload) == 100
        body = 100
        while True:
            peer.send(f.window_update(1, 300))
            frame = peer.until(f.DATA, 1)
            assert len(frame.payload) <= 300
            body += len(frame.payload)
            if len(frame.payload) < 300:
                break
        fields, rest = peer.answer(1)
        assert (fields["grpc-status"], rest) == ("0", b"")
        assert body > 9 * 100
        # A window that a new setting makes larger lets what waits go on.
        peer.call(3, asked(PATH, *[("x", "y" * 100)] * 9), call)
        peer.until(f.DATA, 3)
        peer.send(f.settings({f.INITIAL_WINDOW_SIZE: 65535}))
        fields, rest = peer.answer(3)
        assert len(rest) + 100 == body


def test_a_call_that_waits_for_a_window_keeps_no_other_waiting() -> None:
    own = {f.INITIAL_WINDOW_SIZE: 0}
    with server() as (running, _), Peer(running.address, settings=own) as peer:
        for stream in (1, 3):
            peer.call(stream, asked(PATH), OK)
            peer.until(f.HEADERS, stream)
        peer.send(f.window_update(3, 1000))
        assert peer.until(f.DATA, 3).payload


def test_a_large_request_is_given_credit_as_it_comes() -> None:
    request = toy.request("ok")
    request.deny_item_ids.extend(["x" * 250] * 20_000)
    body = message(request.SerializeToString())
    with server() as (running, _), Peer(running.address) as peer:
        peer.until(f.WINDOW_UPDATE, 0)
        peer.headers(1, asked(PATH))
        stream_credit, at = 1 << 20, 0
        while at < len(body):
            while stream_credit < 16_000:
                frame = peer.until(f.WINDOW_UPDATE)
                if frame.stream == 1:
                    stream_credit += struct.unpack(">L", frame.payload)[0]
            peer.send(f.frame(f.DATA, 0, 1, body[at : at + 16_000]))
            stream_credit -= len(body[at : at + 16_000])
            at += 16_000
        peer.send(f.frame(f.DATA, f.END_STREAM, 1))
        answers(peer, 1)


def test_a_reset_cancels_the_call() -> None:
    with server() as (running, servicer), Peer(running.address) as peer:
        peer.call(1, asked(PATH), message(toy.request("wait").SerializeToString()))
        until = time.monotonic() + 5
        while not servicer.entered.is_set() and time.monotonic() < until:
            time.sleep(0.005)
        peer.send(f.rst_stream(1, Reason.CANCEL))
        while not servicer.cancelled and time.monotonic() < until:
            time.sleep(0.005)
        assert servicer.cancelled == 1
        peer.call(3, asked(PATH), OK)
        answers(peer, 3)


def test_pings_are_answered() -> None:
    with server() as (running, _), Peer(running.address) as peer:
        peer.send(f.frame(f.PING, 0, 0, b"12345678"))
        pong = peer.until(f.PING)
        assert (pong.flags, pong.payload) == (f.ACK, b"12345678")


def test_a_silent_peer_is_probed_and_one_that_does_not_answer_left() -> None:
    with server(keepalive_s=0.3) as (running, _), Peer(running.address) as peer:
        began = time.monotonic()
        ping = peer.until(f.PING)
        assert ping.flags == 0
        peer.send(f.frame(f.PING, f.ACK, 0, ping.payload))
        peer.until(f.PING)
        for _ in peer.frames():
            pass
        assert 0.8 < time.monotonic() - began < 5


def test_an_old_connection_is_asked_to_go_and_its_calls_are_answered() -> None:
    options = {"connection_age_s": 0.3}
    with server(**options) as (running, servicer), Peer(running.address) as peer:
        peer.call(1, asked(PATH), message(toy.request("wait").SerializeToString()))
        hint = peer.until(f.GOAWAY)
        assert struct.unpack(">LL", hint.payload[:8]) == (f.LARGEST_WINDOW, Reason.NO_ERROR)
        peer.call(3, asked(PATH), OK)  # on its way when the hint came
        answers(peer, 3)
        last = peer.until(f.GOAWAY)
        assert struct.unpack(">LL", last.payload[:8]) == (3, Reason.NO_ERROR)
        peer.call(5, asked(PATH), OK)  # too late: not looked at
        servicer.let_go()
        answers(peer, 1)
        assert [frame for frame in peer.frames() if frame.stream == 5] == []


HEADERS = f.frame(f.HEADERS, f.END_HEADERS, 1, b"")
FAULTS = {
    "HTTP/1.1": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(24), Reason.PROTOCOL_ERROR),
    "a frame too large": (f.HEAD.pack(0x100, 0, f.DATA, 0, 1), Reason.FRAME_SIZE_ERROR),
    "data of no stream": (f.frame(f.DATA, 0, 1, b"x"), Reason.PROTOCOL_ERROR),
    "data of stream 0": (f.frame(f.DATA, 0, 0, b"x"), Reason.PROTOCOL_ERROR),
    "an even stream": (f.frame(f.HEADERS, f.END_HEADERS, 2, b"\x83"), Reason.PROTOCOL_ERROR),
    "a broken block": (f.frame(f.HEADERS, f.END_HEADERS, 1, b"\xff"), Reason.COMPRESSION_ERROR),
    "padding too long": (f.frame(f.HEADERS, f.PADDED, 1, b"\x09abc"), Reason.PROTOCOL_ERROR),
    "a block left open": (
        f.frame(f.HEADERS, 0, 1, b"\x83") + f.frame(f.PING, 0, 0, bytes(8)),
        Reason.PROTOCOL_ERROR,
    ),
    "a lone continuation": (f.frame(f.CONTINUATION, 4, 1, b"\x83"), Reason.PROTOCOL_ERROR),
    "a block without end": (
        f.frame(f.HEADERS, 0, 1, b"\x83") + f.frame(f.CONTINUATION, 0, 1, bytes(16_000)) * 3,
        Reason.ENHANCE_YOUR_CALM,
    ),
    "a push": (f.frame(f.PUSH_PROMISE, 4, 1, bytes(4)), Reason.PROTOCOL_ERROR),
    "a short ping": (f.frame(f.PING, 0, 0, b"abc"), Reason.FRAME_SIZE_ERROR),
    "a short reset": (f.frame(f.RST_STREAM, 0, 1, b"abc"), Reason.FRAME_SIZE_ERROR),
    "a reset of no stream": (f.rst_stream(9, Reason.CANCEL), Reason.PROTOCOL_ERROR),
    "a short window update": (f.frame(f.WINDOW_UPDATE, 0, 0, b"a"), Reason.FRAME_SIZE_ERROR),
    "no window at all": (f.window_update(0, 0), Reason.FLOW_CONTROL_ERROR),
    "a window too large": (f.window_update(0, f.LARGEST_WINDOW), Reason.FLOW_CONTROL_ERROR),
    "settings of 5 bytes": (f.frame(f.SETTINGS, 0, 0, bytes(5)), Reason.FRAME_SIZE_ERROR),
    "a frame size of 1": (f.settings({f.MAX_FRAME_SIZE: 1}), Reason.PROTOCOL_ERROR),
    "an initial window of 2^31": (
        f.settings({f.INITIAL_WINDOW_SIZE: 1 << 31}),
        Reason.FLOW_CONTROL_ERROR,
    ),
    "a flood of settings": (f.settings({}) * 1500, Reason.ENHANCE_YOUR_CALM),
    "a flood of priorities": (f.frame(f.PRIORITY, 0, 1, bytes(5)) * 1500, Reason.ENHANCE_YOUR_CALM),
}


@pytest.mark.parametrize("what", FAULTS)
def test_what_breaks_the_protocol_ends_the_connection_and_no_other(what: str) -> None:
    data, reason = FAULTS[what]
    preface = data if what == "HTTP/1.1" else f.PREFACE
    with server() as (running, _):
        with Peer(running.address, preface=preface) as peer:
            if what != "HTTP/1.1":
                peer.send(data)
            assert peer.said_goodbye().reason is reason
        still_answers(running)


def test_a_client_with_a_smaller_table_of_headers_is_told_that_it_is_kept() -> None:
    own = {f.HEADER_TABLE_SIZE: 1024}
    with server() as (running, _), Peer(running.address, settings=own) as peer:
        peer._decoder.max_allowed_table_size = 1024  # as RFC 7541, section 4.2, has it checked
        for stream in (1, 3):
            peer.call(stream, asked(PATH), OK)
            answers(peer, stream)


def test_a_stop_lets_a_caller_read_its_answer_as_long_as_grace_has_it() -> None:
    own = {f.INITIAL_WINDOW_SIZE: 100}
    with ExitStack() as stack:
        running, _ = stack.enter_context(server(grace_s=20))
        with Peer(running.address, settings=own) as peer:
            call = message(toy.request("call").SerializeToString())
            peer.call(1, asked(PATH, *[("x", "y" * 100)] * 9), call)
            peer.until(f.DATA, 1)
            stopping = threading.Thread(target=stack.close)
            stopping.start()
            time.sleep(1.5)
            peer.send(f.window_update(1, 100_000))
            assert peer.answer(1)[0]["grpc-status"] == "0"
        stopping.join(10)
        assert not stopping.is_alive()


MALFORMED = {
    "no path": [(":method", "POST")],
    "a name in upper case": [*asked(PATH), ("Who", "me")],
    "a pseudo-header late": [*asked(PATH), (":path", "/x")],
    "an unknown pseudo-header": [(":who", "me"), *asked(PATH)],
    "a timeout without unit": asked(PATH, ("grpc-timeout", "12")),
    "a timeout of many digits": asked(PATH, ("grpc-timeout", "123456789S")),
    "no base64": asked(PATH, ("x-bin", "*")),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_what_is_no_request_ends_its_stream_alone(what: str) -> None:
    with server() as (running, _), Peer(running.address) as peer:
        peer.call(1, MALFORMED[what], OK)
        reset = peer.until(f.RST_STREAM)
        assert (reset.stream, reset.reason) == (1, Reason.PROTOCOL_ERROR)
        peer.call(3, asked(PATH), OK)
        answers(peer, 3)


BLOCKS = [
    bytes(encoder.encode(asked(path, *more)))
    for encoder in (hpack.Encoder(),)
    for path in (PATH, "/nope", "/grpc.health.v1.Health/Watch")
    for more in ((), (("grpc-timeout", "10m"),), (("grpc-encoding", "gzip"),))
]
PAYLOADS = st.one_of(
    st.sampled_from([*BLOCKS, OK, OK[:7], b"\1" + OK[1:], bytes(4), bytes(8), b"\0\0\0\4", b""]),
    st.binary(max_size=40),
)
FRAMES = st.lists(
    st.builds(
        f.frame,
        st.integers(0, 11),
        st.sampled_from([0, 1, 4, 5, 8, 0x20, 0x25, 0x2D]),
        st.integers(0, 9),
        PAYLOADS,
    ),
    max_size=25,
)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with server() as (running, _):
        yield running


@given(frames=FRAMES, cut=st.integers(1, 200))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_conversation_brings_the_server_down(
    running: Running, caplog: pytest.LogCaptureFixture, frames: list[bytes], cut: int
) -> None:
    data = b"".join(frames)
    with Peer(running.address, table=4096) as peer:
        with suppress(ConnectionError):
            for at in range(0, len(data), cut):
                peer.send(data[at : at + cut])
        with suppress(ConnectionError):
            peer.send(f.frame(f.PING, 0, 0, b"the last"))
        for frame in peer.frames():
            if frame.kind == f.GOAWAY or frame.payload == b"the last":
                break
    still_answers(running)
    assert [record for record in caplog.records if record.name == "asyncio"] == []
