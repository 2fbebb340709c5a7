"""How a server reaches the one behind it: address, certificates, token. Knows no service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from prometheus_client import CollectorRegistry, Counter

from serendip.core import InvalidRequest
from serendip.serving.handlers import Metadata
from serendip.serving.http2.client import Channel, Target
from serendip.serving.tls import TlsFiles, channel_credentials, client_context
from serendip.serving.tokens import read_token
from serendip.serving.watched_file import WatchedFiles

Options = Sequence[tuple[str, int | str]]


@dataclass(frozen=True)
class Upstream:
    """A server behind, as flags name it.

    Attributes:
        address: HOST:PORT; empty: there is none.
        tls: ``ca`` are the roots that its certificate must lead to, without which it is called in
            plain text; ``cert`` and ``key`` are shown to it where it wants to see some.
        token_file: has the token that it is called with; None: none is sent.
        flag: that names the address; the others begin with it.
    """

    address: str
    tls: TlsFiles = field(default_factory=TlsFiles)
    token_file: Path | None = None
    flag: str = "--retriever"

    def open(self, registry: CollectorRegistry) -> OpenUpstream | None:
        """Reads the files; None if there is no server behind.

        Raises:
            InvalidRequest: one cannot be used, or the address is missing; names the flag.
        """
        files = [*self.tls.paths, *([] if self.token_file is None else [self.token_file])]
        if files and not self.address:
            raise InvalidRequest(
                "is needed by the flags for its certificate and token",
                field=self.flag,
                remedy=f"Name its HOST:PORT, or leave out the other {self.flag}-... flags.",
            )
        if self.tls.cert is not None and self.tls.ca is None:
            raise InvalidRequest(
                "is needed to show a certificate",
                field=self.tls.ca_flag,
                remedy="Name the file with the certificates of its authority.",
            )
        return OpenUpstream(self, registry) if self.address else None


def _host_and_port(upstream: Upstream) -> tuple[str, int]:
    host, _, port = upstream.address.rpartition(":")
    bracketed = host[:1] == "[" and host[-1:] == "]"
    host = host[1:-1] if bracketed else host
    named = host and not set(host) & set("/[] ") and (bracketed or ":" not in host)
    if not named or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise InvalidRequest(
            "must be HOST:PORT",
            field=upstream.flag,
            value=upstream.address,
            remedy="Name the server's host, and the port that it takes calls at.",
        )
    return host, int(port)


class OpenUpstream:
    """A server behind, ready to be called.

    Attributes:
        watched: the file of the token, to be refreshed; empty if there is none.
    """

    def __init__(self, upstream: Upstream, registry: CollectorRegistry) -> None:
        self.address = upstream.address
        pem = upstream.tls.read()
        self._credentials = None if pem.ca is None else channel_credentials(pem)
        tls = None if pem.ca is None else client_context(pem)
        self._target = Target(*_host_and_port(upstream), tls)
        self._token: WatchedFiles[str] | None = None
        if (path := upstream.token_file) is not None:
            failures = Counter(
                "serendip_upstream_token_failures",
                "Times that the file of the token to call with had changed and could not be read.",
                registry=registry,
            )
            self._token = WatchedFiles(
                "token to call with",
                (path,),
                lambda: read_token(path, f"{upstream.flag}-token-file"),
                failures.inc,
            )
        self.watched = () if self._token is None else (self._token,)

    def channel(self, options: Options = ()) -> Any:
        """A blocking channel."""
        if self._credentials is None:
            return grpc.insecure_channel(self.address, options)
        return grpc.secure_channel(self.address, self._credentials, options)

    def in_loop(self) -> Channel:
        """A channel of the running event loop."""
        return Channel(self._target)

    def metadata(self) -> Metadata:
        """What each call to it carries."""
        if self._token is None:
            return ()
        return (("authorization", f"Bearer {self._token.value}"),)
