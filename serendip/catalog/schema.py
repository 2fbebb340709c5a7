"""The parquet files that a user brings: their columns, in one place, and the check at the border.

Every table from outside passes ``read_checked`` or ``check_table`` once; behind it the columns
have exactly the types and ranges below, and nobody checks again. Vectorised: ten million rows
take seconds. This module knows no folder layout, no media and nothing of what the rows are for.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serendip.core import MAX_ID_BYTES, InvalidData

ITEM_ID = "item_id"
TITLE = "title"
TEXT = "text"
THUMBNAIL = "thumbnail"
VIDEO = "video"
CREATED_AT = "created_at"
VECTOR = "vector"
USER_ID = "user_id"
TIMESTAMP = "timestamp"
SATISFACTION = "satisfaction"
REQUEST_ID = "request_id"
POSITION = "position"
NOMINATED_BY = "nominated_by"
PROPENSITY = "propensity"
IMAGE = "image"
CAPTION = "caption"

# A log's timestamps lie in 1970 to 2100: what is written in seconds or days is not caught by
# this, what is written in micro- or nanoseconds is.
LAST_TIMESTAMP = 4_102_444_800_000

_READ_DOCS = "docs/data.md describes every column."


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a file.

    Attributes:
        type: the type that it has behind the border.
        or_type: another type that it may have there instead, chosen by the file.
        low, high: closed range of the values that are not null.
        above: open lower bound of them.
        is_id: 1 to 256 bytes of text.
    """

    name: str
    type: pa.DataType
    or_type: pa.DataType | None = None
    nullable: bool = False
    required: bool = True
    low: float | None = None
    high: float | None = None
    above: float | None = None
    is_id: bool = False


@dataclass(frozen=True, slots=True)
class FileSchema:
    """The columns of one table, which is a parquet file, or a folder of them (folders.py).

    Attributes:
        file: its name in the data folder.
        may_be_empty: whether it may have no rows.
    """

    file: str
    columns: tuple[Column, ...]
    may_be_empty: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.columns)

    def to_arrow(self) -> pa.Schema:
        """The same as a pyarrow schema: what a complete file looks like."""
        return pa.schema([pa.field(c.name, c.type, nullable=c.nullable) for c in self.columns])


_VECTOR_TYPE = pa.list_(pa.float32())

ITEMS = FileSchema(
    "items.parquet",
    (
        Column(ITEM_ID, pa.string(), is_id=True),
        Column(TITLE, pa.string()),
        Column(TEXT, pa.string()),
        Column(THUMBNAIL, pa.string(), or_type=pa.binary(), nullable=True),
        Column(VIDEO, pa.string(), nullable=True, required=False),
        Column(CREATED_AT, pa.int64()),
        Column(VECTOR, _VECTOR_TYPE, required=False),
    ),
)
INTERACTIONS = FileSchema(
    "interactions.parquet",
    (
        Column(USER_ID, pa.string(), is_id=True),
        Column(ITEM_ID, pa.string(), is_id=True),
        Column(TIMESTAMP, pa.int64(), low=0, high=LAST_TIMESTAMP),
        Column(SATISFACTION, pa.float64(), low=0, high=1),
    ),
)
IMPRESSIONS = FileSchema(
    "impressions.parquet",
    (
        Column(REQUEST_ID, pa.string(), is_id=True),
        Column(USER_ID, pa.string(), is_id=True),
        Column(ITEM_ID, pa.string(), is_id=True),
        Column(TIMESTAMP, pa.int64(), low=0, high=LAST_TIMESTAMP),
        Column(POSITION, pa.int64(), low=0),
        Column(NOMINATED_BY, pa.string()),
        Column(PROPENSITY, pa.float64(), nullable=True, above=0, high=1),
        Column(SATISFACTION, pa.float64(), nullable=True, low=0, high=1),
    ),
    may_be_empty=True,
)
CAPTIONS = FileSchema(
    "captions.parquet",
    (
        Column(IMAGE, pa.string(), or_type=pa.binary()),
        Column(CAPTION, pa.string()),
    ),
    may_be_empty=True,
)
FILES = (ITEMS, INTERACTIONS, IMPRESSIONS, CAPTIONS)


def read_checked(
    path: Path, schema: FileSchema, columns: Collection[str] | None = None
) -> pa.Table:
    """Reads a parquet file and checks it: the schema's columns, in its order, in its types.

    Args:
        columns: read these columns alone; None: all. Other columns of the file are ignored.

    Raises:
        InvalidData: no such file, no parquet, or ``check_table`` refuses it.
    """
    wanted = [n for n in schema.names if columns is None or n in columns]
    with open_parquet(path) as file:
        present = file.schema_arrow.names
        for name in wanted:
            if present.count(name) > 1:
                raise named_twice(schema, name)
        try:
            table = file.read(columns=[n for n in wanted if n in present])
        except (pa.ArrowException, OSError) as e:
            raise unreadable(path, e) from e
    return check_table(table, schema, columns)


def open_parquet(path: Path) -> pq.ParquetFile:
    """Opens a parquet file, to be used as a context. Raises InvalidData if it is none."""
    if not path.is_file():
        raise InvalidData(
            "no such file",
            field=path.name,
            value=str(path),
            remedy="docs/data.md describes the files of a data folder.",
        )
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as e:
        raise unreadable(path, e) from e


def named_twice(schema: FileSchema, column: str) -> InvalidData:
    """The error of a file that has a column twice."""
    return InvalidData(
        "the file has this column twice",
        field=f"{schema.file}:{column}",
        remedy="Leave one of them out.",
    )


def unreadable(path: Path, e: Exception) -> InvalidData:
    """The error of a file that turns out to be no parquet, or a damaged one."""
    return InvalidData(
        f"cannot be read as parquet ({e})",
        field=path.name,
        value=str(path),
        remedy="Write the file again.",
    )


def check_table(
    table: pa.Table, schema: FileSchema, columns: Collection[str] | None = None
) -> pa.Table:
    """Checks a table column by column and casts it to the schema's types.

    Integers widen to int64, floats and integers become float64, large and dictionary-encoded
    strings become strings; nothing is rounded but list vectors, which become float32.

    Args:
        columns: those of the schema to check and keep; None: all.

    Raises:
        InvalidData: naming file and column, and the first offending row and its value: a
            missing column, a type that is none of the above, a null where none may be, a value
            out of its range or NaN, text that is no UTF-8, an empty table.
    """
    checked: dict[str, pa.ChunkedArray] = {}
    for column in schema.columns:
        if columns is not None and column.name not in columns:
            continue
        field = f"{schema.file}:{column.name}"
        if column.name not in table.column_names:
            if not column.required:
                continue
            raise InvalidData("no such column", field=field, remedy=f"Add it: {_READ_DOCS}")
        values = _cast(table.column(column.name), column, field)
        _check_values(values, column, field)
        checked[column.name] = values
    if not schema.may_be_empty and table.num_rows == 0:
        raise InvalidData(
            "the table has no rows", field=schema.file, remedy=f"Fill it: {_READ_DOCS}"
        )
    return pa.table(checked)


def check_unique(values: pa.ChunkedArray, field: str) -> None:
    """Raises InvalidData, naming the first row that repeats an earlier one's value."""
    if pc.count_distinct(values).as_py() == len(values):
        return
    codes = values.combine_chunks().dictionary_encode().indices.to_numpy()
    is_first = np.zeros(len(codes), bool)
    is_first[np.unique(codes, return_index=True)[1]] = True
    row = int(np.argmin(is_first))
    raise InvalidData(
        "is not the first of its name",
        field=field,
        row=row,
        value=values[row].as_py(),
        remedy="Keep one row for each.",
    )


def check_known(values: pa.ChunkedArray, item_ids: pa.Array | pa.ChunkedArray, field: str) -> None:
    """Raises InvalidData, naming the first row whose value is not among ``item_ids``."""
    known = pc.is_in(values, value_set=item_ids)
    _refuse_first(
        pc.invert(known),
        values,
        field,
        "is not in the catalogue",
        f"Add the item to {ITEMS.file}, or leave the row out.",
    )


def _cast(values: pa.ChunkedArray, column: Column, field: str) -> pa.ChunkedArray:
    given = values.type
    if pa.types.is_dictionary(given):
        values = values.cast(given.value_type)
        given = given.value_type
    target = column.type
    if column.or_type is not None and _fits(given, column.or_type):
        target = column.or_type
    if not (_fits(given, target) or pa.types.is_null(given)):
        expected = f"{column.type} or {column.or_type}" if column.or_type else f"{column.type}"
        raise InvalidData(
            f"must be {expected}, is {given}", field=field, remedy=_type_remedy(target)
        )
    try:
        return values.cast(target)
    except pa.ArrowException as e:
        raise InvalidData(
            f"cannot be read as {target} ({e})", field=field, remedy=_type_remedy(target)
        ) from e


def _fits(given: pa.DataType, target: pa.DataType) -> bool:
    """Whether every value of a type has an equal one in the target type, if it is in range."""
    t = pa.types
    if target == pa.string():
        return bool(t.is_string(given) or t.is_large_string(given) or t.is_string_view(given))
    if target == pa.binary():
        return bool(t.is_binary(given) or t.is_large_binary(given) or t.is_binary_view(given))
    if target == pa.int64():
        return bool(t.is_integer(given))
    if target == pa.float64():
        return bool(t.is_floating(given) or t.is_integer(given))
    is_list = t.is_list(given) or t.is_large_list(given) or t.is_fixed_size_list(given)
    return bool(is_list and t.is_floating(given.value_type))


def _type_remedy(target: pa.DataType) -> str:
    if target == pa.int64():
        return "Write it as int64; times are Unix milliseconds."
    if target == pa.float64():
        return "Write it as float32 or float64."
    if target == _VECTOR_TYPE:
        return "Write it as list<float32>."
    return "Write it as string." if target == pa.string() else "Write it as binary."


def _check_values(values: pa.ChunkedArray, column: Column, field: str) -> None:
    if not column.nullable and values.null_count:
        _refuse_first(pc.is_null(values), values, field, "must not be null", "Fill every row.")
    if values.type == pa.string():
        _check_utf8(values, field)
    if column.is_id:
        length = pc.binary_length(values)
        _refuse_first(
            pc.or_(pc.equal(length, 0), pc.greater(length, MAX_ID_BYTES)),
            values,
            field,
            f"must be 1 to {MAX_ID_BYTES} bytes",
            "Shorten it." if column.name != REQUEST_ID else "Name the request shorter.",
        )
    if column.type == _VECTOR_TYPE:
        _check_vectors(values, field)
    elif column.low is not None or column.above is not None:
        _check_range(values, column, field)


def _check_range(values: pa.ChunkedArray, column: Column, field: str) -> None:
    # Asked for what holds, not for what fails: NaN fails every comparison.
    if column.above is None:
        holds, text = pc.greater_equal(values, column.low), f"[{column.low:.15g}"
    else:
        holds, text = pc.greater(values, column.above), f"({column.above:.15g}"
    if column.high is None:
        text += ", ∞)"
    else:
        holds, text = (
            pc.and_(holds, pc.less_equal(values, column.high)),
            f"{text}, {column.high:.15g}]",
        )
    _refuse_first(
        pc.invert(holds),
        values,
        field,
        f"must lie in {text}",
        _range_remedy(column),
    )


def _range_remedy(column: Column) -> str:
    if column.name == TIMESTAMP:
        return "Times are Unix milliseconds. Correct it, or leave the row out."
    if column.nullable:
        return "Scale it, or write null where it is unknown."
    return "Scale it, or leave the row out."


def _check_utf8(values: pa.ChunkedArray, field: str) -> None:
    try:
        values.validate(full=True)
    except pa.ArrowException:
        row = next(i for i, text in enumerate(values.cast(pa.binary())) if not _is_utf8(text))
        raise InvalidData(
            "is no UTF-8 text", field=field, row=row, remedy="Write text as UTF-8."
        ) from None


def _is_utf8(text: Any) -> bool:
    try:
        (text.as_py() or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


def _check_vectors(values: pa.ChunkedArray, field: str) -> None:
    lengths = pc.list_value_length(values)
    width = lengths[0].as_py() if len(values) else 1
    if width == 0:
        raise InvalidData(
            "must have at least one number", field=field, row=0, remedy="Fill every vector."
        )
    _refuse_first(
        pc.not_equal(lengths, width),
        lengths,
        field,
        f"must have as many numbers as row 0 ({width})",
        "Make all vectors of one length.",
    )
    numbers = pc.list_flatten(values)
    bad = pc.index(pc.fill_null(pc.is_finite(numbers), False), False).as_py()
    if bad >= 0:
        raise InvalidData(
            "must be finite numbers",
            field=field,
            row=bad // width,
            value=numbers[bad].as_py(),
            remedy="Replace NaN, infinite and null numbers.",
        )


def _refuse_first(
    refused: pa.ChunkedArray, values: pa.ChunkedArray, field: str, message: str, remedy: str
) -> None:
    row = pc.index(refused, True).as_py()
    if row >= 0:
        value = values[row].as_py()
        raise InvalidData(message, field=field, row=row, value=value, remedy=remedy)
