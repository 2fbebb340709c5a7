"""Progress of long work: a bar with rate and ETA on a terminal, a line now and then elsewhere.

This module knows nothing of what is being done.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Seconds = dict[str, float]  # by stage

_LINE_EVERY_S = 15.0

console = Console(stderr=True, highlight=False, soft_wrap=True)


class Tick(Protocol):
    """Tells a progress display that ``n`` more units are done; ``note`` is shown beside."""

    def __call__(self, n: int = 1, note: str = "") -> None: ...


@contextmanager
def progress(what: str, total: int, *, done: int = 0) -> Iterator[Tick]:
    """Shows how ``total`` units of work go; the body calls the tick it is given.

    Args:
        done: units that an earlier run has done: they do not count in the rate.
    """
    if console.is_terminal:
        with Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
        ) as bar:
            task = bar.add_task(what, total=total, completed=done, rate="", note="")
            start = time.monotonic()
            ours = 0

            def on_terminal(n: int = 1, note: str = "") -> None:
                nonlocal ours
                ours += n
                rate = ours / max(time.monotonic() - start, 1e-9)
                if note:
                    bar.update(task, note=note)
                bar.update(task, advance=n, rate=f"{rate:.1f}/s")

            yield on_terminal
        return

    start = last = time.monotonic()
    count = 0

    def on_lines(n: int = 1, note: str = "") -> None:
        nonlocal last, count
        count += n
        now = time.monotonic()
        if now - last >= _LINE_EVERY_S and count and done + count < total:
            rate = count / (now - start)
            eta = (total - done - count) / rate
            print(
                f"  {what}: {done + count}/{total}, {rate:.1f}/s, {eta:.0f} s left {note}",
                file=sys.stderr,
                flush=True,
            )
            last = now

    yield on_lines


@contextmanager
def timed(seconds: Seconds | None, stage: str) -> Iterator[None]:
    """Adds the wall-clock seconds of a block to its stage's."""
    began = time.perf_counter()
    yield
    if seconds is not None:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - began
