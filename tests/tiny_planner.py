"""A planner that plans within a second of being opened, and items that do harm on the way to it.

The checkpoint has random weights: what serving must do does not depend on what was learnt.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import parts
from PIL import Image

from serendip.artifacts import Artifact, Artifacts
from serendip.config import PlannerConfig, PlansConfig
from serendip.core import Item
from serendip.planning.prompt import Content, Source, Upload, load_content
from serendip.planning.style import PROMPT, STYLES, Style
from serendip.planning.trie import DescriptionTrie
from serendip.planning.workers import Setup
from serendip.tree.cluster_tree import ClusterTree

CONFIG = PlannerConfig(frames=1, text_chars=40)
SEARCH = PlansConfig(max_reasoning_tokens=2)


def publish(root: Path) -> tuple[Artifacts, ClusterTree, Artifact]:
    """A tree and a planner of it, whose checkpoint is whole."""
    from serendip.planning.embedded import build_embedded  # loads torch, as no decoder should

    artifacts = Artifacts(root)
    tree = parts.publish_tree(artifacts)
    nodes = tree.nodes.at_level(parts.LEVEL)
    texts = [tree.nodes.description[node] for node in nodes]
    corpus = [f" {text}" for text in texts] * 50 + ["Title: Topic: Look: Next: A viewer"] * 50
    mllm = build_embedded(corpus, 310, seed=0)
    settings = {"level": parts.LEVEL, "level_gap": 1, "planner": CONFIG.model_dump(mode="json")}
    with artifacts.publish("planner", settings, {"tree": tree.version}) as draft:
        mllm.save(draft.path / "checkpoint")
        (draft.path / PROMPT).write_text(STYLES[CONFIG.style].template)
        DescriptionTrie.build(
            mllm.description_tokens(texts),
            nodes,
            mllm.end_token,
            texts=texts,
            tree_version=tree.version,
            tokenizer_hash=mllm.tokenizer_hash,
        ).save(draft.path / "trie")
    return artifacts, tree, artifacts.current("planner")


def setup_of(
    planner: Artifact, tree: ClusterTree, load: Callable[[Source, Style, int], Content]
) -> Setup:
    return Setup(planner, tree.nodes, SEARCH, 1, STYLES[CONFIG.style], CONFIG.frames, load)


def picture(path: Path, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def item_of(folder: Path, item_id: str = parts.ITEMS[0], title: str = "rye") -> Item:
    """An item with a thumbnail; what its title says, ``load`` does."""
    return Item(item_id, title, thumbnail=picture(folder / f"{item_id}.png"))


class Deadly(str):
    """A title that ends the process that looks at it, which is not the one that decoded it."""

    def __format__(self, spec: str) -> str:
        os.kill(os.getpid(), signal.SIGKILL)
        return ""


def load(source: Source, style: Style, frames: int) -> Content:
    """Decodes, once it has done what the title says."""
    title = source.title
    if title == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if title.startswith("wait for "):
        until = time.monotonic() + 20
        while not Path(title.removeprefix("wait for ")).exists():
            assert time.monotonic() < until
            time.sleep(0.005)
    content = load_content(source, style, frames)
    if title == "deadly":
        return replace(content, title=Deadly(title))
    if title == "changes" and not isinstance(source, Upload):
        assert isinstance(source.thumbnail, Path)
        picture(source.thumbnail, seed=1)
    return content
