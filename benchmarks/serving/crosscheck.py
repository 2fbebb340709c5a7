"""Whether servers answer as the ranker does: a real client, many users with distinct histories."""

from __future__ import annotations

import asyncio
import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from peers import environment

from serendip.core import Retrieval, RetrievalQuery
from serendip.v1 import retriever_pb2, retriever_pb2_grpc
from serendip.wire import query_to_proto, retrieval_from_proto
from serving.material import item_id
from serving.servers import Server

TOLERANCE = 1e-5  # of scores: a batch's arithmetic differs from a single row's in the last bits
_IN_FLIGHT = 16
_LONGEST_S = 60

# Item IDs and scores, best first.
Answer = tuple[list[str], list[float]]


def agree(got: Sequence[Answer], expected: Sequence[Retrieval]) -> bool:
    """Equal items and scores; items whose scores are equal within TOLERANCE may stand otherwise."""
    return len(got) == len(expected) and all(map(_same, got, expected))


def _same(got: Answer, expected: Retrieval) -> bool:
    items, scores = got
    if len(items) != len(expected.candidates) or len(set(items)) != len(items):
        return False
    score_of = {c.item_id: c.score for c in expected.candidates}
    last = expected.candidates[-1].score
    pairs = zip(items, scores, expected.candidates, strict=True)
    return all(
        abs(score - c.score) <= TOLERANCE
        and (item == c.item_id or abs(score_of.get(item, last) - c.score) <= TOLERANCE)
        for item, score, c in pairs
    )


def ask(server: Server, users: Sequence[RetrievalQuery], tree_version: str) -> list[Answer]:
    """What a server answers, by the protocol that it speaks."""
    if server.kind.apart is None:
        return asyncio.run(_ask_ours(server.address, users, tree_version))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "users.json"
        path.write_text(json.dumps(numbered(users)))
        said = v2(server.kind.apart, "ask", path, server.address)
    return [([item_id(n) for n in items], scores) for items, scores in json.loads(said)]


def ask_in_batches(
    server: Server, users: Sequence[RetrievalQuery], tree_version: str, rows: int
) -> list[Answer]:
    """What RetrieveBatch answers, so many users a call."""
    return asyncio.run(_ask_ours(server.address, users, tree_version, rows))


def numbered(users: Sequence[RetrievalQuery]) -> list[dict[str, list[int]]]:
    """Users as peers.v2 reads them."""
    return [
        {"history": [int(i[1:]) for i in user.history], "nodes": list(user.node_ids)}
        for user in users
    ]


def v2(apart: environment.Apart, *arguments: object) -> bytes:
    """What peers.v2 prints in an environment of its own."""
    command = [str(apart.python), "-m", "peers.v2", *map(str, arguments)]
    ended = subprocess.run(
        command, env=environment.variables(), check=True, timeout=_LONGEST_S, stdout=subprocess.PIPE
    )
    return ended.stdout


async def _ask_ours(
    address: str, users: Sequence[RetrievalQuery], tree_version: str, rows: int = 0
) -> list[Answer]:
    turns = asyncio.Semaphore(_IN_FLIGHT)
    requests = [query_to_proto(user, tree_version=tree_version) for user in users]
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = retriever_pb2_grpc.RetrieverStub(channel)

        async def one(request: Any) -> list[Any]:
            async with turns:
                return [await stub.Retrieve(request)]

        async def batch(some: list[Any]) -> list[Any]:
            async with turns:
                made = retriever_pb2.RetrieveBatchRequest(requests=some)
                return [row.response for row in (await stub.RetrieveBatch(made)).rows]

        if rows:
            parts = [requests[at : at + rows] for at in range(0, len(requests), rows)]
            answers = await asyncio.gather(*map(batch, parts))
        else:
            answers = await asyncio.gather(*map(one, requests))
    found = [retrieval_from_proto(response)[0] for some in answers for response in some]
    return [([c.item_id for c in f.candidates], [c.score for c in f.candidates]) for f in found]
