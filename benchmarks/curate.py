"""What curation and corpus of a log cost: this project's SQL on DuckDB, Polars, Spark.

    ./build.sh bench curate [--quick]

A synthetic log in daily partitions (curation/world.py), made once under artifacts/bench-curate.
Each way reads it, checks it, leaves out duplicates and unknown items, and writes the same tables,
in a process of its own with two threads; they take turns. Spark runs this project's SQL files.
Every way's tables are compared with ours before anything is said. Then this project alone on the
larger log, within a memory limit. ``--quick`` is the same on fewer rows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from common.process import Taken, take
from curation import world
from curation.ours import OUTPUTS
from peers import environment
from rich.table import Table

from serendip.curation.engine import read_parts
from serendip.progress import console

FOLDER = environment.ROOT / "artifacts" / "bench-curate"
OURS, POLARS, SPARK = "this project, DuckDB", "Polars", "Spark local[2], the same SQL"
THREADS = 2


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    rows: int
    large_rows: int
    repetitions: int
    memory_limit: str
    limit_s: float


FULL = Plan(20_000_000, 100_000_000, 2, "2GB", 1800)
QUICK = Plan(200_000, 400_000, 1, "1GB", 40)


def main() -> None:
    """Measures, compares, and prints a table and one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL
    environment.make()
    data = world.log(FOLDER, plan.rows)
    ways: dict[str, Callable[[Path, Path], Taken]] = {
        OURS: lambda log, out: ours(log, out, "duckdb", plan.memory_limit, plan.limit_s),
        POLARS: lambda log, out: polars(log, out, plan.limit_s),
    }
    if shutil.which("java"):
        ways[SPARK] = lambda log, out: ours(log, out, "spark", "4GB", plan.limit_s)
    else:
        console.print("no java: Spark is left out")
    taken: dict[str, list[Taken]] = {name: [] for name in ways}
    for _ in range(plan.repetitions):
        for name, way in ways.items():
            # Spark's wall time is many times the others': once is enough to tell.
            if name != SPARK or not taken[name]:
                taken[name].append(run(name, way, data))
    different = [n for n in ways if n != OURS and not taken[n][0].failed and differs(n)]
    large = run(OURS, ways[OURS], world.log(FOLDER, plan.large_rows))
    show(plan, taken, large)
    report(plan, options.quick, taken, large, different)
    if different:
        sys.exit(f"other results than ours: {different}")


def run(name: str, way: Callable[[Path, Path], Taken], data: Path) -> Taken:
    """Runs one way into its folder, emptied first."""
    out = out_of(name)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    taken = way(data, out)
    console.print(
        f"{name}, {data.name} rows: {taken.wall_s:.1f} s wall, {taken.cpu_s:.1f} CPU s, "
        f"{taken.peak_gb:.2f} GB {taken.failed or taken.said}"
    )
    return taken


def out_of(name: str) -> Path:
    """Where a way writes its tables."""
    return FOLDER / "out" / name.split(",")[0].replace(" ", "-")


def ours(data: Path, out: Path, engine: str, memory_limit: str, limit_s: float) -> Taken:
    """This project's SQL. Spark and DuckDB run in the peers' environment, which sees both."""
    arguments = [str(data), str(out), engine, memory_limit, str(THREADS)]
    command = [str(environment.PYTHON), "-m", "curation.ours", *arguments]
    return take(command, environment.variables(), limit_s)


def polars(data: Path, out: Path, limit_s: float) -> Taken:
    """The same in Polars, which reads its threads from the environment."""
    command = [str(environment.PYTHON), "-m", "peers.polars_curation", str(data), str(out)]
    variables = environment.variables() | {"POLARS_MAX_THREADS": str(THREADS)}
    return take(command, variables, limit_s)


def differs(name: str) -> list[str]:
    """The tables in which a way's values are not ours."""
    found = []
    for table in OUTPUTS:
        expected = pq.read_table(out_of(OURS) / f"{table}.parquet")
        path = out_of(name) / f"{table}.parquet"
        got = read_parts([path] if path.is_file() else list(path.iterdir()))
        if got.select(expected.column_names).to_pydict() != expected.to_pydict():
            found.append(table)
    if found:
        console.print(f"{name} differs in {found}")
    return found


def show(plan: Plan, taken: dict[str, list[Taken]], large: Taken) -> None:
    """The table of the page."""
    table = Table("curation + corpus", "rows", "CPU s", "wall s", "peak GB")
    rows = [(name, plan.rows, t) for name, ts in taken.items() for t in ts]
    for name, n, t in [*rows, (f"{OURS}, limit {plan.memory_limit}", plan.large_rows, large)]:
        cells = (f"{t.cpu_s:.1f}", f"{t.wall_s:.1f}", f"{t.peak_gb:.2f}")
        table.add_row(name, f"{n:,}", *(cells if not t.failed else (t.failed, "-", "-")))
    console.print(table)


def report(
    plan: Plan,
    quick: bool,
    taken: dict[str, list[Taken]],
    large: Taken,
    different: list[str],
) -> None:
    """The JSON object; a ratio is of medians, null where a way failed or was left out."""

    def median(name: str, what: str) -> float | None:
        good = [getattr(t, what) for t in taken.get(name, []) if not t.failed]
        return float(np.median(good)) if good else None

    def ratio(name: str, what: str) -> float | None:
        its, mine = median(name, what), median(OURS, what)
        return its / mine if its and mine else None

    names = {OURS: "duckdb", POLARS: "polars", SPARK: "spark"}
    figures: dict[str, object] = {
        f"{names[name]}_{what}": median(name, what)
        for name in taken
        for what in ("cpu_s", "wall_s", "peak_gb")
    }
    size, large_size = ("quick", "quick_large") if quick else ("20M", "100M")
    figures[f"peak_gb_{large_size}"] = None if large.failed else large.peak_gb
    figures[f"cpu_s_{large_size}"] = None if large.failed else large.cpu_s
    figures[f"wall_s_{large_size}"] = None if large.failed else large.wall_s
    figures["different_results"] = different
    conditions = {
        "quick": quick,
        "rows": plan.rows,
        "large_rows": plan.large_rows,
        "repetitions": plan.repetitions,
        "memory_limit": plan.memory_limit,
        "threads": THREADS,
        "load_1_min": os.getloadavg()[0],
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "versions": {"duckdb": version("duckdb")}
        | dict(package.split("==") for package in environment.PACKAGES),
    }
    ratios = {
        f"vs_polars_{size}": ratio(POLARS, "cpu_s"),
        f"vs_spark_{size}": ratio(SPARK, "wall_s"),
        f"vs_polars_wall_{size}": ratio(POLARS, "wall_s"),
    }
    print(
        json.dumps(
            {"bench": "curate", "conditions": conditions, "figures": figures, "ratios": ratios}
        )
    )


if __name__ == "__main__":
    main()
