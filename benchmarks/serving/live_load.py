"""Live planning through the server against the engine in process, and look-ups under that load.

Two cores: the planner server, and who loads it, on one; its live worker with its decoders, and in
turns with it the engine, on the other. While look-ups are measured, who asks for live plans stands
beside the worker, for its time is not the server's; and once beside the server all the same. Engine
and server plan the same contents, from encoded thumbnail and video to the eight best clusters: the
engine decodes and plans them one batch after the other, in the best of several batch sizes; the
server is asked for one content a call, so many in flight. Look-ups are of one made-up plan a call
at a fixed rate, by h2load, while nothing else is asked and while the live worker is kept busy.
*Simulated.*
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from common import planning_world
from common.made_plans import info, item_id, plans
from common.process import family

from serendip.artifacts import Artifacts
from serendip.catalog.items import read_items
from serendip.config import PlansConfig
from serendip.planning.lmdb_store import FILE, write_lmdb
from serendip.planning.prompt import Upload, load_content
from serendip.serving.http2.client import Channel, Target
from serendip.tree.cluster_tree import ClusterTree
from serendip.v1 import planner_pb2
from serving import load, servers
from serving.load import Load, Ran

WORKER_CORE = servers.LOAD_CORE  # the load stands beside the server
BATCHES = (8, 16, 32, 64)
IN_FLIGHT = 64
_PLANS = 10_000
_PLAN_CONTENT = "/serendip.v1.Planner/PlanContent"
_RATE = 200  # look-ups a second


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    rounds: int
    seconds: float
    items: int


FULL, QUICK = Plan(6, 5.0, 256), Plan(2, 1.0, 96)


@dataclass
class Found:
    """What was measured, by round.

    Attributes:
        engine: items a second by batch size.
        live: items a second through the server.
        rows: of a batch in the live worker, the mean of all.
        idle: look-ups beside nothing.
        busy: beside live planning, which a client on the worker's core asks for.
        crowded: the same, where that client takes its time from the server's core.
    """

    engine: dict[int, list[float]] = field(default_factory=lambda: {b: [] for b in BATCHES})
    live: list[float] = field(default_factory=list)
    rows: float = 0.0
    idle: list[Ran] = field(default_factory=list)
    busy: list[Ran] = field(default_factory=list)
    crowded: list[Ran] = field(default_factory=list)


def measure(quick: bool) -> Found:
    """Makes the world where it is not there, and measures in turns."""
    plan = QUICK if quick else FULL
    config = planning_world.configure(planning_world.FOLDER, quick)
    artifacts = planning_world.make(config)
    release(artifacts)
    found = Found()
    with (
        engine(artifacts.root, config.data_path, plan.items) as ask_engine,
        servers.running([kind(artifacts.root)]) as (server,),
    ):
        pin(server, WORKER_CORE)
        asked = [
            planner_pb2.PlanContentRequest(
                title=u.title, text=u.text, thumbnail=u.thumbnail, video=u.video, k=8
            )
            for u in uploads(config.data_path, plan.items)
        ]
        body = planner_pb2.PlanRequest(context_item_ids=[item_id(1)], k=8).SerializeToString()
        at = Load(4, 25, _RATE)
        method = server.kind.method

        async def look_up() -> Ran:
            calls = round(_RATE * plan.seconds)
            return await asyncio.to_thread(
                load.run, server, method, body, at, calls, servers.SERVER_CORE
            )

        async def under_load(core: int) -> Ran:
            async with live_load(server.address, asked, core):
                return await look_up()

        for turn in range(plan.rounds + 1):
            rates = ask_engine()
            live = asyncio.run(live_rate(server.address, asked, plan.seconds))
            idle = asyncio.run(look_up())
            busy = asyncio.run(under_load(WORKER_CORE))
            crowded = asyncio.run(under_load(servers.SERVER_CORE))
            if turn:  # the first warms up
                for batch, rate in rates.items():
                    found.engine[batch].append(rate)
                found.live.append(live)
                found.idle.append(idle)
                found.busy.append(busy)
                found.crowded.append(crowded)
        found.rows = mean_rows(server.page)
    return found


# --- the world -----------------------------------------------------------------------------------


def release(artifacts: Artifacts) -> None:
    """A release of the world's planner with made-up plans, for a server that looks those up."""
    planner = artifacts.current("planner")
    tree = planner.tree_version
    settings = {"plans": PlansConfig().model_dump(include={"clusters", "beams"})}
    inputs = {"tree": tree, "planner": planner.version}
    if not artifacts.reuse("plans", settings, inputs):
        with artifacts.publish("plans", settings, inputs) as draft:
            write_lmdb(draft.path / FILE, plans(_PLANS), info(_PLANS, draft.version))
            none = {"own_id": pa.int32(), "node_id": pa.int32(), "satisfaction": pa.float64()}
            pq.write_table(
                pa.table({name: pa.array([], kind) for name, kind in none.items()}),
                draft.path / "transitions.parquet",
            )
            draft.facts["tree_version"] = tree
    inputs |= {"plans": artifacts.current("plans").version, "retriever": "0" * 12}
    if not artifacts.reuse("release", {}, inputs):
        with artifacts.publish("release", {}, inputs) as draft:
            draft.facts["tree_version"] = tree


def uploads(data: Path, count: int) -> list[Upload]:
    """Contents with pictures, as a request brings them."""
    found = []
    for item in read_items(data):
        if isinstance(item.thumbnail, Path) and item.video is not None:
            media = item.thumbnail.read_bytes(), item.video.read_bytes()
            found.append(Upload(item.title, item.text, media[0], (), media[1]))
    return found[:count]


# --- the server ----------------------------------------------------------------------------------


def kind(root: Path) -> servers.Kind:
    """This project's planner server with one live worker."""
    command = (sys.executable, "-m", "planner_server", "--artifacts", str(root.absolute()))
    return servers.Kind(
        "planner server, live",
        (*command, "--no-live-store", "--port", "0", "--metrics-port", "0"),
        "/serendip.v1.Planner/Plan",
        r'grpc_server_handled_total\{(?=[^}]*grpc_code="OK")(?=[^}]*grpc_method="Plan")',
    )


def pin(server: servers.Server, core: int) -> None:
    """Moves what is below a server's process to a core: its live worker and the decoders."""
    for pid in family(server.process.pid)[1:]:
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), {core})


async def _plan_on(channel: Channel, contents: Iterator[bytes], counted: list[int]) -> None:
    while True:
        await channel.unary(_PLAN_CONTENT, next(contents), 60)
        counted[0] += 1


@contextlib.asynccontextmanager
async def live_load(address: str, asked: Sequence[Any], core: int = servers.SERVER_CORE) -> Any:
    """Keeps IN_FLIGHT contents in flight while the block runs; yields how many were planned."""
    os.sched_setaffinity(0, {core})
    counted = [0]
    host, _, port = address.rpartition(":")
    contents = cycle([one.SerializeToString() for one in asked])
    async with Channel(Target(host, int(port))) as channel:
        callers = [
            asyncio.create_task(_plan_on(channel, contents, counted)) for _ in range(IN_FLIGHT)
        ]
        while counted[0] < IN_FLIGHT:  # the queue is full, and batches are
            await asyncio.sleep(0.01)
            for caller in callers:
                if caller.done():
                    caller.result()
        yield counted
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)


async def live_rate(address: str, asked: Sequence[Any], seconds: float) -> float:
    """Contents planned a second."""
    async with live_load(address, asked) as counted:
        began, before = time.perf_counter(), counted[0]
        await asyncio.sleep(seconds)
        return float((counted[0] - before) / (time.perf_counter() - began))


def mean_rows(page: str) -> float:
    """Of a batch in the live worker so far."""
    with urllib.request.urlopen(page, timeout=10) as response:
        text = response.read().decode()

    def value(what: str) -> float:
        line = re.search(rf"^serendip_live_batch_rows_{what} (\S+)$", text, re.MULTILINE)
        return float(line[1]) if line else 0.0

    return value("sum") / max(1.0, value("count"))


# --- the engine in process -----------------------------------------------------------------------


@contextlib.contextmanager
def engine(root: Path, data: Path, items: int) -> Iterator[Any]:
    """A process on WORKER_CORE that plans all contents once whenever it is asked."""
    command = [
        sys.executable,
        "-m",
        "serving.live_load",
        str(root.absolute()),
        str(data.absolute()),
        str(items),
    ]
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        ["taskset", "-c", str(WORKER_CORE), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    wanted, told = process.stdin, process.stdout

    def ask() -> dict[int, float]:
        wanted.write("\n")
        wanted.flush()
        return {int(batch): rate for batch, rate in json.loads(told.readline()).items()}

    try:
        yield ask
    finally:
        process.kill()
        process.wait()


def run_engine(root: Path, data: Path, items: int) -> None:
    """Answers every line with items a second by batch size, as JSON."""
    import torch

    from serendip.planning.planner import Planner

    torch.set_num_threads(1)
    artifacts = Artifacts(root)
    planner = Planner.open(
        artifacts.current("planner"),
        ClusterTree.open(artifacts.current("tree")).nodes,
        PlansConfig.model_validate(artifacts.current("plans").config["plans"]),
    )
    style, frames = planner.style, planner.config.frames
    contents = uploads(data, items)
    for _ in sys.stdin:
        rates = {}
        for batch in BATCHES:
            began = time.perf_counter()
            for at in range(0, len(contents), batch):
                shown = [load_content(u, style, frames) for u in contents[at : at + batch]]
                planner.plan(shown, [None] * len(shown))
            rates[batch] = len(contents) / (time.perf_counter() - began)
        print(json.dumps(rates), flush=True)


if __name__ == "__main__":
    run_engine(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
