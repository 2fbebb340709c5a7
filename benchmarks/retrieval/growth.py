"""How the time of a scan grows with its slice, the corpus and k."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from common.timing import interleaved

from retrieval.ways import World, compiled, full_scan
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


def growth(of: World, codes: Codes, repetitions: int) -> dict[str, Any]:
    """CPU seconds of one request as its slice, the corpus and k grow: [x, float32, codes] each."""
    items = len(of.matrix)
    plain, coded = compiled(of.matrix), compiled(of.matrix, codes)
    by_numpy = Scan(of.matrix, only_numpy=True)
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
            "numpy": medians({r: scanner(by_numpy, items, r, 50) for r in rows}, few),
        },
        "k": {
            "float32": medians({k: scanner(plain, items, wide, k) for k in ks}, few),
            "codes": medians({k: scanner(coded, items, wide, k) for k in ks}, few),
            "numpy": medians({k: scanner(by_numpy, items, wide, k) for k in ks}, few),
            "rows": wide,
        },
        "corpus": {
            "a slice of 1,000": medians(
                {n: scanner(compiled(of.matrix[:n]), n, 1_000, 50) for n in corpora}, few
            ),
            "a leaf of 4,096": medians(
                {n: scanner(compiled(of.matrix[:n]), n, n // 4096, 50) for n in corpora}, few
            ),
            "full scan and mask": medians({n: masked(of, n) for n in corpora if n <= 3_000_000}, 3),
        },
    }  # fmt: skip


def masked(of: World, items: int) -> Callable[[], object]:
    part = World(of.matrix[:items], np.linspace(0, items, 4097).astype(np.int64))
    way, requests = full_scan(part, 50), itertools.cycle(part.requests(16, 1, 0))
    return lambda: way([next(requests)])
