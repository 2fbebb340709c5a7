"""The catalogue of a data folder: its items, its captions, and what identifies it.

A path in a table names a file inside the data folder, never one outside it. Whether that file
exists and can be decoded is found when it is decoded (media.py). Knows no log.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from serendip.catalog.folders import table_files
from serendip.catalog.schema import (
    CAPTION,
    CAPTIONS,
    CREATED_AT,
    FILES,
    IMAGE,
    ITEM_ID,
    ITEMS,
    TEXT,
    THUMBNAIL,
    TITLE,
    VIDEO,
    FileSchema,
    check_unique,
    open_parquet,
    read_checked,
    unreadable,
)
from serendip.core import InvalidData, Item
from serendip.storage import hash_file

_BATCH_ROWS = 512


def read_items_table(data_dir: Path, columns: Collection[str] | None = None) -> pa.Table:
    """The catalogue as a table: schema.ITEMS, one row an item, in the order of the file.

    ``video`` and ``vector`` are there only if the file has them; ``thumbnail`` is string or
    binary, as in the file.

    Args:
        columns: read and check these alone (item_id always); None: all.

    Raises:
        InvalidData: items.parquet is missing, breaks its schema or names an item twice.
    """
    wanted = None if columns is None else {*columns, ITEM_ID}
    table = read_checked(data_dir / ITEMS.file, ITEMS, wanted)
    check_unique(table.column(ITEM_ID), f"{ITEMS.file}:{ITEM_ID}")
    return table


def read_items(data_dir: Path) -> Iterator[Item]:
    """The catalogue's items, in the order of the file, with paths resolved against the folder.

    Thumbnails that lie in the file are read batch by batch, so memory stays small.

    Raises:
        InvalidData: at once, as read_items_table; on the way, a path that leads out of the
            data folder, with its row.
    """
    path = data_dir / ITEMS.file
    eager = (TITLE, TEXT, VIDEO, CREATED_AT)
    if _holds_bytes(path, THUMBNAIL):
        return _items(data_dir, read_items_table(data_dir, eager))
    return _items(data_dir, read_items_table(data_dir, (*eager, THUMBNAIL)))


def _items(data_dir: Path, table: pa.Table) -> Iterator[Item]:
    folder = _Folder(data_dir)
    thumbnails = _stream(data_dir / ITEMS.file, THUMBNAIL)
    for at, (row, thumbnail) in enumerate(zip(_rows(table), thumbnails, strict=True)):
        yield Item(
            item_id=row[ITEM_ID],
            title=row[TITLE],
            text=row[TEXT],
            thumbnail=folder.media(thumbnail, ITEMS, THUMBNAIL, at),
            video=folder.file(row.get(VIDEO), ITEMS, VIDEO, at),
            created_at=row[CREATED_AT],
        )


def read_captions(data_dir: Path) -> Iterator[tuple[bytes | Path, str]]:
    """Pictures outside the catalogue, each with its caption; none if there is no such file.

    Raises:
        InvalidData: at once, captions.parquet breaks its schema; on the way, a path that leads
            out of the data folder.
    """
    path = data_dir / CAPTIONS.file
    if not path.exists():
        return iter(())
    eager = (CAPTION,) if _holds_bytes(path, IMAGE) else (CAPTION, IMAGE)
    return _captions(data_dir, read_checked(path, CAPTIONS, eager))


def _captions(data_dir: Path, table: pa.Table) -> Iterator[tuple[bytes | Path, str]]:
    folder = _Folder(data_dir)
    images = _stream(data_dir / CAPTIONS.file, IMAGE)
    for at, (row, image) in enumerate(zip(_rows(table), images, strict=True)):
        source = folder.media(image, CAPTIONS, IMAGE, at)
        if source is None:
            raise InvalidData(
                "must not be null", field=f"{CAPTIONS.file}:{IMAGE}", row=at, remedy="Fill it."
            )
        yield source, row[CAPTION]


def fingerprint(data_dir: Path) -> str:
    """12 hexadecimal digits that identify the inputs of the offline stages.

    They are made from the bytes of the parquet files alone: a picture or video that changes
    under the same name is found by media.media_hash.

    Raises:
        InvalidData: there is no items.parquet.
    """
    if not (data_dir / ITEMS.file).is_file():
        open_parquet(data_dir / ITEMS.file)
    parts = [
        f"{path.relative_to(data_dir).as_posix()}:{hash_file(path)}\n"
        for schema in FILES
        for path in table_files(data_dir, schema)
    ]
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:12]


def _holds_bytes(path: Path, column: str) -> bool:
    """Whether a column holds encoded media, which are many times the size of all the rest."""
    with open_parquet(path) as file:
        schema = file.schema_arrow
        at = schema.get_field_index(column)
        if at < 0:
            return False
        given = schema.field(at).type
        return bool(
            pa.types.is_binary(given)
            or pa.types.is_large_binary(given)
            or pa.types.is_binary_view(given)
        )


def _stream(path: Path, column: str) -> Iterator[Any]:
    """The values of one column; ``str``, ``bytes`` or None."""
    with open_parquet(path) as file:
        try:
            for batch in file.iter_batches(_BATCH_ROWS, columns=[column]):
                yield from batch.column(0).to_pylist()
        except (pa.ArrowException, OSError) as e:
            raise unreadable(path, e) from e


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
        yield from batch.to_pylist()


class _Folder:
    """A data folder, and the paths that lie inside it."""

    def __init__(self, data_dir: Path):
        self.root = data_dir.resolve()
        # Resolving walks every component of a path; the items of a folder share all but one.
        self.parents: dict[str, Path] = {}

    def media(
        self, value: str | bytes | None, schema: FileSchema, column: str, row: int
    ) -> bytes | Path | None:
        """Encoded bytes as they are, a path as ``file`` does."""
        return self.file(value, schema, column, row) if isinstance(value, str) else value

    def file(self, value: str | None, schema: FileSchema, column: str, row: int) -> Path | None:
        """The path that a cell names. Raises InvalidData if it leads out of the folder."""
        if value is None:
            return None
        path = self._inside(value)
        if path is None:
            raise InvalidData(
                "is no path of a file inside the data folder",
                field=f"{schema.file}:{column}",
                row=row,
                value=value,
                remedy="Write a path relative to the data folder, or null for none.",
            )
        return path

    def _inside(self, value: str) -> Path | None:
        given = Path(value)
        if not given.name or given.name == ".." or given.is_absolute() or "\0" in value:
            return None
        key = str(given.parent)
        if key not in self.parents:
            self.parents[key] = (self.root / given.parent).resolve()
        path = self.parents[key] / given.name
        if path.is_symlink():
            path = path.resolve()
        return path if path.is_relative_to(self.root) else None
