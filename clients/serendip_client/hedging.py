"""When a call that takes long is made a second time, so that one slow server is not waited for.

Knows no channel: the clients make the calls.
"""

from __future__ import annotations

import math
import threading
from collections import deque

from serendip.core import InvalidRequest

# The most that a wait for an answer is known by, a method; below the least nothing is hedged.
_RECENT, _LEAST = 128, 20
# A second call for every tenth, and as many at once as a slow spell of a hundred calls may have.
_A_CALL, _MOST = 0.1, 10.0
# A live plan is the dearest that there is to ask for: never twice.
_NEVER = {"PlanContent"}


class Hedging:
    """How long each method's answers take of late, and how many second calls are left.

    Threads may share one.

    Args:
        after_s: seconds after which a call is made again; None: once it has taken longer than
            95 of 100 recent ones of its method.
    """

    def __init__(self, after_s: float | None = None) -> None:
        if after_s is not None and not after_s > 0:
            raise InvalidRequest("must be above 0", field="hedge_after_s", value=after_s)
        self._after_s = after_s
        self._took: dict[str, deque[float]] = {}
        self._budget = 1.0
        self._lock = threading.Lock()

    def begin(self, method: str) -> float | None:
        """Seconds after which the call that begins may be made again; None: it may not."""
        with self._lock:
            self._budget = min(_MOST, self._budget + _A_CALL)
            if method in _NEVER:
                return None
            if self._after_s is not None:
                return self._after_s
            took = self._took.get(method, ())
            if len(took) < _LEAST:
                return None
            return sorted(took)[math.ceil(0.95 * len(took)) - 1]

    def spend(self) -> bool:
        """Whether one more second call is within the budget; counts it."""
        with self._lock:
            if self._budget < 1:
                return False
            self._budget -= 1
            return True

    def answered(self, method: str, seconds: float) -> None:
        """Notes how long an answer took."""
        with self._lock:
            self._took.setdefault(method, deque(maxlen=_RECENT)).append(seconds)
