"""The retriever server against its peers: the same ranker, the same users, one core.

    ./build.sh bench serve [--quick] [--one-block]

A made retriever (1M items, d = 64 + 1, histories of 50, the top 50 of 1 to 4 clusters of 244
items) behind four fronts: this project's server; grpc.aio that runs one request at a time;
MLServer with a custom runtime; PyTriton. All of them call the same ClusterRanker; the two peers
batch, each with the best of several settings, which a first run tries. Servers stand on one core
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
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import planner
from serving import crosscheck, load, servers
from serving.load import MANY, SIXTEEN
from serving.material import ROWS, SIZES, Size, make, one_user, root, users
from serving.rounds import ECHO, MLSERVER, OURS, PYTRITON, Found, Plan, Setting, measure_round, run
from serving.servers import Kind, Server
from serving.summary import budgets, summarise
from serving.tables import show, show_budget

from serendip.core import Retrieval
from serendip.progress import console
from serendip.retrieval.ranker import ClusterRanker
from serendip.v1 import retriever_pb2
from serendip.wire import query_to_proto

# Batch sizes and windows in microseconds that the peers are tuned over, on the small catalogue.
TRIED = ((8, 0), (16, 0), (16, 1000), (32, 0), (32, 1000), (64, 0))
TURNS = 3
ASKS, COMPILES_S = 1100, 10.0
UNTUNED = (32, 0)  # for --quick


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
        plan = Plan(SIZES["62k", blocks], 2, 0.5, (200,), 64)
    else:
        plan = Plan(SIZES["1M", blocks], 6, 2.0, (200, 400), 400)
    peers, left_out = environments()
    setting = open_setting(plan.size, peers)
    kinds = [servers.ours(root(plan.size)), servers.plain(root(plan.size))]
    kinds.append(servers.plain(root(plan.size), echo=True))
    settings = {}
    for name, make_kind in peers.items():
        settings[name] = UNTUNED
        if not options.quick:
            settings[name] = tune(name, make_kind, SIZES["62k", blocks], plan.seconds / 2)
        kinds.append(make_kind(root(plan.size), *settings[name]))
    found = Found()
    with servers.running(kinds) as started:
        check(started, setting, plan)
        compile_scans(started, setting)
        guesses: dict[tuple[str, str], float] = {}
        for turn in range(plan.rounds):
            console.print(f"round {turn + 1} of {plan.rounds}")
            measure_round(turn, started, setting, plan, found, guesses)
    report(options, plan, setting, found, settings, left_out)


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


def tune(name: str, make_kind: MakeKind, size: Size, seconds: float) -> tuple[int, int]:
    """The batch size and window at which a peer answers most, at 64 in flight, in turns.

    Kept beside the artefacts: a later run goes on from there.
    """
    kept = root(size) / f"tuned-{name}.json"
    if kept.exists():
        batch, window = json.loads(kept.read_text())
        return batch, window
    setting = open_setting(size, {name: make_kind})
    rates: dict[tuple[int, int], list[float]] = {tried: [] for tried in TRIED}
    with servers.running([make_kind(root(size), *tried) for tried in TRIED]) as started:
        for turn in range(TURNS + 1):
            for tried, server in zip(TRIED, started, strict=True):
                calls = 256 if not turn else max(256, int(rates[tried][0] * seconds))
                rates[tried].append(run(server, setting, MANY, calls).rate)
    medians = {tried: float(np.median(found[1:])) for tried, found in rates.items()}
    for (batch, window), rate in medians.items():
        console.print(f"{name}, batch {batch}, window {window} us: {rate:,.0f} req/s")
    best = max(medians, key=medians.__getitem__)
    kept.write_text(json.dumps(best))
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


def compile_scans(started: Sequence[Server], setting: Setting) -> None:
    """Every ranker has its scan compiled, which a thread does at the 1,000th ask."""
    for server in started:
        if server.kind.name != ECHO:
            run(server, setting, SIXTEEN, ASKS)
    for _ in range(ASKS):
        setting.ranker.find([setting.one])
    time.sleep(COMPILES_S)


# --- what came of it ---------------------------------------------------------------------


def report(
    options: argparse.Namespace,
    plan: Plan,
    setting: Setting,
    found: Found,
    settings: Mapping[str, tuple[int, int]],
    left_out: Mapping[str, str],
) -> None:
    """Tables on standard error, one JSON object on standard output."""
    figures, ratios = summarise(found, left_out)
    ratios["lookup_of_echo"] = round(planner.lookup_of_echo(options.quick), 3)
    figures["budget_cpu_us_a_user"] = budgets(setting, found)
    show(found, settings, left_out)
    show_budget(figures["budget_cpu_us_a_user"])
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


if __name__ == "__main__":
    main()
