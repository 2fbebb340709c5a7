"""The catalogue's columns that filters may name, put into item order when a retriever is published.

Knows the catalogue; the server does not (attributes.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from serendip.catalog.items import read_items_table
from serendip.catalog.schema import ITEM_ID, ITEMS, named_twice, open_parquet, unreadable
from serendip.core import InvalidData
from serendip.retrieval.attributes import type_of


def read_attributes(data_dir: Path, names: Sequence[str], item_ids: Sequence[str]) -> pa.Table:
    """The named columns of items.parquet, one row an item of ``item_ids``, texts encoded.

    An item that the catalogue does not have has nulls.

    Raises:
        InvalidData: a column is not there, is there twice, or has a type that no attribute has;
            items.parquet breaks its schema.
    """
    if not names:
        return pa.table({})
    path = data_dir / ITEMS.file
    with open_parquet(path) as file:
        schema = file.schema_arrow
        for name in names:
            field = f"{ITEMS.file}:{name}"
            if schema.names.count(name) > 1:
                raise named_twice(ITEMS, name)
            if name not in schema.names:
                raise InvalidData(
                    "no such column",
                    field=field,
                    remedy="Add it, or take it out of retriever.attributes.",
                )
            given = schema.field(name).type
            if type_of(given) is None:
                raise InvalidData(
                    f"must be string, integer, float, bool or timestamp with a zone, is {given}",
                    field=field,
                    remedy="Write it in one of these types (docs/data.md).",
                )
        try:
            table = file.read(columns=list(names))
        except (pa.ArrowException, OSError) as e:
            raise unreadable(path, e) from e
    known = read_items_table(data_dir, (ITEM_ID,)).column(ITEM_ID)
    row = pc.index_in(pa.array(item_ids, pa.string()), value_set=known)
    table = table.take(row)
    return pa.table({name: _encoded(table.column(name)) for name in names})


def _encoded(values: pa.ChunkedArray) -> pa.ChunkedArray:
    is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    return values.dictionary_encode() if is_text else values
