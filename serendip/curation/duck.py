"""The SQL engine of one machine: DuckDB, within a memory limit, spilling to scratch files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from serendip.core import InvalidData, InvalidRequest


class DuckEngine:
    """An Engine (engine.py) on DuckDB 1.5 or newer, in this process."""

    def __init__(self, scratch: Path, memory_limit: str, threads: int):
        """``threads`` 0: as many as there are cores."""
        settings: dict[str, Any] = {
            "memory_limit": memory_limit,
            "temp_directory": str(scratch),
            "autoinstall_known_extensions": "false",
        }
        if threads:
            settings["threads"] = threads
        self._db = duckdb.connect(config=settings)
        # The bar of progress.py is the one that is shown.
        self._db.execute("SET enable_progress_bar = false")

    def view(self, name: str, source: pa.Table | Sequence[Path]) -> None:
        if isinstance(source, pa.Table):
            self._db.register(name, source)
            return
        paths = ", ".join(_quoted(_literal(path)) for path in source)
        with _errors():
            # By name, so that a part with its columns in another order is read right.
            self._db.execute(
                f"CREATE VIEW {name} AS SELECT * FROM "
                f"read_parquet([{paths}], union_by_name = true, hive_partitioning = false)"
            )

    def table(self, name: str, query: str) -> None:
        with _errors():
            self._db.execute(f"CREATE TABLE {name} AS {query}")

    def drop(self, name: str) -> None:
        with _errors():
            self._db.execute(f"DROP TABLE {name}")

    def fetch(self, query: str) -> pa.Table:
        with _errors():
            return self._db.sql(query).to_arrow_table()

    def write(self, query: str, path: Path) -> int:
        with _errors():
            self._db.execute(f"COPY ({query}) TO {_quoted(path)} (FORMAT parquet)")
            counted = self._db.execute(
                f"SELECT COUNT(*) FROM read_parquet({_quoted(_literal(path))})"
            )
            return int(counted.fetchall()[0][0])

    def close(self) -> None:
        self._db.close()


def _literal(path: Path) -> str:
    """A path to read, with what DuckDB would take for a pattern escaped."""
    return re.sub(r"([\[*?])", r"[\1]", str(path))


def _quoted(path: Path | str) -> str:
    text = str(path).replace("'", "''")
    return f"'{text}'"


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except duckdb.OutOfMemoryException as e:
        # Also of a temporary directory that is full.
        raise InvalidRequest(
            f"is too little ({_first_line(e)})",
            field="curation.memory_limit",
            remedy="Raise it, or set curation.temp_dir to a folder with more space.",
        ) from e
    except duckdb.IOException as e:
        raise InvalidRequest(
            f"a file could not be read or written ({_first_line(e)})",
            field="curation",
            remedy="Check the space and the permissions of the data folder, of artifacts_dir and "
            "of curation.temp_dir.",
        ) from e
    except (duckdb.InvalidInputException, duckdb.ConversionException) as e:
        raise InvalidData(
            f"cannot be read ({_first_line(e)})",
            field="log",
            remedy="Write the file that it names again.",
        ) from e


def _first_line(e: Exception) -> str:
    return str(e).splitlines()[0]
