"""Other ways to keep plans by item on one machine, as the plan store's peers."""

from __future__ import annotations

import mmap
import os
import shutil
import sqlite3
import subprocess
import tempfile
import time
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

Row = tuple[bytes, bytes]


class Sqlite:
    """One table without row IDs, filled in the order of its key, read through a memory map."""

    def __init__(self, folder: Path, rows: Iterable[Row]) -> None:
        self._path = folder / "plans.sqlite"
        db = sqlite3.connect(self._path)
        db.execute("PRAGMA journal_mode = OFF")
        db.execute("PRAGMA synchronous = OFF")
        db.execute("CREATE TABLE plans (item_id BLOB PRIMARY KEY, plan BLOB) WITHOUT ROWID")
        db.executemany("INSERT INTO plans VALUES (?, ?)", rows)
        db.commit()
        db.close()
        descriptor = os.open(self._path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        # Immutable: a read takes no lock.
        self._db = sqlite3.connect(f"file:{self._path}?immutable=1", uri=True)
        self._db.execute(f"PRAGMA mmap_size = {1 << 40}")
        self._cursor = self._db.cursor()

    def get(self, item_id: str) -> bytes | None:
        self._cursor.execute("SELECT plan FROM plans WHERE item_id = ?", (item_id.encode(),))
        row = self._cursor.fetchone()
        return None if row is None else row[0]

    def get_many(self, item_ids: Sequence[str]) -> list[bytes | None]:
        marks = ", ".join("?" * len(item_ids))
        found = dict(
            self._db.execute(
                f"SELECT item_id, plan FROM plans WHERE item_id IN ({marks})",
                [item_id.encode() for item_id in item_ids],
            )
        )
        return [found.get(item_id.encode()) for item_id in item_ids]

    def size(self) -> int:
        return self._path.stat().st_size

    def close(self) -> None:
        self._db.close()
        self._path.unlink()


class SortedArray:
    """Keys of one width in a sorted array, offsets beside it, plans one after the other."""

    def __init__(self, folder: Path, rows: Iterable[Row], width: int) -> None:
        self._folder = folder / "sorted"
        self._folder.mkdir()
        offsets, at = array("Q", [0]), 0
        with (self._folder / "keys").open("wb") as keys, (self._folder / "plans").open("wb") as out:
            for key, plan in rows:
                keys.write(key.ljust(width, b"\0"))
                out.write(plan)
                at += len(plan)
                offsets.append(at)
            for f in (keys, out):
                f.flush()
                os.fsync(f.fileno())
        np.save(self._folder / "offsets.npy", np.frombuffer(offsets, np.uint64))
        self._keys = np.asarray(np.memmap(self._folder / "keys", f"S{width}", "r"))
        self._offsets = np.asarray(np.load(self._folder / "offsets.npy", mmap_mode="r"))
        with (self._folder / "plans").open("rb") as f:
            self._plans = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)

    def get(self, item_id: str) -> bytes | None:
        key = item_id.encode()
        at = self._keys.searchsorted(key)
        if at == len(self._keys) or self._keys[at] != key:
            return None
        return self._plans[self._offsets[at] : self._offsets[at + 1]]

    def get_many(self, item_ids: Sequence[str]) -> list[bytes | None]:
        keys = np.array([item_id.encode() for item_id in item_ids], self._keys.dtype)
        places = np.minimum(self._keys.searchsorted(keys), len(self._keys) - 1)
        there = self._keys[places] == keys
        spans = zip(
            there.tolist(),
            self._offsets[places].tolist(),
            self._offsets[places + 1].tolist(),
            strict=True,
        )
        return [self._plans[start:end] if ok else None for ok, start, end in spans]

    def size(self) -> int:
        return sum(path.stat().st_size for path in self._folder.iterdir())

    def close(self) -> None:
        self._plans.close()
        shutil.rmtree(self._folder)


class RedisServer:
    """Debian's redis-server on a socket of its own, without persistence."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="redis-")  # a socket's path must be short
        socket = f"{self._folder}/s"
        self._process = subprocess.Popen(
            ["redis-server", "--port", "0", "--unixsocket", socket, "--save", ""],
            stdout=subprocess.DEVNULL,
            cwd=self._folder,
        )
        while not Path(socket).exists() and self._process.poll() is None:
            time.sleep(0.01)
        self.url = f"unix://{socket}"

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        shutil.rmtree(self._folder)
