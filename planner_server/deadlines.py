"""What a call keeps of its time, to answer in once something has been waited for in vain."""

from __future__ import annotations

import time

_SHARE, _LEAST_S, _MOST_S = 0.1, 0.02, 0.5


def waits_until(deadline: float) -> float:
    """When waiting ends: a tenth of the time before the deadline, 20 ms to half a second.

    Of a time that is shorter than that, half is kept.

    Args:
        deadline: time.monotonic() in seconds, as is what it returns.
    """
    left_s = deadline - time.monotonic()
    return deadline - min(max(_SHARE * left_s, _LEAST_S), _MOST_S, 0.5 * max(left_s, 0.0))
