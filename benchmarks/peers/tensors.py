"""What the tensor servers share: the same retrieval, item numbers in and item numbers back.

A catalogue's IDs are text. As INT64 they are what tensor servers carry best, so the peers are
given numbers, and turn them into the ranker's IDs and back.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from serving.material import K, item_id

from serendip.artifacts import Artifacts
from serendip.core import Retrieval, RetrievalQuery
from serendip.retrieval.ranker import ClusterRanker

MODEL = "retriever"
NO_NODE = -1  # fills the nodes of a request to CLUSTERS


def number(name: str) -> int:
    """The number of an item ID of the bench."""
    return int(name[1:])


def free_ports(count: int) -> list[int]:
    """Free ports that no other server of the bench takes: each process looks in a place of its own,
    below those that the kernel gives away."""
    first = 20_000 + os.getpid() % 300 * 30
    found: list[int] = []
    for port in range(first, first + 30):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
        if len(found) == count:
            break
    return found


class NumberedRanker:
    """The ranker of the current release, asked by item numbers."""

    def __init__(self, root: Path) -> None:
        artifacts = Artifacts(root)
        release = artifacts.current("release")
        self._ranker = ClusterRanker.open(artifacts.open("retriever", release.inputs["retriever"]))
        self._names = [item_id(n) for n in range(self._ranker.item_count)]

    def retrieve(
        self, histories: Sequence[list[int]], nodes: Sequence[list[int]]
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Item numbers and scores of the top 50 of each row."""
        names = self._names
        queries = [
            RetrievalQuery(
                history=tuple([names[n] for n in history]),
                node_ids=tuple([node for node in asked if node != NO_NODE]),
                k=K,
            )
            for history, asked in zip(histories, nodes, strict=True)
        ]
        items, scores = [], []
        for found in self._ranker.retrieve(queries):
            assert isinstance(found, Retrieval)
            items.append([number(c.item_id) for c in found.candidates])
            scores.append([c.score for c in found.candidates])
        return items, scores
