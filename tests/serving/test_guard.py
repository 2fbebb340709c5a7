"""Who may call: tokens by file, rates by name, over real servers; and the file that is replaced."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import toy
from faults import until
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry
from running import in_thread, replace_file
from serendip_client import SerendipClient, Unauthenticated

from serendip.core import InvalidRequest, Overloaded
from serendip.serving.guard import Bucket, Rate
from serendip.serving.handlers import Service, service_of
from serendip.serving.server import ServerOptions
from serendip.serving.tokens import read_token, read_tokens
from serendip.v1 import planner_pb2, recommender_pb2, retriever_pb2, retriever_pb2_grpc

OLD, NEW, OTHER = "old0" * 8, "new1" * 8, "other2" * 6
SERVICES = (planner_pb2, retriever_pb2, recommender_pb2)


class Everything:
    """Has every method of every service, and answers each."""

    def __getattr__(self, method: str) -> Any:
        async def answer(request: Any, call: Any) -> bytes:
            return b""

        return answer


def services() -> list[Service]:
    descriptors = [d for file in SERVICES for d in file.DESCRIPTOR.services_by_name.values()]
    return [service_of(d, Everything()) for d in descriptors]


@contextmanager
def guarded(
    tmp_path: Path,
    lines: str,
    rate: Rate | None = None,
    make: Callable[[], list[Service]] = services,
) -> Iterator[tuple[grpc.Channel, Path, CollectorRegistry]]:
    tokens, registry = tmp_path / "tokens", CollectorRegistry()
    tokens.write_text(lines)
    options = ServerOptions(tokens=tokens, rate=rate)
    with (
        in_thread(make, options, registry=registry) as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        yield channel, tokens, registry


def bearer(token: str, scheme: str = "Bearer") -> tuple[tuple[str, str], ...]:
    return (("authorization", f"{scheme} {token}"),)


def code(channel: grpc.Channel, method: str, metadata: Any = ()) -> grpc.StatusCode:
    try:
        channel.unary_unary(method)(b"", timeout=10, metadata=metadata)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_without_a_token_nothing_but_health_answers(tmp_path: Path) -> None:
    methods = [
        f"/{service.full_name}/{method.name}"
        for file in SERVICES
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]
    assert len(methods) > 8
    with guarded(tmp_path, f"ranking {OLD}\n") as (channel, _, registry):
        for method in methods:
            assert code(channel, method) is grpc.StatusCode.UNAUTHENTICATED, method
            assert code(channel, method, bearer(OLD)) is grpc.StatusCode.OK, method
        reflect = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        ask = [reflection_pb2.ServerReflectionRequest(list_services="")]
        with pytest.raises(grpc.RpcError) as caught:
            list(reflect(iter(ask), timeout=10))
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        (listed,) = reflect(iter(ask), timeout=10, metadata=bearer(OLD))
        assert len(listed.list_services_response.service) > 3
        health = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=10
        )
        assert health.status == health_pb2.HealthCheckResponse.SERVING
    read = registry.get_sample_value
    assert read("serendip_unauthenticated_total") == len(methods) + 1
    assert read("serendip_client_calls_total", {"client": "ranking"}) == len(methods) + 1
    refused = {
        "grpc_type": "unary",
        "grpc_service": "serendip.v1.Planner",
        "grpc_method": "Plan",
        "grpc_code": "UNAUTHENTICATED",
    }
    assert read("grpc_server_handled_total", refused) == 1


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ((), "no token"),
        ((("authorization", "Basic c3dvcmRmaXNo"),), "no token"),
        ((("authorization", OLD),), "no token"),
        (bearer("swordfish" * 4), "not known"),
        (bearer(""), "not known"),
        (bearer(OLD[:-1]), "not known"),
        (bearer(OLD + "x"), "not known"),
        (bearer(OLD.upper()), "not known"),
    ],
)
def test_who_is_refused_is_told_what_to_send_and_nothing_of_what_came(
    tmp_path: Path, metadata: Any, said: str
) -> None:
    with guarded(tmp_path, f"ranking {OLD}\n") as (channel, _, _):
        stub = retriever_pb2_grpc.RetrieverStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Retrieve(toy.request("ok"), timeout=10, metadata=metadata)
    error = caught.value
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert said in error.details()
    assert "authorization: Bearer TOKEN" in error.details()
    assert "fish" not in str(error).lower()
    assert OLD not in str(error)


def test_a_request_without_a_token_is_not_read(tmp_path: Path) -> None:
    # A message that would be too large, had it been taken in.
    with guarded(tmp_path, f"ranking {OLD}\n") as (channel, _, _):
        large = channel.unary_unary(f"/{toy.NAME}/Retrieve")
        for metadata, expected in (((), "UNAUTHENTICATED"), (bearer(OLD), "RESOURCE_EXHAUSTED")):
            with pytest.raises(grpc.RpcError) as caught:
                large(bytes(33 << 20), timeout=20, metadata=metadata)
            assert caught.value.code().name == expected


def test_the_client_sends_its_token_and_names_the_error(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"ranking {OLD}\n")
    with in_thread(lambda: toy.Toy().services(), ServerOptions(tokens=tokens)) as running:
        for token, refused in ((OLD, False), (NEW, True), (None, True)):
            with SerendipClient(running.address, running.address, token=token) as client:
                if refused:
                    with pytest.raises(Unauthenticated, match="Bearer TOKEN"):
                        client.retrieve([], [1], tree_version="ok", k=7)
                else:
                    found = client.retrieve([], [1], tree_version="ok", k=7)
                    assert found.unknown_history_items == 7


def test_tokens_come_and_go_with_their_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    method = f"/{toy.NAME}/Retrieve"
    ok, refused = grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED
    with guarded(tmp_path, f"ranking {OLD}\n") as (channel, tokens, registry):

        def failures() -> float | None:
            return registry.get_sample_value("serendip_tokens_failures_total")

        def calls(client: str) -> float | None:
            return registry.get_sample_value("serendip_client_calls_total", {"client": client})

        assert code(channel, method, bearer(NEW)) is refused
        # Both hold while callers go over from one to the other.
        replace_file(tokens, f"# rotated\n\nranking {OLD}\nranking {NEW}\nreports {OTHER}\n")
        until(lambda: code(channel, method, bearer(NEW)) is ok)
        assert code(channel, method, bearer(OLD)) is ok
        assert calls("reports") == 0
        replace_file(tokens, f"ranking {NEW}\n")
        until(lambda: code(channel, method, bearer(OLD)) is refused)
        assert code(channel, method, bearer(NEW)) is ok
        assert code(channel, method, bearer(OTHER)) is refused
        assert calls("reports") is None, "a name that is gone is no label value"

        with caplog.at_level(logging.ERROR, logger="serendip"):
            replace_file(tokens, f"ranking {NEW}\nranking\n")
            until(lambda: failures() == 1)
            tokens.unlink()
            until(lambda: failures() == 2)
            replace_file(tokens, "")
            until(lambda: failures() == 3)
        assert code(channel, method, bearer(NEW)) is ok, "the last good file holds"
        assert code(channel, method, bearer(OLD)) is refused
        assert [r.levelname for r in caplog.records] == ["ERROR"] * 3, "a line each"
        assert "line 2 has 1 words" in caplog.text
        assert str(tokens) in caplog.text
        assert NEW not in caplog.text
        replace_file(tokens, f"ranking {OLD}\n")
        until(lambda: code(channel, method, bearer(OLD)) is ok)
        assert failures() == 3


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("", "has no token"),
        ("# nobody yet\n", "has no token"),
        ("ranking\n", "line 1 has 1 words"),
        (f"# x\nranking {OLD} admin\n", "line 2 has 3 words"),
        (f"rank/ing {OLD}\n", "line 1 has a name that"),
        (f"{'n' * 65} {OLD}\n", "line 1 has a name that"),
        ("ranking short-of-16\n", "fewer than 16"),
        (f"ranking {OLD}!\n", "no header takes"),
        (f"ranking {OLD}\nreports {OLD}\n", "line 2 has the token of another client"),
        (f"ranking {OLD}é\n", "is not ASCII"),
    ],
)
def test_a_bad_file_is_refused_by_line_and_never_shown(
    tmp_path: Path, lines: str, problem: str
) -> None:
    path = tmp_path / "tokens"
    path.write_text(lines)
    with pytest.raises(InvalidRequest, match=problem) as caught:
        read_tokens(path)
    assert caught.value.field == "--tokens"
    assert caught.value.value == str(path)
    assert OLD not in str(caught.value)
    assert "openssl rand -hex 32" in caught.value.remedy


def test_a_file_with_the_token_to_call_with(tmp_path: Path) -> None:
    path = tmp_path / "token"
    for good in (f"{OLD}\n", f"# ours\nranking {OLD}\n"):
        path.write_text(good)
        assert read_token(path, "--x") == OLD
    for bad in ("", f"{OLD}\n{NEW}\n", f"a b {OLD}\n", "sword fish!\n"):
        path.write_text(bad)
        with pytest.raises(InvalidRequest, match="one line with one token") as caught:
            read_token(path, "--x")
        assert "fish" not in str(caught.value)
    with pytest.raises(InvalidRequest, match="--x: cannot be read"):
        read_token(tmp_path / "none", "--x")


def test_nothing_shows_a_token_that_was_read(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"ranking {OLD}\n")
    tokens = read_tokens(path)
    assert tokens.name_of(OLD) == "ranking"
    assert OLD not in repr(tokens)
    assert OLD.encode() not in repr(vars(tokens)).encode()


# --- rates -------------------------------------------------------------------------------


def test_a_bucket_lets_through_its_rate_and_its_burst() -> None:
    bucket = Bucket(Rate(per_s=4, burst=3), now=100.0)
    assert [bucket.take(100.0) for _ in range(3)] == [0, 0, 0]
    assert bucket.take(100.0) == pytest.approx(0.25)
    assert bucket.take(100.0) == pytest.approx(0.25), "who is refused has taken nothing"
    assert bucket.take(100.25) == 0
    assert bucket.take(100.25) > 0
    # A long silence saves up no more than the burst.
    assert [bucket.take(900.0) for _ in range(3)] == [0, 0, 0]
    assert bucket.take(900.0) > 0
    # In the long run: its rate.
    taken = sum(bucket.take(1000 + i / 1000) == 0 for i in range(100_000))
    assert taken == pytest.approx(3 + 4 * 100, abs=1)


@pytest.mark.parametrize(("per_s", "burst"), [(0, 1), (-1, 1), (1, 0.5), (float("nan"), 1)])
def test_a_rate_that_is_none_is_refused(per_s: float, burst: float) -> None:
    with pytest.raises(InvalidRequest, match="--rate-"):
        Rate(per_s, burst)


def test_each_client_has_a_rate_of_its_own(tmp_path: Path) -> None:
    lines = f"ranking {OLD}\nranking {NEW}\nreports {OTHER}\n"
    # One call in a hundred seconds: none comes back while the test runs.
    with guarded(tmp_path, lines, Rate(0.01, 3)) as (channel, _, registry):
        method = f"/{toy.NAME}/Retrieve"
        tokens = (OLD, NEW, OLD, NEW, OLD)
        codes = [code(channel, method, bearer(token)).name for token in tokens]
        assert codes == ["OK"] * 3 + ["RESOURCE_EXHAUSTED"] * 2, "two tokens are one client"
        assert code(channel, method, bearer(OTHER)) is grpc.StatusCode.OK
        stub = retriever_pb2_grpc.RetrieverStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Retrieve(toy.request("ok"), timeout=10, metadata=bearer(OLD))
        error = caught.value
        (packed,) = rpc_status.from_call(error).details
        retry = error_details_pb2.RetryInfo()
        assert packed.Unpack(retry)
        assert 50 < retry.retry_delay.seconds <= 100
        assert int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) > 50_000
        assert "client ranking has made more than 0.01 calls a second" in error.details()
    read = registry.get_sample_value
    assert read("serendip_client_limited_total", {"client": "ranking"}) == 3
    assert read("serendip_client_limited_total", {"client": "reports"}) == 0
    assert read("serendip_client_calls_total", {"client": "ranking"}) == 6


def test_a_rate_is_an_overload_to_the_client(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"ranking {OLD}\n")
    options = ServerOptions(tokens=tokens, rate=Rate(0.01, 1))
    with (
        in_thread(lambda: toy.Toy().services(), options) as running,
        SerendipClient(running.address, running.address, token=OLD) as client,
    ):
        client.retrieve([], [1], tree_version="ok", k=7)
        with pytest.raises(Overloaded) as caught:
            client.retrieve([], [1], tree_version="ok", k=7)
        assert caught.value.retry_after_s > 50
