"""Bulk planning: the job as a whole, and its model against transformers' own generation.

    ./build.sh bench plan [--quick] [--folder DIR]

*vs_generate*: contents that are already decoded, to the eight best clusters of each item but its
own: no reasoning, the full score, 12 beams, batches of 32. The peer is ``generate`` with
``prefix_allowed_tokens_fn`` over nested dicts and ``length_penalty=0``, on the same checkpoint.
CPU seconds on one thread, taken in turns.

*incremental_vs_full*: wall-clock seconds of ``serendip plan`` by its own summary: the whole
catalogue, and then a tenth of it whose thumbnails are new. The world is simulated.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from common import planning_world
from common.timing import Times, interleaved, shown
from peers.hf_generate import Dicts, generate_descriptions, trie_without
from rich.table import Table

from serendip.artifacts import Artifacts
from serendip.catalog.items import read_items
from serendip.config import Config
from serendip.curation.curate import publish_pairs, read_pairs
from serendip.planning.decode import decode
from serendip.planning.mllm import Batch
from serendip.planning.planner import Planner
from serendip.planning.prompt import Content, load_content
from serendip.planning.search import Search
from serendip.planning.style import ANSWER
from serendip.progress import console
from serendip.tree.cluster_tree import ClusterTree

BEAMS, CLUSTERS, BATCH = 12, 8, 32
STALE = 0.1
Found = list[dict[int, float]]  # an item: full score by node


def main() -> None:
    """Measures both, and prints tables and one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--folder", type=Path, default=planning_world.FOLDER)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = planning_world.configure(options.folder, options.quick)
    artifacts = planning_world.make(config)
    seconds, agreement = measure_models(
        config, artifacts, items=64 if options.quick else 256, repetitions=2 if options.quick else 5
    )
    jobs = measure_jobs(config, artifacts)
    show(seconds, agreement, jobs)
    median = {name: float(np.median(times)) for name, times in seconds.items()}
    ratios = {
        "vs_generate": median["generate"] / min(median["onnx"], median["torch"]),
        "vs_generate_torch": median["generate"] / median["torch"],
        "incremental_vs_full": jobs["full"]["seconds"] / jobs["incremental"]["seconds"],
    }
    figures = {
        "items_per_s": jobs["full"]["items_per_s"],
        "seconds_an_item": median,
        "agreement": agreement,
        "jobs": jobs,
    }
    conditions = {
        "simulated": True,
        "quick": options.quick,
        "beams": BEAMS,
        "clusters": CLUSTERS,
        "batch": BATCH,
        "workers": config.plans.workers,
        "decoders": config.plans.decoders,
        "threads": 1,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "versions": {n: version(n) for n in ("torch", "transformers", "onnxruntime-gpu")},
    }
    print(
        json.dumps(
            {"bench": "plan", "conditions": conditions, "figures": figures, "ratios": ratios}
        )
    )


# --- the model ---------------------------------------------------------------------------------


def measure_models(
    config: Config, artifacts: Artifacts, items: int, repetitions: int
) -> tuple[dict[str, Times], dict[str, float]]:
    """CPU seconds an item of each way, and how far they agree."""
    tree = ClusterTree.open(artifacts.current("tree"))
    planners = {
        runtime: Planner.open(
            artifacts.current("planner"),
            tree.nodes,
            config.plans.model_copy(update={"runtime": runtime}),
        )
        for runtime in ("onnx", "torch")
    }
    planner = planners["torch"]
    wanted = set(read_pairs(artifacts.current("pairs"), "corpus").column("item_id").to_pylist())
    chosen = [i for i in read_items(config.data_path) if i.item_id in wanted][:items]
    contents = [load_content(item, planner.style, planner.config.frames) for item in chosen]
    own = [tree.node_of(item.item_id, planner.level) for item in chosen]
    calls = {name: partial(ours, p, contents, own) for name, p in planners.items()}
    tries = {node: trie_without(planner.trie, node) for node in set(own)}
    calls["generate"] = partial(theirs, planner, contents, own, [tries[node] for node in own])
    agreement = compare(calls["onnx"](), calls["generate"](), calls["torch"]())
    times = interleaved(calls, repetitions)
    return {name: seconds / len(chosen) for name, seconds in times.items()}, agreement


def encode(planner: Planner, contents: list[Content], own: list[int | None]) -> Batch:
    """The prompts, without anything of the reasoning."""
    return planner.mllm.encode(planner._prompts(contents, own))


def ours(planner: Planner, contents: list[Content], own: list[int | None]) -> Found:
    """The engine, as bulk planning runs it but for the reasoning and the score."""
    found: Found = []
    for at in range(0, len(contents), BATCH):
        batch = slice(at, at + BATCH)
        decoded = decode(
            planner._session(), encode(planner, contents[batch], own[batch]), planner._trie_head,
            [planner.view(node) for node in own[batch]],
            Search(k=CLUSTERS, beams=BEAMS, score="full"),
            opening=planner.mllm.tokens(ANSWER), ends=planner.mllm.end_tokens, max_reasoning=0,
        )  # fmt: skip
        nodes = planner.trie.node_of_rank
        found += [{int(nodes[f.rank]): f.score for f in d.answer.found} for d in decoded]
    return found


def theirs(
    planner: Planner, contents: list[Content], own: list[int | None], tries: list[Dicts]
) -> Found:
    """``generate`` from the same encoded prompts, opened in the same way."""
    found: Found = []
    for at in range(0, len(contents), BATCH):
        batch = slice(at, at + BATCH)
        found += generate_descriptions(
            planner.mllm, planner.trie, encode(planner, contents[batch], own[batch]),
            tries[batch], opening=planner.mllm.tokens(ANSWER), beams=BEAMS, k=CLUSTERS,
        )  # fmt: skip
    return found


def compare(onnx: Found, generate: Found, torch_: Found) -> dict[str, float]:
    """Raises if a cluster has two scores; how many of the peer's clusters we found as well."""
    same = worse = 0
    for a, b, c in zip(onnx, generate, torch_, strict=True):
        for other in (b, c):
            for node in set(a) & set(other):
                assert abs(a[node] - other[node]) < 2e-3, (node, a[node], other[node])
        same += len(set(a) & set(b))
        worse += sum(a.values()) < sum(b.values()) - 2e-3
    return {
        "clusters_in_common": same / sum(map(len, generate)),
        "items_with_a_worse_eight": worse / len(onnx),
    }


# --- the job -----------------------------------------------------------------------------------


JOB = """
import json, sys
from serendip.artifacts import Artifacts
from serendip.config import Config
from serendip.planning.bulk import publish_plans
config = Config.model_validate_json(sys.argv[1])
print(json.dumps(publish_plans(config, Artifacts(config.artifacts_path)).facts))
"""


def run_job(config: Config) -> dict[str, Any]:
    """The summary of ``serendip plan``, in a process of its own: its workers and decoders import
    what its main module does, and the benchmark's would be charged to them.
    """
    command = [sys.executable, "-c", JOB, config.model_dump_json()]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


def measure_jobs(config: Config, artifacts: Artifacts) -> dict[str, dict[str, Any]]:
    """The summaries of a full run over the whole catalogue, and of one after a tenth of it has
    changed.
    """
    shutil.rmtree(config.artifacts_path / "plans", ignore_errors=True)
    everything = config.plans.model_copy(update={"coverage": 1.0})
    config = config.model_copy(update={"plans": everything})
    publish_pairs(config, artifacts)
    full = run_job(config)
    corpus = read_pairs(artifacts.current("pairs"), "corpus").column("item_id").to_pylist()
    stale = set(np.random.default_rng(0).choice(corpus, round(STALE * len(corpus)), False).tolist())
    for item in read_items(config.data_path):
        if item.item_id in stale:
            assert isinstance(item.thumbnail, Path)
            # Decoders stop at the picture's end; its hash is another.
            with item.thumbnail.open("ab") as f:
                f.write(b"\0")
    incremental = run_job(config)
    assert incremental["planned"] == len(stale)
    return {"full": full, "incremental": incremental}


def show(
    seconds: dict[str, Times], agreement: dict[str, float], jobs: dict[str, dict[str, Any]]
) -> None:
    """Tables."""
    table = Table("contents to 8 clusters", "CPU ms an item", "x ours (ONNX Runtime)")
    for name, times in seconds.items():
        table.add_row(name, shown(times, 1e-3), shown(times / seconds["onnx"], 1))
    console.print(table, agreement)
    stages = sorted({stage for job in jobs.values() for stage in job["seconds_by_stage"]})
    table = Table("serendip plan", "planned", "reused", "items/s", "seconds", *stages)
    for name, job in jobs.items():
        table.add_row(
            name, *(str(job[n]) for n in ("planned", "reused", "items_per_s", "seconds")),
            *(str(job["seconds_by_stage"].get(stage, 0)) for stage in stages),
        )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    main()
