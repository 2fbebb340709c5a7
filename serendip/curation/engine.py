"""What curation asks of an SQL engine, and the queries that run on every one of them.

The queries are files in ``sql/``, each a SELECT that reads the tables named in its comment. An
engine runs them as they stand; the same log gives the same values and types on each. This module
knows no engine's interface and nothing of what the queries are for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from serendip.config import CurationConfig
from serendip.core import InvalidRequest


class Engine(Protocol):
    """An SQL engine with tables of its own. Its methods raise InvalidRequest where memory or disk
    space end, with the setting to change.
    """

    def view(self, name: str, source: pa.Table | Sequence[Path]) -> None:
        """Makes a table, or parquet files of the same columns, readable under a name."""

    def table(self, name: str, query: str) -> None:
        """Computes a query once and keeps its rows under a name, in memory or in scratch files."""

    def drop(self, name: str) -> None:
        """Lets go of the rows of a table that ``table`` has made."""

    def fetch(self, query: str) -> pa.Table:
        """The rows of a query, in its order."""

    def write(self, query: str, path: Path) -> int:
        """Writes the rows of a query as parquet, in its order, and returns how many they are.

        ``path`` becomes a file, or, where an engine writes in parts, a folder with files
        ``part-NNNNN.parquet`` that hold the rows one after the other.
        """

    def close(self) -> None:
        """Lets go of memory and of scratch files."""


@contextmanager
def open_engine(config: CurationConfig, scratch: Path) -> Iterator[Engine]:
    """The engine of the configuration; it spills into a folder under ``scratch``, removed after.

    Args:
        scratch: a folder, used unless ``temp_dir`` is set.

    Raises:
        InvalidRequest: the engine is not installed, or the folder cannot be written to.
    """
    parent = Path(config.temp_dir) if config.temp_dir else scratch
    try:
        folder = tempfile.TemporaryDirectory(prefix=".curation-", dir=parent)
    except OSError as e:
        raise InvalidRequest(
            f"cannot be written to ({e.strerror})",
            field="curation.temp_dir",
            value=str(parent),
            remedy="Name a folder that exists and is yours.",
        ) from e
    with folder as name:
        engine = _open(config, Path(name))
        try:
            yield engine
        finally:
            engine.close()


def _open(config: CurationConfig, scratch: Path) -> Engine:
    if config.engine == "duckdb":
        from serendip.curation.duck import DuckEngine

        return DuckEngine(scratch, config.memory_limit, config.threads)
    from serendip.curation.spark import SparkEngine

    return SparkEngine(scratch, config.memory_limit, config.threads)


def sql(name: str, **values: float | str) -> str:
    """The query of ``sql/<name>.sql`` with its ``{values}`` filled in."""
    return (files("serendip.curation") / "sql" / f"{name}.sql").read_text().format(**values)


def read_parts(paths: Sequence[Path]) -> pa.Table:
    """What ``Engine.write`` has written to a file, or to the parts of a folder."""
    table = pa.concat_tables([pq.read_table(path) for path in sorted(paths)])
    # One engine marks columns that happen to have no nulls, another marks none.
    return table.cast(pa.schema([field.with_nullable(True) for field in table.schema]))
