"""Calls that would wait too long are refused at once, and told when to come back."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from gates import Gate, Told, go, settled

from serendip.core import DeadlineSpent, InvalidRequest, Overloaded
from serendip.serving.batching import Batcher, _Rate


def test_a_full_queue_refuses_and_tells_when_to_come_back() -> None:
    async def main() -> None:
        gate = Gate()
        batcher: Batcher[int, int] = Batcher(gate, max_batch=2, max_waiting=3)
        tasks = [await gate.occupied(batcher)]
        tasks += [asyncio.create_task(batcher.submit(row)) for row in (1, 2)]
        await settled(tasks, batcher, 2)
        with pytest.raises(Overloaded):
            await batcher.submit_many([3, 4])
        tasks.append(asyncio.create_task(batcher.submit(3)))
        await settled(tasks, batcher, 3)
        with pytest.raises(Overloaded) as caught:
            await batcher.submit(4)
        assert 0 < caught.value.retry_after_s <= 30
        with pytest.raises(InvalidRequest):
            await batcher.submit_many([1, 2, 3, 4])  # would be refused for ever
        tasks.pop().cancel()
        await settled(tasks, batcher, 2)
        tasks.append(asyncio.create_task(batcher.submit(5)))  # a cancelled row made room
        gate.open.set()
        assert await asyncio.gather(*tasks) == [0, 10, 20, 50]
        await batcher.close()

    go(main)


def test_the_time_to_come_back_follows_the_rate_and_bounds_the_wait() -> None:
    async def main() -> None:
        release = threading.Event()

        def run(batch: list[int]) -> list[int]:
            if batch == [0]:
                time.sleep(0.1)  # the rate: 0.1 s a row
            else:
                release.wait(10)
            return batch

        batcher: Batcher[int, int] = Batcher(run, max_batch=1, max_waiting=100, max_wait_s=0.5)
        await batcher.submit(0)
        tasks = [asyncio.create_task(batcher.submit(1))]
        while batcher.waiting == 0 and not tasks[0].done():
            await asyncio.sleep(0)
        retry_after_s = 0.0
        for row in range(2, 20):
            tasks.append(asyncio.create_task(batcher.submit(row)))
            await asyncio.sleep(0)
            if tasks[-1].done():
                with pytest.raises(Overloaded) as caught:
                    await tasks.pop()
                retry_after_s = caught.value.retry_after_s
                break
        assert 0.5 <= retry_after_s < 3
        assert 2 <= len(tasks) <= 8, "0.5 s are about 5 rows of 0.1 s"
        release.set()
        await asyncio.gather(*tasks)
        await batcher.close()

    go(main)


def test_what_would_be_late_is_refused_at_once() -> None:
    async def main() -> None:
        release = threading.Event()

        def run(batch: list[int]) -> list[int]:
            if batch == [0]:
                time.sleep(0.1)  # the rate: 0.1 s a row
            else:
                release.wait(10)
            return batch

        told = Told()
        batcher: Batcher[int, int] = Batcher(run, max_batch=1, observer=told)
        soon = time.monotonic() + 0.05
        assert await batcher.submit(0, soon) == 0, "no rate is known: it is tried"
        with pytest.raises(DeadlineSpent):
            await batcher.submit(1, soon)
        # Nothing waits: it is tried again, or a bad moment's rate would stay for ever.
        tasks = [asyncio.create_task(batcher.submit(2, time.monotonic() + 0.05))]
        while batcher.waiting or not batcher._running:
            await asyncio.sleep(0.001)
        tasks += [asyncio.create_task(batcher.submit(row)) for row in (3, 4)]
        await settled(tasks, batcher, 2)
        began = time.monotonic()
        with pytest.raises(Overloaded) as caught:
            await batcher.submit(5, began + 0.4)  # 4 rows of 0.1 s, and a margin
        assert time.monotonic() - began < 0.1
        assert 0.1 < caught.value.retry_after_s < 1
        tasks.append(asyncio.create_task(batcher.submit(6, began + 20)))
        await settled(tasks, batcher, 3)
        with pytest.raises(Overloaded):
            await batcher.submit_many(list(range(10)), began + 1.0)  # its own rows count
        assert told.others["refused", "late"] == 11
        release.set()
        assert await asyncio.gather(*tasks) == [2, 3, 4, 6]
        await batcher.close()

    go(main)


def test_what_is_run_dropped_and_refused_is_told() -> None:
    async def main() -> None:
        told = Told()
        gate = Gate()
        batcher: Batcher[int, int] = Batcher(gate, max_batch=2, max_waiting=5, observer=told)
        tasks = [await gate.occupied(batcher)]
        tasks += [asyncio.create_task(batcher.submit(row)) for row in (1, 2, 3)]
        many = asyncio.create_task(batcher.submit_many([4, 5]))
        await settled(tasks, batcher, 5)
        with pytest.raises(Overloaded):
            await batcher.submit(6)
        many.cancel()
        late = asyncio.create_task(batcher.submit(7, time.monotonic() + 0.02))
        await settled(tasks, batcher, 4)
        await asyncio.sleep(0.03)
        gate.open.set()
        await asyncio.gather(*tasks)
        with pytest.raises(DeadlineSpent):
            await late
        assert told.batches == [1, 2, 1]
        assert told.others == {
            ("refused", "rows"): 1,
            ("dropped", "cancelled"): 2,
            ("dropped", "expired"): 1,
        }
        assert len(told.waits) == 4
        assert told.waits[0] < 0.02 < told.waits[1] <= told.waits[3] < 10
        await batcher.close()

    go(main)


def test_a_row_that_was_held_up_alone_does_not_make_the_rate() -> None:
    rate = _Rate()
    assert rate.row_s == 0
    for _ in range(50):
        rate.add(0.016, 16)
    assert rate.row_s == pytest.approx(0.001)
    rate.add(0.2, 1)
    assert rate.row_s < 0.003, "one row of 0.2 s among some 150 of 1 ms"
    for _ in range(50):
        rate.add(0.032, 16)
    assert rate.row_s == pytest.approx(0.002, rel=0.01), "it follows"
