"""Where the tables of a data folder lie: one parquet file, or for a log a folder of them.

``interactions.parquet``, or ``interactions/`` with parquet files in it at any depth, as engines
write partitions (``interactions/day=2026-11-23/part-0.parquet``). Reads footers alone: this module
knows no row.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from serendip.catalog.schema import FileSchema, check_table, named_twice, open_parquet
from serendip.core import InvalidData


def table_files(data_dir: Path, schema: FileSchema) -> list[Path]:
    """The parquet files of a table, by path; [] if there is neither file nor folder.

    Names that begin with ``.`` or ``_`` are left alone, as everywhere.

    Raises:
        InvalidData: there are both a file and a folder, or the folder has no parquet file.
    """
    file = data_dir / schema.file
    folder = file.with_suffix("")
    if not folder.is_dir():
        return [file] if file.exists() else []
    if file.exists():
        raise InvalidData(
            "there is a folder of the same name",
            field=schema.file,
            value=str(folder),
            remedy="Leave one of the two: which holds the log is not to be guessed.",
        )
    # Partitions may lie elsewhere and be linked; rglob would pass them by.
    found = sorted(
        path
        for at, _, names in os.walk(folder, followlinks=True)
        for path in (Path(at) / name for name in names if name.endswith(".parquet"))
        if not any(part[0] in "._" for part in path.relative_to(folder).parts)
    )
    if not found:
        raise InvalidData(
            "the folder has no parquet file",
            field=f"{folder.name}/",
            value=str(folder),
            remedy="Write the log into it, or remove it.",
        )
    return found


def part_schema(data_dir: Path, schema: FileSchema, path: Path) -> FileSchema:
    """The schema of one file of a table: its errors name that file. A part may be empty."""
    name = path.relative_to(data_dir).as_posix()
    return schema if name == schema.file else replace(schema, file=name, may_be_empty=True)


def check_columns(data_dir: Path, schema: FileSchema, files: list[Path]) -> None:
    """Checks that every file has the schema's columns, once, in types that it can be read from.

    Raises:
        InvalidData: naming file and column.
    """
    for path in files:
        with open_parquet(path) as file:
            footer = file.schema_arrow
        part = replace(part_schema(data_dir, schema, path), may_be_empty=True)
        for name in schema.names:
            if footer.names.count(name) > 1:
                raise named_twice(part, name)
        wanted = [name for name in schema.names if name in footer.names]
        check_table(pa.schema([footer.field(name) for name in wanted]).empty_table(), part)
