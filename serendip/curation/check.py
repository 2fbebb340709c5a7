"""The check of a log by the engine: what breaks a column is refused, the rest is counted.

The same rules as catalog/logs.py, for logs that do not fit in memory. Knows nothing of pairs.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import pyarrow as pa

from serendip.catalog.folders import check_columns, table_files
from serendip.catalog.logs import refuse_first
from serendip.catalog.schema import (
    INTERACTIONS,
    ITEM_ID,
    ITEMS,
    TIMESTAMP,
    Column,
    FileSchema,
    open_parquet,
)
from serendip.core import MAX_ID_BYTES, InvalidData
from serendip.curation.engine import Engine


def view_log(engine: Engine, data_dir: Path, schema: FileSchema) -> bool:
    """Makes a log readable under its name, ``interactions`` or ``impressions``.

    Returns whether there is one: impressions may be missing.

    Raises:
        InvalidData: interactions are missing, or a file lacks a column or has one of another type.
    """
    files = table_files(data_dir, schema)
    if not files:
        if schema is INTERACTIONS:
            open_parquet(data_dir / schema.file)
        return False
    check_columns(data_dir, schema, files)
    engine.view(_name(schema), files)
    return True


def check_log(
    engine: Engine, data_dir: Path, schema: FileSchema, later: Collection[str] = ()
) -> tuple[int, int | None]:
    """Checks every row of a log; returns (its rows, its latest timestamp in Unix ms).

    Args:
        later: ID columns that ``check_ids`` checks, once their distinct values are at hand.

    Raises:
        InvalidData: with the first row that breaks a column, and how many do; or the log has no
            rows though it must.
    """
    checked = [column for column in schema.columns if column.name not in later]
    (found,) = engine.fetch(check_query(schema, checked)).to_pylist()
    rows = found.pop("rows_read")
    until = found.pop("log_until")
    if any(found.values()):
        _refuse(engine, data_dir, schema)
    if not rows and not schema.may_be_empty:
        raise InvalidData(
            "the table has no rows",
            field=schema.file,
            remedy="Fill it: docs/data.md describes every column.",
        )
    return rows, until


def check_ids(engine: Engine, data_dir: Path, schema: FileSchema, name: str, counted: str) -> None:
    """Checks the ID column ``name`` of a log by the table ``counted`` of its values (that column,
    events): there are fewer values than rows. What is valid need not be in it.

    Raises:
        InvalidData: as ``check_log``.
    """
    (column,) = (column for column in schema.columns if column.name == name)
    query = f"SELECT COUNT(*) AS broken FROM {counted} WHERE {_breaks(column)}"
    if engine.fetch(query).column("broken")[0].as_py():
        _refuse(engine, data_dir, schema)


def _refuse(engine: Engine, data_dir: Path, schema: FileSchema) -> None:
    """Raises for the first of the columns that some row breaks."""
    (found,) = engine.fetch(check_query(schema, schema.columns)).to_pylist()
    for name in schema.names:
        if found[name]:
            refuse_first(data_dir, schema, name, found[name], found["rows_read"])


def check_query(schema: FileSchema, columns: Sequence[Column]) -> str:
    """One row: how many rows there are, the latest timestamp, and how many break each column."""
    counts = (
        f"COUNT(CASE WHEN {_breaks(column)} THEN 1 END) AS {column.name}" for column in columns
    )
    found = ("COUNT(*) AS rows_read", f"MAX(CAST({TIMESTAMP} AS BIGINT)) AS log_until", *counts)
    return f"SELECT {', '.join(found)} FROM {_name(schema)}"


def _breaks(column: Column) -> str:
    holds = []
    if column.type == pa.float64():
        # NaN is above every number, but DuckDB folds a comparison by the bounds in the footer of
        # the file, which leave NaN out.
        holds.append(f"NOT ISNAN(CAST({column.name} AS DOUBLE))")
    if column.low is not None:
        holds.append(f"{column.name} >= {column.low}")
    if column.above is not None:
        holds.append(f"{column.name} > {column.above}")
    if column.high is not None:
        holds.append(f"{column.name} <= {column.high}")
    if column.is_id:
        holds.append(f"BIT_LENGTH({column.name}) BETWEEN 8 AND {8 * MAX_ID_BYTES}")
    broken = [f"NOT ({' AND '.join(holds)})"] if holds else []
    if not column.nullable:
        broken.insert(0, f"{column.name} IS NULL")
    return " OR ".join(broken) or "FALSE"


def count_unknown(
    engine: Engine, schema: FileSchema, unknown: str, rows: int, max_unknown_share: float
) -> dict[str, int]:
    """{unknown_items, unknown_rows}: items that are not in the catalogue, and their rows.

    Reads the table ``unknown`` of them (item_id, events), of a log of so many ``rows``.

    Raises:
        InvalidData: they are more than that share of the rows.
    """
    (found,) = engine.fetch(
        "SELECT COUNT(*) AS items, CAST(COALESCE(SUM(events), 0) AS BIGINT) AS events, "
        f"MIN(item_id) AS example FROM {unknown}"
    ).to_pylist()
    if found["events"] > max_unknown_share * rows:
        raise InvalidData(
            "is not in the catalogue",
            field=f"{schema.file}:{ITEM_ID}",
            value=found["example"],
            remedy=f"{found['events']:,} of {rows:,} rows name {found['items']:,} items that "
            f"{ITEMS.file} does not have: add them, leave the rows out, or raise "
            "max_unknown_share.",
        )
    return {"unknown_items": found["items"], "unknown_rows": found["events"]}


def _name(schema: FileSchema) -> str:
    return schema.file.removesuffix(".parquet")
