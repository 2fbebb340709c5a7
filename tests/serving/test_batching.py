"""Under cancels, failures and many callers, every live caller gets its own answer and no other."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading
import time
import weakref
from collections import Counter
from typing import Any

import pytest
from gates import Gate, go, settled
from hypothesis import given, settings
from hypothesis import strategies as st

from serendip.core import DeadlineSpent, NotReady, Overloaded
from serendip.serving.batching import Batcher


def test_it_gathers_while_it_runs_and_never_waits_when_idle() -> None:
    async def main() -> None:
        gate = Gate()
        batcher: Batcher[int, int] = Batcher(gate, max_batch=4)
        tasks = [await gate.occupied(batcher)]
        tasks += [asyncio.create_task(batcher.submit(row)) for row in range(1, 8)]
        await settled(tasks, batcher, 7)
        gate.open.set()
        assert await asyncio.gather(*tasks) == [row * 10 for row in range(8)]
        assert gate.batches == [[0], [1, 2, 3, 4], [5, 6, 7]]
        await batcher.close()

    go(main)


@pytest.mark.skipif(sys.platform != "linux", reason="a thread has a priority of its own on Linux")
def test_the_worker_gives_way_to_its_callers() -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    async def main() -> None:
        batcher: Batcher[int, int] = Batcher(lambda rows: [niceness() for _ in rows])
        own = niceness()
        assert await batcher.submit(0) == min(own + 3, 19)
        assert niceness() == own
        await batcher.close()

    go(main)


def test_rows_of_one_call_cross_batches_and_come_back_in_order() -> None:
    async def main() -> None:
        gate = Gate()
        batcher: Batcher[int, int] = Batcher(gate, max_batch=4)
        first = await gate.occupied(batcher)
        many = asyncio.create_task(batcher.submit_many(list(range(1, 11))))
        one = asyncio.create_task(batcher.submit(11))
        await settled([many, one], batcher, 11)
        gate.open.set()
        assert await many == [row * 10 for row in range(1, 11)]
        assert await one == 110
        assert gate.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11]]
        assert await batcher.submit_many([]) == []
        await first
        await batcher.close()

    go(main)


def test_rows_for_nobody_are_not_run() -> None:
    async def main() -> None:
        gate = Gate()
        batcher: Batcher[int, int] = Batcher(gate)
        first = await gate.occupied(batcher)
        cancelled = asyncio.create_task(batcher.submit(1))
        late = asyncio.create_task(batcher.submit(2, time.monotonic() + 0.02))
        kept = asyncio.create_task(batcher.submit(3, time.monotonic() + 60))
        await settled([cancelled, late, kept], batcher, 3)
        await asyncio.sleep(0.03)
        cancelled.cancel()
        gate.open.set()
        time.sleep(0.05)  # the loop is busy: the worker must see the cancel by itself
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        with pytest.raises(DeadlineSpent):
            await late
        assert await kept == 30
        with pytest.raises(DeadlineSpent):
            await batcher.submit(4, time.monotonic() - 1)
        assert gate.batches == [[0], [3]]
        assert await first == 0
        assert batcher.waiting == 0
        await batcher.close()

    go(main)


def test_a_row_cancelled_while_it_runs_disturbs_nobody() -> None:
    async def main() -> None:
        gate = Gate()
        batcher: Batcher[int, int] = Batcher(gate)
        running = await gate.occupied(batcher)
        running.cancel()
        other = asyncio.create_task(batcher.submit(1))
        await settled([other], batcher, 1)
        gate.open.set()
        assert await other == 10
        await batcher.close()

    go(main)


def test_failures_stay_where_they_belong() -> None:
    async def main() -> None:
        def run(batch: list[str]) -> list[str | Exception]:
            if "raise" in batch:
                raise ZeroDivisionError("whole batch")
            if "exit" in batch:
                raise SystemExit(3)
            if "short" in batch:
                return ["mixed up"] * (len(batch) - 1)
            if "long" in batch:
                return ["mixed up"] * (len(batch) + 1)
            if "none" in batch:
                return None  # type of a careless run
            return [KeyError(row) if row == "bad" else row for row in batch]

        careless: Any = run
        batcher: Batcher[str, str] = Batcher(careless, max_batch=2)
        with pytest.raises(ZeroDivisionError):
            await batcher.submit("raise")
        for row in ("exit", "short", "long"):
            with pytest.raises(RuntimeError):
                await batcher.submit(row)
        with pytest.raises(TypeError):
            await batcher.submit("none")
        results = await batcher.submit_many(["fine", "bad", "raise", "x", "fine", "fine"])
        assert [type(r).__name__ for r in results] == [
            "str",
            "KeyError",
            "ZeroDivisionError",
            "ZeroDivisionError",
            "str",
            "str",
        ]
        with pytest.raises(KeyError):
            await batcher.submit("bad")
        assert await batcher.submit("fine") == "fine"
        await batcher.close()

    go(main)


def test_close_finishes_what_runs_and_fails_what_waits() -> None:
    async def main() -> None:
        gate = Gate()
        batcher: Batcher[int, int] = Batcher(gate, max_batch=2)
        running = await gate.occupied(batcher)
        waiting = asyncio.create_task(batcher.submit(1))
        await settled([waiting], batcher, 1)
        closing = asyncio.create_task(batcher.close())
        with pytest.raises(NotReady):
            await waiting
        assert not running.done()
        assert not closing.done()
        with pytest.raises(NotReady):
            await batcher.submit(2)
        gate.open.set()
        assert await running == 0
        await closing
        await batcher.close()
        assert gate.batches == [[0]]

    go(main)


def test_close_fails_a_call_of_which_only_some_rows_run() -> None:
    async def main() -> None:
        gate = Gate()
        batcher: Batcher[int, int] = Batcher(gate, max_batch=2)
        call = asyncio.create_task(batcher.submit_many([0, 1, 2]))
        await asyncio.to_thread(gate.entered.wait, 10)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0.01)
        gate.open.set()
        with pytest.raises(NotReady):
            await call
        await closing

    go(main)


def test_a_loop_that_is_gone_does_not_end_the_worker() -> None:
    gate = Gate()
    batcher: Batcher[int, int] = Batcher(gate)

    async def leave() -> None:
        await gate.occupied(batcher)  # left behind: the loop closes while it runs

    asyncio.run(leave())
    gate.open.set()

    async def main() -> None:
        assert await batcher.submit(4) == 40
        await batcher.close()

    go(main)


def test_nothing_of_a_batch_is_held_when_it_has_run() -> None:
    class Large:
        pass

    async def main() -> None:
        batcher: Batcher[Large, int] = Batcher(lambda batch: [1] * len(batch))
        row = Large()
        gone = weakref.ref(row)
        assert await batcher.submit(row) == 1
        del row
        for _ in range(100):
            await asyncio.sleep(0.005)
            if gone() is None:
                break
        assert gone() is None, "the batch thread holds what it ran last"
        await batcher.close()

    go(main)


# --- under fire --------------------------------------------------------------------------

FATES = ("plain", "plain", "plain", "many", "cancel", "cancel_later", "expired", "soon", "bad")


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    max_batch=st.integers(1, 9),
    max_waiting=st.integers(6, 60),
    callers=st.integers(1, 120),
)
def test_everyone_gets_their_own(seed: int, max_batch: int, max_waiting: int, callers: int) -> None:
    rng = random.Random(seed)
    ran: Counter[int] = Counter()
    sizes: list[int] = []

    def run(batch: list[tuple[int, str]]) -> list[Any]:
        sizes.append(len(batch))
        ran.update(row for row, _ in batch)
        if rng.random() < 0.3:
            time.sleep(rng.random() * 0.002)
        chance = rng.random()
        if chance < 0.08:
            raise OSError("batch")
        results: list[Any] = [
            ValueError(row) if fate == "bad" else ("answer", row) for row, fate in batch
        ]
        return results[:-1] if chance < 0.14 else results

    async def main() -> None:
        batcher: Batcher[tuple[int, str], tuple[str, int]] = Batcher(
            run, max_batch=max_batch, max_waiting=max_waiting
        )
        outcomes: Counter[str] = Counter()

        def check(result: Any, row: int, fate: str) -> None:
            if isinstance(result, tuple):
                assert result == ("answer", row), "somebody else's answer"
                assert fate != "bad"
            elif isinstance(result, ValueError):
                assert result.args == (row,), "somebody else's error"
                assert fate == "bad"
            else:
                assert isinstance(result, OSError | RuntimeError)
            assert ran[row] == 1

        async def caller(number: int, fate: str) -> None:
            if rng.random() < 0.5:
                await asyncio.sleep(rng.random() * 0.003)
            row = number * 10
            deadline = {"expired": -1.0, "soon": 0.002}.get(fate)
            deadline = None if deadline is None else time.monotonic() + deadline
            try:
                if fate == "many":
                    rows = [(row + i, fate) for i in range(5)]
                    for (own, _), result in zip(
                        rows, await batcher.submit_many(rows, deadline), strict=True
                    ):
                        check(result, own, fate)
                else:
                    check(await batcher.submit((row, fate), deadline), row, fate)
                outcomes["answered"] += 1
            except Overloaded:
                outcomes["refused"] += 1
                assert not any(ran[row + i] for i in range(10))
            except DeadlineSpent:
                assert fate in ("expired", "soon")
                outcomes["late"] += 1
                assert ran[row] == 0, "a spent deadline's work was done"
            except (ValueError, OSError, RuntimeError) as error:
                check(error, row, fate)
                outcomes["failed"] += 1

        tasks = []
        for number in range(callers):
            fate = rng.choice(FATES)
            task = asyncio.create_task(caller(number, fate))
            if fate == "cancel":
                task.cancel()
            elif fate == "cancel_later":
                asyncio.get_running_loop().call_later(rng.random() * 0.003, task.cancel)
            tasks.append(task)
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        cancelled = sum(isinstance(e, asyncio.CancelledError) for e in ended)
        assert [e for e in ended if e and not isinstance(e, asyncio.CancelledError)] == []
        assert sum(outcomes.values()) + cancelled == callers
        assert batcher.waiting == 0
        await batcher.close()
        assert max(sizes, default=0) <= max_batch
        assert max(ran.values(), default=0) <= 1, "a row was run twice"

    go(main)


def test_as_many_batches_run_at_a_time_as_there_are_threads() -> None:
    async def main() -> None:
        gate = Gate()
        batcher: Batcher[int, int] = Batcher(gate, max_batch=2, max_waiting=20, threads=3)
        first = asyncio.create_task(batcher.submit_many([1, 2, 3, 4, 5, 6, 7]))
        end = time.monotonic() + 10
        while len(gate.batches) < 3:  # one call wakes them all: none takes more than a batch
            assert time.monotonic() < end
            await asyncio.sleep(0.001)
        assert sorted(gate.batches) == [[1, 2], [3, 4], [5, 6]]
        assert (batcher.waiting, batcher.busy) == (1, True)
        gate.open.set()
        assert await first == [10, 20, 30, 40, 50, 60, 70]
        rows = await asyncio.gather(*(batcher.submit(row) for row in range(20)))
        assert rows == [row * 10 for row in range(20)]
        assert not batcher.busy
        await batcher.close()
        with pytest.raises(NotReady):
            await batcher.submit(1)

    go(main)


def test_it_is_busy_until_the_last_of_its_batches_has_ended() -> None:
    async def main() -> None:
        gates = {row: threading.Event() for row in (1, 2)}

        def run(batch: list[int]) -> list[int]:
            assert all(gates[row].wait(10) for row in batch)
            return batch

        batcher: Batcher[int, int] = Batcher(run, max_batch=1, threads=2)
        first, second = (asyncio.create_task(batcher.submit(row)) for row in gates)
        await asyncio.sleep(0)
        end = time.monotonic() + 10
        while batcher.waiting:  # until both run
            assert time.monotonic() < end
            await asyncio.sleep(0.001)
        gates[1].set()
        await first
        assert batcher.busy
        gates[2].set()
        await second
        assert not batcher.busy
        await batcher.close()

    go(main)
