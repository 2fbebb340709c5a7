"""What a method of the client wants of a channel: calls, one after the other.

An operation is a generator that yields calls and is sent their responses, or the typed error that
one ended with; SerendipClient drives it with a blocking channel, AsyncSerendipClient with an
asyncio one.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """One gRPC call that an operation wants made.

    Attributes:
        request: a message; bytes, if ``raw``.
        new_deadline: whether it gets the whole timeout, and not what is left of it.
        share: of what is left, how much it may take.
        raw: whether request and response are serialised messages, and stay so.
    """

    service: Literal["planner", "recommender", "retriever"]
    method: str
    request: Any
    new_deadline: bool = False
    share: float = 1.0
    raw: bool = False

    @property
    def path(self) -> str:
        """As HTTP/2 has it."""
        return f"/serendip.v1.{self.service.title()}/{self.method}"


Operation = Generator[Call, Any, T]
