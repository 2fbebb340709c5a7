"""A world small enough for every test: every stage takes seconds and learns little."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from serendip.artifacts import Artifacts
from serendip.config import Config


@dataclass(frozen=True)
class SmallWorld:
    """A published world: 8 items a topic, models that had a few steps. Not to be changed."""

    config: Config
    artifacts: Artifacts


def small_config(folder: Path, **changes) -> Config:
    """The tiny configuration made small: every stage takes seconds and learns little."""
    values = {
        "data_dir": str(folder / "data"),
        "artifacts_dir": str(folder / "artifacts"),
        "synth": {
            "items_per_topic": 8, "interactions": 30_000, "users": 300, "captions": 200,
        },
        "planner": {
            "pretrain_steps": 4, "steps": 4, "log_every": 2, "batch_size": 8, "word_rows": 4,
            "reasoning_rows": 4,
        },
        "plans": {"max_reasoning_tokens": 8, "chunk_items": 64},
        "retriever": {"epochs": 1, "dimensions": 16},
    }  # fmt: skip
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return Config.model_validate(values)
