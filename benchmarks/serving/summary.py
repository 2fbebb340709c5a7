"""Figures and ratios of the rounds, and where the time of a call goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from serving.budget import measure_budget
from serving.load import FEW, MANY, Ran
from serving.material import ROWS
from serving.rounds import BATCH, MLSERVER, OURS, PLAIN, PYTRITON, Found, Setting


def budgets(setting: Setting, found: Found) -> dict[str, dict[str, float]]:
    """What a user costs the server, by part, in a call of its own and in one of 32 users."""
    wholes = {
        "one user a call": ([setting.one] * ROWS, found.median(OURS, MANY, lambda r: r.cpu_us)),
        "32 users a call": (setting.rows, found.median(BATCH, FEW, lambda r: r.cpu_us) / ROWS),
    }
    columns = {}
    for name, (rows, whole) in wholes.items():
        parts = measure_budget(setting.ranker, rows)
        rest = {"front, batching, metrics, all else": whole - parts.sum, "whole": whole}
        column = vars(parts) | rest
        columns[name] = {part: round(us, 1) for part, us in column.items()}
    return columns


def summarise(found: Found, left_out: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, float]]:
    """Figures are medians over the rounds; ratios are taken within a round, then the median."""

    def over(a: Sequence[float], b: Sequence[float]) -> float:
        count = min(len(a), len(b))
        return round(float(np.median(np.array(a[:count]) / np.array(b[:count]))), 3)

    def many(name: str, what: Callable[[Ran], float]) -> list[float]:
        return [what(ran) for ran in found.runs[name][str(MANY)]]

    rate, cpu = (lambda ran: ran.rate), (lambda ran: ran.cpu_us)
    users_a_second = [ROWS * ran.rate for ran in found.runs[BATCH][str(FEW)]]
    user_cpu_us = [ran.cpu_us / ROWS for ran in found.runs[BATCH][str(FEW)]]
    ratios = {
        f"vs_{name.lower()}_c64": over(many(OURS, rate), many(name, rate))
        for name in (PYTRITON, MLSERVER)
        if name not in left_out
    }
    ratios |= {
        "vs_one_by_one_c64": over(many(OURS, rate), many(PLAIN, rate)),
        "batch32_of_in_process": over(users_a_second, [r for r, _ in found.rows]),
        "single_of_in_process": over(many(OURS, rate), [r for r, _ in found.one]),
        # The same by CPU time, which another job on the core does not lengthen.
        "batch32_of_in_process_cpu": over([us for _, us in found.rows], user_cpu_us),
        "single_of_in_process_cpu": over([us for _, us in found.one], many(OURS, cpu)),
    }
    ratios |= {
        f"vs_{name.lower()}_c64_cpu": over(many(name, cpu), many(OURS, cpu))
        for name in (PYTRITON, MLSERVER)
        if name not in left_out
    }
    figures: dict[str, Any] = {
        "p99_ms_c64": round(found.median(OURS, MANY, lambda ran: ran.p99_ms), 2),
        "in_process_rows_per_s": {
            str(batch): round(float(np.median(rates))) for batch, rates in found.by_batch.items()
        },
        "batch32_users_per_s": round(float(np.median(users_a_second))),
        "servers": {
            name: {
                at: {
                    "req_per_s": round(float(np.median([r.rate for r in runs])), 1),
                    "p50_ms": round(float(np.median([r.p50_ms for r in runs])), 3),
                    "p99_ms": round(float(np.median([r.p99_ms for r in runs])), 3),
                    "cpu_us": round(float(np.median([r.cpu_us for r in runs])), 1),
                }
                for at, runs in loads.items()
            }
            for name, loads in found.runs.items()
        },
    }
    return figures, ratios
