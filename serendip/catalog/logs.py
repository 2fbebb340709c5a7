"""The logs of a data folder: what users did, and what they were shown.

What breaks a column is refused. Two things that happen to every large log are repaired, and the
repair is counted and said: a row that repeats an earlier one, and, up to a share of the rows, one
whose item has left the catalogue. Curation does the same in SQL (curation/check.py).

Knows no media and nothing of how a log is curated.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serendip.catalog.folders import check_columns, part_schema, table_files
from serendip.catalog.items import read_items_table
from serendip.catalog.schema import (
    IMPRESSIONS,
    INTERACTIONS,
    ITEM_ID,
    POSITION,
    REQUEST_ID,
    SATISFACTION,
    TIMESTAMP,
    USER_ID,
    FileSchema,
    check_known,
    check_table,
    open_parquet,
    read_checked,
)
from serendip.core import InvalidData
from serendip.progress import console

# Satisfaction counts in millionths: two that are equal there are equal.
SATISFACTION_UNITS = 1_000_000

_BATCH_ROWS = 1 << 16


@dataclass(frozen=True)
class Repairs:
    """What was read of a log, and what of it was left out.

    Attributes:
        rows_read: rows of the file or files.
        duplicates: rows left out because an earlier one is the same: of interactions, in all
            four columns, satisfaction in millionths; of impressions, in request, item and
            position.
        unknown_rows: rows left out because their item is not in the catalogue.
    """

    rows_read: int
    duplicates: int
    unknown_rows: int

    def tell(self, schema: FileSchema) -> None:
        """Says on the console what was left out, if anything was."""
        if self.duplicates or self.unknown_rows:
            console.print(
                f"  {schema.file}: of {self.rows_read:,} rows, left out {self.duplicates:,} "
                f"duplicates and {self.unknown_rows:,} of items that are not in the catalogue"
            )


def read_interactions(
    data_dir: Path,
    item_ids: pa.Array | pa.ChunkedArray | None = None,
    *,
    max_unknown_share: float = 0.0,
) -> pa.Table:
    """The interactions: schema.INTERACTIONS, in the order of the file, or of the files' paths.

    Columns: user_id string, item_id string, timestamp int64 Unix ms, satisfaction float64 in
    [0, 1]; none has nulls. What was repaired is said on the console.

    Args:
        item_ids: string[N], the catalogue's; None: they are read from items.parquet.
        max_unknown_share: the share of the rows, at most, that may name an item which is not in
            the catalogue, and are left out.

    Raises:
        InvalidData: the log is missing, breaks its schema, has no rows, or more rows than that
            name an item that is not in the catalogue.
    """
    files = table_files(data_dir, INTERACTIONS) or [data_dir / INTERACTIONS.file]
    return _read_log(data_dir, INTERACTIONS, files, item_ids, max_unknown_share)


def read_impressions(
    data_dir: Path,
    item_ids: pa.Array | pa.ChunkedArray | None = None,
    *,
    max_unknown_share: float = 0.0,
) -> pa.Table | None:
    """The impressions: schema.IMPRESSIONS, in order as read_interactions; None if there are none.

    Columns: request_id, user_id, item_id, nominated_by string, timestamp int64 Unix ms,
    position int64, propensity and satisfaction float64 or null.

    Args:
        item_ids, max_unknown_share: as of read_interactions.

    Raises:
        InvalidData: as read_interactions; a log without rows is none.
    """
    files = table_files(data_dir, IMPRESSIONS)
    return _read_log(data_dir, IMPRESSIONS, files, item_ids, max_unknown_share) if files else None


def log_until(table: pa.Table) -> int:
    """The latest timestamp of a log, Unix ms. Raises InvalidData if the log has no rows."""
    latest = pc.max(table.column(TIMESTAMP)).as_py()
    if latest is None:
        raise InvalidData("the log has no rows", field=TIMESTAMP, remedy="Bring a longer log.")
    return int(latest)


def refuse_first(data_dir: Path, schema: FileSchema, column: str, broken: int, rows: int) -> None:
    """Raises InvalidData with the first row whose value breaks a column, and how many do.

    Reads batch by batch: for a log that an engine has checked, and found ``broken`` of ``rows``.
    """
    for path in table_files(data_dir, schema):
        part = part_schema(data_dir, schema, path)
        at = 0
        with open_parquet(path) as file:
            for batch in file.iter_batches(_BATCH_ROWS, columns=[column]):
                try:
                    check_table(pa.Table.from_batches([batch]), part, (column,))
                except InvalidData as e:
                    raise InvalidData(
                        e.reason,
                        field=e.field,
                        value=e.value,
                        row=None if e.row is None else at + e.row,
                        remedy=f"{e.remedy} {broken:,} of {rows:,} rows are like this.",
                    ) from None
                at += len(batch)
    raise InvalidData(
        f"{broken:,} of {rows:,} rows break the column", field=f"{schema.file}:{column}"
    )


def _read_log(
    data_dir: Path,
    schema: FileSchema,
    files: list[Path],
    item_ids: pa.Array | pa.ChunkedArray | None,
    max_unknown_share: float,
) -> pa.Table:
    check_columns(data_dir, schema, files)
    parts = [read_checked(path, part_schema(data_dir, schema, path)) for path in files]
    table = pa.concat_tables(parts)
    if not (len(table) or schema.may_be_empty):
        check_table(table, schema)
    if item_ids is None:
        item_ids = read_items_table(data_dir, (ITEM_ID,)).column(ITEM_ID)
    known = pc.is_in(table.column(ITEM_ID), value_set=item_ids)
    unknown_rows = len(table) - pc.sum(known).as_py() if len(table) else 0
    if unknown_rows > max_unknown_share * len(table):
        check_known(table.column(ITEM_ID), item_ids, f"{schema.file}:{ITEM_ID}")
    kept = table.filter(known) if unknown_rows else table
    kept = _without_duplicates(kept, schema)
    repairs = Repairs(len(table), len(table) - unknown_rows - len(kept), unknown_rows)
    repairs.tell(schema)
    return kept


def _without_duplicates(table: pa.Table, schema: FileSchema) -> pa.Table:
    """Of rows that are the same (Repairs), the first."""
    if schema is IMPRESSIONS:
        keys = table.select([REQUEST_ID, ITEM_ID, POSITION])
    else:
        units = pc.add(pc.multiply(table.column(SATISFACTION), float(SATISFACTION_UNITS)), 0.5)
        keys = table.select([USER_ID, ITEM_ID, TIMESTAMP]).append_column("units", pc.floor(units))
    numbered = keys.append_column("row", pa.array(np.arange(len(table))))
    firsts = numbered.group_by(keys.column_names).aggregate([("row", "min")]).column("row_min")
    if len(firsts) == len(table):
        return table
    return table.take(np.sort(firsts.to_numpy()))
