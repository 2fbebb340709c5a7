"""Attributes of items in item order, and filters over them: only the ranks asked for are read.

Knows no item ID, no vector and no catalogue.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serendip.core import AttributeType, AttributeValue, Filter, InvalidRequest

Bool = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]
# Ranks: a slice, or int64[n].
Ranks = slice | Int64
# Whether each of the ranks matches: bool[n].
Condition = Callable[[Ranks], Bool]

_T = AttributeType
_PYTHON: Mapping[AttributeType, tuple[type, ...]] = {
    _T.TEXT: (str,),
    _T.INTEGER: (int,),
    _T.TIMESTAMP: (int,),
    _T.NUMBER: (int, float),
    _T.FLAG: (bool,),
}
_LARGEST = 2**63 - 1
_NULL = -1


class Attributes:
    """The attributes of N items, by name."""

    def __init__(self, table: pa.Table):
        """Of a table in item order. Raises ValueError for a type that no attribute has."""
        self._columns = {name: Column.of(table.column(name)) for name in table.column_names}

    @classmethod
    def open(cls, path: Path) -> Attributes:
        """Reads what export.py has written. Raises OSError, ValueError, pa.ArrowException."""
        return cls(pq.read_table(path))

    @classmethod
    def none(cls) -> Attributes:
        return cls(pa.table({}))

    @property
    def types(self) -> dict[str, AttributeType]:
        return {name: column.type for name, column in self._columns.items()}

    def check_length(self, items: int) -> None:
        """Raises ValueError unless every attribute has one value an item."""
        for name, column in self._columns.items():
            if len(column.values) != items:
                raise ValueError(f"{name!r} has {len(column.values)} values for {items} items")

    def conditions(self, filters: Sequence[Filter]) -> list[Condition]:
        """One condition a filter. Raises InvalidRequest, naming the filter's field."""
        found = []
        for index, given in enumerate(filters):
            column = self._columns.get(given.attribute)
            if column is None:
                there = ", ".join(f"{name} ({t.value})" for name, t in self.types.items())
                raise InvalidRequest(
                    "no such attribute",
                    field=f"filters[{index}].attribute",
                    value=given.attribute,
                    remedy=f"There are: {there}." if there else "This retriever has none.",
                )
            try:
                found.append(column.condition(given))
            except InvalidRequest as e:
                field = e.field.replace("filters", f"filters[{index}]", 1)
                raise InvalidRequest(
                    e.message, field=field, value=e.value, remedy=e.remedy
                ) from None
        return found


def type_of(given: pa.DataType) -> AttributeType | None:
    """The type of an attribute that a column of this type makes; None if it makes none.

    Times need a time zone: without one, what they mean would be a guess.
    """
    t = pa.types
    if t.is_dictionary(given):
        given = given.value_type
    if t.is_string(given) or t.is_large_string(given) or t.is_string_view(given):
        return _T.TEXT
    if t.is_integer(given):
        # Larger numbers than an int64 has would wrap.
        return None if given == pa.uint64() else _T.INTEGER
    if t.is_floating(given):
        return _T.NUMBER
    if t.is_boolean(given):
        return _T.FLAG
    return _T.TIMESTAMP if t.is_timestamp(given) and given.tz else None


@dataclass(frozen=True)
class Column:
    """One attribute of N items.

    Attributes:
        values: [N]; int32 codes of TEXT and int8 of FLAG, -1 where null; int64 of INTEGER and
            TIMESTAMP; float64 of NUMBER, NaN where null.
        there: bool[N], not null; None where the values say so themselves, or none is null.
        codes: the code of each text.
    """

    type: AttributeType
    values: npt.NDArray[Any]
    there: Bool | None = None
    codes: Mapping[str, int] | None = None

    @classmethod
    def of(cls, values: pa.ChunkedArray) -> Column:
        """Of a column that ``type_of`` has a type for. NaN is null."""
        type_ = type_of(values.type)
        if type_ is None:
            raise ValueError(f"{values.type} is no type of an attribute")
        array = values.combine_chunks()
        if type_ is _T.TEXT:
            if not pa.types.is_dictionary(array.type):
                array = array.dictionary_encode()
            codes = {text: code for code, text in enumerate(array.dictionary.to_pylist())}
            indices = pc.fill_null(array.indices.cast(pa.int32()), _NULL)
            return cls(type_, indices.to_numpy(), codes=codes)
        if type_ is _T.FLAG:
            return cls(type_, pc.fill_null(array.cast(pa.int8()), _NULL).to_numpy())
        if type_ is _T.NUMBER:
            return cls(type_, pc.fill_null(array.cast(pa.float64()), math.nan).to_numpy())
        there = pc.is_valid(array).to_numpy(zero_copy_only=False) if array.null_count else None
        if type_ is _T.TIMESTAMP:
            array = array.cast(pa.timestamp("ms", "UTC"), safe=False)
        return cls(type_, pc.fill_null(array.cast(pa.int64()), 0).to_numpy(), there)

    def condition(self, given: Filter) -> Condition:
        """Whether items match. Raises InvalidRequest for a value or bound of another type."""
        parts: list[Condition] = []
        if given.any_of:
            parts.append(self._among(self._comparable(given.any_of, "any_of")))
        if given.none_of:
            among = self._among(self._comparable(given.none_of, "none_of"))
            parts.append(lambda ranks: ~among(ranks))
        if given.at_least is not None or given.at_most is not None:
            parts.append(self._between(given))
        if (there := self._not_null()) is not None:
            parts.append(there)
        return lambda ranks: np.logical_and.reduce([part(ranks) for part in parts])

    def _comparable(self, values: Sequence[AttributeValue], part: str) -> list[int | float]:
        """The values as the column holds them; those that it cannot hold are left out."""
        for value in values:
            fits = isinstance(value, _PYTHON[self.type])
            if not fits or (isinstance(value, bool) and self.type is not _T.FLAG):
                raise InvalidRequest(
                    f"must be of the attribute's type, {self.type.value}",
                    field=f"filters.{part}",
                    value=value,
                    remedy="GetInfo tells the attributes' types.",
                )
        if self.codes is not None:
            return [code for v in values if (code := self.codes.get(str(v))) is not None]
        if self.type in (_T.INTEGER, _T.TIMESTAMP):
            return [int(v) for v in values if -_LARGEST - 1 <= int(v) <= _LARGEST]
        return [float(v) for v in values]

    def _among(self, wanted: list[int | float]) -> Condition:
        column = self.values
        if len(wanted) == 1:
            (only,) = wanted
            return lambda ranks: np.asarray(column[ranks] == only)
        members = np.asarray(sorted(wanted), column.dtype)
        return lambda ranks: np.isin(column[ranks], members)

    def _between(self, given: Filter) -> Condition:
        column = self.values
        if self.type in (_T.TEXT, _T.FLAG):
            raise InvalidRequest(
                f"needs an attribute that has an order, and this is {self.type.value}",
                field="filters.at_least" if given.at_least is not None else "filters.at_most",
                value=given.attribute,
                remedy="Use any_of or none_of.",
            )
        low, high = given.at_least, given.at_most
        least = -math.inf if low is None else low
        most = math.inf if high is None else high
        if self.type is not _T.NUMBER:
            # As integers: a float cannot hold all of them, and would compare a rounded one.
            least = -_LARGEST - 1 if low is None else math.ceil(low)
            most = _LARGEST if high is None else math.floor(high)
        return lambda ranks: np.asarray((column[ranks] >= least) & (column[ranks] <= most))

    def _not_null(self) -> Condition | None:
        column, there = self.values, self.there
        if there is not None:
            return lambda ranks: there[ranks]
        if self.type in (_T.TEXT, _T.FLAG):
            return lambda ranks: np.asarray(column[ranks] != _NULL)
        if self.type is _T.NUMBER:
            return lambda ranks: np.asarray(column[ranks] == column[ranks])
        return None
