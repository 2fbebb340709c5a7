"""The time that work takes on a device."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

Times = npt.NDArray[np.float64]
T = TypeVar("T")


def once(device: torch.device, call: Callable[[], T]) -> tuple[float, T]:
    """Seconds of one call, and its result: wall-clock to the end of what a GPU was given; on a
    CPU the process's own seconds, so that another job on the core is not counted.
    """
    if device.type != "cuda":
        began = time.process_time()
        result = call()
        return time.process_time() - began, result
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    result = call()
    torch.cuda.synchronize(device)
    return time.perf_counter() - began, result


def seconds(device: torch.device, call: Callable[[], object], repetitions: int) -> Times:
    """float64[repetitions] of a call, after one to warm up."""
    call()
    return np.array([once(device, call)[0] for _ in range(repetitions)])


def peak_bytes(device: torch.device, call: Callable[[], object]) -> int:
    """The most bytes of a GPU that were in use during a call; 0 where it is no GPU."""
    if device.type != "cuda":
        call()
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device))
