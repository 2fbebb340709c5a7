"""What a retriever server costs to start: seconds until it is ready, and memory of its own.

    ./build.sh bench start [--quick] [--items N]

A release of a million items (64 dimensions, IDs of 8 to 12 bytes, 4,096 leaves, an untrained
model) is published, and the server started on it several times, from the process's birth to its
ready line; the page cache holds the files. CPU seconds are told as well: they hold on a busy
machine, where the clock does not. In turns with it, what the mapped item IDs replace: a dict and
a tuple of all IDs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table

from serendip.artifacts import Artifact, Artifacts
from serendip.retrieval import item_ids
from serendip.retrieval.export import write_retriever
from serendip.retrieval.item_ids import ItemIds
from serendip.retrieval.model import ModelShape, SequenceModel
from serendip.tree.cluster_tree import ClusterTree

FOLDER = Path(__file__).parents[1] / "artifacts" / "bench-start"
BRANCHING = (16, 16, 4, 4)
TREE = "a" * 12
LOOK_UPS = 100_000

wide = Console(stderr=True, highlight=False, width=120)


@dataclass(frozen=True)
class Start:
    """One start of the server: seconds to its ready line, CPU seconds until then, private MB."""

    ready_s: float
    cpu_s: float
    private_mb: float


@dataclass(frozen=True)
class Ids:
    """Item IDs in one way: seconds to open them, microseconds a look-up of a random one."""

    open_s: float
    look_up_us: float


def main() -> None:
    """Publishes, starts, looks up; prints a table and one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--items", type=int, help="in place of 1M")
    options = parser.parse_args()
    items = options.items or (100_000 if options.quick else 1_000_000)
    rounds = 3 if options.quick else 7
    shutil.rmtree(FOLDER, ignore_errors=True)
    try:
        retriever = publish(items)
        starts, mapped, dicts = [], [], []
        for _ in range(rounds):
            starts.append(start())
            mapped.append(look_up(retriever, as_dict=False))
            dicts.append(look_up(retriever, as_dict=True))
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)
    figures = {
        "ready_s": median(s.ready_s for s in starts),
        "ready_s_max": round(max(s.ready_s for s in starts), 3),
        "cpu_s": median(s.cpu_s for s in starts),
        "private_mb": median(s.private_mb for s in starts),
        "ids_open_s": median(i.open_s for i in mapped),
        "ids_look_up_us": median(i.look_up_us for i in mapped),
        "dict_open_s": median(i.open_s for i in dicts),
        "dict_look_up_us": median(i.look_up_us for i in dicts),
    }
    ratios = {
        "ids_open_vs_dict": median(d.open_s / m.open_s for d, m in zip(dicts, mapped, strict=True)),
        "ids_look_up_vs_dict": median(
            d.look_up_us / m.look_up_us for d, m in zip(dicts, mapped, strict=True)
        ),
    }
    table = Table(title=f"{items:,} items, {rounds} starts")
    table.add_column("median")
    table.add_column("", justify="right")
    for name, value in (figures | ratios).items():
        table.add_row(name.replace("_", " "), f"{value:g}")
    wide.print(table)
    conditions = {
        "quick": options.quick,
        "items": items,
        "rounds": rounds,
        "threads": 1,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "machine": platform.machine(),
    }
    print(
        json.dumps(
            {"bench": "start", "conditions": conditions, "figures": figures, "ratios": ratios}
        )
    )


def median(values: Iterable[float]) -> float:
    return round(float(np.median(list(values))), 3)


def publish(items: int) -> Artifact:
    """A release of an untrained model under a tree that knows nothing; returns its retriever."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    ids = [f"v{n:0{7 + n % 4}x}" for n in rng.choice(items * 16, items, replace=False).tolist()]
    leaf = rng.integers(0, int(np.prod(BRANCHING)), items)
    tree = ClusterTree.from_leaves(BRANCHING, leaf, ids, None, TREE)
    model = SequenceModel(ModelShape(items, 64, 2, 2, 50)).eval()
    artifacts = Artifacts(FOLDER)
    with artifacts.publish("retriever", {}, {"tree": TREE, "tree_items": TREE}) as draft:
        satisfaction = rng.random(items).astype(np.float32)
        write_retriever(draft.path, model, tree, satisfaction)
        draft.facts |= {"order_version": TREE, "max_history": 50, "prior_satisfaction": 0.5}
        inputs = {"tree": TREE, "retriever": draft.version}
    with artifacts.publish("release", {}, inputs) as draft:
        draft.facts["tree_version"] = TREE
    return artifacts.open("retriever", inputs["retriever"], verify=False)


def start() -> Start:
    """Starts a server process, and stops it when it is ready."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "retriever_server", "--artifacts", str(FOLDER), "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            ready_s = time.perf_counter() - begun
            if not line.startswith("retriever ready"):
                raise SystemExit(f"the server did not start: {line!r}")
            stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            ticks = int(stat[11]) + int(stat[12])
            status = Path(f"/proc/{process.pid}/status").read_text().split("RssAnon:")[1]
            private_mb = int(status.split()[0]) / 1024
        finally:
            process.send_signal(signal.SIGTERM)
    return Start(ready_s, ticks / os.sysconf("SC_CLK_TCK"), private_mb)


def look_up(retriever: Artifact, *, as_dict: bool) -> Ids:
    """Opens the IDs in one of two ways, and looks random ones up for the first time."""
    ids = pq.read_table(retriever.file("item_order.parquet"), columns=["item_id"]).column(0)
    drawn = np.random.default_rng(1).integers(0, len(ids), LOOK_UPS)
    # Strings of their own, whose hashes are not known yet, as a request's are.
    asked = ids.take(drawn).to_pylist()
    begun = time.process_time()
    if as_dict:
        order = pq.read_table(retriever.file("item_order.parquet"), columns=["item_id"])
        names = tuple(order.column(0).to_pylist())
        find = {item_id: rank for rank, item_id in enumerate(names)}.get
    else:
        files = (np.load(retriever.file(f), mmap_mode="r") for f in item_ids.FILES)
        mapped = ItemIds(*(np.asarray(f) for f in files))
        mapped.check()
        find = mapped.rank
    opened = time.process_time()
    found = [find(item_id) for item_id in asked]
    done = time.process_time()
    if found != drawn.tolist():
        raise SystemExit("a look-up found another item")
    return Ids(opened - begun, (done - opened) / LOOK_UPS * 1e6)


if __name__ == "__main__":
    main()
