"""Where the time of a call goes: its parts, each by itself, in turns, in CPU time."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from common.timing import interleaved

from retriever_server.decode import decode_batch, read_query
from retriever_server.encode import encode_found, encode_rows
from retriever_server.service import MAX_BATCH
from serendip.core import RetrievalQuery
from serendip.retrieval.found import Found
from serendip.retrieval.ranker import ClusterRanker
from serendip.v1 import retriever_pb2
from serendip.wire import query_to_proto
from serving.servers import SERVER_CORE

REPETITIONS = 9


@dataclass(frozen=True)
class Budget:
    """CPU microseconds a user, medians.

    Attributes:
        parse: bytes to a message.
        read: a message to a checked query.
        run: ClusterRanker.find in the server's largest batches.
        encode: what was found to the bytes of a response.
    """

    parse: float
    read: float
    run: float
    encode: float

    @property
    def sum(self) -> float:
        return self.parse + self.read + self.run + self.encode


def measure_budget(ranker: ClusterRanker, rows: Sequence[RetrievalQuery]) -> Budget:
    """The parts of a RetrieveBatch of these rows, on the servers' core."""
    requests = [query_to_proto(row, tree_version=ranker.versions.tree_version) for row in rows]
    raw = retriever_pb2.RetrieveBatchRequest(requests=requests).SerializeToString()
    found = [f for f in ranker.find(list(rows)) if isinstance(f, Found)]
    batches = [rows[at : at + MAX_BATCH] for at in range(0, len(rows), MAX_BATCH)]
    calls: dict[str, Callable[[], object]] = {
        "parse": lambda: decode_batch(raw),
        "read": lambda: [read_query(request) for request in decode_batch(raw).requests],
        "run": lambda: [ranker.find(batch) for batch in batches],
        "encode": lambda: encode_rows([encode_found(f, ranker.versions) for f in found]),
    }
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {SERVER_CORE})
    try:
        times = interleaved(calls, REPETITIONS)
    finally:
        os.sched_setaffinity(0, allowed)
    us = {name: float(np.median(t)) / len(rows) * 1e6 for name, t in times.items()}
    us["read"] -= us["parse"]  # which makes objects that are there once
    return Budget(**us)
