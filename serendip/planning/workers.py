"""Workers of the bulk job: each opens the planner once, and decodes media while the model runs.

A worker takes leases, which are batches of items; two at a time, so that the pictures of the next
one are decoded while the model is at this one. The job alone writes: a worker that is killed
loses what it had in hand, and that is leased again. Knows no artefact but the planner's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import chain
from multiprocessing.connection import Connection, wait
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from serendip.artifacts import Artifact
from serendip.config import PlansConfig
from serendip.core import InvalidRequest, Item, MediaError, SerendipError
from serendip.planning.decoders import Decoders, Load, Loaded, UnsureError, processes
from serendip.planning.plan_store import encode_plan
from serendip.planning.prompt import load_content
from serendip.planning.rows import UNSURE, Row
from serendip.planning.style import Style
from serendip.progress import Seconds, timed
from serendip.tree.cluster_tree import Nodes

if TYPE_CHECKING:  # a decoder imports this module, and loads no model
    from serendip.planning.planner import Planner

AHEAD = 2  # leases that a worker has in hand
_DEATHS = 10  # of workers, one after the other, without a lease done between them
_LEASE_DEATHS = 2  # of workers with a lease in hand, until it is taken apart


@dataclass(frozen=True)
class Task:
    """An item to be planned.

    Attributes:
        own_id: its cluster at the planning level, or None.
        stale_key: what its plan will be made of.
    """

    item: Item
    own_id: int | None
    stale_key: str


Lease = Sequence[Task]


@dataclass(frozen=True)
class Done:
    """A lease that was planned: one row a task, in order, and the seconds of each stage."""

    rows: list[Row]
    seconds: Seconds


@dataclass(frozen=True)
class Setup:
    """What a worker is made of; goes to other processes and machines.

    Attributes:
        threads: of the model.
        style, frames: what is decoded, and ``load`` decodes it.
    """

    planner: Artifact
    nodes: Nodes
    plans: PlansConfig
    threads: int
    style: Style
    frames: int
    load: Load = load_content


class Worker:
    """A planner and its decoders. ``plan`` may be called from two threads."""

    def __init__(self, setup: Setup) -> None:
        """Opens the planner on its engine. Raises CorruptArtifact, InvalidRequest."""
        import torch

        torch.set_num_threads(setup.threads)
        self._decoders = Decoders(setup.plans.decoders, setup.style, setup.frames, setup.load)
        self._planner = planner_class(setup.plans).open(
            setup.planner, setup.nodes, setup.plans, threads=setup.threads
        )
        self._planner.check()
        self._decoding, self._model = Lock(), Lock()

    def plan(self, lease: Lease) -> Done:
        """Plans a lease: exactly one row a task."""
        seconds: Seconds = {}
        with self._decoding, timed(seconds, "media"):
            contents = self._decoders.load([task.item for task in lease])
        with self._model:
            rows = self._plan(lease, contents)
            seconds |= self._planner.seconds
            self._planner.seconds.clear()
        return Done(rows, seconds)

    def _plan(self, lease: Lease, contents: Sequence[Loaded]) -> list[Row]:
        reasons = [_reason(c) if isinstance(c, MediaError) else "" for c in contents]
        good = [i for i, c in enumerate(contents) if not isinstance(c, MediaError)]
        plans = self._try(lease, contents, good)
        if isinstance(plans, Exception):  # one of them cannot be put to the model
            plans = {}
            for i in good:
                alone = self._try(lease, contents, [i])
                if isinstance(alone, Exception):
                    reasons[i] = f"{lease[i].item.item_id}: cannot be put to the model ({alone})"
                else:
                    plans |= alone
        return [
            Row(task.item.item_id, task.stale_key, plans.get(i), reasons[i])
            for i, task in enumerate(lease)
        ]

    def _try(
        self, lease: Lease, contents: Sequence[Loaded], at: Sequence[int]
    ) -> dict[int, bytes] | Exception:
        if not at:
            return {}
        chosen = [(lease[i], contents[i]) for i in at]
        try:
            made = self._planner.plan(
                [content for _, content in chosen if not isinstance(content, MediaError)],
                [task.own_id for task, _ in chosen],
                item_ids=[task.item.item_id for task, _ in chosen],
            )
        except (InvalidRequest, ValueError, TypeError) as e:  # the processor's own are the latter
            return e
        return {i: encode_plan(plan) for i, plan in zip(at, made, strict=True)}

    def close(self) -> None:
        """Ends its decoders."""
        self._decoders.close()


def check_engine(plans: PlansConfig) -> None:
    """Raises InvalidRequest if what ``plans.engine`` names is not installed here."""
    if plans.engine == "vllm" and find_spec("vllm") is None:
        raise InvalidRequest(
            "is not installed here",
            field="plans.engine",
            value="vllm",
            remedy="pip install 'serendip[vllm]'; or plan with plans.engine = 'serendip'.",
        )


def planner_class(plans: PlansConfig) -> type[Planner]:
    """What opens a planner on its engine. Raises InvalidRequest if that is not installed here."""
    if plans.engine == "vllm":
        check_engine(plans)
        from serendip.planning.vllm_planner import VllmPlanner

        return VllmPlanner
    from serendip.planning.planner import Planner

    return Planner


def _reason(error: MediaError) -> str:
    return f"{UNSURE}{error}" if isinstance(error, UnsureError) else str(error)


class Hand(Protocol):
    """A worker somewhere, and the leases that it has in hand."""

    def in_hand(self) -> list[Lease]:
        """Given, and not done."""
        ...

    def give(self, lease: Lease) -> None:
        """Puts a lease into its hand; never waits, never fails."""
        ...

    def take(self) -> Done:
        """A lease that is done. Raises WorkerGoneError if there will be none."""
        ...

    def close(self) -> None:
        """Ends the worker."""
        ...


class WorkerGoneError(Exception):
    """A worker has ended with leases in hand; says how."""


H = TypeVar("H", bound=Hand)


def plan_with(
    hire: Callable[[], H], ready: Callable[[list[H]], Iterable[H]], leases: Iterator[Lease],
    workers: int,
) -> Iterator[Done]:  # fmt: skip
    """Plans leases with workers, whatever they are, in whatever order they are done.

    What a worker had in hand when it died is a suspect, and is planned alone from then on: as a
    whole once more, then item by item. An item that goes on bringing workers down is quarantined.

    Args:
        hire: starts one.
        ready: waits; those of the given ones that have a lease done, or are gone.

    Raises:
        SerendipError: the planner cannot be opened, or workers die one after the other.
    """
    first = next(leases, None)
    if first is None:
        return
    leases = chain([first], leases)
    suspects: deque[Lease] = deque()
    died: Counter[tuple[str, ...]] = Counter()
    crew: list[H] = []
    in_a_row = 0

    def choose(hand: H) -> Lease | None:
        given = hand.in_hand()
        if len(given) == AHEAD or any(_ids(lease) in died for lease in given):
            return None
        return suspects.popleft() if suspects and not given else next(leases, None)

    try:
        crew += [hire() for _ in range(workers)]
        while True:
            for hand in crew:
                while (lease := choose(hand)) is not None:
                    hand.give(lease)
            busy = [hand for hand in crew if hand.in_hand()]
            if not busy:
                return
            for hand in ready(busy):
                try:
                    done = hand.take()
                except WorkerGoneError as e:
                    in_a_row += 1
                    if in_a_row == _DEATHS:
                        raise SerendipError(
                            f"{in_a_row} workers died one after the other ({e})",
                            field="plans.workers",
                            value=workers,
                            remedy="Give the machine more memory, or run fewer workers; then run "
                            "the same command again: what is planned is kept.",
                        ) from None
                    for lease in hand.in_hand():
                        died[_ids(lease)] += 1
                        if len(lease) > 1 and died[_ids(lease)] == _LEASE_DEATHS:
                            died.update((task.item.item_id,) for task in lease)
                            suspects.extend([task] for task in lease)
                        elif died[_ids(lease)] > _LEASE_DEATHS:
                            yield Done([_quarantined(task, e) for task in lease], {})
                        else:
                            suspects.append(lease)
                    hand.close()
                    crew[crew.index(hand)] = hire()
                else:
                    in_a_row = 0
                    yield done
    finally:
        for hand in crew:
            hand.close()


def _ids(lease: Lease) -> tuple[str, ...]:
    return tuple(task.item.item_id for task in lease)


def _quarantined(task: Task, how: WorkerGoneError) -> Row:
    reason = f"{UNSURE}{task.item.item_id}: brought its workers down ({how})"
    return Row(task.item.item_id, task.stale_key, None, reason)


def plan_in_processes(setup: Setup, leases: Iterator[Lease]) -> Iterator[Done]:
    """Plans leases in worker processes of this machine: see ``plan_with``."""
    processes.set_forkserver_preload([__name__, "serendip.planning.planner"])

    def ready(hands: list[_Hand]) -> Iterable[_Hand]:
        by = {hand.connection: hand for hand in hands}
        return [by[c] for c in wait(list(by)) if isinstance(c, Connection)]

    return plan_with(lambda: _Hand(setup), ready, leases, setup.plans.workers)


class _Hand:
    """A worker process."""

    def __init__(self, setup: Setup) -> None:
        self._leases: dict[int, Lease] = {}
        self._given = 0
        self.connection, theirs = processes.Pipe()
        self._process = processes.Process(target=work, args=(theirs, partial(Worker, setup)))
        self._process.start()
        theirs.close()

    def in_hand(self) -> list[Lease]:
        return list(self._leases.values())

    def give(self, lease: Lease) -> None:
        self._leases[self._given] = lease
        with contextlib.suppress(OSError):  # it has died, as ``take`` will say
            self.connection.send((self._given, lease))
        self._given += 1

    def take(self) -> Done:
        try:
            number, answer = self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            raise WorkerGoneError(f"exit code {self._process.exitcode}") from None
        if isinstance(answer, SerendipError):
            raise answer
        del self._leases[number]
        done: Done = answer
        return done

    def close(self) -> None:
        self.connection.close()
        self._process.kill()
        self._process.join()


def _cannot_open(e: BaseException) -> SerendipError:
    traceback.print_exception(e)
    return SerendipError(
        f"a worker cannot open the planner ({type(e).__name__}: {e})", field="plan"
    )


class Works(Protocol):
    """What a worker process is about; ``plan`` is called from as many threads as AHEAD."""

    def plan(self, lease: Any, /) -> Any:
        """What is answered to a lease."""

    def close(self) -> None:
        """Ends what it has started."""


def work(connection: Connection, begin: Callable[[], Works]) -> None:
    """The child: numbered leases in, their answers out, until who gave them is gone.

    Where it cannot begin, or fails, the answer is a SerendipError; of the former, number -1's.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sending = Lock()

    def send(number: int, answer: Any) -> None:
        with sending, contextlib.suppress(OSError):
            connection.send((number, answer))

    try:
        worker = begin()
    except Exception as e:
        send(-1, e if isinstance(e, SerendipError) else _cannot_open(e))
        return

    def plan(number: int, lease: Any) -> None:
        try:
            send(number, worker.plan(lease))
        except Exception as e:  # or the job would wait for ever
            traceback.print_exc()
            send(number, SerendipError(f"a worker failed ({type(e).__name__}: {e})", field="plan"))

    with ThreadPoolExecutor(AHEAD) as threads:
        while True:
            try:
                threads.submit(plan, *connection.recv())
            except (EOFError, OSError):  # the job is gone: nobody waits for what is in hand
                worker.close()
                os._exit(0)
