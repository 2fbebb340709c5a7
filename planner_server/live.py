"""Live plans: a bounded queue before worker processes, batched over calls.

    plan ──same query in hand──> its run ─┐
      └──> queue ──batch──> worker process ──> every waiter; kept, if it is what bulk would make
             │ Overloaded     │ dies: another is started, its rows are tried once more, alone
             │ DeadlineSpent, nobody waits any more: dropped

A look-up never waits here, and no model or picture is in this process. Knows no gRPC.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from threading import Lock

from planner_server.live_metrics import LiveMetrics
from serendip.core import (
    Constraint,
    DeadlineSpent,
    InvalidRequest,
    Item,
    NotReady,
    Overloaded,
    SerendipError,
)
from serendip.planning.kept_plans import KeptPlans
from serendip.planning.live_worker import Made, Query, Seat
from serendip.planning.prompt import Upload
from serendip.planning.workers import AHEAD, Setup, WorkerGoneError
from serendip.serving.batching import Batcher

MAX_BATCH = 16
_MAX_WAITING = 256
_MAX_WAITING_BYTES = 256 << 20  # of media that requests have brought
_SOON_HASHED = 64 << 10  # bytes that are hashed sooner than a thread is asked to
_MAX_WAIT_S = 10.0
_DEATHS = 2  # of workers with a row alone in hand, after which the rest of its batch is given up

Result = Made | SerendipError


@dataclass
class _Run:
    """One query in hand, and who waits for it: their deadlines."""

    task: asyncio.Task[bytes] | None = None
    waiting: list[float | None] = field(default_factory=list)

    @property
    def deadline(self) -> float | None:
        """When the last of them is gone."""
        known = [d for d in self.waiting if d is not None]
        return max(known) if len(known) == len(self.waiting) else None


class LivePlanner:
    """Plans by the model, in worker processes; belongs to one event loop.

    Args:
        workers: processes, each with a model.
        kept: where plans of all defaults are kept; None: nowhere.

    Attributes:
        style: name of the prompt's style.
    """

    def __init__(
        self,
        setup: Setup,
        *,
        workers: int = 1,
        metrics: LiveMetrics | None = None,
        kept: KeptPlans | None = None,
    ) -> None:
        """Starts the workers, and returns when they plan. Raises SerendipError: they cannot."""
        self.style = setup.style.name
        self.kept = kept
        self._batch_s = 0.0  # by the recent ones; 0 before the first
        self._metrics = metrics if metrics is not None else LiveMetrics()
        self._looks = setup.style.looks
        self._seats: list[Seat] = []
        try:
            for _ in range(workers):
                self._seats.append(Seat(setup, self._metrics.restarts.inc))
            for seat in self._seats:
                seat.wait()
        except BaseException:
            self._end_workers()
            if kept is not None:
                kept.close()
            raise
        # Two batches a worker: the media of one are decoded while the model is at the other.
        self._turns: SimpleQueue[Seat] = SimpleQueue()
        for _ in range(AHEAD):
            for seat in self._seats:
                self._turns.put(seat)
        self._alone = Lock()
        self._runs: dict[Hashable, _Run] = {}
        self._bytes = 0
        self._batcher: Batcher[Query, Made] = Batcher(
            self._run,
            max_batch=MAX_BATCH,
            max_waiting=_MAX_WAITING,
            max_wait_s=_MAX_WAIT_S,
            observer=self._metrics.batch,
            name="live",
            threads=AHEAD * workers,
        )

    async def plan(self, query: Query, deadline: float | None) -> bytes:
        """Makes a plan, or waits for one that is being made; a serialised serendip.v1.Plan.

        Args:
            deadline: time.monotonic() in seconds after which this caller does not want it.

        Raises:
            MediaError: the item's media cannot be read.
            InvalidRequest: no picture where the style looks, or no cluster left.
            DeadlineSpent: it was not there at the deadline.
            NotReady: a worker died over it, or there is none now.
            Overloaded: as Batcher.submit, or too much media waits.
        """
        source = query.source
        key: Hashable = query
        if isinstance(source, Upload):
            if self._looks and not source.size:
                raise InvalidRequest(
                    "needs at least one image",
                    field="thumbnail",
                    remedy=f"Send a thumbnail, frames or a video: the style is {self.style}.",
                )
            if source.size > _SOON_HASHED:
                await asyncio.to_thread(lambda: source.digest)
            key = (source.digest, query.exclude)
        else:
            query = key = replace(query, keep=self._keeps(query))
        run = self._runs.get(key)
        if run is None:
            run = self._runs[key] = self._begin(key, query, deadline)
        else:
            self._metrics.shared.inc()
        return await self._await(key, run, deadline)

    @property
    def batch_s(self) -> float:
        """Seconds that a batch takes, by the recent ones; 0 where none is in hand.

        Else one that was held up would turn everybody away, and no batch would correct it.
        """
        return self._batch_s if self.busy else 0.0

    @property
    def waiting(self) -> int:
        """Rows that wait for a worker now."""
        return self._batcher.waiting

    @property
    def busy(self) -> bool:
        """Whether a plan is being made, or waits to be."""
        return self._batcher.busy or bool(self._runs)

    @property
    def pids(self) -> list[int]:
        """Of the worker processes."""
        return [seat.pid for seat in self._seats]

    async def close(self) -> None:
        """Ends the workers, and writes what is kept; to be called after the drain.

        The workers first: one that hangs would hold up the end of its batch.
        """
        await asyncio.to_thread(self._end_workers)
        await self._batcher.close()
        if self.kept is not None:
            await asyncio.to_thread(self.kept.close)

    def _end_workers(self) -> None:
        for seat in self._seats:
            seat.close()

    def _keeps(self, query: Query) -> bool:
        """Whether a plan is what the bulk job would make."""
        defaults = query.constraint is Constraint.NOT_OWN and not query.exclude
        return self.kept is not None and defaults and isinstance(query.source, Item)

    # --- runs and who waits for them -----------------------------------------------------

    def _begin(self, key: Hashable, query: Query, deadline: float | None) -> _Run:
        size = query.source.size if isinstance(query.source, Upload) else 0
        if size and self._bytes + size > _MAX_WAITING_BYTES:
            self._metrics.batch.refused("bytes", 1)
            raise Overloaded(f"{self._bytes >> 20} MiB of media are waiting")
        run = _Run()
        self._bytes += size
        run.task = asyncio.create_task(self._submit(run, query, deadline))

        def done(task: asyncio.Task[bytes]) -> None:
            self._bytes -= size
            if self._runs.get(key) is run:
                del self._runs[key]
            if not task.cancelled():
                task.exception()  # whoever waited has had it

        run.task.add_done_callback(done)
        return run

    async def _submit(self, run: _Run, query: Query, deadline: float | None) -> bytes:
        while True:
            try:
                return (await self._batcher.submit(query, deadline)).plan
            except (DeadlineSpent, Overloaded):
                # For the one who asked first; another may have come who has more time.
                later = run.deadline
                if deadline is None or (later is not None and later <= deadline):
                    raise
                deadline = later

    async def _await(self, key: Hashable, run: _Run, deadline: float | None) -> bytes:
        assert run.task is not None
        run.waiting.append(deadline)
        try:
            async with asyncio.timeout_at(deadline):  # an event loop's time is monotonic
                return await asyncio.shield(run.task)
        except TimeoutError:
            raise DeadlineSpent("the plan was not made in time") from None
        finally:
            run.waiting.remove(deadline)
            if not run.waiting and not run.task.done():
                run.task.cancel()
                if self._runs.get(key) is run:
                    del self._runs[key]

    # --- the queue's threads -------------------------------------------------------------

    def _run(self, queries: list[Query]) -> Sequence[Result]:
        began = time.monotonic()
        seat = self._turns.get()
        try:
            rows = self._plan(seat, queries)
        finally:
            self._turns.put(seat)
        took_s = time.monotonic() - began
        self._batch_s = took_s if not self._batch_s else 0.5 * (self._batch_s + took_s)
        return rows

    def _plan(self, seat: Seat, queries: Sequence[Query]) -> list[Result]:
        try:
            return self._ask(seat, queries)
        except WorkerGoneError as e:
            gone = NotReady(f"the live worker ended ({e})")
        # One of them may have ended it, and the others not: each is tried once more, alone.
        rows: list[Result] = []
        deaths = 0
        with self._alone:
            for query in queries:
                if deaths == _DEATHS:
                    rows.append(gone)
                    continue
                try:
                    rows += self._ask(seat, [query])
                except WorkerGoneError as e:
                    deaths += 1
                    rows.append(NotReady(f"the live worker ended over it ({e})"))
        return rows

    def _ask(self, seat: Seat, queries: Sequence[Query]) -> list[Result]:
        try:
            answers = seat.plan(queries)
        except SerendipError as e:  # the batch as a whole
            return [e] * len(queries)
        self._metrics.ran(answers.seconds)
        for query, row in zip(queries, answers.rows, strict=True):
            kept = self.kept if query.keep else None
            if kept is None or not isinstance(row, Made) or row.media is None:
                continue
            if isinstance(query.source, Item):
                kept.keep(query.source, query.own, row.media, row.plan)
        return answers.rows
