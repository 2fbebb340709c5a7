"""What a scan costs: the constants of serendip.retrieval.scan.Costs, and how time grows."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from common.timing import interleaved

from retrieval.ways import ALWAYS, Float32, World, full_scan
from retrieval.world import COLUMNS
from serendip.retrieval.codes import Codes
from serendip.retrieval.scan import Scan

NONE = np.empty(0, np.int64)


def scanner(scan: Scan, items: int, rows: int, k: int) -> Callable[[], object]:
    """Each call asks another user for another slice of so many rows."""
    rng = np.random.default_rng(rows)
    users = rng.standard_normal((64, COLUMNS), np.float32)
    starts = rng.permutation(np.arange(0, items - rows + 1, max(rows // 2, 64)))[:4096]
    turns = zip(itertools.cycle(users), itertools.cycle(starts.tolist()), strict=False)

    def call() -> object:
        user, start = next(turns)
        return scan.best(user, [(start, start + rows)], NONE, k)

    return call


def measure_costs(matrix: Float32, codes: Codes, k: int, repetitions: int) -> dict[str, float]:
    """Costs by least squares over slices of 2,000 to 64,000 rows, both ways in turns.

    Times are medians; the residual is relative to each time, so that short slices count too.
    """
    plain, coded = Scan(matrix), Scan(matrix, codes, ALWAYS)
    sizes = [r for r in (2_000, 4_000, 8_000, 16_000, 32_000, 64_000) if r * 4 < len(matrix)]
    calls: dict[str, Callable[[], object]] = {}
    for rows in sizes:
        calls[f"plain {rows}"] = scanner(plain, len(matrix), rows, k)
        calls[f"coded {rows}"] = scanner(coded, len(matrix), rows, k)
    calls["coded, more k"] = scanner(coded, len(matrix), sizes[-1], 10 * k)
    times = {name: float(np.median(t)) for name, t in interleaved(calls, repetitions).items()}

    def line(way: str) -> tuple[float, float]:
        t = np.array([times[f"{way} {rows}"] for rows in sizes])
        terms = np.stack([np.ones(len(sizes)), np.array(sizes)], axis=1) / t[:, None]
        start, row = np.linalg.lstsq(terms, np.ones(len(sizes)), rcond=None)[0]
        return float(start), float(row)

    (plain_start, plain_row), (coded_start, coded_row) = line("plain"), line("coded")
    more = times["coded, more k"] - times[f"coded {sizes[-1]}"]
    rescored = more / (13.5 * k)  # 1.5 k are looked at first
    return {
        "plain_row": plain_row,
        "coded_start": coded_start - plain_start - (1.5 * k + 16) * rescored,
        "coded_row": coded_row,
        "rescored": rescored,
        "even_at_rows": (coded_start - plain_start) / (plain_row - coded_row),
    }


def growth(of: World, codes: Codes, repetitions: int) -> dict[str, Any]:
    """CPU seconds of one request as its slice, the corpus and k grow: [x, float32, codes] each."""
    items = len(of.matrix)
    plain, coded = Scan(of.matrix), Scan(of.matrix, codes, ALWAYS)
    chosen = Scan(of.matrix, codes)
    rows = [r for r in (100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
            if r * 2 <= items]  # fmt: skip
    ks = [1, 3, 10, 30, 100, 300, 1_000]
    corpora = [n for n in (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000) if n <= items]

    def medians(calls: dict[Any, Callable[[], object]], times: int) -> list[list[float]]:
        got = interleaved({str(key): call for key, call in calls.items()}, times)
        return [[key, float(np.median(got[str(key)]))] for key in calls]

    wide = min(39_063, items // 8)
    few = max(3, repetitions // 4)
    return {
        "rows": {
            "float32": medians({r: scanner(plain, items, r, 50) for r in rows}, few),
            "codes": medians({r: scanner(coded, items, r, 50) for r in rows}, few),
        },
        "k": {
            "float32": medians({k: scanner(plain, items, wide, k) for k in ks}, few),
            "codes": medians({k: scanner(coded, items, wide, k) for k in ks}, few),
            "chosen by costs": medians({k: scanner(chosen, items, wide, k) for k in ks}, few),
            "rows": wide,
        },
        "corpus": {
            "a slice of 1,000": medians(
                {n: scanner(Scan(of.matrix[:n]), n, 1_000, 50) for n in corpora}, few
            ),
            "a leaf of 4,096": medians(
                {n: scanner(Scan(of.matrix[:n]), n, n // 4096, 50) for n in corpora}, few
            ),
            "full scan and mask": medians({n: masked(of, n) for n in corpora if n <= 3_000_000}, 3),
        },
    }  # fmt: skip


def masked(of: World, items: int) -> Callable[[], object]:
    part = World(of.matrix[:items], np.linspace(0, items, 4097).astype(np.int64))
    way, requests = full_scan(part, 50), itertools.cycle(part.requests(16, 1, 0))
    return lambda: way([next(requests)])
