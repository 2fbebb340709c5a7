"""What the plan store costs: to build, to read, and how fast readers follow a swap.

    ./build.sh bench store [--quick] [--plans N]

Plans are serialised protos of 8 clusters and a reasoning (made-up descriptions, real encoding),
given to our builder in no order. A read is one get of a random item, timed by itself with the
clock's own cost shown beside it; everything is in the page cache. Each peer is read in turns with
our store, on the same items, and both are checked to answer alike; one peer at a time, since the
page cache holds two stores of 10M plans and no more. SQLite and the sorted array are given the
plans sorted. Redis holds fewer plans: it keeps them in memory.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from common import plan_reader
from common.made_plans import info, item_id, models, plans
from common.timing import Times, shown
from peers.stores import RedisServer, SortedArray, Sqlite
from rich.console import Console
from rich.table import Table

from serendip.artifacts import Artifacts
from serendip.planning.lmdb_store import FILE, LmdbStore, write_lmdb

FOLDER = Path(__file__).parents[1] / "artifacts" / "bench-store"
OURS, SQLITE, SORTED, REDIS = "LMDB (ours)", "SQLite", "sorted array", "Redis, unix socket (ours)"
MICRO = 1e-6
MANY = 32

wide = Console(stderr=True, highlight=False, width=150)


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        gets: a round; a tenth as many get_many.
        swapped: plans of each version that readers follow.
    """

    plans: int
    redis_plans: int
    rounds: int
    gets: int
    swaps: int
    swapped: int


FULL = Size(10_000_000, 500_000, rounds=9, gets=20_000, swaps=10, swapped=100_000)
QUICK = Size(200_000, 50_000, rounds=5, gets=5_000, swaps=5, swapped=10_000)


def main() -> None:
    """Builds, reads, follows; prints tables and one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--plans", type=int, help="in place of 10M")
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    if options.plans:
        fewer = min(options.plans, size.redis_plans)
        size = replace(size, plans=options.plans, redis_plans=fewer)
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    try:
        builds, reads = measure(size)
        swaps = measure_swaps(size)
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)
    show(size, builds, reads, swaps)
    conditions = {
        "quick": options.quick,
        "plans": size.plans,
        "redis_plans": size.redis_plans,
        "plan_bytes": round(float(np.mean([len(p) for p in models()])) + len(item_id(0)) + 2, 1),
        "rounds": size.rounds,
        "gets_a_round": size.gets,
        "time": "wall clock; percentiles within a round, median over the rounds",
        "threads": 1,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "versions": {name: _version(name) for name in ("lmdb", "numpy", "redis", "hiredis")},
    }
    figures, ratios = summarise(builds, reads, swaps)
    print(
        json.dumps(
            {"bench": "store", "conditions": conditions, "figures": figures, "ratios": ratios}
        )
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# --- build and read --------------------------------------------------------------------------


@dataclass(frozen=True)
class Built:
    """What a build took, less what making the plans takes.

    Attributes:
        cpu_s: of this process alone.
        bytes_a_plan: left on disk or, for Redis, in memory.
        peak_gb: by how much the process grew.
    """

    wall_s: float
    cpu_s: float
    bytes_a_plan: float
    peak_gb: float | None = None


@dataclass(frozen=True)
class Read:
    """One store's reads: seconds, float64[rounds] of each."""

    p50: Times
    p99: Times
    many: Times  # a plan, get_many of 32


class Stopwatch:
    """Wall and CPU seconds since it was made, less what is given."""

    def __init__(self, less_wall_s: float = 0.0, less_cpu_s: float = 0.0) -> None:
        self._wall = time.perf_counter() + less_wall_s
        self._cpu = time.process_time() + less_cpu_s

    def taken(self) -> tuple[float, float]:
        return time.perf_counter() - self._wall, time.process_time() - self._cpu


def measure(size: Size) -> tuple[dict[str, Built], dict[str, dict[str, Read]]]:
    """Builds; and reads by peer, of the peer and of ours in turns."""
    builds: dict[str, Built] = {}
    models()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    made = Stopwatch()
    for _ in plans(size.plans):
        pass
    wall_s, cpu_s = made.taken()
    stopwatch = Stopwatch(wall_s, cpu_s)
    path = FOLDER / FILE
    write_lmdb(path, plans(size.plans), info(size.plans))
    taken = stopwatch.taken()
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6
    builds[OURS] = Built(*taken, path.stat().st_size / size.plans, peak)
    tell(OURS, builds[OURS])
    ours = LmdbStore(path)
    reads: dict[str, dict[str, Read]] = {}

    for name, make in (
        (SORTED, lambda rows: SortedArray(FOLDER, rows, len(item_id(0)))),
        (SQLITE, lambda rows: Sqlite(FOLDER, rows)),
    ):
        stopwatch = Stopwatch(wall_s, cpu_s)
        peer = make((name.encode(), plan) for name, plan in plans(size.plans, 1))
        builds[name] = Built(*stopwatch.taken(), peer.size() / size.plans)
        tell(name, builds[name])
        reads[name] = measure_reads(size, {OURS: ours, name: peer}, size.plans)
        peer.close()
    if shutil.which("redis-server") and _version("redis"):
        builds[REDIS], reads[REDIS] = measure_redis(size, ours)
    else:
        wide.print("Redis is left out: no redis-server, or no redis-py")
    ours.close()
    return builds, reads


def tell(name: str, built: Built) -> None:
    """A long run says what it has."""
    wide.print(f"{name}: built in {built.wall_s:.1f} s, {built.cpu_s:.1f} of them CPU")


def measure_redis(size: Size, ours: LmdbStore) -> tuple[Built, dict[str, Read]]:
    """The same over a server of its own."""
    from serendip.planning.redis_store import RedisStore, connect, write_redis

    server = RedisServer()
    try:
        client = connect(server.url, timeout_s=30, retries=0)
        empty = client.info("memory")["used_memory"]
        stopwatch = Stopwatch()
        write_redis(client, plans(size.redis_plans), info(size.redis_plans))
        taken = stopwatch.taken()
        memory = client.info("memory")["used_memory"] - empty
        store = RedisStore(client, info(0).version)
        found = measure_reads(size, {OURS: ours, REDIS: store}, size.redis_plans)
        return Built(*taken, memory / size.redis_plans), found
    finally:
        server.close()


def measure_reads(size: Size, stores: dict[str, Any], count: int) -> dict[str, Read]:
    """Reads in turns, after the answers of a plan of every page were compared."""
    rng = np.random.default_rng(1)
    for at in range(0, count, 5):
        first, *others = (store.get(item_id(at)) for store in stores.values())
        assert first is not None
        assert all(other == first for other in others)
    names = list(stores)
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
    for turn in range(size.rounds):
        asked = [item_id(n) for n in rng.integers(0, count, size.gets).tolist()]
        groups = [asked[at : at + MANY] for at in range(0, len(asked) // 10, MANY)]
        gc.disable()
        for name in names if turn % 2 else names[::-1]:
            get, get_many = stores[name].get, stores[name].get_many
            each = timed_each(get, asked)
            began = time.perf_counter()
            for group in groups:
                get_many(group)
            many = (time.perf_counter() - began) / (MANY * len(groups))
            taken[name].append((*np.percentile(each, [50, 99]), many))
        gc.enable()
        assert len({tuple(store.get_many(asked[:100])) for store in stores.values()}) == 1
    return {name: Read(*np.array(rounds).T) for name, rounds in taken.items()}


def timed_each(call: Callable[[str], object], arguments: list[str]) -> Times:
    """Seconds of each call, the clock's own cost included."""
    clock, taken = time.perf_counter_ns, []
    for argument in arguments:
        began = clock()
        call(argument)
        taken.append(clock() - began)
    return np.array(taken) * 1e-9


def clock_cost() -> float:
    """Seconds that a timed call of nothing takes, by the median."""
    return float(np.median(timed_each(lambda _: None, [""] * 100_000)))


# --- swaps -----------------------------------------------------------------------------------


def measure_swaps(size: Size) -> dict[str, float]:
    """Four processes read without a pause while versions are published."""
    artifacts = Artifacts(FOLDER / "swaps")
    last = publish(artifacts, size.swapped, 0)
    command = [sys.executable, plan_reader.__file__, str(artifacts.root)]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for reader in readers:
        assert reader.stdout is not None
        reader.stdout.readline()
    swapped: dict[str, float] = {}
    for number in range(1, size.swaps + 1):
        last = publish(artifacts, size.swapped, number)
        swapped[last] = time.time()
        time.sleep(0.5)
    (artifacts.root / "last").write_text(last)
    reports = [json.loads(reader.communicate()[0]) for reader in readers]
    late = [
        report["seen"][named] - at for report in reports for named, at in swapped.items()
        if named in report["seen"]
    ]  # fmt: skip
    return {
        "swaps": len(swapped),
        "readers": len(readers),
        "reads": sum(report["reads"] for report in reports),
        "failed_reads": sum(report["failed"] for report in reports),
        "missed_versions": len(swapped) * len(readers) - len(late),
        "follow_s_median": float(np.median(late)),
        "follow_s_worst": max(late),
    }


def publish(artifacts: Artifacts, count: int, number: int) -> str:
    with artifacts.publish("plans", {"number": number}, {}) as draft:
        write_lmdb(draft.path / FILE, plans(count), info(count, draft.version))
    return draft.version


# --- tables ----------------------------------------------------------------------------------


def show(
    size: Size,
    builds: dict[str, Built],
    reads: dict[str, dict[str, Read]],
    swaps: dict[str, float],
) -> None:
    """Builds, reads in turns, and how readers followed."""
    table = Table("build", "plans", "wall s", "CPU s", "bytes a plan", "GB of memory")
    for name, built in builds.items():
        table.add_row(
            name,
            f"{size.redis_plans if name == REDIS else size.plans:,}",
            f"{built.wall_s:.1f}",
            f"{built.cpu_s:.1f}",
            f"{built.bytes_a_plan:.0f}",
            "" if built.peak_gb is None else f"{built.peak_gb:.2f}",
        )
    wide.print(table)
    table = Table(
        "us, in turns: median (range) of the rounds",
        "get p50",
        "get p99",
        f"get_many({MANY}), each",
    )
    for pair in reads.values():
        for name, read in pair.items():
            table.add_row(name, *(shown(times, MICRO) for times in (read.p50, read.p99, read.many)))
        table.add_section()
    wide.print(table)
    wide.print(f"the clock's own cost, in every get above: {clock_cost() / MICRO:.2f} us")
    wide.print(", ".join(f"{key} {value:,.4g}" for key, value in swaps.items()))


def summarise(
    builds: dict[str, Built], reads: dict[str, dict[str, Read]], swaps: dict[str, float]
) -> tuple[dict[str, Any], dict[str, float]]:
    """Figures of ours by the median over all rounds; ratios of get's p50 and p99."""
    ours = [pair[OURS] for name, pair in reads.items() if name != REDIS]
    figures: dict[str, Any] = {
        "build_s": builds[OURS].wall_s,
        "build_cpu_s": builds[OURS].cpu_s,
        "build_peak_gb": builds[OURS].peak_gb,
        "bytes_a_plan": builds[OURS].bytes_a_plan,
        "get_p50_us": float(np.median([r.p50 for r in ours]) / MICRO),
        "get_p99_us": float(np.median([r.p99 for r in ours]) / MICRO),
        "get_many_us": float(np.median([r.many for r in ours]) / MICRO),
        "clock_us": clock_cost() / MICRO,
        "peers": {
            name: {
                "build_s": builds[name].wall_s,
                "build_cpu_s": builds[name].cpu_s,
                "bytes_a_plan": builds[name].bytes_a_plan,
                "get_p50_us": float(np.median(pair[name].p50) / MICRO),
                "get_p99_us": float(np.median(pair[name].p99) / MICRO),
                "get_many_us": float(np.median(pair[name].many) / MICRO),
            }
            for name, pair in reads.items()
        },
        **swaps,
    }
    ratios: dict[str, float] = {}
    for name, key in ((SORTED, "sorted_array"), (SQLITE, "sqlite"), (REDIS, "redis")):
        if name in reads:
            pair = reads[name]
            for part in ("p50", "p99"):
                theirs, mine = getattr(pair[name], part), getattr(pair[OURS], part)
                ratios[f"vs_{key}_{part}"] = float(np.median(theirs / mine))
    return figures, ratios


if __name__ == "__main__":
    main()
