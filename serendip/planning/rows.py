"""Rows of bulk planning: the outcome for each item, in chunk files that are the commits.

A chunk appears under its name only when it is whole. Plans stay serialised: nothing here, nor in
the job, has to look into one. Knows no model.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from serendip.artifacts import Artifact
from serendip.catalog.media import media_hash
from serendip.config import PlannerConfig, PlansConfig
from serendip.core import Item, MediaError
from serendip.planning.style import style_of
from serendip.storage import seal_file, sync_folder

# plan is a serialised serendip.v1.Plan, null if quarantined; reason is empty if planned.
SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("stale_key", pa.string()),
        ("plan", pa.binary()),
        ("reason", pa.string()),
    ]
)


SEARCH = ("clusters", "beams", "max_reasoning_tokens")  # settings that a plan depends on
# How the reason of a failure begins that may be the machine's: its item is tried in every run.
UNSURE = "perhaps not the item's fault: "


@dataclass(frozen=True)
class Row:
    """The outcome for one item of the corpus.

    Attributes:
        stale_key: tree, planner, prompt and media that it was made of.
        plan: a serialised serendip.v1.Plan; None if the item was quarantined.
        reason: why it was quarantined.
    """

    item_id: str
    stale_key: str
    plan: bytes | None
    reason: str = ""


@dataclass(frozen=True)
class Media:
    """What an item's media were when they were hashed.

    Attributes:
        stamp: sizes and times of change of its files; "" where that does not tell.
        hash: as ``media_hash``; of the reason where they cannot be read.
    """

    item_id: str
    stamp: str
    hash: str


def hash_media(items: Iterable[Item], known: Mapping[str, Media]) -> Iterator[Media]:
    """Hashes what each item shows; files whose stamp is ``known`` are not read again."""
    for item in items:
        stamp = _stamp(item)
        before = known.get(item.item_id)
        if before is not None and stamp and before.stamp == stamp:
            yield before
            continue
        try:
            yield Media(item.item_id, stamp, media_hash(item))
        except MediaError as e:  # quarantined later, and tried again when the reason changes
            yield Media(item.item_id, "", hashlib.sha256(str(e).encode()).hexdigest()[:16])


def plans_made_of(tree_version: str, planner: Artifact, plans: PlansConfig) -> tuple[object, ...]:
    """What all plans of a planner share: tree, planner, prompt, search and engine."""
    trained = PlannerConfig.model_validate(planner.config["planner"])
    prompt = style_of(planner).version(trained.frames, trained.text_chars)
    search = search_of(plans).values()
    return (tree_version, planner.version, prompt, *search)


def search_of(plans: PlansConfig) -> dict[str, object]:
    """The settings that a plan depends on; this package's own engine is not named among them."""
    found: dict[str, object] = {name: getattr(plans, name) for name in SEARCH}
    if plans.engine == "vllm":
        found |= {"engine": plans.engine, "vllm": {"dtype": plans.vllm.dtype}}
    return found


def stale_keys(
    items: Sequence[Item], media: Sequence[Media], own: Sequence[int | None],
    made_of: Sequence[object], text_chars: int,
) -> list[str]:  # fmt: skip
    """What each item's plan is made of: it is stale when this differs.

    Args:
        own: each item's cluster at the planning level, or None.
        made_of: ``plans_made_of``.
        text_chars: how much of an item's text its prompt shows.
    """
    shared = "/".join(map(str, made_of))
    return [
        f"{shared}/{node}/{shown.hash}/{_words_hash(item, text_chars)}"
        for item, shown, node in zip(items, media, own, strict=True)
    ]


def _stamp(item: Item) -> str:
    parts = []
    for source in (item.thumbnail, item.video):
        if isinstance(source, bytes):
            return ""
        if source is None:
            parts.append("none")
            continue
        try:
            stat = source.stat()
        except OSError:
            return ""
        parts.append(f"{source}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}")
    return "/".join(parts)


def _words_hash(item: Item, text_chars: int) -> str:
    words = f"{item.title}\0{item.text[:text_chars]}"
    return hashlib.sha256(words.encode()).hexdigest()[:8]


class Chunks:
    """The chunk files of one ``folder``. One process writes."""

    def __init__(self, folder: Path) -> None:
        """Takes a folder, which is made; what an interrupted run left unfinished is removed, and
        so is a chunk that cannot be read: its items are planned again."""
        folder.mkdir(exist_ok=True)
        for path in [*folder.glob("*.partial"), *(p for p in folder.glob("*.parquet") if torn(p))]:
            path.unlink()
        self.folder = folder
        self._next = 1 + max((int(path.stem) for path in self.paths()), default=-1)

    def paths(self) -> list[Path]:
        """The chunks' files, the first written first."""
        return sorted(self.folder.glob("*.parquet"))

    def commit(self, rows: pa.Table | Sequence[Row]) -> None:
        """Adds a chunk; none of it is lost any more."""
        if not len(rows):
            return
        write_chunk(self.folder / f"{self._next:06d}.parquet", rows)
        self._next += 1

    def tables(self) -> Iterator[pa.Table]:
        """Every chunk."""
        for path in self.paths():
            yield pq.read_table(path, schema=SCHEMA)

    def item_ids(self) -> set[str]:
        """Of all rows."""
        found: set[str] = set()
        for path in self.paths():
            found.update(pq.read_table(path, columns=["item_id"]).column(0).to_pylist())
        return found


def write_chunk(path: Path, rows: pa.Table | Sequence[Row]) -> None:
    """Writes a chunk, or replaces it; it appears under its name when it is whole and on disk."""
    if not isinstance(rows, pa.Table):
        rows = pa.Table.from_pylist([vars(row) for row in rows], SCHEMA)
    partial = path.with_suffix(".partial")
    try:
        pq.write_table(rows, partial)
        seal_file(partial)
        partial.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):  # room for others, where it was the disk
            partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def torn(path: Path) -> bool:
    """Whether a chunk is none, as after a power failure."""
    try:
        return bool(pq.read_schema(path) != SCHEMA)
    except (pa.ArrowException, OSError, ValueError):
        return True


def not_stale(earlier: pa.Table, wanted: Mapping[str, str], done: set[str]) -> pa.Table:
    """The rows of a chunk that still hold, one an item.

    Args:
        wanted: the corpus's stale keys by item ID.
        done: item IDs that have a row already.
    """
    ids, keys, plans = (earlier.column(n).to_pylist() for n in ("item_id", "stale_key", "plan"))
    reasons = earlier.column("reason").to_pylist()
    kept = []
    taken = set(done)
    for item_id, key, plan, reason in zip(ids, keys, plans, reasons, strict=True):
        holds = (
            wanted.get(item_id) == key
            and item_id not in taken
            and not (plan is None and reason.startswith(UNSURE))
        )
        kept.append(holds)
        if holds:
            taken.add(item_id)
    return earlier.filter(pa.array(kept, pa.bool_()))
