"""What a server says of its calls: request IDs, and lines that hold no secret and no history."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
from typing import Any

import grpc
import pytest
import toy
from running import in_thread

from serendip.serving.handlers import Call, Service
from serendip.serving.logs import MOST_ERRORS_PER_S, CallLog, LogCalls, LogFormat, configure_logging
from serendip.serving.server import ServerOptions
from serendip.v1 import common_pb2, retriever_pb2, retriever_pb2_grpc

METHOD = f"/{toy.NAME}/Retrieve"
MADE = re.compile(r"[0-9a-f]{16}")


def services() -> list[Service]:
    return toy.Toy().services()


def call(stub: Any, behaviour: str, **metadata: str) -> tuple[grpc.StatusCode, dict[str, Any]]:
    """Status and trailing metadata of a call."""
    pairs = [(key.replace("_", "-"), value) for key, value in metadata.items()]
    try:
        _, ended = stub.Retrieve.with_call(toy.request(behaviour), timeout=10, metadata=pairs)
    except grpc.RpcError as error:
        ended = error
    return ended.code(), dict(ended.trailing_metadata())


@pytest.fixture(scope="module")
def stub() -> Any:
    with in_thread(services) as running, grpc.insecure_channel(running.address) as channel:
        yield retriever_pb2_grpc.RetrieverStub(channel)


@pytest.mark.parametrize("behaviour", ["ok", "not_found", "overloaded", "bug"])
def test_every_answer_carries_its_request_id(stub: Any, behaviour: str) -> None:
    assert call(stub, behaviour, x_request_id="Ours-1/2:3")[1]["x-request-id"] == "Ours-1/2:3"
    first, second = (call(stub, behaviour)[1]["x-request-id"] for _ in range(2))
    assert MADE.fullmatch(first)
    assert MADE.fullmatch(second)
    assert first != second


@pytest.mark.parametrize("unsafe", ["", "a" * 129, "two words", "new\\nline", '"', "{}", "é"])
def test_a_request_id_that_is_not_safe_is_replaced(unsafe: str) -> None:
    assert MADE.fullmatch(Call(None, (("x-request-id", unsafe),)).request_id)
    assert MADE.fullmatch(Call(None, (("x-request-id", b"bytes"),)).request_id)


def test_an_internal_error_names_the_request(stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Retrieve(toy.request("bug"), timeout=10, metadata=[("x-request-id", "ours")])
    assert re.search(r"internal error [0-9a-f]{12} of request ours: see", caught.value.details())


def test_what_goes_on_to_the_tier_behind() -> None:
    sent = (("user-agent", "x"), ("traceparent", "00-1-2-01"), ("x-request-id", "ours"))
    assert Call(None, sent).onward == (("x-request-id", "ours"), ("traceparent", "00-1-2-01"))
    traced = Call(None, sent)
    traced.trace = (("traceparent", "00-1-9-01"),)
    assert traced.onward == (("x-request-id", "ours"), ("traceparent", "00-1-9-01"))


def records(caplog: pytest.LogCaptureFixture) -> list[tuple[str, dict[str, Any]]]:
    return [
        (r.levelname, r.msg)
        for r in caplog.records
        if r.name == "serendip.calls" and isinstance(r.msg, dict)
    ]


@pytest.mark.parametrize("which", list(LogCalls))
def test_calls_have_a_line_as_it_was_chosen(
    which: LogCalls, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        in_thread(services, ServerOptions(log_calls=which)) as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        stub = retriever_pb2_grpc.RetrieverStub(channel)
        for behaviour in ("ok", "invalid_request", "bug"):
            call(stub, behaviour, x_request_id=behaviour)
    kept = {
        LogCalls.NONE: [],
        LogCalls.ERRORS: ["invalid_request", "bug"],
        LogCalls.ALL: ["ok", "invalid_request", "bug"],
    }[which]
    lines = records(caplog)
    assert [line["request_id"] for _, line in lines] == kept
    levels = {"ok": "INFO", "invalid_request": "WARNING", "bug": "ERROR"}
    assert [level for level, _ in lines] == [levels[name] for name in kept]
    for _, line in lines:
        assert line["method"] == METHOD
        assert line["peer"] == "127.0.0.1"
        assert 0 <= line["ms"] < 10_000
        assert line.get("field") == ("k" if line["code"] == "INVALID_ARGUMENT" else None)


def test_a_call_that_is_given_up_or_late_has_a_line_too(caplog: pytest.LogCaptureFixture) -> None:
    entered = threading.Event()

    class Entered(toy.Toy):
        async def Retrieve(self, request: Any, call: Call) -> Any:
            if request.tree_version == "wait":
                entered.set()
            return await super().Retrieve(request, call)

    options = ServerOptions(log_calls=LogCalls.ERRORS, grace_s=0)
    with (
        in_thread(lambda: Entered().services(), options) as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        stub = retriever_pb2_grpc.RetrieverStub(channel)
        assert call(stub, "ok")[0] is grpc.StatusCode.OK  # connected
        late = stub.Retrieve.future(toy.request("wait"), timeout=2)
        assert entered.wait(10)
        assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    # A caller whose deadline passes takes its call back: the server may see that first.
    ((_, line),) = records(caplog)
    assert line["code"] in ("DEADLINE_EXCEEDED", "CANCELLED")


def test_a_line_says_how_many_rows_and_which_release(caplog: pytest.LogCaptureFixture) -> None:
    class Telling(toy.Toy):
        async def Retrieve(self, request: Any, call: Call) -> Any:
            call.rows, call.version = 7, "0123456789ab"
            await asyncio.sleep(0)
            return retriever_pb2.RetrieveResponse()

    with (
        in_thread(lambda: Telling().services(), ServerOptions(log_calls=LogCalls.ALL)) as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        call(retriever_pb2_grpc.RetrieverStub(channel), "ok")
    ((_, line),) = records(caplog)
    assert (line["rows"], line["version"]) == (7, "0123456789ab")


def test_a_flood_of_failures_is_no_flood_of_lines(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("serendip.serving.logs.time.monotonic", lambda: now[0])
    log, one = CallLog(LogCalls.ERRORS), Call()
    for _ in range(MOST_ERRORS_PER_S + 25):
        log.write(METHOD, one, "UNAUTHENTICATED", 0.001, {}, "")
    assert len(records(caplog)) == MOST_ERRORS_PER_S
    now[0] = 101.0
    log.write(METHOD, one, "UNAUTHENTICATED", 0.001, {}, "")
    log.write(METHOD, one, "UNAUTHENTICATED", 0.001, {}, "")
    *_, first, second = (line for _, line in records(caplog))
    assert first["left_out"] == 25
    assert "left_out" not in second


def secret_call(stub: Any) -> None:
    """A call whose request and failure name items of a history."""
    request = retriever_pb2.RetrieveRequest(
        tree_version="invalid_request",
        history=[common_pb2.HistoryItem(item_id="secret-item")],
        deny_item_ids=["secret-item"],
    )
    metadata = [("authorization", "Bearer swordfish"), ("cookie", "swordfish")]
    with pytest.raises(grpc.RpcError):
        stub.Retrieve(request, timeout=10, metadata=metadata)


@pytest.mark.parametrize("log_format", list(LogFormat))
def test_lines_are_text_or_json_and_hold_nothing_of_the_request(
    log_format: LogFormat, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    configure_logging(log_format)
    with (
        in_thread(services, ServerOptions(log_calls=LogCalls.ALL)) as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        secret_call(retriever_pb2_grpc.RetrieverStub(channel))
        logging.getLogger("serendip.x").error("of %s", "another kind", exc_info=ValueError("why"))
    said = capfd.readouterr().err
    assert "secret-item" not in said
    assert "swordfish" not in said
    if log_format is LogFormat.JSON:
        lines = [json.loads(line) for line in said.splitlines()]
        of_a_call, other = sorted(lines, key=lambda line: "logger" in line)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", of_a_call["time"])
        assert (of_a_call["level"], of_a_call["code"]) == ("WARNING", "INVALID_ARGUMENT")
        assert (other["logger"], other["message"]) == ("serendip.x", "of another kind")
        assert "ValueError: why" in other["exception"]
    else:
        assert re.search(rf"WARNING call method={METHOD} code=INVALID_ARGUMENT ms=", said)
