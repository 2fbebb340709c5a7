"""What one connection may ask of the server: how much at a time, and how much that is no call.

Knows no socket.
"""

from __future__ import annotations

from dataclasses import dataclass

_BURST = 1000.0
_PER_S = 100.0


@dataclass(frozen=True)
class Bounds:
    """Of each connection.

    Attributes:
        max_streams: calls that are open at a time; the next is refused (REFUSED_STREAM), which a
            client tries again.
        keepalive_s: seconds of silence after which the peer is asked whether it is there; it has as
            long to answer.
        min_ping_s: seconds between two pings of a client to which nothing was sent meanwhile; the
            third that comes sooner ends the connection.
        max_unsent_bytes: beyond this, nothing more is read from a client until it has read.
        max_unsent_data: bytes of answers that may wait for a client's windows; an answer beyond it
            is a reset.
    """

    max_streams: int = 200
    keepalive_s: float = 60.0
    min_ping_s: float = 10.0
    max_unsent_bytes: int = 256 << 10
    max_unsent_data: int = 64 << 20


class Patience:
    """A budget for frames that bring no call forward: floods of resets, pings, settings.

    It grows with the time and with every call that is answered, so that a client may give up as
    many calls as it likes to see answered (CVE-2023-44487 is the one that sees none).
    """

    def __init__(self, now: float) -> None:
        self._left = _BURST
        self._at = now

    def earn(self) -> None:
        """A call was answered."""
        if self._left < _BURST:
            self._left += 1

    def spend(self, now: float) -> bool:
        """Whether another such frame is borne."""
        self._left = min(_BURST, self._left + (now - self._at) * _PER_S) - 1
        self._at = now
        return self._left >= 0
