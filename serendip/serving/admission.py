"""Which calls a server takes at all: a bounded number, and none that would be late.

By Little's law a call that finds n others before it takes about n times the seconds that the
server spends on one. Those seconds are measured, so the estimate holds whatever is short: the
event loop, the batch thread, or the core that both share. Knows no gRPC and no request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from serendip.core import InvalidRequest, NotReady, Overloaded

MAX_RETRY_AFTER_S = 30.0
# So many calls are taken whatever the estimate says: below it, a pace measured while little was to
# do says nothing of what the server could do.
FREE = 8
MARGIN = 1.5  # as the batcher's: of what is expected to end at its deadline, half ends after it
_MIN_RETRY_AFTER_S = 0.01
_SMOOTHING = 0.05  # of one call; a spell of 20 calls changes the pace


class Admission:
    """Counts the calls in flight; to be used by one event loop.

    Args:
        max_in_flight: most calls at a time.
        refuses_late: whether a call is refused that by the pace of all calls together would miss
            its deadline; for calls that are alike. What ``enter`` is told of turns counts always.
        on_refused: told why a call is refused: "in_flight", "late" or "stopping".
    """

    def __init__(
        self,
        max_in_flight: int,
        refuses_late: bool = True,
        on_refused: Callable[[str], None] = lambda why: None,
    ) -> None:
        if max_in_flight < 1:
            raise InvalidRequest("must be at least 1", field="max_in_flight", value=max_in_flight)
        self._max = max_in_flight
        self._free = FREE if refuses_late else max_in_flight
        self._on_refused = on_refused
        self._seconds = 0.0  # smoothed seconds from a call's start to its end
        self._found = 1.0  # smoothed calls in flight at a call's start, itself included
        self._closed = False
        self._last_s = 0.0  # time.monotonic() of the last refusal
        self.in_flight = 0

    @property
    def full(self) -> bool:
        """Whether no call is taken now."""
        return self._closed or self.in_flight >= self._max

    @property
    def pace_s(self) -> float:
        """Seconds that the server spends on a call, by the recent ones; 0 before the first."""
        return self._seconds / self._found

    def wait_s(self) -> float:
        """Seconds until a call that came now would be answered, by the recent pace."""
        return (self.in_flight + 1) * self.pace_s

    def enter(self, deadline: float | None, turn_s: float = 0.0) -> int:
        """Takes a call; returns what ``leave`` wants to know.

        Args:
            deadline: time.monotonic() in seconds, None if the caller set none.
            turn_s: seconds until those that wait for the event loop, and this one, have had it.

        Raises:
            Overloaded: too many are in flight, or it would be late.
            NotReady: it is closed.
        """
        if self.full:
            raise self.refused()
        if deadline is not None:
            wait_s = max(turn_s, self.wait_s() if self.in_flight >= self._free else 0.0)
            left_s = deadline - time.monotonic()
            if MARGIN * wait_s > left_s:
                self._on_refused("late")
                raise Overloaded(
                    f"would take {wait_s:.3f} s, {max(left_s, 0):.3f} s are left",
                    retry_after_s=_bounded(wait_s),
                )
        self.in_flight += 1
        return self.in_flight

    def leave(self, found: int, seconds: float | None) -> None:
        """Ends a call.

        Args:
            found: what ``enter`` returned.
            seconds: how long it took; None if it was not answered, which tells no pace.
        """
        self.in_flight -= 1
        if seconds is not None:
            self._seconds += _SMOOTHING * (seconds - self._seconds)
            self._found += _SMOOTHING * (found - self._found)

    def refused(self) -> Overloaded | NotReady:
        """What a call is told that is not taken, for the server is full or closed; counts it."""
        self._last_s = time.monotonic()
        if self._closed:
            self._on_refused("stopping")
            return NotReady("the server is stopping", remedy="Try another one.")
        self._on_refused("in_flight")
        return Overloaded(
            f"{self.in_flight} calls are in flight", retry_after_s=_bounded(self.wait_s())
        )

    async def close(self, quiet_s: float = 0.05, most_s: float = 0.5) -> None:
        """Takes no more calls; returns when none has come for a while.

        What the front has not brought here when it is stopped, it ends as cancelled, and nobody
        tries that again; what is refused here is unavailable, and tried elsewhere.
        """
        self._closed = True
        began = self._last_s = time.monotonic()
        while (now := time.monotonic()) - self._last_s < quiet_s and now - began < most_s:
            await asyncio.sleep(quiet_s / 5)


def _bounded(seconds: float) -> float:
    return round(min(max(seconds, _MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S), 3)
