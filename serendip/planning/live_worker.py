"""A worker process that plans for callers who wait: batches in, one answer a row out.

    who serves ──batch──> pipe ──> media, in decoders of its own ──> model ──> answers
        │ WorkerGoneError: killed, out of memory, stuck; ``Seat`` starts another

The model, its runtime and the media of strangers are in the worker and below it, never in the
process that serves. Knows no queue, no gRPC and no file of an artefact but the planner's.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from threading import Condition, Lock, Thread

import numpy as np

from serendip.core import (
    Constraint,
    InvalidRequest,
    Item,
    MediaError,
    NotReady,
    SerendipError,
)
from serendip.planning.decoders import Decoders, Loaded, Patience, UnsureError, processes
from serendip.planning.plan_store import encode_plan
from serendip.planning.prompt import Content, Source, check_pictures
from serendip.planning.rows import Media, hash_media
from serendip.planning.views import View
from serendip.planning.workers import Setup, WorkerGoneError, work
from serendip.progress import Seconds, timed

_log = logging.getLogger(__name__)

# Somebody waits for it, and for whatever is in a batch with it.
_PATIENCE = Patience(seconds=20.0, cpu_seconds=5.0, deaths=2)
_STUCK_S = 300.0  # for a batch, after which a worker is taken for one that hangs
_OPENS_S = 300.0
_RENEWS_S = 2.0  # that a batch waits for another worker to be begun
_MAX_DELAY_S = 60.0  # between two workers of which the first could not open the planner
_NICER = 5  # than who serves: a look-up goes first where they share a core


@dataclass(frozen=True)
class Query:
    """One plan to be made.

    Attributes:
        own: the item's cluster at the planning level, or None.
        exclude: further clusters that may not be planned.
        keep: whether the answer tells what the item's media were.
    """

    source: Source
    own: int | None = None
    exclude: tuple[int, ...] = ()
    constraint: Constraint = Constraint.NOT_OWN
    keep: bool = False

    @property
    def item_id(self) -> str:
        """Empty for what a request brings."""
        return self.source.item_id if isinstance(self.source, Item) else ""


@dataclass(frozen=True)
class Made:
    """A plan that was made.

    Attributes:
        plan: a serialised serendip.v1.Plan.
        media: what the item's media were, before it was decoded and after it was planned alike;
            None if they changed meanwhile, or it was not asked.
    """

    plan: bytes
    media: Media | None = None


@dataclass(frozen=True)
class Answers:
    """A batch: one plan or error a query, in order, and the seconds of each stage."""

    rows: list[Made | SerendipError]
    seconds: Seconds


class LiveWorker:
    """What runs in the worker process. ``plan`` is called by two threads."""

    def __init__(self, setup: Setup) -> None:
        """Opens the planner, and makes one plan, so that no caller waits longer than others.

        Raises:
            SerendipError: it cannot be opened, or plans nothing.
        """
        import torch

        from serendip.planning.planner import Planner

        os.nice(_NICER)
        torch.set_num_threads(setup.threads)
        self._style = setup.style
        # One that dies is replaced by a fork.
        processes.set_forkserver_preload(["serendip.planning.decoders"])
        self._decoders = Decoders(
            setup.plans.decoders, self._style, setup.frames, setup.load, _PATIENCE
        )
        self._planner = Planner.open(setup.planner, setup.nodes, setup.plans, threads=setup.threads)
        self._planner.check()
        self._decoding, self._model = Lock(), Lock()
        blank = np.zeros((64, 64, 3), np.uint8)
        self._planner.plan(
            [Content("warm-up", cover=blank, frames=(blank,) * setup.frames)],
            [int(setup.nodes.at_level(self._planner.level)[0])],
        )
        self._planner.seconds.clear()

    def plan(self, queries: Sequence[Query]) -> Answers:
        """Plans a batch; the media of the next are decoded meanwhile."""
        seconds: Seconds = {}
        with self._decoding, timed(seconds, "media"):
            before = [_media(query) for query in queries]
            contents = self._decoders.load([query.source for query in queries])
        with self._model:
            rows = self._plan(queries, contents)
            seconds |= self._planner.seconds
            self._planner.seconds.clear()
        for at, media in enumerate(before):
            row = rows[at]
            if media is not None and isinstance(row, Made) and _media(queries[at], media) == media:
                rows[at] = replace(row, media=media)
        return Answers(rows, seconds)

    def close(self) -> None:
        """Ends its decoders."""
        self._decoders.close()

    def _plan(
        self, queries: Sequence[Query], contents: Sequence[Loaded]
    ) -> list[Made | SerendipError]:
        found: dict[int, Made | SerendipError] = {}
        ready: list[_Ready] = []
        for at, (query, content) in enumerate(zip(queries, contents, strict=True)):
            try:
                ready.append(_Ready(at, query, self._shown(content), self._view(query)))
            except SerendipError as e:
                found[at] = e
        if ready:
            found |= dict(zip((row.at for row in ready), self._together(ready), strict=True))
        return [found[at] for at in range(len(queries))]

    def _shown(self, content: Loaded) -> Content:
        if isinstance(content, UnsureError):  # a name of ours tells the caller nothing
            raise MediaError(
                f"cannot be decoded: {content.message}",
                field=content.field,
                remedy="Save it again.",
            )
        if isinstance(content, MediaError):
            raise content
        check_pictures(content, self._style)
        return content

    def _view(self, query: Query) -> View:
        return self._planner.view(query.own, exclude=query.exclude, constraint=query.constraint)

    def _together(self, rows: Sequence[_Ready]) -> list[Made | SerendipError]:
        """Plans rows together; if that fails, one by one, so that only the cause fails."""
        try:
            made = self._planner.plan(
                [row.content for row in rows],
                [row.query.own for row in rows],
                item_ids=[row.query.item_id for row in rows],
                views=[row.view for row in rows],
            )
        except Exception as e:
            if len(rows) > 1:
                return [self._together([row])[0] for row in rows]
            if isinstance(e, SerendipError):
                return [e]
            traceback.print_exc()
            if isinstance(e, ValueError | TypeError):  # the processor's own
                return [InvalidRequest(f"cannot be put to the model ({e})", field="title")]
            return [SerendipError(f"cannot be planned ({type(e).__name__}: {e})")]
        return [Made(encode_plan(plan)) for plan in made]


@dataclass(frozen=True)
class _Ready:
    at: int
    query: Query
    content: Content
    view: View


def _media(query: Query, known: Media | None = None) -> Media | None:
    """What an item's media are, if they are asked for; files that have not changed are not read."""
    if not query.keep or not isinstance(query.source, Item):
        return None
    item = query.source
    return next(hash_media([item], {} if known is None else {item.item_id: known}))


# --- who gives it work -------------------------------------------------------------------


class Seat:
    """A worker process, and the next one where it dies. Called by any threads.

    Args:
        on_renewed: called where a worker has been started in place of one that died.
    """

    def __init__(self, setup: Setup, on_renewed: Callable[[], None] = lambda: None) -> None:
        """Starts a worker and returns; ``wait`` says whether it could open the planner."""
        processes.set_forkserver_preload([__name__, "serendip.planning.planner"])
        self._setup, self._on_renewed = setup, on_renewed
        self._delay_s = 0.0
        self._changed = Condition()
        self._closed = False
        self._hand = _Hand(setup, self._renew)

    @property
    def pid(self) -> int:
        """Of the worker that is there now."""
        return self._hand.pid

    def wait(self) -> None:
        """Returns once the worker plans. Raises SerendipError: it cannot."""
        self._hand.wait()

    def plan(self, queries: Sequence[Query]) -> Answers:
        """Plans a batch.

        Raises:
            WorkerGoneError: the worker died, or was stuck and is ended, with the batch in hand.
            NotReady: there is no worker now.
            SerendipError: the batch failed as a whole.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._hand.gone, _RENEWS_S)
            hand = self._hand
        try:
            hand.wait()
        except SerendipError as e:
            raise NotReady("there is no live worker now") from e
        return hand.plan(queries)

    def close(self) -> None:
        """Ends the worker."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._hand.close()

    def _renew(self, begun: bool) -> None:
        """Starts another worker, at once if the one that died had opened the planner."""
        self._delay_s = 0.0 if begun else min(2 * self._delay_s or 1.0, _MAX_DELAY_S)
        with self._changed:
            while True:
                if self._changed.wait_for(lambda: self._closed, self._delay_s) or self._closed:
                    return
                try:
                    self._hand = _Hand(self._setup, self._renew)
                    break
                except Exception as e:  # no memory, threads or descriptors now
                    self._delay_s = min(2 * self._delay_s or 1.0, _MAX_DELAY_S)
                    _log.error(
                        "no live worker can be started (%s): again in %g s", e, self._delay_s
                    )
            self._changed.notify_all()
        self._on_renewed()


class _Hand:
    """One worker process: what it has in hand, by number, and a thread that reads its answers."""

    def __init__(self, setup: Setup, on_gone: Callable[[bool], None]) -> None:
        self.gone = False
        self._on_gone = on_gone
        self._given: dict[int, Future[Answers]] = {}
        self._number = 0
        self._sending, self._changing = Lock(), Lock()
        self._connection, theirs = processes.Pipe()
        self._process = processes.Process(target=work, args=(theirs, partial(LiveWorker, setup)))
        try:
            self._process.start()
        except BaseException:
            self._connection.close()
            raise
        finally:
            theirs.close()
        # A server that ends without closing would wait for the worker, and that for the server.
        atexit.register(self._process.kill)
        self._begun = self._give([])
        self._reader = Thread(target=self._read, name="live-answers", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    def wait(self) -> None:
        """Returns once it plans. Raises SerendipError: it cannot."""
        try:
            self._begun.result(_OPENS_S)
        except (WorkerGoneError, TimeoutError) as e:
            raise NotReady(f"the live worker does not come up ({e or 'it takes too long'})") from e

    def plan(self, queries: Sequence[Query]) -> Answers:
        """Plans a batch. Raises WorkerGoneError, SerendipError."""
        try:
            return self._give(queries).result(_STUCK_S)
        except TimeoutError:
            self.close()
            raise WorkerGoneError(f"was stuck for {_STUCK_S:.0f} s") from None

    def close(self) -> None:
        """Ends the process; what it had in hand fails."""
        self._process.kill()
        self._reader.join()
        self._on_gone = lambda begun: None  # told: it and its seat need not hold each other

    def _give(self, queries: Sequence[Query]) -> Future[Answers]:
        answer: Future[Answers] = Future()
        with self._changing:
            if self.gone:
                answer.set_exception(WorkerGoneError("is gone"))
                return answer
            number = self._number
            self._number += 1
            self._given[number] = answer
        with self._sending, contextlib.suppress(OSError):  # it has died, as _read will say
            self._connection.send((number, queries))
        return answer

    def _read(self) -> None:
        while True:
            try:
                number, answer = self._connection.recv()
            except (EOFError, OSError):
                break
            with self._changing:
                told = [*self._given.values()] if number < 0 else [self._given.pop(number)]
            for future in told:
                _settle(future, answer)
        self._process.join()
        atexit.unregister(self._process.kill)
        with self._changing:
            self.gone = True
            left = [*self._given.values()]
            self._given.clear()
        with self._sending:
            self._connection.close()
        begun = self._begun.done() and self._begun.exception() is None
        for future in left:
            _settle(future, WorkerGoneError(f"exit code {self._process.exitcode}"))
        Thread(target=self._on_gone, args=(begun,), name="live-renew", daemon=True).start()


def _settle(future: Future[Answers], answer: Answers | Exception) -> None:
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
