"""The serving bench's tables, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from common.timing import shown
from rich.console import Console
from rich.table import Table

from serving.budget import Budget

if TYPE_CHECKING:
    from serve import Found

wide = Console(stderr=True, highlight=False, width=150)


def show(
    found: Found,
    budget: Budget,
    settings: Mapping[str, tuple[int, int]],
    left_out: Mapping[str, str],
) -> None:
    """Every server under every load; the ranker in process; a call's parts."""
    one = np.array([rate for rate, _ in found.one])
    table = Table("server", "load", "req/s", "p50 ms", "p99 ms", "CPU us a call", "of in-process")
    for name, loads in found.runs.items():
        for at, runs in loads.items():
            columns = [
                np.array([getattr(ran, what) for ran in runs])
                for what in ("rate", "p50_ms", "p99_ms", "cpu_us")
            ]
            share = f"{np.median(columns[0]) / np.median(one):.2f}" if "users" not in name else ""
            table.add_row(name, at, *(shown(column, 1) for column in columns), share)
        table.add_section()
    wide.print(table)
    for name, (batch, window) in settings.items():
        wide.print(f"{name}: batches of at most {batch}, window {window} us, IDs as INT64")
    for name, why in left_out.items():
        wide.print(f"{name} is left out: {why}")
    table = Table("in process, users a batch", "users/s", title="32 distinct users, one thread")
    for batch, rates in found.by_batch.items():
        table.add_row(str(batch), shown(np.array(rates), 1))
    wide.print(table)
    table = Table("part", "CPU us a user", title="RetrieveBatch of 32, parts by themselves")
    for part, value in budget.as_dict().items():
        table.add_row(part, f"{value:.1f}")
    wide.print(table)
