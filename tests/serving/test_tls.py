"""TLS and mTLS over real servers, by certificates that openssl made, rotated while they serve."""

from __future__ import annotations

import logging
import socket
import ssl
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
import toy
from certificates import Authority
from faults import until
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry
from raw_http2 import Peer, asked, message
from running import in_thread, replace_file
from serendip_client import NotReady, SerendipClient

from serendip.core import InvalidRequest
from serendip.serving.handlers import Service
from serendip.serving.server import ServerOptions
from serendip.serving.tls import TlsFiles
from serendip.serving.upstream import Upstream
from serendip.v1 import retriever_pb2_grpc

OK = message(toy.request("ok").SerializeToString())
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def services() -> list[Service]:
    return toy.Toy().services()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority.make(tmp_path_factory.mktemp("authority"))
    for name in ("server", "caller"):
        made.certify(name)
    return made


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority.make(tmp_path_factory.mktemp("stranger"))
    made.certify("caller")
    return made


def files(authority: Authority, *, mutual: bool = False) -> TlsFiles:
    folder = authority.folder
    ca = authority.ca if mutual else None
    return TlsFiles(folder / "server.pem", folder / "server.key", ca)


def answers(address: str, credentials: Any) -> bool:
    """Whether a call is answered; raises if it fails otherwise than as UNAVAILABLE."""
    if credentials is None:
        channel = grpc.insecure_channel(address)
    else:
        channel = grpc.secure_channel(address, credentials)
    with channel:
        stub = retriever_pb2_grpc.RetrieverStub(channel)
        try:
            return bool(stub.Retrieve(toy.request("ok"), timeout=10).unknown_history_items == 7)
        except grpc.RpcError as error:
            if error.code() is not UNAVAILABLE:
                raise
            return False


def test_tls_answers_who_trusts_it_and_nobody_in_plain_text(
    authority: Authority, stranger: Authority
) -> None:
    with in_thread(services, ServerOptions(tls=files(authority))) as running:
        assert answers(running.address, authority.credentials())
        assert answers(running.address, authority.credentials("caller"))
        assert not answers(running.address, stranger.credentials())
        assert not answers(running.address, None)


def test_mtls_answers_only_who_shows_a_certificate_of_its_authority(
    authority: Authority, stranger: Authority
) -> None:
    mixed = grpc.ssl_channel_credentials(
        authority.ca.read_bytes(),
        (stranger.folder / "caller.key").read_bytes(),
        (stranger.folder / "caller.pem").read_bytes(),
    )
    with in_thread(services, ServerOptions(tls=files(authority, mutual=True))) as running:
        assert answers(running.address, authority.credentials("caller"))
        for refused in (authority.credentials(), mixed, None):
            assert not answers(running.address, refused)
        # Not even health: there is no connection that could ask.
        with grpc.secure_channel(running.address, authority.credentials()) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            with pytest.raises(grpc.RpcError) as caught:
                check(health_pb2.HealthCheckRequest(), timeout=10)
            assert caught.value.code() is UNAVAILABLE


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_who_is_not_trusted_any_more_does_not_come_back_by_a_session(
    authority: Authority, stranger: Authority, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.ca.read_bytes())
    folder = authority.folder
    tls = TlsFiles(folder / "server.pem", folder / "server.key", ca)
    own = caller(authority, authority)
    own.maximum_version = version

    def asks(context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> Peer:
        peer = Peer(running.address, tls=context, session=session)
        peer.call(1, asked(f"/{toy.NAME}/Retrieve"), OK)
        assert peer.answer(1)[0]["grpc-status"] == "0"
        return peer

    with in_thread(services, ServerOptions(tls=tls)) as running:
        with asks(own) as peer:
            session = peer.session
        with asks(own, session) as peer:
            session = peer.session
        replace_file(ca, stranger.ca.read_bytes())
        trusted = caller(authority, stranger)

        def let_in() -> bool:
            try:
                with asks(trusted):
                    return True
            except (OSError, EOFError):
                return False

        until(let_in)
        for again in (None, session):
            with pytest.raises((OSError, EOFError)):
                asks(own, again)


def caller(server: Authority, own: Authority) -> ssl.SSLContext:
    """Trusts the one, and shows a certificate of the other."""
    context = ssl.create_default_context(cafile=str(server.ca))
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(own.folder / "caller.pem", own.folder / "caller.key")
    return context


def test_a_caller_that_never_hangs_up_holds_up_no_stop(authority: Authority) -> None:
    silent = caller(authority, authority)
    with ExitStack() as stack:
        running = stack.enter_context(in_thread(services, ServerOptions(tls=files(authority))))
        with Peer(running.address, tls=silent) as peer:
            peer.call(1, asked(f"/{toy.NAME}/Retrieve"), OK)
            peer.answer(1)
            began = time.monotonic()
            stack.close()
            assert time.monotonic() - began < 8, "grace is ten seconds"


def test_connections_that_shake_no_hands_are_bounded(authority: Authority) -> None:
    options = ServerOptions(tls=files(authority), max_connections=2)
    with in_thread(services, options) as running, ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=10))
            for _ in range(6)
        ]
        refused = 0
        for one in silent:
            one.settimeout(1)
            try:
                refused += one.recv(1) == b""
            except TimeoutError:
                pass
            except ConnectionError:
                refused += 1
        assert refused == 4


def test_the_client_takes_credentials(authority: Authority) -> None:
    with in_thread(services, ServerOptions(tls=files(authority, mutual=True))) as running:
        for name, good in (("caller", True), (None, False)):
            with SerendipClient(
                running.address, running.address, credentials=authority.credentials(name)
            ) as client:
                if good:
                    assert client.retrieve([], [1], tree_version="ok", k=7)
                else:
                    with pytest.raises(NotReady):
                        client.retrieve([], [1], tree_version="ok", k=7)


def subject(address: str, ca: Path) -> str:
    """The common name of the certificate that a server shows now."""
    context = ssl.create_default_context(cafile=str(ca))
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        certificate: Any = secured.getpeercert()
        return str(dict(pair[0] for pair in certificate["subject"])["commonName"])


def test_a_certificate_is_rotated_without_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority, registry = Authority.make(tmp_path / "authority"), CollectorRegistry()
    authority.certify("first")
    authority.certify("second")
    cert, key = tmp_path / "served.pem", tmp_path / "served.key"

    def put(path: Path, source: str) -> None:
        replace_file(path, (authority.folder / source).read_bytes())

    def failures() -> float | None:
        return registry.get_sample_value("serendip_tls_failures_total")

    put(cert, "first.pem")
    put(key, "first.key")
    options = ServerOptions(tls=TlsFiles(cert, key))
    with (
        caplog.at_level(logging.ERROR, logger="serendip"),
        in_thread(services, options, registry=registry) as running,
        grpc.secure_channel(running.address, authority.credentials()) as channel,
    ):
        kept = retriever_pb2_grpc.RetrieverStub(channel)
        assert kept.Retrieve(toy.request("ok"), timeout=10).unknown_history_items == 7
        assert subject(running.address, authority.ca) == "first"
        put(cert, "second.pem")  # without its key, for now
        until(lambda: failures() == 1)
        assert subject(running.address, authority.ca) == "first", "the last good pair holds"
        assert "is not the key of the certificate" in caplog.text
        put(key, "second.key")
        until(lambda: subject(running.address, authority.ca) == "second")
        assert kept.Retrieve(toy.request("ok"), timeout=10).unknown_history_items == 7
        assert failures() == 1


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"cert": "none.pem"}, "--tls-cert", "cannot be read.*No such file.*Name a PEM file"),
        ({"key": "none.key"}, "--tls-key", "cannot be read.*No such file"),
        ({"cert": "."}, "--tls-cert", "cannot be read.*directory"),
        ({"cert": "names"}, "--tls-key", "cannot be used with the certificate.*PEM"),
        ({"key": "names"}, "--tls-key", "cannot be used with the certificate.*PEM"),
        ({"key": "caller.key"}, "--tls-key", "is not the key of the certificate in .*server.pem"),
        ({"key": "locked.key"}, "--tls-key", "encrypted"),
        ({"key": None}, "--tls-cert", "needs --tls-key as well"),
        ({"cert": None}, "--tls-key", "needs --tls-cert as well"),
        ({"ca": "names"}, "--tls-client-ca", "holds no certificates in PEM"),
        ({"ca": "ca.key"}, "--tls-client-ca", "holds no certificates in PEM"),
        ({"ca": "none.pem"}, "--tls-client-ca", "cannot be read"),
    ],
)
def test_files_that_are_no_good_are_named_by_flag_with_a_remedy(
    authority: Authority, change: dict[str, str | None], field: str, says: str
) -> None:
    authority._run("ec", "-in", "server.key", "-aes256", "-passout", "pass:x", "-out", "locked.key")
    named = {"cert": "server.pem", "key": "server.key", "ca": None, **change}
    paths = {part: name and authority.folder / name for part, name in named.items()}
    with pytest.raises(InvalidRequest, match=says) as caught:
        TlsFiles(**paths).read()
    assert caught.value.field == field
    assert caught.value.remedy
    assert str(authority.folder) in str(caught.value)
    assert "PRIVATE" not in str(caught.value)


# --- the server behind -------------------------------------------------------------------


def upstream(address: str, authority: Authority, name: str | None) -> Upstream:
    cert, key = (name and authority.folder / f"{name}{end}" for end in (".pem", ".key"))
    tls = TlsFiles(cert, key, authority.ca, "--retriever-tls", "--retriever-tls-ca")
    return Upstream(address, tls)


def test_a_server_behind_is_reached_by_its_files(authority: Authority) -> None:
    with in_thread(services, ServerOptions(tls=files(authority, mutual=True))) as running:
        for name, good in (("caller", True), (None, False)):
            behind = upstream(running.address, authority, name).open(CollectorRegistry())
            assert behind is not None
            with behind.channel() as channel:
                stub = retriever_pb2_grpc.RetrieverStub(channel)
                if good:
                    assert stub.Retrieve(toy.request("ok"), timeout=10)
                else:
                    with pytest.raises(grpc.RpcError) as caught:
                        stub.Retrieve(toy.request("ok"), timeout=10)
                    assert caught.value.code() is UNAVAILABLE


def test_the_token_to_call_with_follows_its_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("a" * 32)
    behind = Upstream("127.0.0.1:1", token_file=path).open(CollectorRegistry())
    assert behind is not None
    assert behind.metadata() == (("authorization", f"Bearer {'a' * 32}"),)
    (watched,) = behind.watched
    path.write_text("b" * 33)
    assert watched.refresh()
    assert behind.metadata() == (("authorization", f"Bearer {'b' * 33}"),)


def test_flags_of_a_server_behind_that_do_not_fit_are_refused(authority: Authority) -> None:
    assert Upstream("").open(CollectorRegistry()) is None
    with pytest.raises(InvalidRequest, match="--retriever: is needed by the flags"):
        upstream("", authority, None).open(CollectorRegistry())
    cert, key = (authority.folder / f"caller{end}" for end in (".pem", ".key"))
    without_ca = TlsFiles(cert, key, None, "--retriever-tls", "--retriever-tls-ca")
    with pytest.raises(InvalidRequest, match="--retriever-tls-ca: is needed to show"):
        Upstream("127.0.0.1:1", without_ca).open(CollectorRegistry())
