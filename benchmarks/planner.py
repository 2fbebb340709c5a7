"""./build.sh bench planner [--quick] [--live-only]: what a plan costs, looked up or made live.

The planner server, plans in LMDB, no model, metrics on; and a bare grpc.aio that answers the same
requests with the same bytes and looks nothing up. Both on one core, h2load on the other; they take
turns. 1, 16 and 256 items a call. A run is void unless the server counted as many OK answers as
h2load counted answers; the bytes that the echo answers with are the server's own, compared with
the store's plans first. Redis GET through redis-py, one connection over a Unix socket, takes its
turn as well: a client in Python that waits for each answer. Then what Recommend adds to its two
parts (serving/recommend_parts.py); last, live planning through the server against the engine in
process, and look-ups beside it (serving/live_load.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import grpc
import numpy as np
import redis
from common.timing import Times, shown
from peers.stores import RedisServer
from rich.console import Console
from rich.table import Table
from serving import live_load, load, recommend_parts, servers
from serving.load import MANY, ONE, Load, Ran
from serving.plans_material import ROOT, make, request

from serendip.planning.lmdb_store import FILE, LmdbStore
from serendip.v1 import planner_pb2, planner_pb2_grpc

ITEMS = (1, 16, 256)
METHOD = "/serendip.v1.Planner/Plan"
OURS, ECHO = "planner server", "grpc.aio, no look-up"
wide = Console(stderr=True, highlight=False, width=150)


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    rounds: int
    seconds: float
    redis_gets: int


FULL, QUICK = Plan(7, 2.0, 5_000), Plan(3, 0.5, 1_000)
Runs = dict[tuple[str, int, str], list[Ran]]
LOADS: Mapping[int, Sequence[Load]] = {1: (ONE, MANY), 16: (ONE, MANY), 256: (ONE, Load(4, 2))}


def main() -> None:
    """Measures, and prints a table and one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--live-only", action="store_true")
    options = parser.parse_args()
    if load.missing():
        parser.exit(2, f"bench planner: {load.HOW_TO_INSTALL}\n")
    plan = QUICK if options.quick else FULL
    runs: Runs = {}
    gets: list[Times] = []
    parts: Mapping[str, Mapping[str, float]] = {}
    if not options.live_only:
        runs, gets = look_ups(plan)
        parts = recommend_parts.figures(options.quick)
    report(options.quick, plan, runs, gets, parts, live_load.measure(options.quick))


def lookup_of_echo(quick: bool) -> float:
    """Look-ups of one item, 64 in flight, as a share of the bare server's: for bench serve."""
    plan = Plan(3, 0.3, 0) if quick else Plan(7, 1.0, 0)
    runs, _ = look_ups(plan, {1: (MANY,)})
    return rate_of_echo(runs, 1, str(MANY))


def rate_of_echo(runs: Runs, items: int, at: str) -> float:
    """Calls a second as a share of the bare server's in the same round; the median."""
    ours, bare = ([ran.rate for ran in runs[name, items, at]] for name in (OURS, ECHO))
    return float(np.median(np.array(ours) / np.array(bare)))


def look_ups(plan: Plan, loads: Mapping[int, Sequence[Load]] = LOADS) -> tuple[Runs, list[Times]]:
    """Runs by (server, items a call, load), and seconds of each Redis GET by round."""
    artifacts = make()
    release = artifacts.current("release")
    store = LmdbStore(artifacts.open("plans", release.inputs["plans"]).file(FILE))
    with tempfile.TemporaryDirectory() as folder, servers.running([ours()]) as (server,):
        answers(server, store, Path(folder))
        with servers.running([echo(Path(folder))]) as (peer,):
            return measure(plan, loads, server, peer, store)


def ours() -> servers.Kind:
    """This project's planner server, which plans nothing live."""
    command = (sys.executable, "-m", "planner_server", "--artifacts", str(ROOT), "--no-live")
    return servers.Kind(
        OURS,
        (*command, "--port", "0", "--metrics-port", "0"),
        METHOD,
        r'grpc_server_handled_total\{(?=[^}]*grpc_code="OK")(?=[^}]*grpc_method="Plan")',
    )


def echo(folder: Path) -> servers.Kind:
    """A server that has its answers in a folder."""
    command = (sys.executable, "-m", "peers.plan_echo", str(folder))
    return servers.Kind(ECHO, command, METHOD, "plain_answers_total")


def answers(server: servers.Server, store: LmdbStore, folder: Path) -> None:
    """Asks the server once for each size, checks the plans, and leaves both for the echo."""
    with grpc.insecure_channel(server.address) as channel:
        stub = planner_pb2_grpc.PlannerStub(channel)
        for items in ITEMS:
            asked = request(items)
            got: planner_pb2.PlanResponse = stub.Plan(asked, timeout=30, wait_for_ready=True)
            stored = store.get_many(list(asked.context_item_ids))
            wanted = [planner_pb2.Plan.FromString(plan or b"") for plan in stored]
            assert [row.plan for row in got.rows] == wanted
            (folder / f"{items}.request").write_bytes(asked.SerializeToString())
            (folder / f"{items}.response").write_bytes(got.SerializeToString())


def measure(
    plan: Plan,
    sizes: Mapping[int, Sequence[Load]],
    server: servers.Server,
    peer: servers.Server,
    store: LmdbStore,
) -> tuple[Runs, list[Times]]:
    """Runs by (server, items a call, load), and seconds of each Redis GET by round."""
    runs: Runs = {}
    gets = []
    picked = list(request(256).context_item_ids)
    with contextlib.ExitStack() as stack:
        client: Any = None
        if plan.redis_gets:
            keeper = stack.enter_context(contextlib.closing(RedisServer()))
            client = redis.Redis.from_url(keeper.url)
            client.mset(dict(zip(picked, store.get_many(picked), strict=True)))
        for turn in range(plan.rounds):
            wide.print(f"round {turn + 1} of {plan.rounds}")
            for items, loads in sizes.items():
                body = request(items).SerializeToString()
                for at in loads:
                    order = (server, peer) if turn % 2 else (peer, server)
                    for one in order:
                        key = (one.kind.name, items, str(at))
                        calls = 200 if key not in runs else int(runs[key][0].rate * plan.seconds)
                        ran = load.run(one, METHOD, body, at, max(64, calls))
                        runs.setdefault(key, []).append(ran)
            if client is not None:
                gets.append(redis_gets(client, picked, plan.redis_gets))
    # The first of each was short, to warm up and to tell how many calls a run has.
    return {key: all_of[1:] for key, all_of in runs.items()}, gets


def redis_gets(client: Any, picked: list[str], count: int) -> Times:
    """Seconds of each of ``count`` GETs, one after the other."""
    took = np.empty(count)
    for at in range(count):
        began = time.perf_counter()
        client.get(picked[at % len(picked)])
        took[at] = time.perf_counter() - began
    return took


def report(
    quick: bool,
    plan: Plan,
    runs: Runs,
    gets: list[Times],
    parts: Mapping[str, Mapping[str, float]],
    live: live_load.Found,
) -> None:
    """Prints the tables and the JSON object."""
    table = Table(
        "items a call", "load", "server", "calls/s", "plans/s", "p50 ms", "p99 ms", "CPU us a call"
    )
    figures: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    for (name, items, at), of in runs.items():
        rates, p50, p99, cpu = (
            np.array([getattr(ran, field) for ran in of])
            for field in ("rate", "p50_ms", "p99_ms", "cpu_us")
        )
        plans = rates * items
        table.add_row(str(items), at, name, *(shown(v, 1) for v in (rates, plans, p50, p99, cpu)))
        figures[f"{name}, {items} a call, {at}"] = {
            "calls_per_s": float(np.median(rates)),
            "plans_per_s": float(np.median(plans)),
            "p50_ms": float(np.median(p50)),
            "p99_ms": float(np.median(p99)),
            "cpu_us": float(np.median(cpu)),
        }
        if name == OURS:
            bare = runs[ECHO, items, at]
            slow = np.array([b.p99_ms for b in bare])
            ratios[f"{items} a call, {at}: rate of echo's"] = rate_of_echo(runs, items, at)
            ratios[f"{items} a call, {at}: p99 over echo's"] = float(np.median(p99 / slow))
    if gets:
        p50, p99 = (np.array([np.percentile(took, q) for took in gets]) * 1e3 for q in (50, 99))
        rate = np.array([1 / took.mean() for took in gets])
        cells = (shown(v, 1) for v in (rate, rate, p50, p99))
        table.add_row("1", "c=1", "Redis GET, redis-py", *cells)
        figures["redis"] = {"calls_per_s": float(np.median(rate)), "p50_ms": float(np.median(p50))}
        wide.print(table)
    figures["recommend"] = parts
    for way, found in parts.items():
        ratios[f"Recommend over its parts, {way}"] = found["over_parts"]
    report_live(live, figures, ratios)
    conditions = {
        "quick": quick,
        "rounds": plan.rounds - 1,
        "seconds": plan.seconds,
        "live": {
            "simulated": True,
            "server_and_load_core": servers.SERVER_CORE,
            "live_worker_and_engine_core": live_load.WORKER_CORE,
            "rounds": len(live.live),
            "in_flight": live_load.IN_FLIGHT,
        },
        "plans": "made up, real encoding, 564 bytes; 100,000 in LMDB; each call repeats one body",
        "server_core": servers.SERVER_CORE,
        "load_core": servers.LOAD_CORE,
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("grpcio", "lmdb", "protobuf", "redis")},
    }
    print(
        json.dumps(
            {"bench": "planner", "conditions": conditions, "figures": figures, "ratios": ratios}
        )
    )


def report_live(live: live_load.Found, figures: dict[str, Any], ratios: dict[str, float]) -> None:
    """Adds what live planning came to, and prints its tables."""
    engine = {batch: np.array(rates) for batch, rates in live.engine.items()}
    best = max(engine, key=lambda batch: float(np.median(engine[batch])))
    served = np.array(live.live)
    table = Table("from media to 8 clusters", "items/s", "of the engine's best")
    for batch, rates in engine.items():
        table.add_row(
            f"engine in process, {batch} a batch", shown(rates, 1), shown(rates / engine[best], 1)
        )
    name = f"PlanContent, {live_load.IN_FLIGHT} in flight, {live.rows:.1f} rows a batch"
    table.add_row(name, shown(served, 1), shown(served / engine[best], 1))
    wide.print(table)
    figures["live"] = {f"engine_{b}_items_per_s": float(np.median(r)) for b, r in engine.items()}
    figures["live"] |= {"items_per_s": float(np.median(served)), "rows_a_batch": live.rows}
    ratios["live_of_engine"] = float(np.median(served / engine[best]))
    table = Table("look-ups, 1 a call, at a fixed rate", "p50 ms", "p99 ms")
    slow = {}
    beside_what = {
        "nothing": live.idle,
        "live planning": live.busy,
        "live planning and its client": live.crowded,
    }
    for beside, of in beside_what.items():
        p50, slow[beside] = (
            np.array([getattr(ran, what) for ran in of]) for what in ("p50_ms", "p99_ms")
        )
        table.add_row(f"beside {beside}", shown(p50, 1), shown(slow[beside], 1))
        figures["live"][f"lookup_p99_ms_beside_{beside.replace(' ', '_')}"] = float(
            np.median(slow[beside])
        )
    wide.print(table)
    idle = np.median(slow["nothing"])
    ratios["lookup_p99_beside_live_over_idle"] = float(np.median(slow["live planning"]) / idle)
    ratios["lookup_p99_beside_live_and_client_over_idle"] = float(
        np.median(slow["live planning and its client"]) / idle
    )


if __name__ == "__main__":
    main()
