"""The world of the benches that plan with a real model. Made where it is not there. *Simulated.*"""

from __future__ import annotations

from pathlib import Path

from serendip.artifacts import Artifacts
from serendip.catalog.synth import synthesise
from serendip.config import Config
from serendip.curation.curate import publish_pairs
from serendip.planning.finetune import publish_planner
from serendip.tree.build import publish_tree

FOLDER = Path("artifacts/bench-plan")


def configure(folder: Path, quick: bool, items_per_topic: int = 120) -> Config:
    """The tiny world with that many items; ``quick``: fewer, and a planner of a few steps."""
    folder = folder / ("quick" if quick else "full")
    synth = {"items_per_topic": 8, "interactions": 30_000, "users": 300, "captions": 200}
    planner = {"pretrain_steps": 4, "steps": 4, "log_every": 2, "batch_size": 8}
    return Config.model_validate(
        {
            "data_dir": str(folder / "data"),
            "artifacts_dir": str(folder / "artifacts"),
            "synth": synth if quick else {"items_per_topic": items_per_topic},
            "planner": planner if quick else {},
        }
    )


def make(config: Config) -> Artifacts:
    """Data, tree, pairs and planner."""
    artifacts = Artifacts(config.artifacts_path)
    if not config.data_path.exists():
        synthesise(config)
    for stage in (publish_tree, publish_pairs, publish_planner):
        stage(config, artifacts)
    return artifacts
