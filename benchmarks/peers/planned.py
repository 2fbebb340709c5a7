"""One engine, opened in its own environment: plans of some items, and CPU seconds of the batches.

    python benchmarks/peers/planned.py ENGINE CONFIG.json PLANS.parquet BATCHES

Media are decoded beforehand. The first batch is a warm-up, and is planned again as the last.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from serendip.artifacts import Artifacts
from serendip.catalog.items import read_items
from serendip.config import Config
from serendip.curation.curate import read_pairs
from serendip.planning.plan_store import encode_plan
from serendip.planning.prompt import load_content
from serendip.planning.rows import Row, write_chunk
from serendip.planning.style import style_of
from serendip.planning.workers import planner_class
from serendip.tree.cluster_tree import ClusterTree


def main() -> None:
    """Plans, writes the rows, and prints {"start_cpu_s", "cpu_s_an_item"} last."""
    engine, config_path, target, batches = sys.argv[1:]
    torch.set_num_threads(1)
    config = Config.model_validate_json(Path(config_path).read_text())
    plans = config.plans.model_copy(update={"engine": engine})
    artifacts = Artifacts(config.artifacts_path)
    artifact = artifacts.current("planner")
    artifact = replace(artifact, path=artifact.path.resolve())
    tree = ClusterTree.open(artifacts.current("tree"))
    wanted = set(read_pairs(artifacts.current("pairs"), "corpus").column("item_id").to_pylist())
    items = [i for i in read_items(config.data_path) if i.item_id in wanted]
    style, frames = style_of(artifact), config.planner.frames
    size = plans.batch_size
    parts = [items[at : at + size] for at in range(0, size * int(batches), size)]
    contents = [[load_content(item, style, frames) for item in part] for part in parts]
    began = time.process_time()
    planner = planner_class(plans).open(artifact, tree.nodes, plans)
    planner.check()
    start = time.process_time() - began
    spent = []
    rows: dict[str, Row] = {}
    for part, content in [*zip(parts, contents, strict=True), (parts[0], contents[0])]:
        own = [tree.node_of(item.item_id, planner.level) for item in part]
        ids = [item.item_id for item in part]
        began = time.process_time()
        made = planner.plan(content, own, item_ids=ids)
        spent.append((time.process_time() - began) / len(part))
        rows |= {i: Row(i, "", encode_plan(plan)) for i, plan in zip(ids, made, strict=True)}
    write_chunk(Path(target), list(rows.values()))
    print(json.dumps({"start_cpu_s": start, "cpu_s_an_item": spent[1:]}))


if __name__ == "__main__":
    main()
