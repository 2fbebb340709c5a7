"""Who may call, and how often: a call's token to a client's name, and that client's rate.

    authorization: Bearer TOKEN ──> name ──> rate ──> taken
                Unauthenticated └────────────┴ Overloaded, with the seconds to wait

Knows no gRPC: it is asked with a call's metadata, before its request is read.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter

from serendip.core import InvalidRequest, Overloaded, SerendipError, Unauthenticated
from serendip.serving.handlers import Metadata
from serendip.serving.tokens import Tokens, read_tokens
from serendip.serving.watched_file import WatchedFiles

_SCHEME = "bearer "
_SEND = "Send the metadata `authorization: Bearer TOKEN`."


@dataclass(frozen=True)
class Rate:
    """Calls that each client may make of one process.

    Attributes:
        per_s: in the long run; above 0.
        burst: at once, after a silence; at least 1.
    """

    per_s: float
    burst: float

    def __post_init__(self) -> None:
        if not self.per_s > 0:
            raise InvalidRequest("must be above 0", field="--rate-limit", value=self.per_s)
        if not self.burst >= 1:
            raise InvalidRequest("must be at least 1", field="--rate-burst", value=self.burst)


class Bucket:
    """A token bucket, kept as the one time at which it will be full again.

    Args:
        now: time.monotonic() in seconds, here and below.
    """

    def __init__(self, rate: Rate, now: float) -> None:
        self._step_s = 1 / rate.per_s
        self._most_s = (rate.burst - 1) * self._step_s
        self._full_at = now

    def take(self, now: float) -> float:
        """Takes one call's worth and returns 0; or takes nothing, and returns seconds to wait."""
        full_at = max(self._full_at, now)
        wait_s = full_at - now - self._most_s
        if wait_s > 1e-9:
            return wait_s
        self._full_at = full_at + self._step_s
        return 0.0


class Guard:
    """Admits calls; to be used by one event loop.

    Args:
        tokens: a file of tokens, read again when it changes (``watched``).
        rate: of each client; None: any.

    Raises:
        InvalidRequest: the file cannot be read.
    """

    def __init__(self, tokens: Path, rate: Rate | None, registry: CollectorRegistry) -> None:
        failures = Counter(
            "serendip_tokens_failures",
            "Times that the file of tokens had changed and could not be read.",
            registry=registry,
        )
        self._calls = Counter(
            "serendip_client_calls",
            "Calls with a client's token, those beyond its rate included.",
            ("client",),
            registry=registry,
        )
        self._limited = Counter(
            "serendip_client_limited",
            "Calls beyond a client's rate.",
            ("client",),
            registry=registry,
        )
        self._refused = Counter(
            "serendip_unauthenticated",
            "Calls without a token that the file has.",
            registry=registry,
        )
        self.watched = WatchedFiles("tokens", (tokens,), lambda: read_tokens(tokens), failures.inc)
        self._rate = rate
        self._buckets: dict[str, Bucket] = {}
        self._shown: Tokens | None = None

    def admit(self, metadata: Metadata) -> tuple[str, SerendipError | None]:
        """Returns the client's name ("": not known), and why the call is refused; None: it is not.

        Unauthenticated: no token came, or one that the file does not have (any more).
        Overloaded: the client has called too often.
        """
        tokens = self.watched.value
        if tokens is not self._shown:
            self._show(tokens)
        token = _token(metadata)
        name = None if token is None else tokens.name_of(token)
        if name is None:
            self._refused.inc()
            said = "the call has no token" if token is None else "the call's token is not known"
            return "", Unauthenticated(said, remedy=_SEND)
        self._calls.labels(name).inc()
        return name, None if self._rate is None else self._limited_by(self._rate, name)

    def _limited_by(self, rate: Rate, name: str) -> Overloaded | None:
        now = time.monotonic()
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = Bucket(rate, now)
        if wait_s := bucket.take(now):
            self._limited.labels(name).inc()
            return Overloaded(
                f"client {name} has made more than {rate.per_s:g} calls a second",
                retry_after_s=max(0.001, round(wait_s, 3)),
            )
        return None

    def _show(self, tokens: Tokens) -> None:
        """Label values are the file's names, no more and no fewer."""
        gone = (self._shown.names if self._shown is not None else frozenset()) - tokens.names
        for name in gone:
            self._calls.remove(name)
            self._limited.remove(name)
            self._buckets.pop(name, None)
        for name in tokens.names:
            self._calls.labels(name)
            self._limited.labels(name)
        self._shown = tokens


def _token(metadata: Metadata) -> str | None:
    for key, value in metadata:
        if key == "authorization" and isinstance(value, str):
            return (
                value[len(_SCHEME) :].strip() if value[: len(_SCHEME)].lower() == _SCHEME else None
            )
    return None
