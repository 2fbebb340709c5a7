"""The check of a log by the engine: what breaks a column is refused, the rest is counted.

The same rules as catalog/logs.py, for logs that do not fit in memory. Knows nothing of pairs.
"""

from __future__ import annotations

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
from serendip.curation.engine import Engine, sql


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


def check_log(engine: Engine, data_dir: Path, schema: FileSchema) -> tuple[int, int | None]:
    """Checks every row of a log; returns (its rows, its latest timestamp in Unix ms).

    Raises:
        InvalidData: with the first row that breaks a column, and how many do; or the log has no
            rows though it must.
    """
    (found,) = engine.fetch(check_query(schema)).to_pylist()
    rows = found.pop("rows_read")
    until = found.pop("log_until")
    for column in schema.names:
        if found[column]:
            refuse_first(data_dir, schema, column, found[column], rows)
    if not rows and not schema.may_be_empty:
        raise InvalidData(
            "the table has no rows",
            field=schema.file,
            remedy="Fill it: docs/data.md describes every column.",
        )
    return rows, until


def check_query(schema: FileSchema) -> str:
    """One row: how many rows break each column, how many there are, and the latest timestamp."""
    counts = ",\n  ".join(
        f"COUNT(CASE WHEN {_breaks(column)} THEN 1 END) AS {column.name}"
        for column in schema.columns
    )
    return (
        f"SELECT\n  COUNT(*) AS rows_read,\n  MAX(CAST({TIMESTAMP} AS BIGINT)) AS log_until,\n"
        f"  {counts}\nFROM {_name(schema)}"
    )


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
    engine: Engine, schema: FileSchema, counted: str, rows: int, max_unknown_share: float
) -> dict[str, int]:
    """{unknown_items, unknown_rows}: items that are not in the catalogue, and their rows.

    Reads the tables ``counted`` (item_id, events), of a log of so many ``rows``, and ``items``.

    Raises:
        InvalidData: they are more than that share of the rows.
    """
    (unknown,) = engine.fetch(sql("unknown", counted=counted)).to_pylist()
    if unknown["events"] > max_unknown_share * rows:
        raise InvalidData(
            "is not in the catalogue",
            field=f"{schema.file}:{ITEM_ID}",
            value=unknown["example"],
            remedy=f"{unknown['events']:,} of {rows:,} rows name {unknown['items']:,} items that "
            f"{ITEMS.file} does not have: add them, leave the rows out, or raise "
            "max_unknown_share.",
        )
    return {"unknown_items": unknown["items"], "unknown_rows": unknown["events"]}


def _name(schema: FileSchema) -> str:
    return schema.file.removesuffix(".parquet")
