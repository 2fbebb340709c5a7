"""Calls have the event loop one after another, and between those that take long it reads.

    read ──> waits ──> has its turn: its servicer runs until it awaits something
                 └ others have had the loop for a while: what has come is read first

Else a pass of the loop would run all that wait, one long call after the other, while deadlines run
out in sockets that nobody reads. Knows no call.
"""

from __future__ import annotations

import asyncio
import time

# Several dozen look-ups: who is read later than that has not noticed it. What was long to read is
# long to answer, most likely, and shares with short ones: it lets them in sooner.
_SLICE_S, _SLICE_OF_LARGE_S = 0.001, 0.0001
LARGE = 4096  # bytes of a request
_SMOOTHING = 0.05  # of one call
# A pause of the whole process says nothing of calls: a pace grows by a few milliseconds at most at
# once, and by some part of itself.
_MOST_GROWTH, _MOST_STEP_S = 4.0, 0.001


class LoopQueue:
    """Who waits for the event loop, and for how long; to be used by that loop alone."""

    __slots__ = ("_began_s", "_others_wait", "_pace_s", "_passes", "_since_s", "_waiting")

    def __init__(self) -> None:
        self._waiting = 0
        self._since_s = 0.0  # since when calls have had the loop, without anything being read
        self._passes = 0  # of the loop, in which calls had their turn
        self._began_s = 0.0  # when the last turn began
        self._others_wait = False  # whether there was a next one then
        self._pace_s = 0.0  # smoothed seconds from one turn to the next while calls wait

    @property
    def wait_s(self) -> float:
        """Seconds until a call that came now would be through; 0 where none waits."""
        return (self._waiting + 1) * self._pace_s if self._waiting else 0.0

    def join(self, now_s: float) -> None:
        """A call has been read, at this time.monotonic()."""
        self._waiting += 1
        self._since_s = now_s

    def leave(self) -> None:
        """A call that was queued has its turn, or does not wait for it any more."""
        self._waiting -= 1

    async def take(self, large: bool = False) -> float:
        """Returns the time.monotonic() at which the call, which is queued, has its turn.

        Args:
            large: whether its request has more than ``LARGE`` bytes.
        """
        slice_s = _SLICE_OF_LARGE_S if large else _SLICE_S
        now_s = time.monotonic()
        while now_s - self._since_s > slice_s:
            passes = self._passes
            await asyncio.sleep(0)
            now_s = time.monotonic()
            if passes == self._passes:  # the first one since all that came was read
                self._passes += 1
                self._since_s = now_s
                break
        if self._others_wait:
            most_s = _MOST_GROWTH * self._pace_s + _MOST_STEP_S
            self._pace_s += _SMOOTHING * (min(now_s - self._began_s, most_s) - self._pace_s)
        self._began_s = now_s
        self._others_wait = self._waiting > 1
        return now_s
