"""Certificates by file, for a server and for a channel to another one; read again when they change.

Python's own ssl checks what the files hold, so that a key of another certificate is found here and
not at a caller's handshake.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from serendip.core import InvalidRequest
from serendip.serving.watched_file import WatchedFiles, read_file


@dataclass(frozen=True)
class TlsFiles:
    """PEM files, each None where it is not given.

    Attributes:
        cert: the own certificate, followed by those between it and the root.
        key: its private key, not encrypted.
        ca: the roots that the other side's certificate must lead to.
        prefix: of the flags that name them.
    """

    cert: Path | None = None
    key: Path | None = None
    ca: Path | None = None
    prefix: str = "--tls"
    ca_flag: str = "--tls-client-ca"

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that are given."""
        return tuple([path for path in (self.cert, self.key, self.ca) if path is not None])

    def read(self) -> Pem:
        """Reads and checks the files.

        Raises:
            InvalidRequest: one is missing, is not PEM, or the key is another certificate's; names
                the flag.
        """
        if (self.cert is None) != (self.key is None):
            given, lacking = ("cert", "key") if self.key is None else ("key", "cert")
            raise InvalidRequest(
                f"needs {self.prefix}-{lacking} as well",
                field=f"{self.prefix}-{given}",
                value=str(getattr(self, given)),
                remedy="Name both files.",
            )
        cert = key = ca = None
        if self.cert is not None and self.key is not None:
            cert = _read(self.cert, f"{self.prefix}-cert")
            key = _read(self.key, f"{self.prefix}-key")
            self._check_pair(self.cert, self.key)
        if self.ca is not None:
            ca = _read(self.ca, self.ca_flag)
            _check_roots(ca, self.ca, self.ca_flag)
        return Pem(cert, key, ca)

    def _check_pair(self, cert: Path, key: Path) -> None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                cert, key, password=_no_password
            )
        except (ssl.SSLError, OSError, ValueError) as e:
            reason = getattr(e, "reason", None) or str(e)
            if reason == "KEY_VALUES_MISMATCH":
                message, remedy = (
                    f"is not the key of the certificate in {cert}",
                    "Name the key that the certificate was made for.",
                )
            else:
                message, remedy = (
                    f"cannot be used with the certificate in {cert} ({reason})",
                    "Both must be PEM, the key not encrypted.",
                )
            raise InvalidRequest(
                message, field=f"{self.prefix}-key", value=str(key), remedy=remedy
            ) from e


@dataclass(frozen=True)
class Pem:
    """What the files hold."""

    cert: bytes | None
    key: bytes | None
    ca: bytes | None


class _Latest(ssl.SSLContext):
    """Each new connection's context is the latest one, of which it knows nothing by itself.

    A context keeps what it has agreed on with callers, so that they come back sooner. One that had
    its certificate changed by ``sni_callback`` would take back who showed it a certificate that is
    not taken any more.
    """

    watched: WatchedFiles[Pem]
    pem: Pem | None = None
    made: ssl.SSLContext

    def latest(self) -> ssl.SSLContext:
        """The context of the files as they are."""
        pem = self.watched.value
        if pem is not self.pem:
            self.made, self.pem = _server_context(pem), pem
        return self.made

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:  # what asyncio asks for
        return self.latest().wrap_bio(*args, **options)


def server_context(watched: WatchedFiles[Pem]) -> ssl.SSLContext:
    """A context for asyncio that gives each new connection one of the latest files, for HTTP/2."""
    context = _Latest(ssl.PROTOCOL_TLS_SERVER)
    context.watched = watched
    context.latest()
    return context


def _server_context(pem: Pem) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _prepare(context, pem)
    if pem.ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=pem.ca.decode("ascii"))
    return context


def client_context(pem: Pem) -> ssl.SSLContext:
    """A context for calls to a server whose certificate leads to the roots, by HTTP/2."""
    assert pem.ca is not None
    context = ssl.create_default_context(cadata=pem.ca.decode("ascii"))
    _prepare(context, pem)
    return context


def _prepare(context: ssl.SSLContext, pem: Pem) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # As for gRPC's own: an authority between a certificate and its root is one to trust.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.set_alpn_protocols(["h2"])
    if pem.cert is None or pem.key is None:
        return
    with _in_a_file(pem.cert + b"\n" + pem.key) as path:
        context.load_cert_chain(path, password=_no_password)


@contextlib.contextmanager
def _in_a_file(data: bytes) -> Iterator[str]:
    """ssl takes a chain from a file alone: in memory where there are such files (Linux)."""
    if not hasattr(os, "memfd_create"):
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            yield file.name
        return
    number = os.memfd_create("chain")
    try:
        with open(number, "wb", closefd=False) as file:
            file.write(data)
        yield f"/proc/self/fd/{number}"
    finally:
        os.close(number)


def server_credentials(watched: WatchedFiles[Pem]) -> Any:
    """grpc.ServerCredentials that show each new connection the latest certificate."""

    def latest() -> Any:
        pem = watched.value
        return grpc.ssl_server_certificate_configuration([(pem.key, pem.cert)], pem.ca)

    return grpc.dynamic_ssl_server_credentials(
        latest(), latest, require_client_authentication=watched.value.ca is not None
    )


def channel_credentials(pem: Pem) -> Any:
    """grpc.ChannelCredentials; roots that are None are those that gRPC brings."""
    return grpc.ssl_channel_credentials(pem.ca, pem.key, pem.cert)


def _read(path: Path, flag: str) -> bytes:
    return read_file(path, flag, "Name a PEM file that the server may read.")


def _check_roots(pem: bytes, path: Path, flag: str) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem.decode("ascii"))
    except (ssl.SSLError, ValueError) as e:
        raise InvalidRequest(
            "holds no certificates in PEM",
            field=flag,
            value=str(path),
            remedy="Name the file with the certificates of the authority.",
        ) from e


def _no_password() -> bytes:
    """Asked for where a key is encrypted; without it a terminal would be asked."""
    raise ValueError("the key is encrypted")
