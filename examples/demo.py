"""The main job, stage after stage: a catalogue and a log in, serendipitous items out.

    ./build.sh demo [--seed N] [--config FILE] [--keep]

Each stage publishes one artefact, or finds that the current one is of the same making.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # models of this size gain nothing from more

from showcase import Showcase, call_servers, draw_sheet, show

from serendip.artifacts import Artifacts
from serendip.catalog.movielens import import_movielens
from serendip.catalog.synth import synthesise
from serendip.cli import exit_on_error
from serendip.config import Config, load_config
from serendip.curation.curate import publish_pairs
from serendip.evaluation.offline import publish_report
from serendip.local import both_servers, start_both
from serendip.planning.bulk import publish_plans
from serendip.planning.finetune import publish_planner
from serendip.progress import console
from serendip.release import publish_release
from serendip.retrieval.train import publish_retriever
from serendip.tree.build import publish_tree

CALLS = 20


def main() -> None:
    """Runs every stage, serves, calls, shows."""
    options = parse()
    config = load_config(options.config, seed=options.seed)
    artifacts = Artifacts(config.artifacts_path)
    seconds: dict[str, float] = {}

    def stage(name: str, what: str, work: Callable[[], Any]) -> Any:
        console.print(f"[bold]{name}[/bold]  {what}")
        start = time.monotonic()
        made = work()
        seconds[name] = round(time.monotonic() - start, 2)
        console.print(f"  {seconds[name]:.1f} s  {getattr(made, 'path', made)}")
        return made

    if config.source == "synth":
        stage("synth", "a world with planted interests", lambda: synthesise(config))
    elif config.source == "movielens":
        stage("import", "films, ratings, posters", lambda: import_world(config))
    stage("tree", "items into a balanced 4-level tree", lambda: publish_tree(config, artifacts))
    stage("curate", "the log into curated pairs", lambda: publish_pairs(config, artifacts))
    stage("finetune", "the MLLM learns to plan", lambda: publish_planner(config, artifacts))
    stage("plan", "bulk planning of the corpus", lambda: publish_plans(config, artifacts))
    stage("retriever", "the sequence model", lambda: publish_retriever(config, artifacts))
    stage("release", "what fits together", lambda: publish_release(artifacts))
    report = stage("evaluate", "held-out items", lambda: publish_report(config, artifacts))

    ports = (50051, 50052) if options.keep else (0, 0)
    start = time.monotonic()
    if options.keep:
        servers = start_both(config.artifacts_path, config.data_path, ports=ports)
        try:
            showcase = call_servers(config, artifacts, servers, CALLS)
        except BaseException:
            for server in servers:
                server.stop()
            raise
    else:
        with both_servers(config.artifacts_path, config.data_path, ports=ports) as servers:
            showcase = call_servers(config, artifacts, servers, CALLS)
    seconds["serve"] = round(time.monotonic() - start, 2)

    figures = collect(config, seconds, report.facts, showcase)
    path = config.artifacts_path / "demo.json"
    path.write_text(json.dumps(figures, indent=2) + "\n")
    sheet = draw_sheet(showcase, config.artifacts_path / "demo.png")
    chosen = f"--config {options.config} --seed {config.seed}" if options.keep else ""
    show(showcase, figures, [path, sheet, report.path / "figures.json"], kept=chosen)


def parse() -> argparse.Namespace:
    """The demo's own options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--config", default="tiny", help="tiny, or a TOML file")
    parser.add_argument("--seed", type=int, default=None, help="another seed, another world")
    parser.add_argument("--keep", action="store_true", help="leave the servers running")
    return parser.parse_args()


def import_world(config: Config) -> Path:
    """Imports once; the tables that are there already are kept."""
    if not (config.data_path / "items.parquet").is_file():
        import_movielens(Path(config.source_path), config.data_path)
    return config.data_path


def collect(
    config: Config, seconds: dict[str, float], report: Any, showcase: Showcase
) -> dict[str, Any]:
    """What goes to demo.json; a figure that real data cannot have is null."""
    keys = (
        "match_rate", "recall", "recall_at_1", "recall_at_1_interval", "recall_text_ceiling",
        "sibling_chance", "serendipitous_share", "serendipitous_share_siblings",
        "truth_agreement", "follows_frames", "leaf_purity", "held_out", "comparison",
    )  # fmt: skip
    return {
        "config": config.name,
        "seed": config.seed,
        "simulated": config.source == "synth",
        "stages_s": seconds,
        **{key: report.get(key) for key in keys},
        "recommend_calls": len(showcase.calls),
        "recommend_p50_ms": showcase.percentile_ms(0.5),
        "recommend_p99_ms": showcase.percentile_ms(0.99),
        "inside_planned_cluster": showcase.inside_planned_cluster(),
        "already_seen": showcase.already_seen(),
    }


if __name__ == "__main__":
    with exit_on_error():
        main()
