"""What the border does with interactions.parquet and impressions.parquet, whole and broken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from serendip.catalog import schema
from serendip.catalog.logs import log_until, read_impressions, read_interactions
from serendip.core import InvalidData

Write = Callable[..., Path]

NAN = float("nan")


def test_interactions_come_as_written(write_items: Write, write_interactions: Write) -> None:
    write_items()
    data = write_interactions(
        user_id=pa.array(["u", "u", "v", "v"]).dictionary_encode(),
        satisfaction=pa.array([0.0, 1.0, 0.25, 0.5], pa.float32()),
    )
    table = read_interactions(data)
    assert table.schema.types == schema.INTERACTIONS.to_arrow().types
    assert table.to_pylist()[2] == {
        "user_id": "v",
        "item_id": "c",
        "timestamp": 1500,
        "satisfaction": 0.25,
    }
    assert log_until(table) == 9000
    with pytest.raises(InvalidData, match="no rows"):
        log_until(table.slice(0, 0))


def test_known_items_can_be_given(write_interactions: Write) -> None:
    data = write_interactions()
    assert read_interactions(data, pa.array(["a", "b", "c"])).num_rows == 4
    with pytest.raises(InvalidData, match="not in the catalogue") as caught:
        read_interactions(data, pa.chunked_array([["a"], ["c"]]))
    assert (caught.value.row, caught.value.value) == (1, "b")


@pytest.mark.parametrize(
    ("changes", "column", "row", "value", "message"),
    [
        ({"satisfaction": [0, 0.5, 1.01, 2]}, "satisfaction", 2, 1.01, r"lie in \[0, 1\]"),
        ({"satisfaction": [0, -0.1, 1, 1]}, "satisfaction", 1, -0.1, "lie in"),
        ({"satisfaction": [0.5, 0.5, 1, None]}, "satisfaction", 3, None, "not be null"),
        ({"satisfaction": ["1", "1", "1", "1"]}, "satisfaction", None, None, "must be double"),
        ({"item_id": ["a", "b", "zebra", "b"]}, "item_id", 2, "zebra", "not in the catalogue"),
        ({"user_id": ["u", "", "u", "u"]}, "user_id", 1, "", "1 to 256 bytes"),
        ({"user_id": None}, "user_id", None, None, "no such column"),
        ({"timestamp": ["2024-01-01"] * 4}, "timestamp", None, None, "must be int64"),
        (
            {"timestamp": pa.array([0, 1, 2, 3], pa.timestamp("ms"))},
            "timestamp",
            None,
            None,
            "must be int64, is timestamp",
        ),
    ],
)
def test_a_broken_interaction_is_named(
    write_items: Write,
    write_interactions: Write,
    changes: dict[str, Any],
    column: str,
    row: int | None,
    value: object,
    message: str,
) -> None:
    write_items()
    with pytest.raises(InvalidData, match=message) as caught:
        read_interactions(write_interactions(**changes))
    assert caught.value.field == f"interactions.parquet:{column}"
    assert (caught.value.row, caught.value.value) == (row, value)
    assert caught.value.remedy


@pytest.mark.parametrize("value", [NAN, float("inf"), float("-inf")])
def test_satisfaction_must_be_a_number(
    write_items: Write, write_interactions: Write, value: float
) -> None:
    write_items()
    with pytest.raises(InvalidData, match="lie in") as caught:
        read_interactions(write_interactions(satisfaction=[1.0, 1.0, 1.0, value]))
    assert caught.value.row == 3


def test_an_empty_log_is_refused(write_items: Write, write_interactions: Write) -> None:
    write_items()
    data = write_interactions(
        user_id=pa.array([], pa.string()),
        item_id=pa.array([], pa.string()),
        timestamp=pa.array([], pa.int64()),
        satisfaction=pa.array([], pa.float32()),
    )
    with pytest.raises(InvalidData, match="no rows") as caught:
        read_interactions(data)
    assert caught.value.field == "interactions.parquet"


def test_a_log_must_be_there(write_items: Write) -> None:
    data = write_items()
    assert read_impressions(data) is None
    with pytest.raises(InvalidData, match="no such file"):
        read_interactions(data)


def test_impressions_come_as_written(write_items: Write, write_impressions: Write) -> None:
    write_items()
    table = read_impressions(write_impressions())
    assert table is not None
    assert table.schema.types == schema.IMPRESSIONS.to_arrow().types
    assert table.column("position").to_pylist() == [0, 1]
    assert table.column("propensity").to_pylist() == [0.5, None]
    assert table.column("satisfaction").to_pylist() == [None, 0.75]
    unknown = read_impressions(write_impressions(propensity=pa.nulls(2)))
    assert unknown is not None
    assert unknown.column("propensity").null_count == 2


@pytest.mark.parametrize(
    ("changes", "column", "row"),
    [
        ({"propensity": [0.5, 0.0]}, "propensity", 1),
        ({"propensity": [1.5, None]}, "propensity", 0),
        ({"propensity": [None, NAN]}, "propensity", 1),
        ({"satisfaction": [None, 1.5]}, "satisfaction", 1),
        ({"satisfaction": [None, NAN]}, "satisfaction", 1),
        ({"position": [0, -1]}, "position", 1),
        ({"nominated_by": ["x", None]}, "nominated_by", 1),
        ({"item_id": ["a", "zebra"]}, "item_id", 1),
        ({"request_id": ["", "r"]}, "request_id", 0),
    ],
)
def test_a_broken_impression_is_named(
    write_items: Write,
    write_impressions: Write,
    changes: dict[str, Any],
    column: str,
    row: int,
) -> None:
    write_items()
    with pytest.raises(InvalidData) as caught:
        read_impressions(write_impressions(**changes))
    assert (caught.value.field, caught.value.row) == (f"impressions.parquet:{column}", row)
