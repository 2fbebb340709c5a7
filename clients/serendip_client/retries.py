"""Which failed calls are made again, and which of two failures is told.

Knows no channel.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import grpc

from serendip.core import SerendipError
from serendip.wire import error_from_rpc

TRIES = 3
_PUSHBACK_KEY = "grpc-retry-pushback-ms"

# A server that is away is tried again, for at most about 0.3 s. A full one is not: in a service
# config RESOURCE_EXHAUSTED would be tried again without a pushback as well; what has one, the
# drivers below try again. What an answer was lost of may have been done.
SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": TRIES,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)


def typed(error: Any) -> SerendipError:
    """The error of core that a gRPC error stands for; that one is its cause."""
    found = error_from_rpc(
        error.code().value[0], error.details() or "", error.trailing_metadata() or ()
    )
    found.__cause__ = error
    return found


def pushback_s(error: Any) -> float | None:
    """Seconds after which a full server wants the call again; None if it does not say so."""
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        for key, value in error.trailing_metadata() or ():
            if key == _PUSHBACK_KEY and value.isdecimal():  # -1: not at all
                return int(value) / 1000
    return None


def is_final(error: Any) -> bool:
    """Whether another call would fail alike."""
    return error.code() not in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    )


def likeliest(failures: Sequence[Any]) -> Any:
    """Of what the calls of a hedge failed with, what is told: the first that is final, if any."""
    return next((error for error in failures if is_final(error)), failures[0])
