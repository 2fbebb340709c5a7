"""From a catalogue's columns to filters: what is read, what is refused, what matches."""

from __future__ import annotations

import datetime
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serendip.core import AttributeType, Filter, InvalidData
from serendip.retrieval.attribute_columns import read_attributes
from serendip.retrieval.attributes import Attributes

TIMES = [datetime.datetime(2026, 1, day, tzinfo=datetime.UTC) for day in (1, 2, 3)]


def catalogue(folder: Path, **columns: Any) -> Path:
    items = {
        "item_id": ["a", "b", "c"],
        "title": ["A", "B", "C"],
        "text": [""] * 3,
        "thumbnail": pa.array([None] * 3, pa.string()),
        "created_at": [1, 2, 3],
        **columns,
    }
    pq.write_table(pa.table(items), folder / "items.parquet")
    return folder


def matching(attributes: Attributes, n: int, *filters: Filter) -> list[int]:
    conditions = attributes.conditions(filters)
    every = np.logical_and.reduce([holds(slice(0, n)) for holds in conditions])
    ranks = np.arange(n)
    assert np.array_equal(every, np.logical_and.reduce([holds(ranks) for holds in conditions]))
    return np.flatnonzero(every).tolist()


def test_columns_come_in_item_order_and_survive_the_file(tmp_path: Path) -> None:
    catalogue(
        tmp_path,
        language=pa.array(["en", None, "de"]).dictionary_encode(),
        age=pa.array([3, None, 12], pa.uint8()),
        length=pa.array([1.5, math.nan, 2.5], pa.float32()),
        kids=[True, False, None],
        shown=pa.array([TIMES[0], None, TIMES[2]], pa.timestamp("us", "Europe/Berlin")),
    )
    names = ("language", "age", "length", "kids", "shown", "created_at")
    table = read_attributes(tmp_path, names, ["c", "removed", "a", "b"])
    pq.write_table(table, tmp_path / "attributes.parquet")
    found = Attributes.open(tmp_path / "attributes.parquet")
    assert [t.value for t in found.types.values()] == [
        *("text", "integer", "number", "flag", "timestamp", "integer")
    ]
    noon = TIMES[1].timestamp() * 1000
    for condition, expected in (
        (Filter("language", any_of=["en", "xx"]), [2]),
        (Filter("language", none_of=["en"]), [0]),
        (Filter("age", at_most=3), [2]),
        (Filter("age", at_least=3.5), [0]),
        (Filter("length", at_least=0), [0, 2]),
        (Filter("length", any_of=[1.5, 7]), [2]),
        (Filter("kids", any_of=[False]), [3]),
        (Filter("kids", none_of=[True]), [3]),
        (Filter("shown", at_least=noon), [0]),
        (Filter("shown", any_of=[int(noon - 86_400_000)]), [2]),
        (Filter("created_at", none_of=[2]), [0, 2]),
    ):
        assert matching(found, 4, condition) == expected, condition
    assert matching(found, 4, Filter("age", at_least=0), Filter("kids", any_of=[True])) == [2]


@pytest.mark.parametrize(
    ("columns", "name", "says"),
    [
        ({}, "colour", "no such column"),
        ({"colour": [b"red"] * 3}, "colour", "is binary"),
        ({"colour": [["red"]] * 3}, "colour", "is list"),
        ({"seen": pa.array([1, 2, 3], pa.timestamp("ms"))}, "seen", "with a zone"),
        ({"big": pa.array([1, 2, 3], pa.uint64())}, "big", "is uint64"),
    ],
)
def test_a_column_that_makes_no_attribute_is_refused(
    tmp_path: Path, columns: dict[str, Any], name: str, says: str
) -> None:
    with pytest.raises(InvalidData, match=f"items.parquet:{name}: .*{says}"):
        read_attributes(catalogue(tmp_path, **columns), ["created_at", name], ["a"])


def test_without_names_there_is_nothing_to_read(tmp_path: Path) -> None:
    assert read_attributes(tmp_path / "nowhere", (), ["a"]).num_columns == 0


big = st.integers(-(2**63), 2**63 - 1)
near = st.integers(2**53 - 2, 2**53 + 2)


@settings(deadline=None)
@given(
    st.lists(st.none() | big | near | st.integers(-3, 3), min_size=1, max_size=9),
    st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.floats(-3, 3),
    st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.floats(-3, 3),
    st.lists(big | near | st.integers(-3, 3), max_size=4),
)
def test_integers_are_compared_as_such(
    values: list[int | None], low: float | None, high: float | None, any_of: list[int]
) -> None:
    if low is None and high is None and not any_of:
        return
    attributes = Attributes(pa.table({"x": pa.array(values, pa.int64())}))
    given = Filter("x", any_of=any_of, at_least=low, at_most=high)
    expected = [
        rank
        for rank, value in enumerate(values)
        if value is not None
        and (low is None or value >= low)
        and (high is None or value <= high)
        and (not any_of or value in any_of)
    ]
    assert matching(attributes, len(values), given) == expected


def test_types_are_told() -> None:
    table = pa.table({"a": pa.array(["x"], pa.large_string()), "b": pa.array([True])})
    assert Attributes(table).types == {"a": AttributeType.TEXT, "b": AttributeType.FLAG}
