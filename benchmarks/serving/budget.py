"""Where the time of a call goes: its parts, each by itself, in turns, in CPU time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from common.timing import interleaved
from google.protobuf.message import Message

from serendip.core import Retrieval, RetrievalQuery
from serendip.retrieval.ranker import ClusterRanker
from serendip.v1 import retriever_pb2
from serendip.wire import query_from_proto, query_to_proto, retrieval_to_proto

REPETITIONS = 9


@dataclass(frozen=True)
class Budget:
    """CPU microseconds a user, medians.

    Attributes:
        parse: bytes to a message.
        read: a message to a checked query.
        run: ClusterRanker.retrieve in batches of 16.
        encode: what was found to the bytes of a response.
    """

    parse: float
    read: float
    run: float
    encode: float

    def as_dict(self) -> dict[str, float]:
        return {name: round(value, 1) for name, value in vars(self).items()}


def measure_budget(
    ranker: ClusterRanker, rows: Sequence[RetrievalQuery], one: RetrievalQuery
) -> Budget:
    """The parts of a RetrieveBatch of these rows."""
    requests = [query_to_proto(row, tree_version=ranker.versions.tree_version) for row in rows]
    raw = retriever_pb2.RetrieveBatchRequest(requests=requests).SerializeToString()
    found = [f for f in ranker.retrieve(list(rows)) if isinstance(f, Retrieval)]
    calls: dict[str, Callable[[], object]] = {
        "parse": lambda: retriever_pb2.RetrieveBatchRequest.FromString(raw),
        "read": lambda: [query_from_proto(request) for request in requests],
        "run": lambda: [ranker.retrieve(rows[at : at + 16]) for at in range(0, len(rows), 16)],
        "encode": lambda: [encoded(f, ranker) for f in found],
    }
    times = interleaved(calls, REPETITIONS)
    return Budget(**{name: float(np.median(t)) / len(rows) * 1e6 for name, t in times.items()})


def encoded(found: Retrieval, ranker: ClusterRanker) -> bytes:
    """The response's bytes, as the server makes them."""
    message: Message = retrieval_to_proto(found, ranker.versions)
    return message.SerializeToString()
