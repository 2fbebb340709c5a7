"""The ranker without a server, on one thread of the core that servers stand on."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from serendip.core import RetrievalQuery
from serendip.retrieval.ranker import ClusterRanker
from serving.servers import SERVER_CORE


def rows_a_second(
    ranker: ClusterRanker, rows: Sequence[RetrievalQuery], batch: int, seconds: float
) -> tuple[float, float]:
    """(rows a second, CPU microseconds a row) of ClusterRanker.retrieve in batches of so many."""
    parts = [rows[at : at + batch] for at in range(0, len(rows), batch)]
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {SERVER_CORE})
    try:
        for part in parts:
            ranker.retrieve(part)
        done = 0
        wall, cpu = time.perf_counter(), time.process_time()
        while time.perf_counter() - wall < seconds:
            for part in parts:
                ranker.retrieve(part)
            done += len(rows)
        cpu = time.process_time() - cpu
        return done / (time.perf_counter() - wall), cpu / done * 1e6
    finally:
        os.sched_setaffinity(0, allowed)
