"""Training examples: curated pairs and titles, decoded and ready to be put to the model.

Knows no model. What is held out is not in here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from serendip.artifacts import Artifact
from serendip.catalog.items import read_captions, read_items
from serendip.catalog.look_alikes import look_alikes
from serendip.catalog.media import decode_image
from serendip.config import Config, PlannerConfig
from serendip.core import InvalidData, MediaError
from serendip.curation.curate import read_pairs
from serendip.planning.prompt import Content, Image, Prompt, build_prompt, load_content
from serendip.planning.style import Style
from serendip.progress import console, progress
from serendip.tree.cluster_tree import ClusterTree

_POOL_FRAMES = 5  # frames decoded an item, from which a training row draws
_VALIDATION = 48  # items at most whose match rate and recall are logged, and not trained on


@dataclass(frozen=True)
class Example:
    """A curated pair, ready to be put to the model.

    Attributes:
        content: the item; images hold thumbnail and pool of frames.
        own, target: descriptions of the item's cluster and of the one to plan.
        look: what the captioned model, or a teacher, said of it.
        node_id: the target.
        own_id: the item's cluster.
    """

    content: Content
    own: str
    target: str
    look: str
    node_id: int
    own_id: int


def load_examples(
    config: Config, style: Style, tree: ClusterTree, pairs: Artifact
) -> tuple[list[Example], list[Example], dict[str, int], set[str]]:
    """Training examples and validation examples (one an item), looks still empty.

    Returns beside them how many items are neither, ``near_duplicates`` (their media look like a
    held-out item's) and ``unreadable`` (gone since the curation, or bulk planning quarantines them,
    with the reason); and which items nothing may be trained on, though they are not held out: near
    duplicates, and the validation examples'.

    Raises:
        InvalidData: there is no pair, no item of them is left, or a pair names what is no
            cluster of the planning level.
    """
    rows = read_pairs(pairs, "training").to_pylist()
    _check_labels(rows, tree, config.level)
    wanted = {row["item_id"] for row in rows}
    alike = _like_held_out(config, wanted, pairs)
    contents = dict(_contents(config, style, wanted - alike))
    if not contents:
        raise InvalidData(
            f"none of the {len(wanted)} context items has media that can be read"
            if rows
            else "there is no curated pair to train on",
            field="items.parquet:thumbnail" if rows else "pairs:training.parquet",
            remedy="Bring the pictures back, or set planner.style = 'text'."
            if rows
            else "Lower curation.min_support, or curate a longer log.",
        )
    left_out = {
        "near_duplicates": len(alike),
        "unreadable": len(wanted - alike - contents.keys()),
    }
    names = sorted(contents)
    np.random.default_rng([config.seed, 99]).shuffle(names)
    held = set(names[: min(_VALIDATION, len(names) // 10)])
    description = tree.nodes.description
    training: list[Example] = []
    validation: dict[str, Example] = {}
    for row in sorted(rows, key=lambda r: (r["item_id"], -r["satisfaction"], r["node_id"])):
        item_id = row["item_id"]
        if item_id not in contents:
            continue
        example = Example(
            content=replace(contents[item_id], cluster=description[row["own_id"]]),
            own=description[row["own_id"]],
            target=description[row["node_id"]],
            look="",
            node_id=row["node_id"],
            own_id=row["own_id"],
        )
        if item_id in held:
            validation.setdefault(item_id, example)
        else:
            training.append(example)
    return training, list(validation.values()), left_out, alike | held


def _check_labels(rows: Sequence[Mapping[str, Any]], tree: ClusterTree, level: int) -> None:
    clusters = tree.nodes.at_level(level)
    for at, row in enumerate(rows):
        for column in ("own_id", "node_id"):
            node = row[column]
            if node not in clusters or not tree.nodes.description[node].strip():
                raise InvalidData(
                    f"is no cluster of level {level} with a description",
                    field=f"pairs:training.parquet:{column}",
                    row=at,
                    value=node,
                    remedy="Run serendip curate again, on the current tree.",
                )


def _like_held_out(config: Config, wanted: set[str], pairs: Artifact) -> set[str]:
    """Those of the wanted items that look like a held-out one."""
    if config.planner.near_duplicate_bits < 0:
        return set()
    held_out = set(read_pairs(pairs, "held_out").column("item_id").to_pylist())
    alike = look_alikes(config.data_path, wanted, held_out, config.planner.near_duplicate_bits)
    if alike:
        console.print(
            f"  {len(alike)} of {len(wanted)} items look like held-out ones, and are left out"
        )
    return alike


def _contents(config: Config, style: Style, wanted: set[str]) -> Iterator[tuple[str, Content]]:
    frames = max(_POOL_FRAMES, config.planner.frames) if config.planner.frames else 0
    with progress("media", len(wanted)) as tick:
        for item in read_items(config.data_path):
            if item.item_id in wanted:
                tick()
                try:
                    yield item.item_id, load_content(item, style, frames)
                except MediaError:
                    continue


def load_captions(config: Config) -> list[tuple[Image, str]]:
    """The captioned pictures that lie beside the catalogue; none if there are none."""
    return [(decode_image(image), text) for image, text in read_captions(config.data_path)]


def load_own_words(
    config: Config, tree: ClusterTree, pairs: Artifact, apart: Set[str] = frozenset()
) -> list[tuple[Content, str]]:
    """Title and text of every item with its own cluster's description.

    Without those that are held out, and those that are to be kept ``apart`` as well.
    """
    without = apart | set(read_pairs(pairs, "held_out").column("item_id").to_pylist())
    rows = []
    for item in read_items(config.data_path):
        node = tree.node_of(item.item_id, config.level)
        if node is not None and item.item_id not in without:
            rows.append((Content(item.title, item.text), tree.nodes.description[node]))
    return rows


def drop_words(text: str, share: float, rng: np.random.Generator) -> str:
    """Leaves out each word of a text with probability ``share``; one stays in any case."""
    words = text.split()
    return " ".join([w for w in words if rng.random() >= share] or words[:1])


def training_prompt(
    content: Content, style: Style, config: PlannerConfig, rng: np.random.Generator
) -> Prompt:
    """The prompt of an item with some title words left out and frames drawn from its pool."""
    take = min(config.frames, len(content.frames))
    at = sorted(rng.choice(len(content.frames), take, replace=False)) if take else []
    shown = replace(
        content,
        title=drop_words(content.title, config.word_dropout, rng),
        frames=tuple(content.frames[i] for i in at),
    )
    return build_prompt(shown, style, config.text_chars)
