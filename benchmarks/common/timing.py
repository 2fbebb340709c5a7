"""Times of things that are compared: taken in turns, in one run."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
import numpy.typing as npt

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of malloc.h

Times = npt.NDArray[np.float64]
T = TypeVar("T")


def keep_memory() -> None:
    """Lets malloc keep what is freed: a large result then costs its computation, every time, and
    no first touch of new pages. Without glibc nothing is changed.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def interleaved(
    calls: Mapping[str, Callable[[], object]], repetitions: int, *, least_s: float = 0.01
) -> dict[str, Times]:
    """CPU seconds a call: float64[repetitions] of each, all taken in turns after a warm-up.

    CPU time, so that another job on the core is not counted; a repetition is as many calls in a
    row as last ``least_s``.
    """
    counts = {}
    for name, call in calls.items():
        call()
        began = time.process_time()
        call()
        once = time.process_time() - began
        counts[name] = max(1, round(least_s / max(once, 1e-6)))
    names = list(calls)
    found: dict[str, list[float]] = {name: [] for name in names}
    for i in range(repetitions):
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            call, count = calls[name], counts[name]
            began = time.process_time()
            for _ in range(count):
                call()
            found[name].append((time.process_time() - began) / count)
    return {name: np.array(values) for name, values in found.items()}


def clocks(call: Callable[[], T]) -> tuple[float, float, T]:
    """(wall seconds, CPU seconds of this process, result) of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def shown(times: Times, unit: float) -> str:
    """Median and range, in a unit of so many seconds."""
    low, middle, high = (
        f"{q:,.0f}" if q >= 100 else f"{q:.3g}"
        for q in (times.min() / unit, np.median(times) / unit, times.max() / unit)
    )
    return f"{middle} ({low}-{high})" if len(times) > 1 else middle
