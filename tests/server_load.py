"""``python server_load.py JSON``: loads a server from a process of its own.

Every answer is compared with the one that the requests' file expects. Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serendip.v1 import planner_pb2, recommender_pb2, retriever_pb2

RETRIEVE = "/serendip.v1.Retriever/Retrieve"
PLAN = "/serendip.v1.Planner/Plan"
RECOMMEND = "/serendip.v1.Recommender/Recommend"
RESPONSES: dict[str, Any] = {
    RETRIEVE: retriever_pb2.RetrieveResponse,
    PLAN: planner_pb2.PlanResponse,
    RECOMMEND: recommender_pb2.RecommendResponse,
}


@dataclass
class Load:
    """What is asked of a server.

    Attributes:
        requests: file of a JSON list; each entry has a request in hexadecimal, and what ``_right``
            compares the answer of its method with.
        in_flight: calls at a time, each followed by the next one; 0: ``rate`` calls a second,
            whether the others have been answered or not.
        cancelled: share of the calls that are given up, after 0 to 5 ms.
        checked: whether answers are compared.
        watching: whether it ends when the server says that it is not serving.
    """

    address: str
    requests: str
    seconds: float
    deadline_s: float = 1.0
    connections: int = 4
    in_flight: int = 0
    rate: float = 0.0
    cancelled: float = 0.0
    checked: bool = True
    watching: bool = False
    seed: int = 0
    method: str = RETRIEVE


@dataclass
class Seen:
    codes: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    without_retry_info: int = 0
    answered_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    lag_s: list[float] = field(default_factory=list)  # of this client: from due to begun
    by_second: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    says: Counter[str] = field(default_factory=Counter)


async def run(load: Load) -> dict[str, Any]:
    rows = json.loads(Path(load.requests).read_text())
    requests = [bytes.fromhex(row["request"]) for row in rows]
    rng = random.Random(load.seed)
    options: tuple[tuple[str, str | int], ...] = (
        ("grpc.use_local_subchannel_pool", 1),  # else all channels share one connection
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", 500),
    )
    channels = [grpc.aio.insecure_channel(load.address, options) for _ in range(load.connections)]
    calls = [
        channel.unary_unary(
            load.method,
            response_deserializer=RESPONSES[load.method].FromString if load.checked else None,
        )
        for channel in channels
    ]
    await asyncio.gather(*(channel.channel_ready() for channel in channels))
    seen = Seen()
    began = time.monotonic()
    end = began + load.seconds

    async def watch() -> None:
        nonlocal end
        request = health_pb2.HealthCheckRequest()
        async for health in health_pb2_grpc.HealthStub(channels[0]).Watch(request):
            if health.status != health_pb2.HealthCheckResponse.SERVING:
                end = time.monotonic()

    watching = asyncio.create_task(watch()) if load.watching else None

    async def one(due: float, connection: int) -> None:
        at = rng.randrange(len(rows))
        gives_up = rng.random() < load.cancelled
        started = time.monotonic()
        seen.lag_s.append(started - due)
        call = calls[connection](requests[at], timeout=load.deadline_s)
        if gives_up:
            asyncio.get_running_loop().call_later(rng.random() * 0.005, call.cancel)
        try:
            response = await call
        except asyncio.CancelledError:
            seen.codes["CANCELLED"] += 1
            if not gives_up:
                seen.says["cancelled by nobody"] += 1
            return
        except grpc.aio.AioRpcError as error:
            _note(seen, error, time.monotonic() - started)
            return
        took = time.monotonic() - started
        seen.codes["OK"] += 1
        seen.answered_s.append(took)
        seen.by_second[int(time.monotonic() - began)].append(took)
        if load.checked and not _right(response, rows[at]):
            seen.wrong += 1

    async def closed(connection: int) -> None:
        while time.monotonic() < end:
            await one(time.monotonic(), connection)

    async def opened() -> None:
        tasks = set()
        due, number = began, 0
        while due < end:
            now = time.monotonic()
            while due <= now and due < end:
                task = asyncio.create_task(one(due, number % load.connections))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                number += 1
                due = began + number / load.rate
            await asyncio.sleep(0.001)
        await asyncio.gather(*tasks)

    if load.in_flight:
        await asyncio.gather(*(closed(i % load.connections) for i in range(load.in_flight)))
    else:
        await opened()
    took_s = time.monotonic() - began
    if watching is not None:
        watching.cancel()
    for channel in channels:
        await channel.close()
    return {
        "codes": dict(seen.codes),
        "wrong": seen.wrong,
        "without_retry_info": seen.without_retry_info,
        "answered_per_s": seen.codes["OK"] / took_s,
        "offered_per_s": sum(seen.codes.values()) / took_s,
        "answered_ms": _quantiles(seen.answered_s),
        "refused_ms": _quantiles(seen.refused_s),
        "lag_ms": _quantiles(seen.lag_s),
        "by_second": [
            {"second": s, "answered": len(v), "p99_ms": _quantiles(v)["p99"]}
            for s, v in sorted(seen.by_second.items())
        ],
        "says": dict(seen.says.most_common(5)),
    }


def _note(seen: Seen, error: grpc.aio.AioRpcError, took: float) -> None:
    code = error.code().name
    seen.codes[code] += 1
    if code != "RESOURCE_EXHAUSTED":
        seen.says[f"{code}: {error.details()}"] += 1
        return
    seen.refused_s.append(took)
    trailing = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailing.get("grpc-status-details-bin", b""))
    retry = any(d.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for d in status.details)
    if not retry or "grpc-retry-pushback-ms" not in trailing:
        seen.without_retry_info += 1
        seen.says[f"{code}: {error.details()}"] += 1


def _right(response: Any, row: dict[str, Any]) -> bool:
    if isinstance(response, planner_pb2.PlanResponse):
        # By tree: all rows of an answer are of one of them.
        trees = {r.versions.tree_version for r in response.rows}
        trees |= {r.plan.tree_version for r in response.rows}
        nodes = [[c.node_id for c in r.plan.clusters] for r in response.rows]
        return len(trees) == 1 and nodes == row["nodes"].get(trees.pop())
    return (
        [c.item_id for c in response.candidates] == row["items"]
        and response.versions.tree_version == row["tree"]
        and all(
            abs(c.score - score) < 1e-4
            for c, score in zip(response.candidates, row["scores"], strict=True)
        )
    )


def _quantiles(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {"p50": 0.0, "p99": 0.0, "max": 0.0}
    ordered = sorted(seconds)
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {
        name: round(1000 * ordered[min(int(q * len(ordered)), len(ordered) - 1)], 2)
        for name, q in at.items()
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(Load(**json.loads(sys.argv[1]))))))
