"""Many callers, a worker thread or a few, no timer: run when idle, gather while it runs.

    submit ──> waiting (bounded) ──take up to max_batch──> run(rows) ──> each caller its own rows
       │ Overloaded    │ cancelled, DeadlineSpent                │ what run raised
       └───────────────┴──────────── NotReady at close <─────────┘

Knows no gRPC and no model: ``run`` is a function from rows to as many results.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from serendip.core import DeadlineSpent, InvalidRequest, NotReady, Overloaded

Q = TypeVar("Q")
R = TypeVar("R")

_log = logging.getLogger(__name__)

MAX_RETRY_AFTER_S = 30.0
_NICER = 3
# A call is late if so many times its expected wait ends after its deadline. With 1, half of those
# that a full queue takes would be: their work is done, and nobody has it.
MARGIN = 1.5
_KEPT = 0.9  # of what the batches before have told, with each further one


class Observer(Protocol):
    """Is told what a batcher does, by whichever thread does it; must be quick."""

    def ran(self, rows: int) -> None:
        """A batch of so many rows is about to run."""

    def waited(self, seconds: float) -> None:
        """A call's first row has been taken, so long after the call came."""

    def dropped(self, why: str, rows: int) -> None:
        """Rows for nobody were dropped before they ran; "expired" or "cancelled"."""

    def refused(self, why: str, rows: int) -> None:
        """Rows were not accepted: "rows" or "wait", the bounds, or "late" for their deadline."""


class Batcher(Generic[Q, R]):
    """Runs rows of many callers together, in the order in which they came.

    Args:
        run: takes 1 to ``max_batch`` rows and returns as many results, in order; a result that is
            an exception is raised to that row's caller alone. Called by ``threads`` threads only.
        max_batch: most rows a run.
        max_waiting: most rows that may wait for a run; also the most rows of one call.
        max_wait_s: a call that would wait longer than this, by the recent rate, is refused as
            well; None refuses by rows alone.
        observer: told what is run, dropped and refused.
        name: of the workers' threads.
        threads: how many batches run at a time; more than one where ``run`` waits for others.
    """

    def __init__(
        self,
        run: Callable[[list[Q]], Sequence[R | Exception]],
        *,
        max_batch: int = 16,
        max_waiting: int = 1024,
        max_wait_s: float | None = None,
        observer: Observer | None = None,
        name: str = "batcher",
        threads: int = 1,
    ) -> None:
        for value, field in (
            (max_batch, "max_batch"),
            (max_waiting, "max_waiting"),
            (threads, "threads"),
        ):
            if value < 1:
                raise InvalidRequest("must be at least 1", field=field, value=value)
        self._run = run
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._max_wait_s = max_wait_s
        self._observer = observer
        self._changed = threading.Condition()
        # All below is guarded by _changed.
        self._calls: OrderedDict[int, _Call[Q, R]] = OrderedDict()
        self._waiting = 0
        self._running = 0  # rows of the batches that run
        self._idle = 0  # threads that wait, and have not been woken
        self._closed = False
        self._rate = _Rate()
        self._threads = [
            threading.Thread(target=self._work, name=name, daemon=True) for _ in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Rows that wait for a run now."""
        return self._waiting

    @property
    def busy(self) -> bool:
        """Whether a row waits or runs now."""
        with self._changed:
            return self._waiting + self._running > 0

    async def submit(self, query: Q, deadline: float | None = None) -> R:
        """The result of one row.

        Args:
            deadline: time.monotonic() in seconds after which nobody wants the answer; the row is
                dropped if it has not been taken by then.

        Raises:
            Overloaded: too many rows wait, or by the recent rate it would be late.
            DeadlineSpent: the deadline passed before the row was taken.
            NotReady: the batcher is closed.
            Exception: what ``run`` raised, or returned for this row.
        """
        (result,) = await self.submit_many([query], deadline)
        if isinstance(result, Exception):
            raise result
        return result

    async def submit_many(
        self, queries: Sequence[Q], deadline: float | None = None
    ) -> list[R | Exception]:
        """The results of several rows of one caller, in order, each one a result or what failed.

        Arguments and errors are as ``submit``'s; the rows are accepted, and refused, together.

        Raises:
            InvalidRequest: more rows than may ever wait.
        """
        if not queries:
            return []
        rows = len(queries)
        if rows > self._max_waiting:
            raise InvalidRequest(
                f"at most {self._max_waiting} rows a call",
                value=rows,
                remedy="Split the request.",
            )
        if deadline is not None and time.monotonic() >= deadline:
            self._tell_dropped("expired", rows)
            raise _spent()
        call: _Call[Q, R] = _Call(list(queries), deadline, asyncio.get_running_loop())
        with self._changed:
            if self._closed:
                raise _closed()
            if refused := self._refusal(rows, deadline):
                raise refused
            self._calls[id(call)] = call
            self._waiting += rows
            if self._idle:
                self._idle -= 1  # one call wakes a worker, not each one until it runs
                self._changed.notify()
        try:
            return await call.future
        except asyncio.CancelledError:
            # Room for others at once, rather than when the worker comes by.
            with self._changed:
                self._drop(call, "cancelled")
            raise

    async def close(self) -> None:
        """Lets running batches finish, fails what waits with NotReady, ends the threads."""
        with self._changed:
            self._closed = True
            for call in list(self._calls.values()):
                self._drop(call)
                call.failure = _closed()
                if not call.running:
                    _deliver([call])
            self._idle = 0
            self._changed.notify_all()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        self._run = _closed_run  # or this and whoever runs the rows would hold each other

    # --- the workers' threads ------------------------------------------------------------

    def _work(self) -> None:
        _give_way()
        while self._step():
            pass

    def _step(self) -> bool:
        """Takes and runs one batch; returns whether there may be another.

        A function of its own, so that nothing of a batch is held while the next one is waited
        for: a row may hold what is large.
        """
        taken, done = self._take()
        _deliver(done)
        if taken:
            _deliver(self._run_rows(taken))
        return bool(taken or done) or not self._closed

    def _take(self) -> tuple[list[_Row[Q, R]], list[_Call[Q, R]]]:
        """Waits for rows; returns those to run, and the calls that ended instead."""
        taken: list[_Row[Q, R]] = []
        done: list[_Call[Q, R]] = []
        with self._changed:
            while not self._calls and not self._closed:
                self._idle += 1
                self._changed.wait()
            now = time.monotonic()
            while self._calls and len(taken) < self._max_batch:
                call = next(iter(self._calls.values()))
                if call.future.cancelled():
                    self._drop(call, "cancelled")
                    continue
                if call.deadline is not None and now >= call.deadline:
                    self._drop(call, "expired")
                    call.failure = _spent()
                    done.append(call)
                    continue
                stop = min(call.taken + self._max_batch - len(taken), len(call.queries))
                taken += [(call, index) for index in range(call.taken, stop)]
                self._waiting -= stop - call.taken
                call.running += stop - call.taken
                call.taken = stop
                if stop == len(call.queries):
                    del self._calls[id(call)]
            self._running += len(taken)
            if self._calls and self._idle:  # more than one batch takes
                self._idle -= 1
                self._changed.notify()
            return taken, done

    def _run_rows(self, rows: list[_Row[Q, R]]) -> list[_Call[Q, R]]:
        """Runs one batch; returns the calls that have all their results now."""
        started = time.monotonic()
        results: Sequence[R | Exception]
        try:
            self._tell_run(rows, started)
            results = self._run([call.queries[index] for call, index in rows])
            if len(results) != len(rows):
                raise RuntimeError(f"a batch of {len(rows)} rows gave {len(results)} results")
        except Exception as error:
            results = [error] * len(rows)
        except BaseException as error:  # the thread, and the callers' loops, must outlive it
            results = [RuntimeError(f"the batch was ended by {error!r}")] * len(rows)
        took_s = time.monotonic() - started
        done = []
        with self._changed:
            self._running -= len(rows)
            self._rate.add(took_s / len(self._threads), len(rows))
            for (call, index), result in zip(rows, results, strict=True):
                call.results[index] = result
                call.running -= 1
                ended = call.failure is not None or call.taken == len(call.queries)
                if ended and not call.running:
                    done.append(call)
        return done

    def _drop(self, call: _Call[Q, R], why: str = "") -> None:
        """Forgets the rows of a call that have not been taken; to be called under the lock."""
        if self._calls.pop(id(call), None) is not None:
            rows = len(call.queries) - call.taken
            self._waiting -= rows
            if why:
                self._tell_dropped(why, rows)

    def _tell_run(self, rows: list[_Row[Q, R]], now: float) -> None:
        if self._observer is not None:
            self._observer.ran(len(rows))
            for call, index in rows:
                if index == 0:
                    self._observer.waited(now - call.came)

    def _tell_dropped(self, why: str, rows: int) -> None:
        if self._observer is not None:
            self._observer.dropped(why, rows)

    def _refusal(self, rows: int, deadline: float | None) -> Overloaded | None:
        """Why rows are not accepted, None if they are; to be called under the lock."""
        wait_s = self._waiting * self._rate.row_s
        # Where nothing waits or runs nobody is refused: the rate may be that of a bad moment, and
        # nothing else would correct it.
        busy = self._waiting + self._running
        end_s = (busy + rows) * self._rate.row_s if busy else 0.0
        if self._waiting + rows > self._max_waiting:
            why = "rows"
        elif self._max_wait_s is not None and wait_s > self._max_wait_s:
            why = "wait"
        elif deadline is not None and time.monotonic() + MARGIN * end_s > deadline:
            why = "late"
        else:
            return None
        if self._observer is not None:
            self._observer.refused(why, rows)
        return Overloaded(
            f"{self._waiting} rows are waiting",
            retry_after_s=min(max(round(wait_s, 3), 0.01), MAX_RETRY_AFTER_S),
        )


class _Rate:
    """Seconds a row by the recent batches, each of which counts by its rows.

    A mean of the batches' own rates would not do: one row that was held up alone would count as
    much as sixteen, and calls be refused for it.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._rows = 0.0

    @property
    def row_s(self) -> float:
        """0 until the first batch."""
        return self._seconds / self._rows if self._rows else 0.0

    def add(self, seconds: float, rows: int) -> None:
        self._seconds = _KEPT * self._seconds + seconds
        self._rows = _KEPT * self._rows + rows


class _Call(Generic[Q, R]):
    """The rows of one caller: some waiting, some running, some done."""

    __slots__ = (
        "came",
        "deadline",
        "failure",
        "future",
        "loop",
        "queries",
        "results",
        "running",
        "taken",
    )

    def __init__(
        self, queries: list[Q], deadline: float | None, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.queries = queries
        self.deadline = deadline
        self.came = time.monotonic()
        self.loop = loop
        self.future: asyncio.Future[list[R | Exception]] = loop.create_future()
        self.results: list[Any] = [None] * len(queries)
        self.taken = 0  # rows that a batch has taken
        self.running = 0  # rows of the running batch
        self.failure: Exception | None = None  # ends the call as a whole


_Row = tuple[_Call[Q, R], int]


def _give_way() -> None:
    """Lets the callers' threads go first where they share a core with this one.

    What has arrived is then read before the next batch is taken. On one core, with 64 calls in
    flight, batches of equal threads had 2 rows, and those of a thread that gives way 14.
    """
    if sys.platform == "linux":  # elsewhere a priority is the process's
        thread = threading.get_native_id()
        niceness = os.getpriority(os.PRIO_PROCESS, thread) + _NICER
        os.setpriority(os.PRIO_PROCESS, thread, min(niceness, 19))


def _deliver(calls: list[_Call[Q, R]]) -> None:
    """Wakes each event loop once for all its calls."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Call[Q, R]]] = {}
    for call in calls:
        by_loop.setdefault(call.loop, []).append(call)
    for loop, ended in by_loop.items():
        try:
            loop.call_soon_threadsafe(_settle, ended)
        except RuntimeError:
            _log.debug("%d calls outlived their event loop", len(ended))


def _settle(calls: list[_Call[Q, R]]) -> None:
    for call in calls:
        if call.future.done():  # cancelled meanwhile
            continue
        if call.failure is not None:
            call.future.set_exception(call.failure)
        else:
            call.future.set_result(call.results)


def _spent() -> DeadlineSpent:
    return DeadlineSpent("the deadline passed before the work was begun")


def _closed_run(queries: Sequence[Any]) -> Sequence[Any]:
    raise _closed()


def _closed() -> NotReady:
    return NotReady("the server is stopping")
