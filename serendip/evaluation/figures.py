"""The paper's figures 3 to 5, made again (``serendip evaluate figures``).

Worlds, then training runs, go through a pool of processes. Each ends in a file of its own, named
by all that it depends on: an interrupted command goes on with what is missing, and another one
that asks for the same takes it over. What is compared stands in figures_study.py, what a run does
in figures_run.py, how a verdict is reached in figures_verdict.py.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from serendip.catalog.synth import synthesise
from serendip.core import CorruptArtifact, InvalidRequest, SerendipError
from serendip.evaluation.figures_plot import draw_figures
from serendip.evaluation.figures_study import DONE, GROUNDS, MEASURES, Ground, Run, Study
from serendip.evaluation.figures_verdict import Result, lines_of, write_table
from serendip.progress import progress
from serendip.storage import storage_errors, write_atomically

POINTS, TABLE = "figures.jsonl", "table.md"
_RUNS, _LOGS = "runs", "logs"


def make_figures(
    study: Study, out: Path, command: str, *, workers: int = 0, docs: Path | None = None
) -> list[Path]:
    """Makes grounds and runs that are missing, then figures, points and table.

    Args:
        out: where all of it goes; worlds and models in ``grounds/``, runs in ``runs/``,
            and in ``logs/`` what the workers say.
        command: that the table says made it.
        workers: processes, a thread each; 0: as many as there are cores.
        docs: a folder that gets the figures and the table as well.

    Returns:
        What was written for people: points, table, figures; those in ``docs`` last.

    Raises:
        InvalidRequest: ``out`` or ``docs`` cannot be a folder.
        CorruptArtifact: a run's file holds none.
        SerendipError: a worker ended before its work.
    """
    out = out.resolve()
    with storage_errors(out, "run serendip evaluate figures again."):
        for folder in (GROUNDS, _RUNS, _LOGS):
            _make_folder(out / folder, "--out")
        if docs:
            _make_folder(docs, "--docs")
        runs = list(study.runs())
        missing = [run for run in runs if not _file(run, out).is_file()]
        grounds = [
            ground
            for ground in {run.ground.key: run.ground for run in missing}.values()
            if not (out / GROUNDS / ground.key / DONE).is_file()
        ]
        for ground in grounds:  # here, since it has processes of its own
            synthesise(study.config(ground.world, ground.seed, out / GROUNDS / ground.key))
        if missing:
            with _pool(out / _LOGS, workers or os.cpu_count() or 1) as pool:
                _work(pool, "starts", partial(_ground, out=out), grounds)
                done = len(runs) - len(missing)
                _work(pool, "runs", partial(_run, out=out), missing, done)
        results = [read_result(_file(run, out)) for run in runs]
        written = _write(study, results, out, command)
        if docs:
            for path in written[1:]:
                write_atomically(docs / path.name, path.read_bytes())
            written += [docs / path.name for path in written[1:]]
    return written


def _make_folder(path: Path, option: str) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InvalidRequest(
            "cannot be a folder: a file lies there",
            field=option,
            value=str(path),
            remedy="Name another place.",
        ) from None


def read_result(path: Path) -> Result:
    """A run's result, as its file has it. Raises CorruptArtifact if it is none."""
    try:
        told = json.loads(path.read_text())
        looks = told["looks"]
        return Result(
            world=told["world"],
            start=told["start"],
            arm=told["arm"],
            seed=told["seed"],
            steps=np.array([look["step"] for look in looks], np.int64),
            losses=np.array([look["loss"] for look in looks]),
            hits={m: np.array([[d == "1" for d in look[m]] for look in looks]) for m in MEASURES},
        )
    except (ValueError, KeyError, TypeError) as e:
        raise CorruptArtifact(
            "holds no result of a run",
            field=path.name,
            value=str(path),
            remedy="Remove it and run serendip evaluate figures again: that run is made anew.",
        ) from e


def _write(study: Study, results: Sequence[Result], out: Path, command: str) -> list[Path]:
    """Each file whole: the points first, which the others are made of."""
    points = "".join(json.dumps(line) + "\n" for line in lines_of(results))
    with TemporaryDirectory() as scratch:
        figures = draw_figures(study, results, Path(scratch))
        files = {POINTS: points.encode(), TABLE: write_table(study, results, command).encode()}
        files |= {path.name: path.read_bytes() for path in figures}
    for name, data in files.items():
        write_atomically(out / name, data)
    return [out / name for name in files]


def _file(run: Run, out: Path) -> Path:
    return out / _RUNS / f"{run.key}.json"


def _ground(ground: Ground, out: Path) -> str:
    from serendip.evaluation.figures_run import make_ground

    make_ground(ground, out)
    return f"{ground.world}, seed {ground.seed}"


def _run(run: Run, out: Path) -> str:
    from serendip.evaluation.figures_run import train_arm

    told = train_arm(run, out)
    write_atomically(_file(run, out), json.dumps(told).encode())
    hits = told["looks"][-1]["recall_at_1"]
    where = f"{run.ground.world}, {run.start}, {run.arm.name}, seed {run.ground.seed}"
    return f"{where}: {hits.count('1') / len(hits):.2f}"


def _work(
    pool: ProcessPoolExecutor,
    what: str,
    do: Callable[[Any], str],
    tasks: Sequence[Any],
    done: int = 0,
) -> None:
    """Has the workers do all tasks; ``done`` of the same were done before."""
    waiting: Mapping[Future[str], Any] = {pool.submit(do, task): task for task in tasks}
    with progress(what, done + len(tasks), done=done) as tick:
        try:
            for future in as_completed(waiting):
                tick(note=f"({future.result()})")
        except BrokenProcessPool as e:
            raise SerendipError(
                "a worker process ended before its work, perhaps for want of memory",
                field="serendip evaluate figures",
                remedy="Run the same command with fewer --workers: it goes on.",
            ) from e


@contextmanager
def _pool(logs: Path, workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes; whatever ends the block early ends what they are at."""
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, context, _begin, (logs,))
    try:
        yield pool
    except BaseException:
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown()


def _begin(logs: Path) -> None:
    """Sets a worker up: it ends at its parent's word, or with it, and its log has what it says."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"
    log = (logs / f"worker-{os.getpid()}.log").open("a", buffering=1)
    sys.stderr = sys.stdout = log
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
