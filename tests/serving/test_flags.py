"""The flags of both servers: the same ones, refused in one line, and a real server under them."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
import toy
import typer
from certificates import Authority
from faults import until
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from running import in_thread, replace_file

from serendip.core import InvalidRequest
from serendip.serving.flags import _MOST_COUNT, _MOST_MIB, _MOST_S, ServerFlags
from serendip.serving.guard import Rate
from serendip.serving.logs import LogCalls, LogFormat
from serendip.serving.server import ServerOptions
from serendip.serving.tls import TlsFiles
from serendip.serving.tracing import Otlp
from serendip.v1 import common_pb2, retriever_pb2, retriever_pb2_grpc

OLD, NEW = "old0" * 8, "new1" * 8
OWN = {
    "planner_server": {"port": 50051},
    "retriever_server": {"port": 50052, "max_request_mib": 4},
}


@pytest.mark.parametrize("server", OWN)
def test_both_servers_have_every_flag_with_its_default(server: str) -> None:
    program = importlib.import_module(f"{server}.__main__")
    command: Any = typer.main.get_command(program.app)
    options = {parameter.name: parameter for parameter in command.params}
    for field in dataclasses.fields(ServerFlags):
        expected = OWN[server].get(field.name, field.default)
        assert options[field.name].default == expected, field.name
        assert options[field.name].hidden or options[field.name].help
    assert "server" not in options
    assert "artifacts" in options


def test_every_flag_arrives(tmp_path: Path) -> None:
    authority = Authority.make(tmp_path)
    cert, key = authority.certify("server")
    tokens = tmp_path / "tokens"
    tokens.write_text(f"ranking {OLD}\n")
    same: dict[str, Any] = {
        "host": "::1",
        "port": 1,
        "metrics_port": 2,
        "lame_s": 3,
        "grace_s": 4,
        "max_in_flight": 5,
        "max_pending": 6,
        "max_streams": 7,
        "max_connections": 8,
        "connection_age_s": 9,
        "keepalive_s": 10,
        "tokens": tokens,
        "log_calls": LogCalls.ALL,
    }
    flags = ServerFlags(
        **same,
        max_request_mib=0.5,
        tls_cert=cert,
        tls_key=key,
        tls_client_ca=authority.ca,
        rate_limit=11,
        rate_burst=12,
        otlp="127.0.0.1:4317",
        otlp_share=0.5,
        worker=0,
    )
    assert flags.options() == ServerOptions(
        **same,
        max_request_bytes=1 << 19,
        tls=TlsFiles(cert, key, authority.ca),
        rate=Rate(11, 12),
        otlp=Otlp("127.0.0.1:4317", 0.5),
        reuse_port=True,
    )
    assert ServerFlags().options() == ServerOptions()
    json_lines = ServerFlags(log_format=LogFormat.JSON)
    assert json_lines.options().log_calls is LogCalls.ERRORS
    for per_s, burst in ((0.5, 1), (20.0, 20)):
        limited = ServerFlags(tokens=tokens, rate_limit=per_s)
        assert limited.options().rate == Rate(per_s, burst)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"rate_limit": 5.0}, "--rate-limit: needs --tokens as well, got 5.0. It holds for"),
        ({"rate_burst": 5.0}, "--rate-burst: needs --rate-limit as well"),
        ({"tls_client_ca": Path("none")}, "--tls-client-ca: cannot be read .*got 'none'. Name"),
        ({"tls_cert": Path("x")}, "--tls-cert: needs --tls-key as well, got 'x'. Name both"),
        ({"tokens": Path("none")}, "--tokens: cannot be read .*got 'none'. One 'NAME TOKEN'"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        ServerFlags(**flags).options()


def test_roots_of_callers_without_an_own_certificate_are_refused(tmp_path: Path) -> None:
    authority = Authority.make(tmp_path)
    with pytest.raises(InvalidRequest, match="--tls-client-ca: needs --tls-cert"):
        ServerFlags(tls_client_ca=authority.ca).options()


# --- a real server of toys ---------------------------------------------------------------


def start(*arguments: str, errors: Any = subprocess.PIPE) -> subprocess.Popen[str]:
    folder = str(Path(toy.__file__).parent)
    path = os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "toy_server", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_file_that_is_no_good_ends_a_server_with_one_line(workers: str) -> None:
    with start("--tokens", "/no/such/file", "--workers", workers) as process:
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (2, "")
    assert re.fullmatch(
        r"toy_server: --tokens: cannot be read \(No such file or directory\), "
        r"got '/no/such/file'\. One 'NAME TOKEN' a line; .*\n",
        err,
    )


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--connection-age-s", "2147484"),
        ("--keepalive-s", "1e300"),
        ("--max-request-mib", "2048"),
        ("--max-pending", "1100000000"),
        ("--max-streams", "2147483648"),
        ("--max-connections", "2147483648"),
        ("--keepalive-s", "nan"),
        ("--poll-s", "inf"),
    ],
)
def test_a_number_that_cannot_be_taken_ends_a_server_by_name(flag: str, value: str) -> None:
    with start(flag, value) as process:
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (2, "")
    assert flag in err
    assert "Traceback" not in err


def test_the_largest_numbers_are_taken() -> None:
    largest: dict[str, Any] = {
        "connection_age_s": _MOST_S,
        "keepalive_s": _MOST_S,
        "max_request_mib": _MOST_MIB,
        "max_pending": _MOST_COUNT,
        "max_streams": _MOST_COUNT,
        "max_connections": _MOST_COUNT,
    }
    options = ServerFlags(**largest).options()
    with (
        in_thread(lambda: toy.Toy().services(), options) as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        stub = retriever_pb2_grpc.RetrieverStub(channel)
        assert stub.Retrieve(toy.request("ok"), timeout=10).unknown_history_items == 7


def test_workers_share_tokens_and_say_nothing_that_is_secret(tmp_path: Path) -> None:
    authority = Authority.make(tmp_path / "authority")
    cert, key = authority.certify("server")
    authority.certify("caller")
    tokens, log = tmp_path / "tokens", tmp_path / "log"
    tokens.write_text(f"ranking {OLD}\n")
    secured = ("--tls-cert", str(cert), "--tls-key", str(key), "--tls-client-ca", str(authority.ca))
    told = ("--tokens", str(tokens), "--log-format", "json", "--log-calls", "all")
    with log.open("w") as errors:
        process = start("--workers", "2", *secured, *told, errors=errors)

    def call(token: str, behaviour: str = "ok", request_id: str = "ours") -> str:
        """The status of a call over a connection of its own, with its details."""
        request = retriever_pb2.RetrieveRequest(
            tree_version=behaviour,
            k=7,
            history=[common_pb2.HistoryItem(item_id="secret-item")],
        )
        metadata = (("authorization", f"Bearer {token}"), ("x-request-id", request_id))
        options = (("grpc.use_local_subchannel_pool", 1),)
        credentials = authority.credentials("caller")
        with grpc.secure_channel(address, credentials, options) as channel:
            stub = retriever_pb2_grpc.RetrieverStub(channel)
            try:
                stub.Retrieve(request, timeout=10, metadata=metadata)
            except grpc.RpcError as error:
                rich = rpc_status.from_call(error)
                fields = [
                    bad.field_violations[0].field
                    for packed in (rich.details if rich else ())
                    if packed.Unpack(bad := error_details_pb2.BadRequest())
                ]
                return " ".join([error.code().name, *fields])
            return "OK"

    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("toy ready on 127.0.0.1:"), log.read_text()
        address = line.split()[-1]
        # Many connections: the kernel gives some to either worker.
        assert {call(OLD) for _ in range(8)} == {"OK"}
        assert {call(NEW) for _ in range(8)} == {"UNAUTHENTICATED"}
        replace_file(tokens, f"ranking {NEW}\n")
        until(lambda: {call(NEW) for _ in range(8)} == {"OK"})
        until(lambda: {call(OLD) for _ in range(8)} == {"UNAUTHENTICATED"})
        assert call(NEW, "invalid_request", "wrong") == "INVALID_ARGUMENT k"
        assert call(NEW, "bug", "broken") == "INTERNAL"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.terminate()
        process.communicate()
    said = log.read_text()
    for secret in (OLD, NEW, "secret-item", "Bearer", "PRIVATE"):
        assert secret not in said
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    calls = [line for line in lines if "method" in line]
    assert {line["code"] for line in calls} == {
        "OK", "UNAUTHENTICATED", "INVALID_ARGUMENT", "INTERNAL",
    }  # fmt: skip
    assert {line["client"] for line in calls if line["code"] == "OK"} == {"ranking"}
    assert {line["client"] for line in calls if line["code"] == "UNAUTHENTICATED"} == {"caller"}
    (wrong,) = (line for line in calls if line["request_id"] == "wrong")
    assert wrong["field"] == "k"
    (fault,) = (line for line in lines if "exception" in line)
    assert fault["message"].endswith("of request broken")
