"""Bulk planning: plans for the items that cover most impressions, stale ones only.

A chunk of items is a file, and the file is the commit: a run that was killed goes on after its
last chunk. Items whose media cannot be read are quarantined with the reason and stop nothing.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from serendip.artifacts import Artifact, Artifacts, check_made_from
from serendip.catalog.items import read_items
from serendip.catalog.media import media_hash
from serendip.config import Config, PlannerConfig
from serendip.core import Item, MediaError, Plan, SerendipError
from serendip.curation.curate import current_pairs, read_pairs
from serendip.planning.plan_store import FILE, decode_plan, encode_plan, write_plans
from serendip.planning.planner import Planner
from serendip.planning.prompt import STYLES, Content, load_content
from serendip.progress import progress, timed
from serendip.tree.cluster_tree import ClusterTree

# plan is a serialised serendip.v1.Plan, null if quarantined; reason is empty if planned.
SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("stale_key", pa.string()),
        ("plan", pa.binary()),
        ("reason", pa.string()),
    ]
)


@dataclass(frozen=True)
class Row:
    """The outcome for one item of the corpus.

    Attributes:
        stale_key: tree, planner, prompt and media that it was made of.
        plan: None if the item was quarantined.
        reason: why it was quarantined.
    """

    item_id: str
    stale_key: str
    plan: Plan | None
    reason: str = ""


def stale_keys(items: Sequence[Item], made_of: Sequence[object], text_chars: int) -> list[str]:
    """What each item's plan is made of: it is stale when this differs.

    Args:
        made_of: what all plans share: tree, planner, prompt and search.
        text_chars: how much of an item's text its prompt shows.
    """
    shared = "/".join(map(str, made_of))
    return [f"{shared}/{_media_hash(item)}/{_words_hash(item, text_chars)}" for item in items]


def _words_hash(item: Item, text_chars: int) -> str:
    words = f"{item.title}\0{item.text[:text_chars]}"
    return hashlib.sha256(words.encode()).hexdigest()[:8]


def _media_hash(item: Item) -> str:
    try:
        return media_hash(item)
    except MediaError as e:  # quarantined later, and tried again when the reason changes
        return hashlib.sha256(str(e).encode()).hexdigest()[:16]


def plan_items(
    planner: Planner, tree: ClusterTree, items: Sequence[Item], keys: Sequence[str]
) -> list[Row]:
    """Plans a chunk of items: exactly one row an item, in order."""
    style = STYLES[planner.config.style]
    contents: list[Content | None] = []
    reasons: list[str] = []
    with timed(planner.seconds, "media"):
        for item in items:
            try:
                contents.append(load_content(item, style, planner.config.frames))
                reasons.append("")
            except MediaError as e:
                contents.append(None)
                reasons.append(str(e))
    good = [i for i, c in enumerate(contents) if c is not None]
    plans: dict[int, Plan] = {}
    size = planner.search.batch_size
    for at in range(0, len(good), size):
        batch = good[at : at + size]
        made = planner.plan(
            [c for c in (contents[i] for i in batch) if c is not None],
            [tree.node_of(items[i].item_id, planner.level) for i in batch],
            item_ids=[items[i].item_id for i in batch],
        )
        plans.update(zip(batch, made, strict=True))
    return [
        Row(item.item_id, key, plans.get(i), reasons[i])
        for i, (item, key) in enumerate(zip(items, keys, strict=True))
    ]


def publish_plans(config: Config, artifacts: Artifacts) -> Artifact:
    """Plans the corpus and publishes the plan store; what is not stale is taken over.

    Raises:
        SerendipError: no item of the corpus could be planned.
    """
    tree_artifact = artifacts.current("tree")
    pairs = current_pairs(config, artifacts)
    planner_artifact = artifacts.current("planner")
    check_made_from(planner_artifact, {"tree": tree_artifact.tree_version})
    settings = {"plans": config.plans.model_dump(exclude={"batch_size", "chunk_items"})}
    trained = PlannerConfig.model_validate(planner_artifact.config["planner"])
    prompt = STYLES[trained.style].version(trained.frames, trained.text_chars)
    corpus = _corpus(config, pairs)
    search = (config.plans.clusters, config.plans.beams, config.plans.max_reasoning_tokens)
    made_of = (tree_artifact.tree_version, planner_artifact.version, prompt, *search)
    keys = stale_keys(corpus, made_of, trained.text_chars)
    inputs = {
        "tree": tree_artifact.tree_version,
        "planner": planner_artifact.version,
        "pairs": pairs.version,
        "corpus": hashlib.sha256("\n".join(keys).encode()).hexdigest()[:12],
    }
    if reused := artifacts.reuse("plans", settings, inputs):
        return reused
    earlier = _earlier_rows(artifacts)
    torch.set_num_threads(config.planner.threads)
    tree = ClusterTree.open(tree_artifact)
    planner = Planner.open(planner_artifact, tree.nodes, config.plans)
    started = time.monotonic()
    until = max(planner_artifact.log_until or 0, pairs.log_until or 0)
    with artifacts.publish("plans", settings, inputs, log_until=until, resume=True) as draft:
        chunks = draft.path / "chunks"
        chunks.mkdir(exist_ok=True)
        for leftover in chunks.glob("*.partial"):
            leftover.unlink()
        done = {row.item_id for row in _read_chunks(chunks)}
        taken_over: list[Row] = []
        stale: list[tuple[Item, str]] = []
        for item, key in zip(corpus, keys, strict=True):
            row = earlier.get(item.item_id)
            if item.item_id in done:
                continue
            if row is not None and row.stale_key == key:
                taken_over.append(row)
            else:
                stale.append((item, key))
        if taken_over:
            _write_chunk(chunks, taken_over)
        planning = time.monotonic()
        with progress("plan", len(stale)) as tick:
            bad = 0
            for at in range(0, len(stale), config.plans.chunk_items):
                chunk = stale[at : at + config.plans.chunk_items]
                rows = plan_items(planner, tree, [i for i, _ in chunk], [k for _, k in chunk])
                _write_chunk(chunks, rows)
                bad += sum(r.plan is None for r in rows)
                tick(len(chunk), note=f"{bad} quarantined")
        seconds = time.monotonic() - planning
        rows = list(_read_chunks(chunks))
        planned = [r.plan for r in rows if r.plan is not None]
        if not planned:
            raise SerendipError(
                "no item of the corpus could be planned",
                field="items.parquet",
                value=rows[0].reason if rows else None,
                remedy="Mend the media, or choose planner.style = 'text'.",
            )
        quarantined = [r for r in rows if r.plan is None]
        pq.write_table(
            pa.table(
                {
                    "item_id": pa.array([r.item_id for r in quarantined], pa.string()),
                    "reason": pa.array([r.reason for r in quarantined], pa.string()),
                }
            ),
            draft.path / "quarantine.parquet",
        )
        write_plans(draft.path / FILE, planned)
        # What the planner server falls back to, beside the plans that it stands in for.
        pq.write_table(read_pairs(pairs, "transitions"), draft.path / "transitions.parquet")
        rate = len(stale) / seconds if stale else 0.0
        draft.rows |= {FILE: len(planned), "quarantine.parquet": len(quarantined)}
        draft.facts |= {
            "corpus": len(corpus),
            "planned": len(stale),
            "reused": len(taken_over),
            "resumed": len(done),
            "quarantined": len(quarantined),
            "items_per_s": round(rate, 2),
            "seconds": round(time.monotonic() - started, 1),
            "seconds_by_stage": {k: round(v, 2) for k, v in planner.seconds.items()},
            "speed_up_over_full_run": round(len(corpus) / max(len(stale), 1), 2),
        }
    return artifacts.open("plans", draft.version)


def _corpus(config: Config, pairs: Artifact) -> list[Item]:
    """The corpus's items, the most impressed first."""
    wanted = read_pairs(pairs, "corpus").column("item_id").to_pylist()
    rank = {item_id: i for i, item_id in enumerate(wanted)}
    items = [i for i in read_items(config.data_path) if i.item_id in rank]
    return sorted(items, key=lambda i: rank[i.item_id])


def _earlier_rows(artifacts: Artifacts) -> dict[str, Row]:
    """Rows of the current plans, if there are any that are whole."""
    try:
        current = artifacts.current("plans")
    except SerendipError:
        return {}
    return {row.item_id: row for row in _read_chunks(current.path / "chunks")}


def _write_chunk(folder: Path, rows: Sequence[Row]) -> None:
    number = len(list(folder.glob("*.parquet")))
    table = pa.Table.from_pylist(
        [
            {
                "item_id": r.item_id,
                "stale_key": r.stale_key,
                "plan": None if r.plan is None else encode_plan(r.plan),
                "reason": r.reason,
            }
            for r in rows
        ],
        SCHEMA,
    )
    partial = folder / f"{number:06d}.partial"
    pq.write_table(table, partial)
    partial.rename(folder / f"{number:06d}.parquet")


def _read_chunks(folder: Path) -> Iterator[Row]:
    for path in sorted(folder.glob("*.parquet")):
        for r in pq.read_table(path, schema=SCHEMA).to_pylist():
            plan = None if r["plan"] is None else decode_plan(r["plan"])
            yield Row(r["item_id"], r["stale_key"], plan, r["reason"])
