"""Bulk planning: plans for the items that cover most impressions, stale ones only.

A chunk of rows is a file, and the file is the commit: a run that was killed goes on after its last
chunk. Items whose media cannot be read are quarantined with the reason and stop nothing. The most
impressed items come first, so that a run that its window cuts off has done the most for its time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serendip.artifacts import MANIFEST, Artifact, Artifacts, Draft, check_made_from
from serendip.catalog.items import read_items
from serendip.config import Config, PlannerConfig, PlansConfig
from serendip.core import InvalidRequest, Item, SerendipError
from serendip.curation.curate import current_pairs, read_pairs
from serendip.planning.kept_plans import kept_chunks
from serendip.planning.lmdb_store import FILE, write_lmdb
from serendip.planning.plan_store import StoreInfo
from serendip.planning.ray_crew import plan_on_ray
from serendip.planning.rows import (
    UNSURE,
    Chunks,
    Media,
    Row,
    hash_media,
    not_stale,
    plans_made_of,
    search_of,
    stale_keys,
    torn,
)
from serendip.planning.style import style_of
from serendip.planning.workers import (
    Done,
    Lease,
    Setup,
    Task,
    check_engine,
    plan_in_processes,
)
from serendip.progress import Seconds, progress
from serendip.tree.cluster_tree import ClusterTree

CHUNKS = "chunks"
MEDIA = "media.parquet"  # columns: Media

# What plans leases, in whatever order they come.
Crew = Callable[[Setup, Iterator[Lease]], Iterator[Done]]


@dataclass
class Account:
    """What a run has done.

    Attributes:
        reused: rows taken over from the current plans.
        adopted: rows that a planner server had planned live.
        resumed: rows that an interrupted run had committed.
        left: stale items that the window left undone.
        planning_s: seconds from the first lease on.
    """

    corpus: int
    reused: int = 0
    adopted: int = 0
    resumed: int = 0
    planned: int = 0
    left: int = 0
    planning_s: float = 0.0
    by_stage: Seconds = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def facts(self) -> dict[str, object]:
        """For the manifest. Rates are of this run; what they would make of a full one is an
        estimate, and named so."""
        seconds = time.monotonic() - self.started
        rate = self.planned / self.planning_s if self.planned else 0.0
        full_s = seconds - self.planning_s + self.corpus / rate if rate else None
        return {
            "corpus": self.corpus,
            "planned": self.planned,
            "reused": self.reused,
            "adopted": self.adopted,
            "resumed": self.resumed,
            "left": self.left,
            "items_per_s": round(rate, 2),
            "seconds": round(seconds, 1),
            "seconds_by_stage": {k: round(v, 2) for k, v in self.by_stage.items()},
            "estimated_hours_of_full_run": full_s and round(full_s / 3600, 4),
            "estimated_speed_up_over_full_run": full_s and round(full_s / seconds, 2),
        }


def publish_plans(
    config: Config,
    artifacts: Artifacts,
    *,
    max_hours: float | None = None,
    crew: Crew | None = None,
) -> Artifact:
    """Plans the corpus and publishes the plan store; what is not stale is taken over.

    Args:
        max_hours: the window. After it no item is begun, and what there is by then is published;
            the next run goes on from there.
        crew: what plans; None: as ``plans.crew`` says.

    Raises:
        InvalidRequest: ``plans.engine`` is not installed.
        SerendipError: no item of the corpus could be planned.
    """
    check_engine(config.plans)
    ends = None if max_hours is None else time.monotonic() + max_hours * 3600
    tree_artifact = artifacts.current("tree")
    pairs = current_pairs(config, artifacts)
    if pairs.config["coverage"] != config.plans.coverage:
        raise InvalidRequest(
            f"the corpus was chosen for {pairs.config['coverage']}",
            field="plans.coverage",
            value=config.plans.coverage,
            remedy="Run serendip curate again.",
        )
    planner = artifacts.current("planner")
    check_made_from(planner, {"tree": tree_artifact.tree_version})
    settings = {"plans": {"coverage": config.plans.coverage, **search_of(config.plans)}}
    trained = PlannerConfig.model_validate(planner.config["planner"])
    corpus = _corpus(config, pairs)
    if not corpus:
        raise InvalidRequest(
            "the catalogue has no item of the corpus",
            field="items.parquet",
            remedy="Run serendip curate on this catalogue.",
        )
    made_of = plans_made_of(tree_artifact.tree_version, planner, config.plans)
    tree = ClusterTree.open(tree_artifact)
    level = int(planner.config["level"])
    own = [tree.node_of(item.item_id, level) for item in corpus]
    media = _hash(corpus, artifacts)
    keys = stale_keys(corpus, media, own, made_of, trained.text_chars)
    inputs = {
        "tree": tree_artifact.tree_version,
        "planner": planner.version,
        "pairs": pairs.version,
        "corpus": hashlib.sha256("\n".join(keys).encode()).hexdigest()[:12],
    }
    reused = artifacts.reuse("plans", settings, inputs)
    if reused is not None and not reused.facts["unsure"]:
        return reused
    account = Account(len(corpus))
    crew = crew or {"processes": plan_in_processes, "ray": plan_on_ray}[config.plans.crew]
    setup = Setup(
        replace(planner, path=planner.path.resolve()),
        tree.nodes,
        config.plans,
        config.planner.threads,
        style_of(planner),
        trained.frames,
    )
    made_by = tree_artifact.tree_version, planner.version
    until = max(planner.log_until or 0, pairs.log_until or 0)
    try:
        with artifacts.publish("plans", settings, inputs, log_until=until, resume=True) as draft:
            chunks = Chunks(draft.path / CHUNKS)
            wanted = {item.item_id: key for item, key in zip(corpus, keys, strict=True)}
            done = _take_over(chunks, artifacts, wanted, account)
            _adopt(chunks, kept_chunks(artifacts.root, planner.version), wanted, done, account)
            stale = [
                Task(item, node, key)
                for item, node, key in zip(corpus, own, keys, strict=True)
                if item.item_id not in done
            ]
            _plan(stale, chunks, config.plans, account, ends, partial(crew, setup))
            if account.left:
                raise _WindowOverError
            _finish(draft, chunks, *made_by, pairs, media, account)
    except _WindowOverError:
        # Its draft stays for the next run to go on from; what it has is published as a part.
        names = "".join(sorted(chunks.item_ids()))
        if not names:
            raise InvalidRequest(
                "was over before an item was planned",
                field="--max-hours",
                value=max_hours,
                remedy="Give it more time.",
            ) from None
        inputs["part"] = hashlib.sha256(names.encode()).hexdigest()[:12]
        with artifacts.publish("plans", settings, inputs, log_until=until) as draft:
            part = Chunks(draft.path / CHUNKS)
            for path in chunks.paths():
                _link(path, draft.path / CHUNKS / path.name)
            _finish(draft, part, *made_by, pairs, media, account)
    return artifacts.open("plans", draft.version)


def _take_over(
    chunks: Chunks, artifacts: Artifacts, wanted: Mapping[str, str], account: Account
) -> set[str]:
    """Commits the rows of other runs that still hold; the IDs of all that have a row.

    Those are the current plans, and what was interrupted before the corpus changed.
    """
    done = chunks.item_ids()
    account.resumed = len(done)
    current = artifacts.current_version("plans")
    folders = (artifacts.root / "plans").glob(f"*/{CHUNKS}")
    others = [f for f in folders if f.parent.name == current or not (f.parent / MANIFEST).exists()]
    for folder in sorted(others, key=lambda f: f.parent.name != current):
        for path in sorted(folder.glob("*.parquet")):
            if torn(path) or path.parent == chunks.folder:
                continue
            kept = not_stale(pq.read_table(path), wanted, done)
            chunks.commit(kept)
            done.update(kept.column("item_id").to_pylist())
            if folder.parent.name == current:
                account.reused += len(kept)
            else:
                account.resumed += len(kept)
    return done


def _adopt(
    chunks: Chunks, live: Sequence[Path], wanted: Mapping[str, str], done: set[str],
    account: Account,
) -> None:  # fmt: skip
    """Commits rows of live plans that are what would be planned now, and adds them to ``done``."""
    for path in live:
        with contextlib.suppress(OSError):  # who serves may have put a newer one in its place
            if torn(path):
                continue
            kept = not_stale(pq.read_table(path), wanted, done)
            chunks.commit(kept)
            done.update(kept.column("item_id").to_pylist())
            account.adopted += len(kept)


def _plan(
    stale: Sequence[Task], chunks: Chunks, settings: PlansConfig, account: Account,
    ends: float | None, crew: Callable[[Iterator[Lease]], Iterator[Done]],
) -> None:  # fmt: skip
    """Plans what is stale, and commits it chunk by chunk."""
    began = time.monotonic()
    waiting: list[Row] = []
    bad = 0

    def leases() -> Iterator[Lease]:
        tasks = iter(stale)
        while (ends is None or time.monotonic() < ends) and (
            lease := list(islice(tasks, settings.batch_size))
        ):
            yield lease

    with progress("plan", len(stale)) as tick:
        try:
            for done in crew(leases()):
                waiting += done.rows
                account.planned += len(done.rows)
                for stage, seconds in done.seconds.items():
                    account.by_stage[stage] = account.by_stage.get(stage, 0.0) + seconds
                bad += sum(row.plan is None for row in done.rows)
                if len(waiting) >= settings.chunk_items:
                    chunks.commit(waiting)
                    waiting.clear()
                tick(len(done.rows), note=f"{bad} quarantined")
        finally:
            # What was planned before an interruption is kept as well.
            chunks.commit(waiting)
    account.left = len(stale) - account.planned
    account.planning_s = time.monotonic() - began


def _finish(
    draft: Draft, chunks: Chunks, tree_version: str, planner: str, pairs: Artifact,
    media: Sequence[Media], account: Account,
) -> None:  # fmt: skip
    """Builds the store and the tables beside it from the committed rows."""
    counts = [pc.sum(pc.is_valid(t.column("plan"))).as_py() or 0 for t in chunks.tables()]
    planned = sum(counts)
    quarantined = pa.concat_tables(
        [
            t.filter(pc.is_null(t.column("plan"))).select(["item_id", "reason"])
            for t in chunks.tables()
        ]
    )
    if not planned:
        raise SerendipError(
            "no item of the corpus could be planned",
            field="items.parquet",
            value=quarantined.column("reason")[0].as_py() if len(quarantined) else None,
            remedy="Mend the media, or choose planner.style = 'text'.",
        )
    pq.write_table(quarantined, draft.path / "quarantine.parquet")
    info = StoreInfo(draft.version, tree_version, planner, planned)
    write_lmdb(draft.path / FILE, _stored(chunks), info)
    pq.write_table(pa.Table.from_pylist([vars(m) for m in media]), draft.path / MEDIA)
    # What the planner server falls back to, beside the plans that it stands in for.
    pq.write_table(read_pairs(pairs, "transitions"), draft.path / "transitions.parquet")
    draft.rows |= {FILE: planned, "quarantine.parquet": len(quarantined)}
    unsure = pc.sum(pc.starts_with(quarantined.column("reason"), UNSURE)).as_py() or 0
    draft.facts |= account.facts() | {"quarantined": len(quarantined), "unsure": unsure}


def _stored(chunks: Chunks) -> Iterator[tuple[str, bytes]]:
    for table in chunks.tables():
        kept = table.filter(pc.is_valid(table.column("plan")))
        yield from zip(
            kept.column("item_id").to_pylist(), kept.column("plan").to_pylist(), strict=True
        )


class _WindowOverError(Exception):
    """The window ended before the corpus did."""


def _corpus(config: Config, pairs: Artifact) -> list[Item]:
    """The corpus's items, the most impressed first."""
    wanted = read_pairs(pairs, "corpus").column("item_id").to_pylist()
    rank = {item_id: i for i, item_id in enumerate(wanted)}
    items = [i for i in read_items(config.data_path) if i.item_id in rank]
    return sorted(items, key=lambda i: rank[i.item_id])


def _hash(corpus: Sequence[Item], artifacts: Artifacts) -> list[Media]:
    """The corpus's media; what the current plans have hashed is not read again."""
    known: dict[str, Media] = {}
    with contextlib.suppress(SerendipError):
        table = pq.read_table(artifacts.current("plans").file(MEDIA))
        known = {row["item_id"]: Media(**row) for row in table.to_pylist()}
    found = []
    with progress("hash", len(corpus)) as tick:
        for media in hash_media(corpus, known):
            found.append(media)
            tick()
    return found


def _link(path: Path, other: Path) -> None:
    try:
        os.link(path, other)
    except OSError:  # a file system without hard links
        shutil.copy2(path, other)
