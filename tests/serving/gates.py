"""What tests of the batcher stand on: a run that can be held shut, and an observer."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from serendip.serving.batching import Batcher


def go(main: Callable[[], Awaitable[None]]) -> None:
    """Runs a test's coroutine; one that hangs fails."""

    async def bounded() -> None:
        await asyncio.wait_for(main(), 20)

    asyncio.run(bounded())


class Gate:
    """A ``run`` that can be held shut; remembers its batches."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, batch: list[int]) -> list[int]:
        self.batches.append(list(batch))
        self.entered.set()
        assert self.open.wait(10)
        return [row * 10 for row in batch]

    async def occupied(self, batcher: Batcher[int, int]) -> asyncio.Task[int]:
        """Fills the worker with row 0, so that what comes next waits."""
        first = asyncio.create_task(batcher.submit(0))
        await asyncio.to_thread(self.entered.wait, 10)
        return first


class Told:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.waits: list[float] = []
        self.others: Counter[tuple[str, str]] = Counter()

    def ran(self, rows: int) -> None:
        self.batches.append(rows)

    def waited(self, seconds: float) -> None:
        self.waits.append(seconds)

    def dropped(self, why: str, rows: int) -> None:
        self.others["dropped", why] += rows

    def refused(self, why: str, rows: int) -> None:
        self.others["refused", why] += rows


async def settled(tasks: Sequence[asyncio.Task[Any]], batcher: Batcher[Any, Any], n: int) -> None:
    while batcher.waiting != n:
        assert not all(task.done() for task in tasks), "nothing waits"
        await asyncio.sleep(0.001)
