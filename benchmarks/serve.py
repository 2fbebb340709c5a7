"""The retriever server against its peers: the same ranker, the same users, one core.

    ./build.sh bench serve [--quick] [--one-block]

A made retriever (1M items, d = 64 + 1, histories of 50, the top 50 of 1 to 4 clusters of 244
items) behind four fronts: this project's server; grpc.aio that runs one request at a time;
MLServer with a custom runtime; PyTriton. All of them call the same ClusterRanker; the two peers
batch, each with the best of several settings, tried in the same run. Servers stand on one core
and h2load on the other. They take turns in several rounds, and the ranker in process, on one
thread of the servers' core, takes its turn with them. h2load repeats one user's request, so a
client with distinct histories first checks every server's answers against the ranker; and a run
is void unless the server counted as many OK answers as h2load counted answers. ``--one-block``
makes the encoder half as deep, so that the front weighs more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from serving import crosscheck, load, servers
from serving.budget import Budget, measure_budget
from serving.in_process import rows_a_second
from serving.load import FEW, MANY, ONE, SIXTEEN, Load, Ran, at_rate
from serving.material import ROWS, SIZES, Size, make, one_user, root, users
from serving.servers import Kind, Server
from serving.tables import show

from serendip.core import Retrieval, RetrievalQuery
from serendip.progress import console
from serendip.retrieval.ranker import ClusterRanker
from serendip.v1 import retriever_pb2
from serendip.wire import query_to_proto

OURS, BATCH = "retriever server", "retriever server, 32 users a call"
ECHO, PLAIN, MLSERVER, PYTRITON = (
    "grpc.aio, no work", "grpc.aio, one by one", "MLServer", "PyTriton",
)  # fmt: skip
BATCHES = (1, 8, 16, 32)  # of the ranker in process
TRIED = tuple((batch, window) for batch in (8, 16, 32) for window in (0, 1000, 3000))


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        seconds: of each run, about.
        rates: calls a second of the open loops.
        tried: batch sizes and windows in microseconds that the peers are tuned over.
        checked: users of the cross-check.
    """

    size: Size
    rounds: int
    seconds: float
    rates: tuple[int, ...]
    tried: tuple[tuple[int, int], ...]
    checked: int


@dataclass
class Found:
    """What the rounds found, one entry a round.

    Attributes:
        runs: by server, then load.
        in_process: (rows a second, CPU microseconds a row) of the ranker at its best batch: for
            the one user that the load repeats, and for the 32 of a batch.
    """

    runs: dict[str, dict[str, list[Ran]]] = field(default_factory=dict)
    one: list[tuple[float, float]] = field(default_factory=list)
    rows: list[tuple[float, float]] = field(default_factory=list)
    by_batch: dict[int, list[float]] = field(default_factory=dict)
    void: list[str] = field(default_factory=list)

    def median(self, server: str, at: Load, what: Callable[[Ran], float]) -> float:
        return float(np.median([what(ran) for ran in self.runs[server][str(at)]]))


@dataclass(frozen=True)
class Setting:
    """The ranker in process, and what is asked of everyone.

    Attributes:
        bodies: one user's request, by the environment of the peer that reads it; None: protos.
        batch: the request of ROWS users in one call.
    """

    ranker: ClusterRanker
    one: RetrievalQuery
    rows: list[RetrievalQuery]
    bodies: Mapping[str, bytes]
    batch: bytes

    def body(self, kind: Kind) -> bytes:
        return self.bodies[kind.apart.name if kind.apart else ""]


def main() -> None:
    """Sets up, checks, measures; prints tables and one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--one-block", action="store_true")
    options = parser.parse_args()
    if load.missing():
        parser.exit(2, f"bench serve: {load.HOW_TO_INSTALL}\n")
    blocks = 1 if options.one_block else 2
    if options.quick:
        plan = Plan(SIZES["62k", blocks], 2, 0.6, (200,), (), 64)
    else:
        plan = Plan(SIZES["1M", blocks], 5, 4.0, (200, 400, 800), TRIED, 400)
    peers, left_out = environments()
    setting = open_setting(plan.size, peers)
    kinds = [servers.ours(root(plan.size)), servers.plain(root(plan.size))]
    kinds.append(servers.plain(root(plan.size), echo=True))
    settings = {}
    for name, make_kind in peers.items():
        settings[name] = tune(name, make_kind, setting, plan)
        kinds.append(make_kind(root(plan.size), *settings[name]))
    found = Found()
    with servers.running(kinds) as started:
        check(started, setting, plan)
        guesses: dict[tuple[str, str], float] = {}
        for turn in range(plan.rounds):
            console.print(f"round {turn + 1} of {plan.rounds}")
            measure_round(turn, started, setting, plan, found, guesses)
        budget = measure_budget(setting.ranker, setting.rows, setting.one)
    report(options, plan, setting, found, budget, settings, left_out)


# --- set-up ------------------------------------------------------------------------------

MakeKind = Callable[[Path, int, int], Kind]


def environments() -> tuple[dict[str, MakeKind], dict[str, str]]:
    """The peers whose environments stand, and why the others are left out."""
    peers: dict[str, MakeKind] = {}
    left_out = {}
    for name, apart, make_kind in (
        (MLSERVER, servers.MLSERVER, servers.mlserver),
        (PYTRITON, servers.PYTRITON, servers.pytriton),
    ):
        why = apart.make()
        if why:
            left_out[name] = why
            console.print(f"{name} is left out: {why}")
        else:
            peers[name] = make_kind
    return peers, left_out


def open_setting(size: Size, peers: Mapping[str, MakeKind]) -> Setting:
    """Makes the artefacts where they are not, opens the ranker, builds the bodies."""
    artifacts = make(size)
    release = artifacts.current("release")
    ranker = ClusterRanker.open(artifacts.open("retriever", release.inputs["retriever"]))
    one, rows = one_user(size), users(size, ROWS)
    requests = [query_to_proto(row, tree_version=ranker.versions.tree_version) for row in rows]
    own = query_to_proto(one, tree_version=ranker.versions.tree_version)
    bodies = {"": own.SerializeToString()}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(crosscheck.numbered([one]), file)
        file.flush()
        for apart in (servers.MLSERVER, servers.PYTRITON):
            if apart.name in {name.lower() for name in peers}:
                bodies[apart.name] = crosscheck.v2(apart, "body", file.name)
    batch = retriever_pb2.RetrieveBatchRequest(requests=requests)
    return Setting(ranker, one, rows, bodies, batch.SerializeToString())


def tune(name: str, make_kind: MakeKind, setting: Setting, plan: Plan) -> tuple[int, int]:
    """The batch size and window at which a peer answers most, at 64 in flight."""
    best, most = (16, 0), 0.0
    for batch, window in plan.tried:
        kind = make_kind(root(plan.size), batch, window)
        try:
            with servers.running([kind]) as (server,):
                calls = 3 * MANY.connections * MANY.streams
                rate = run(server, setting, MANY, calls).rate
                rate = run(server, setting, MANY, max(calls, int(rate * plan.seconds / 2))).rate
        except (load.Void, RuntimeError) as e:
            console.print(f"{name}, batch {batch}, window {window} us: {e}")
            continue
        console.print(f"{name}, batch {batch}, window {window} us: {rate:,.0f} req/s")
        if rate > most:
            best, most = (batch, window), rate
    return best


def check(started: Sequence[Server], setting: Setting, plan: Plan) -> None:
    """Compares every server's answers with the ranker's. Raises SystemExit where they differ."""
    asked = users(plan.size, plan.checked, seed=1)
    expected = [found for found in setting.ranker.retrieve(asked) if isinstance(found, Retrieval)]
    tree_version = setting.ranker.versions.tree_version
    for server in started:
        name = server.kind.name
        if name == ECHO:
            continue
        answers = [crosscheck.ask(server, asked, tree_version)]
        if name == OURS:
            answers.append(crosscheck.ask_in_batches(server, asked, tree_version, ROWS))
        if not all(crosscheck.agree(some, expected) for some in answers):
            sys.exit(f"{name} answers otherwise than the ranker in process")
    console.print(f"every server answers {plan.checked} users as the ranker does")


# --- rounds ------------------------------------------------------------------------------


def measure_round(
    turn: int,
    started: Sequence[Server],
    setting: Setting,
    plan: Plan,
    found: Found,
    guesses: dict[tuple[str, str], float],
) -> None:
    """Every server under every load, and the ranker in process; another order every round."""
    order = [*started, None]
    order = order[turn % len(order) :] + order[: turn % len(order)]
    for server in order:
        if server is None:
            measure_in_process(setting, plan, found)
            continue
        closed = [MANY] if server.kind.name == ECHO else [ONE, SIXTEEN, MANY]
        rated = [] if server.kind.name == ECHO else [at_rate(rate) for rate in plan.rates]
        for at in closed + rated:
            measure_run(server, server.kind.name, setting, at, plan, found, guesses)
        if server.kind.name == OURS:
            measure_run(server, BATCH, setting, FEW, plan, found, guesses)


def measure_run(
    server: Server,
    name: str,
    setting: Setting,
    at: Load,
    plan: Plan,
    found: Found,
    guesses: dict[tuple[str, str], float],
) -> None:
    """One run of about the plan's seconds, after a short one that warms up and guesses."""
    in_flight = at.connections * at.streams
    if (name, str(at)) not in guesses:
        few = Load(at.connections, min(at.streams, 16))
        guesses[name, str(at)] = run(server, setting, few, 3 * in_flight, name).rate
    guess = at.rate or guesses[name, str(at)]
    # An open loop of a server that falls behind ends late: at most twice the time.
    guess = min(guess, 2 * guesses[name, str(at)])
    calls = max(2 * in_flight if not at.rate else 1, int(guess * plan.seconds))
    try:
        ran = run(server, setting, at, calls, name)
    except load.Void as e:
        found.void.append(str(e))
        console.print(f"void: {e}")
        return
    found.runs.setdefault(name, {}).setdefault(str(at), []).append(ran)


def run(server: Server, setting: Setting, at: Load, calls: int, name: str = "") -> Ran:
    """One run of one user's request; of 32 users' for BATCH."""
    if name == BATCH:
        return load.run(server, servers.RETRIEVE_BATCH, setting.batch, at, calls)
    return load.run(server, server.kind.method, setting.body(server.kind), at, calls)


def measure_in_process(setting: Setting, plan: Plan, found: Found) -> None:
    """The ranker at several batches, on the servers' core."""
    seconds = plan.seconds / len(BATCHES)
    one = {b: rows_a_second(setting.ranker, [setting.one] * b, b, seconds) for b in BATCHES}
    rows = {b: rows_a_second(setting.ranker, setting.rows, b, seconds) for b in BATCHES}
    found.one.append(max(one.values()))
    found.rows.append(max(rows.values()))
    for batch, (rate, _) in rows.items():
        found.by_batch.setdefault(batch, []).append(rate)


# --- what came of it ---------------------------------------------------------------------


def report(
    options: argparse.Namespace,
    plan: Plan,
    setting: Setting,
    found: Found,
    budget: Budget,
    settings: Mapping[str, tuple[int, int]],
    left_out: Mapping[str, str],
) -> None:
    """Tables on standard error, one JSON object on standard output."""
    figures, ratios = summarise(found, left_out)
    figures["budget_us_a_user"] = budget.as_dict()
    show(found, budget, settings, left_out)
    conditions = {
        "quick": options.quick,
        "items": plan.size.items,
        "blocks": plan.size.blocks,
        "dimensions": setting.ranker.dimensions,
        "clusters": plan.size.clusters,
        "rounds": plan.rounds,
        "seconds_a_run": plan.seconds,
        "servers_core": servers.SERVER_CORE,
        "load_core": servers.LOAD_CORE,
        "load_average": [round(x, 2) for x in os.getloadavg()],
        "load": "h2load, 4 connections (1 at c=1), one body; open loops send in bursts every 10 ms",
        "checked_users": plan.checked,
        "user_vector_cache": "off",
        "metrics": "on",
        "peers": {
            name: {"batch": batch, "window_us": window}
            for name, (batch, window) in settings.items()
        },
        "left_out": dict(left_out),
        "void_runs": found.void,
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("grpcio", "onnxruntime-gpu", "numpy")}
        | dict(p.split("==") for a in (servers.MLSERVER, servers.PYTRITON) for p in a.packages[:1]),
    }
    print(
        json.dumps(
            {"bench": "serve", "conditions": conditions, "figures": figures, "ratios": ratios}
        )
    )


def summarise(found: Found, left_out: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, float]]:
    """Figures are medians over the rounds; ratios are taken within a round, then the median."""

    def over(a: Sequence[float], b: Sequence[float]) -> float:
        count = min(len(a), len(b))
        return round(float(np.median(np.array(a[:count]) / np.array(b[:count]))), 3)

    def many(name: str, what: Callable[[Ran], float]) -> list[float]:
        return [what(ran) for ran in found.runs[name][str(MANY)]]

    rate, cpu = (lambda ran: ran.rate), (lambda ran: ran.cpu_us)
    users_a_second = [ROWS * ran.rate for ran in found.runs[BATCH][str(FEW)]]
    user_cpu_us = [ran.cpu_us / ROWS for ran in found.runs[BATCH][str(FEW)]]
    ratios = {
        f"vs_{name.lower()}_c64": over(many(OURS, rate), many(name, rate))
        for name in (PYTRITON, MLSERVER)
        if name not in left_out
    }
    ratios |= {
        "vs_one_by_one_c64": over(many(OURS, rate), many(PLAIN, rate)),
        "batch32_of_in_process": over(users_a_second, [r for r, _ in found.rows]),
        "single_of_in_process": over(many(OURS, rate), [r for r, _ in found.one]),
        # The same by CPU time, which another job on the core does not lengthen.
        "batch32_of_in_process_cpu": over([us for _, us in found.rows], user_cpu_us),
        "single_of_in_process_cpu": over([us for _, us in found.one], many(OURS, cpu)),
    }
    ratios |= {
        f"vs_{name.lower()}_c64_cpu": over(many(name, cpu), many(OURS, cpu))
        for name in (PYTRITON, MLSERVER)
        if name not in left_out
    }
    figures: dict[str, Any] = {
        "p99_ms_c64": round(found.median(OURS, MANY, lambda ran: ran.p99_ms), 2),
        "in_process_rows_per_s": {
            str(batch): round(float(np.median(rates))) for batch, rates in found.by_batch.items()
        },
        "batch32_users_per_s": round(float(np.median(users_a_second))),
        "servers": {
            name: {
                at: {
                    "req_per_s": round(float(np.median([r.rate for r in runs])), 1),
                    "p50_ms": round(float(np.median([r.p50_ms for r in runs])), 3),
                    "p99_ms": round(float(np.median([r.p99_ms for r in runs])), 3),
                    "cpu_us": round(float(np.median([r.cpu_us for r in runs])), 1),
                }
                for at, runs in loads.items()
            }
            for name, loads in found.runs.items()
        },
    }
    return figures, ratios


if __name__ == "__main__":
    main()
