"""The plan store as one LMDB file a version. Knows no pointer: which version is current is for
followed_store and the artefacts to say.

Keys are item IDs in UTF-8, at most 256 bytes where LMDB takes 511. What the store holds lies under
a key that is no UTF-8; it is written last, so that a file without it is no whole store.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from weakref import WeakValueDictionary

import lmdb

from serendip.core import CorruptArtifact, NotReady, SerendipError
from serendip.planning.plan_store import StoreInfo, checked_rows, distinct, key_of, ticked
from serendip.planning.sorted_rows import RUN_BYTES, Row, sort_rows
from serendip.progress import progress

FILE = "plans.lmdb"

_INFO = b"\xffinfo"  # behind every item ID: 0xff is in no UTF-8
_MAP_BYTES = 1 << 40  # address space, not disk
_BATCH = 10_000  # rows a transaction: its pages stay in memory until it ends
_REMEDY = "Publish the plans again (serendip plan)."


def write_lmdb(
    path: Path,
    plans: Iterable[tuple[str, bytes]],
    info: StoreInfo,
    *,
    run_bytes: int = RUN_BYTES,
) -> None:
    """Writes a new store; the file appears under its name when it is whole and on disk.

    Sorts first, so that pages fill up one after the other: memory is about ``run_bytes``, and
    the disk takes the plans twice over while it runs. What an interrupted run has left, the next
    one clears away.

    Args:
        plans: item ID and serialised plan, in any order.

    Raises:
        InvalidRequest: an item ID is not 1 to 256 bytes.
        InvalidData: an item has two plans, or there are not ``info.count`` of them.
        SerendipError: the folder cannot be written, or its disk is full.
    """
    partial, runs = path.with_suffix(".partial"), path.with_suffix(".runs")
    _clear(partial, runs)
    try:
        with progress("sort plans", info.count) as tick:
            rows = sort_rows(ticked(checked_rows(plans), tick), runs, run_bytes=run_bytes)
        with progress("write plans", info.count) as tick:
            _append(partial, ticked(distinct(rows, info.count), tick), info)
        os.replace(partial, path)
        _sync_folder(path.parent)
    except (OSError, lmdb.Error) as e:
        raise SerendipError(
            f"cannot be written ({e})",
            field=str(path),
            remedy="The folder must be writable; its disk takes the plans twice over.",
        ) from e
    finally:
        _clear(partial, runs)


def _append(path: Path, rows: Iterator[Row], info: StoreInfo) -> None:
    # Not as a writable map: on a full disk that ends the process where a write gives an error.
    with lmdb.open(str(path), map_size=_MAP_BYTES, subdir=False, lock=False, sync=False) as env:
        while batch := list(islice(rows, _BATCH)):
            with env.begin(write=True) as txn, txn.cursor() as cursor:
                cursor.putmulti(batch, append=True)
        with env.begin(write=True) as txn:
            txn.put(_INFO, info.encode(), append=True)
        env.sync(True)


def _sync_folder(folder: Path) -> None:
    """Puts the new name on disk; not every file system lets a folder be synced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _clear(partial: Path, runs: Path) -> None:
    with contextlib.suppress(OSError):  # a folder that cannot be written is the writer's error
        partial.unlink(missing_ok=True)
    shutil.rmtree(runs, ignore_errors=True)


class LmdbStore:
    """A PlanStore over a file of ``write_lmdb``; goes on reading a file that was removed."""

    def __init__(self, path: Path) -> None:
        """Opens a store.

        Raises:
            CorruptArtifact: it is none, it is cut off, or an older one that does not say what it
                holds. A changed byte is not found here, but by the artefact's sha256.
        """
        self._path = path
        self._env: lmdb.Environment | None = _environment(path)
        with self._env.begin() as txn:
            said = txn.get(_INFO)
        if said is None:
            raise CorruptArtifact(
                "does not say what it holds: older, or not whole", field=str(path), remedy=_REMEDY
            )
        self._info = StoreInfo.decode(said, str(path))
        rows = self._env.stat()["entries"] - 1
        if rows != self._info.count:
            raise CorruptArtifact(
                f"must hold {self._info.count} plans", field=str(path), value=rows, remedy=_REMEDY
            )

    def get(self, item_id: str) -> bytes | None:
        """The item's serialised plan, or None: see PlanStore."""
        key = key_of(item_id, "item_id")
        with self._open().begin() as txn:
            found: bytes | None = txn.get(key)
        return found

    def get_many(self, item_ids: Sequence[str]) -> list[bytes | None]:
        """One plan or None an item, in order, from one snapshot: see PlanStore."""
        keys = [key_of(item_id, "item_ids") for item_id in item_ids]
        with self._open().begin() as txn:
            return [txn.get(key) for key in keys]

    def info(self) -> StoreInfo:
        """What the store holds."""
        return self._info

    def rows(self) -> Iterator[tuple[str, bytes]]:
        """Every item ID with its plan, in the order of the keys."""
        with self._open().begin() as txn, txn.cursor() as cursor:
            for key, plan in cursor:
                if key != _INFO:
                    yield key.decode(), plan

    def close(self) -> None:
        """Lets go of the file: it is closed once no other store of this process has it open."""
        self._env = None

    def _open(self) -> lmdb.Environment:
        env = self._env
        if env is None:
            raise NotReady("the plan store is closed", field=str(self._path))
        return env


# LMDB opens a file once a process: stores of the same file share what it opened.
_environments: WeakValueDictionary[tuple[int, int], lmdb.Environment] = WeakValueDictionary()
_opening = threading.Lock()


def _environment(path: Path) -> lmdb.Environment:
    try:
        with _opening:
            stat = path.stat()
            env = _environments.get((stat.st_dev, stat.st_ino))
            if env is None:
                env = lmdb.open(str(path), readonly=True, subdir=False, lock=False)
                _environments[stat.st_dev, stat.st_ino] = env
        pages = env.info()["last_pgno"] + 1
        whole = pages * env.stat()["psize"]
    except (OSError, lmdb.Error) as e:
        raise CorruptArtifact(f"no plan store ({e})", field=str(path), remedy=_REMEDY) from e
    # Reading behind the end of a mapped file would end the process.
    if stat.st_size < whole:
        raise CorruptArtifact(
            f"is cut off: must have {whole} bytes",
            field=str(path),
            value=stat.st_size,
            remedy=_REMEDY,
        )
    return env
