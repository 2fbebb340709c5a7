"""Calls have the event loop one after another, and between those that take long it reads.

    read ──> has its turn: its servicer runs until it awaits something
      └ others have had the loop for a while: it waits, and what has come meanwhile is read first

Else a pass of the loop would run all that wait, one long call after the other, while deadlines run
out in sockets that nobody reads. Calls of large requests, which most likely take longer to answer,
wait in a lane of their own, so that small ones come between them. Knows no call.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

LARGE = 4096  # bytes of a request
# What calls of a lane have of the loop until it reads. As long as 60 look-ups: who is read later
# than that has not noticed it.
_SLICE_S, _SLICE_OF_LARGE_S = 0.002, 0.0001
_SMOOTHING = 0.1  # of one turn
# A pause of the whole process says nothing of calls: no turn counts as longer than this many times
# the pace and a millisecond.
_MOST_GROWTH, _MOST_STEP_S = 4.0, 0.001
_DOUBTED_S = 0.0005  # a pace that could turn callers away is looked at in every turn
_LEAST_S = 1e-5


class _Lane:
    """Calls that are alike in the size of their requests.

    Attributes:
        waiting: calls that have not had their turn.
        sleeping: those of them that wait for the loop to have read, first come, first served.
        woken_early: those that it was nothing for, since one before them took longer than expected.
        first: whether the next one that wakes is the first since the loop has read.
        pace_s: smoothed seconds of a turn.
    """

    __slots__ = ("first", "pace_s", "sleeping", "slice_s", "waiting", "woken_early")

    def __init__(self, slice_s: float) -> None:
        self.slice_s = slice_s
        self.waiting = 0
        self.sleeping: deque[asyncio.Future[None]] = deque()
        self.woken_early: deque[asyncio.Future[None]] = deque()
        self.first = False
        self.pace_s = 0.0

    def learn(self, seconds: float) -> None:
        most_s = _MOST_GROWTH * self.pace_s + _MOST_STEP_S
        self.pace_s += _SMOOTHING * (min(seconds, most_s) - self.pace_s)

    def wake(self) -> None:
        """Lets so many go on as a slice has room for, and one at least."""
        self.sleeping.extendleft(reversed(self.woken_early))
        self.woken_early.clear()
        room = max(1, int(self.slice_s / max(self.pace_s, _LEAST_S)))
        self.first = False
        while room and self.sleeping:
            turn = self.sleeping.popleft()
            if not turn.done():  # its call has not been given up
                turn.set_result(None)
                self.first = True
                room -= 1


class LoopQueue:
    """Who waits for the event loop, and for how long; to be used by that loop alone."""

    __slots__ = ("_began_s", "_lanes", "_last", "_since_s", "_waking")

    def __init__(self) -> None:
        self._lanes = _Lane(_SLICE_S), _Lane(_SLICE_OF_LARGE_S)
        self._since_s = 0.0  # since when calls have had the loop, without anything being read
        self._began_s = 0.0  # when the last turn began
        self._last: _Lane | None = None  # whose turn it was, if the next one came at its end
        self._waking = False

    @property
    def pace_s(self) -> float:
        """Seconds of a turn, by the lane in which they take longer."""
        return max(lane.pace_s for lane in self._lanes)

    def wait_s(self, large: bool) -> float:
        """Seconds until a call that came now would be through; 0 where none waits."""
        wait_s = sum([lane.waiting * lane.pace_s for lane in self._lanes])
        return wait_s + self._lanes[large].pace_s if wait_s else 0.0

    def join(self, now_s: float, large: bool) -> None:
        """A call has been read, at this time.monotonic().

        Args:
            large: whether its request has more than ``LARGE`` bytes.
        """
        self._lanes[large].waiting += 1
        self._since_s = now_s

    def leave(self, large: bool) -> None:
        """A call that joined has had its turn, or does not wait for it any more."""
        small, other = self._lanes
        self._lanes[large].waiting -= 1
        if not small.waiting and not other.waiting:
            self._last = None  # the next turn will not come at this one's end

    async def take(self, large: bool) -> float:
        """Returns the time.monotonic() at which a call that joined has its turn."""
        lane = self._lanes[large]
        now_s = time.monotonic()
        if lane.sleeping or lane.woken_early or now_s - self._since_s > lane.slice_s:
            row = lane.sleeping
            while True:
                turn = asyncio.get_running_loop().create_future()
                row.append(turn)
                if not self._waking:
                    self._wake_soon()
                await turn
                now_s = time.monotonic()
                if lane.first or now_s - self._since_s <= lane.slice_s:
                    break
                row = lane.woken_early
            lane.first = False
        self._begin(lane, now_s)
        return now_s

    def _begin(self, lane: _Lane, now_s: float) -> None:
        if self._last is not None:
            self._last.learn(now_s - self._began_s)
        self._began_s = now_s
        small, other = self._lanes
        if small.waiting + other.waiting > 1:
            self._last = lane
        elif lane.pace_s > _DOUBTED_S:
            asyncio.get_running_loop().call_soon(self._end, lane, now_s)

    def _end(self, lane: _Lane, began_s: float) -> None:
        """A turn has ended that nobody waited behind."""
        if self._began_s == began_s:
            lane.learn(time.monotonic() - began_s)

    def _wake_soon(self) -> None:
        self._waking = True
        asyncio.get_running_loop().call_soon(self._wake)

    def _wake(self) -> None:
        """Runs once the loop has read, and so long as calls sleep."""
        self._waking = False
        self._since_s = time.monotonic()
        for lane in self._lanes:
            lane.wake()
        if any(lane.sleeping for lane in self._lanes):
            self._wake_soon()
