"""The serving bench's tables, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from common.timing import shown
from rich.console import Console
from rich.table import Table

from serving.material import ROWS

if TYPE_CHECKING:
    from serving.rounds import Found

wide = Console(stderr=True, highlight=False, width=150)


def show(
    found: Found,
    settings: Mapping[str, tuple[int, int]],
    left_out: Mapping[str, str],
) -> None:
    """Every server under every load; the ranker in process."""
    one = np.median([rate for rate, _ in found.one])
    rows = np.median([rate for rate, _ in found.rows])
    table = Table("server", "load", "req/s", "p50 ms", "p99 ms", "CPU us a call", "of in-process")
    for name, loads in found.runs.items():
        for at, runs in loads.items():
            columns = [
                np.array([getattr(ran, what) for ran in runs])
                for what in ("rate", "p50_ms", "p99_ms", "cpu_us")
            ]
            share = np.median(columns[0]) * ROWS / rows if "users" in name else (
                np.median(columns[0]) / one
            )  # fmt: skip
            cells = [shown(column, 1) for column in columns]
            table.add_row(name, at, *cells, "" if "no work" in name else f"{share:.2f}")
        table.add_section()
    wide.print(table)
    for name, (batch, window) in settings.items():
        wide.print(f"{name}: batches of at most {batch}, window {window} us; IDs as INT64")
    for name, why in left_out.items():
        wide.print(f"{name} is left out: {why}")
    table = Table("in process, users a batch", "users/s", title="32 distinct users, one thread")
    for batch, rates in found.by_batch.items():
        table.add_row(str(batch), shown(np.array(rates), 1))
    wide.print(table)


def show_budget(budgets: Mapping[str, dict[str, float]]) -> None:
    """The parts of a call, one column a kind of call."""
    table = Table("CPU us a user", *budgets, title="where the time goes")
    for part in next(iter(budgets.values())):
        table.add_row(part, *(f"{parts[part]:.1f}" for parts in budgets.values()))
    wide.print(table)
