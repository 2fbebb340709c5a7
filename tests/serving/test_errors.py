"""Errors of core, and others, as they arrive at a caller of a real server."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import toy
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from running import in_thread

from serendip.core import InvalidRequest, NotFound, Overloaded
from serendip.serving.errors import OK_STATUS, status_of
from serendip.v1 import retriever_pb2, retriever_pb2_grpc
from serendip.wire import error_from_rpc, error_from_status


@pytest.fixture(scope="module")
def stub() -> Iterator[Any]:
    with (
        in_thread(lambda: toy.Toy().services()) as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        yield retriever_pb2_grpc.RetrieverStub(channel)


def failure(stub: Any, behaviour: str) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Retrieve(toy.request(behaviour), timeout=5)
    return caught.value


def detail(status: status_pb2.Status, kind: Any) -> Any:
    (packed,) = status.details
    message = kind()
    assert packed.Unpack(message), packed
    return message


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [
        ("invalid_request", "INVALID_ARGUMENT"),
        ("invalid_data", "INVALID_ARGUMENT"),
        ("media", "INVALID_ARGUMENT"),
        ("not_found", "NOT_FOUND"),
        ("wrong_tree", "FAILED_PRECONDITION"),
        ("overloaded", "RESOURCE_EXHAUSTED"),
        ("deadline", "DEADLINE_EXCEEDED"),
        ("not_ready", "UNAVAILABLE"),
    ],
)
def test_an_error_of_core_arrives_as_itself(stub: Any, behaviour: str, code: str) -> None:
    error = failure(stub, behaviour)
    raised = toy.ERRORS[behaviour]
    assert error.code() is grpc.StatusCode[code]
    assert error.details() == str(raised)
    status = rpc_status.from_call(error)
    assert status is not None
    assert status.code == error.code().value[0]
    # And back: the client's own reading of it, which needs no grpcio-status.
    back = error_from_rpc(status.code, error.details(), error.trailing_metadata())
    kind = InvalidRequest if isinstance(raised, InvalidRequest) else type(raised)
    assert type(back) is kind
    assert str(back) == str(raised)


def test_an_invalid_field_is_named(stub: Any) -> None:
    status = rpc_status.from_call(failure(stub, "invalid_request"))
    (violation,) = detail(status, error_details_pb2.BadRequest).field_violations
    assert violation.field == "k"
    assert violation.description == "must lie in 1 to 9, got 0. Set k."
    back = error_from_status(status)
    assert isinstance(back, InvalidRequest)
    assert back.field == "k"


def test_overload_tells_when_to_come_back(stub: Any) -> None:
    error = failure(stub, "overloaded")
    retry = detail(rpc_status.from_call(error), error_details_pb2.RetryInfo)
    assert retry.retry_delay.ToMilliseconds() == 250
    assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "250"
    back = error_from_status(rpc_status.from_call(error))
    assert isinstance(back, Overloaded)
    assert back.retry_after_s == 0.25


@pytest.mark.parametrize("behaviour", ["bug", "corrupt"])
def test_the_inside_stays_inside(
    stub: Any, behaviour: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, logger="serendip"):
        error = failure(stub, behaviour)
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "swordfish" not in str(error)
    assert "parquet" not in str(error)
    found = re.search(r"internal error ([0-9a-f]{12})", error.details())
    assert found is not None
    (record,) = [r for r in caplog.records if found[1] in r.getMessage()]
    assert record.exc_info is not None
    assert "swordfish" in str(record.exc_info[1])
    assert record.exc_info[2] is not None, "the log has the traceback"


def test_a_method_that_nobody_wrote_is_unimplemented(stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.RetrieveBatch(retriever_pb2.RetrieveBatchRequest(), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("letter", ["a", "中", "\x00", "%"])
def test_no_value_makes_the_trailers_too_large(letter: str) -> None:
    # Trailers above 8 KiB would arrive as RESOURCE_EXHAUSTED, the error as nothing at all.
    error = InvalidRequest(letter * 9000, field=letter * 9000, value=letter * 9000)
    status = status_of(error)
    percent_encoded = 3 * len(status.message.encode())
    base64 = 4 * len(status.SerializeToString()) // 3
    assert percent_encoded + base64 < 8000
    assert error_from_status(status) is not None


def test_a_row_has_its_own_status() -> None:
    assert OK_STATUS.code == 0
    assert error_from_status(OK_STATUS) is None
    row = status_of(NotFound("is unknown", field="item_id", value="x"))
    assert row.code == grpc.StatusCode.NOT_FOUND.value[0]
    assert isinstance(error_from_status(row), NotFound)


def test_a_status_of_another_stack_is_read_as_well() -> None:
    plain = error_from_rpc(5, "no such thing", ())
    assert isinstance(plain, NotFound)
    garbage = error_from_rpc(5, "no such thing", (("grpc-status-details-bin", b"\xff\xff"),))
    assert isinstance(garbage, NotFound)
    other = error_from_rpc(13, "boom", ())
    assert "boom" in str(other)
    assert "13" in str(other)
