"""The logs of a data folder: what users did, and what they were shown.

Knows no media and nothing of how a log is curated.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from serendip.catalog.items import read_items_table
from serendip.catalog.schema import (
    IMPRESSIONS,
    INTERACTIONS,
    ITEM_ID,
    TIMESTAMP,
    FileSchema,
    check_known,
    read_checked,
)
from serendip.core import InvalidData


def read_interactions(
    data_dir: Path, item_ids: pa.Array | pa.ChunkedArray | None = None
) -> pa.Table:
    """The interactions: schema.INTERACTIONS, in the order of the file.

    Columns: user_id string, item_id string, timestamp int64 Unix ms, satisfaction float64 in
    [0, 1]; none has nulls.

    Args:
        item_ids: string[N], the catalogue's; None: they are read from items.parquet.

    Raises:
        InvalidData: the file is missing, breaks its schema, has no rows, or a row names an item
            that is not in the catalogue.
    """
    return _read_log(data_dir, INTERACTIONS, item_ids)


def read_impressions(
    data_dir: Path, item_ids: pa.Array | pa.ChunkedArray | None = None
) -> pa.Table | None:
    """The impressions: schema.IMPRESSIONS, in the order of the file; None if there is no file.

    Columns: request_id, user_id, item_id, nominated_by string, timestamp int64 Unix ms,
    position int64, propensity and satisfaction float64 or null.

    Args:
        item_ids: string[N], the catalogue's; None: they are read from items.parquet.

    Raises:
        InvalidData: the file breaks its schema, or a row names an item that is not in the
            catalogue.
    """
    if not (data_dir / IMPRESSIONS.file).exists():
        return None
    return _read_log(data_dir, IMPRESSIONS, item_ids)


def log_until(table: pa.Table) -> int:
    """The latest timestamp of a log, Unix ms. Raises InvalidData if the log has no rows."""
    latest = pc.max(table.column(TIMESTAMP)).as_py()
    if latest is None:
        raise InvalidData("the log has no rows", field=TIMESTAMP, remedy="Bring a longer log.")
    return int(latest)


def _read_log(
    data_dir: Path, schema: FileSchema, item_ids: pa.Array | pa.ChunkedArray | None
) -> pa.Table:
    table = read_checked(data_dir / schema.file, schema)
    if item_ids is None:
        item_ids = read_items_table(data_dir, (ITEM_ID,)).column(ITEM_ID)
    check_known(table.column(ITEM_ID), item_ids, f"{schema.file}:{ITEM_ID}")
    return table
