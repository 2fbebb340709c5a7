"""Live plans that are kept: in memory for the next call, in chunk files for the next bulk run.

    artifacts/live/<planner version>/<time>-<pid>.parquet

The rows are those of bulk's chunks (rows.py), stale keys included, so that whoever finds one knows
whether it is what would be planned now. A process that serves writes its own file and puts it anew
in its place as plans are added, until it is full; whatever else happens to it, a file is whole.
What cannot be written costs the files, never a plan. Knows no model and no gRPC.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from serendip.core import Item
from serendip.planning.rows import Media, Row, hash_media, stale_keys, torn, write_chunk

FOLDER = "live"
MAX_PLANS = 50_000  # in memory: about 60 MB
_MAX_FILES = 256
_FILE_ROWS = 1024
_LEFT_S = 3600.0  # age at which a file that was not finished is nobody's
_FLUSH_S = 10.0

_log = logging.getLogger(__name__)


def kept_chunks(root: Path, planner_version: str) -> list[Path]:
    """Chunk files of the live plans that a planner has made, the latest first.

    Args:
        root: the artefacts' folder.
    """
    return sorted((root / FOLDER / planner_version).glob("*.parquet"), reverse=True)


class KeptPlans:
    """The live plans of one planner; at most ``max_plans`` are kept, the newest.

    Args:
        root: the artefacts' folder.
        made_of: of rows.plans_made_of.
        text_chars: how much of an item's text its prompt shows.
        on_kept: called for each plan that is added.
        on_failed: called where plans could not be written.
        flush_s: seconds for which added plans may be in memory alone.
    """

    def __init__(
        self,
        root: Path,
        planner_version: str,
        made_of: Sequence[object],
        text_chars: int,
        *,
        on_kept: Callable[[], None] = lambda: None,
        on_failed: Callable[[], None] = lambda: None,
        max_plans: int = MAX_PLANS,
        flush_s: float = _FLUSH_S,
    ) -> None:
        """Reads what was kept before. Whatever is wrong with the folder is logged, not raised."""
        self._folder = root / FOLDER / planner_version
        self._made_of, self._text_chars = made_of, text_chars
        self._on_kept, self._on_failed = on_kept, on_failed
        self._max_plans, self._flush_s = max_plans, flush_s
        self._changed = threading.Condition()
        # All below is guarded by _changed.
        self._rows: OrderedDict[str, Row] = OrderedDict()
        self._media: dict[str, Media] = {}
        self._added: list[Row] = []  # since the last flush
        self._closed = False
        # The writer's own.
        self._path: Path | None = None
        self._filed: list[Row] = []  # of the file that is not full yet
        self._said = ""
        try:
            _clear(root)
            self._read(kept_chunks(root, planner_version))
        except (OSError, pa.ArrowException) as e:
            self._say(f"cannot be read ({e})")
        self._thread = threading.Thread(target=self._write, name="live-plans", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, item_id: str) -> bool:
        """Whether there is a plan of the item, stale or not."""
        return item_id in self._rows

    def get(self, item: Item, own: int | None) -> bytes | None:
        """The item's serialised plan, if it is what would be planned now; looks at its media.

        Args:
            own: the item's cluster at the planning level, or None.
        """
        with self._changed:
            row, known = self._rows.get(item.item_id), self._media.get(item.item_id)
        if row is None:
            return None
        media = next(hash_media([item], {} if known is None else {item.item_id: known}))
        holds = row.stale_key == self._key(item, own, media)
        with self._changed:
            if self._rows.get(item.item_id) is row:
                if holds:
                    self._media[item.item_id] = media
                else:
                    del self._rows[item.item_id]
                    self._media.pop(item.item_id, None)
        return row.plan if holds else None

    def keep(self, item: Item, own: int | None, media: Media, plan: bytes) -> None:
        """Adds a plan of all defaults, made from these media; never waits for a disk."""
        row = Row(item.item_id, self._key(item, own, media), plan)
        with self._changed:
            before = self._rows.get(item.item_id)
            if self._closed or (before is not None and before.stale_key == row.stale_key):
                return
            self._put(row)
            self._media[item.item_id] = media
            self._added.append(row)
            if len(self._added) >= _FILE_ROWS:
                self._changed.notify()
        self._on_kept()

    def close(self) -> None:
        """Writes what is not written yet, and ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _key(self, item: Item, own: int | None, media: Media) -> str:
        (key,) = stale_keys([item], [media], [own], self._made_of, self._text_chars)
        return key

    def _put(self, row: Row) -> None:
        """Adds a row as the newest; to be called under the lock."""
        self._rows.pop(row.item_id, None)
        self._rows[row.item_id] = row
        while len(self._rows) > self._max_plans:
            gone, _ = self._rows.popitem(last=False)
            self._media.pop(gone, None)

    def _read(self, paths: Sequence[Path]) -> None:
        bad: list[str] = []
        for path in reversed(paths):
            try:
                rows = [] if torn(path) else pq.read_table(path).to_pylist()
            except (OSError, pa.ArrowException, ValueError) as e:
                bad.append(f"{path.name}: {e}")
                continue
            for row in rows:
                self._put(Row(**row))
        if bad:
            self._say(f"{len(bad)} files cannot be read, the last of them {bad[-1]}")

    # --- the writer's thread -------------------------------------------------------------

    def _write(self) -> None:
        closed = False
        while not closed:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closed or len(self._added) >= _FILE_ROWS, self._flush_s
                )
                closed, added = self._closed, self._added
                self._added = []
            if added:
                self._flush(added)

    def _flush(self, added: list[Row]) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            while added:
                room = _FILE_ROWS - len(self._filed)
                self._filed += added[:room]
                added = added[room:]
                self._path = (
                    self._path or self._folder / f"{time.time_ns():020d}-{os.getpid()}.parquet"
                )
                write_chunk(self._path, self._filed)
                if len(self._filed) == _FILE_ROWS:
                    self._path, self._filed = None, []
            self._said = ""
            for path in sorted(self._folder.glob("*.parquet"))[:-_MAX_FILES]:
                path.unlink(missing_ok=True)
        except (OSError, pa.ArrowException) as e:
            # What is filed goes with the next that is added, as far as a file has room.
            self._on_failed()
            self._say(f"cannot be written ({e}): the next bulk run will plan them again")

    def _say(self, what: str) -> None:
        """Logs a trouble once, until it is over."""
        if what != self._said:
            self._said = what
            _log.error("live plans in %s: %s", self._folder, what)


def _clear(root: Path) -> None:
    """Removes the plans of planners that are no more, and files that were not finished."""
    for folder in (root / FOLDER).glob("*"):
        if folder.is_dir() and not (root / "planner" / folder.name).exists():
            shutil.rmtree(folder, ignore_errors=True)
    for path in (root / FOLDER).glob("*/*.partial"):
        with contextlib.suppress(FileNotFoundError):  # another process has just finished it
            if time.time() - path.stat().st_mtime > _LEFT_S:
                path.unlink()
