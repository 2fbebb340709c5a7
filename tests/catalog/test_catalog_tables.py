"""What the border does with items.parquet and captions.parquet, whole and broken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serendip.catalog import schema
from serendip.catalog.items import fingerprint, read_captions, read_items, read_items_table
from serendip.core import InvalidData, Item

Write = Callable[..., Path]


def test_items_come_as_written(write_items: Write) -> None:
    data = write_items()
    root = data.resolve()
    assert list(read_items(data)) == [
        Item("a", "Ants", "", root / "media/a.jpg", None, 1),
        Item("b", "Bees", "They hum.", None, root / "media/b.mp4", 2),
        Item("c", "Crabs", "", root / "media/c.jpg", None, 3),
    ]


def test_many_items_keep_their_thumbnails(write_items: Write) -> None:
    count = 1300
    names = [f"i{n}" for n in range(count)]
    data = write_items(
        item_id=names,
        title=names,
        text=names,
        thumbnail=[None if k % 7 == 0 else name.encode() for k, name in enumerate(names)],
        video=None,
        created_at=np.arange(count),
    )
    for k, item in enumerate(read_items(data)):
        assert item.thumbnail == (None if k % 7 == 0 else item.item_id.encode())
        assert (item.title, item.video, item.created_at) == (names[k], None, k)
    assert k == count - 1


def test_types_without_loss_are_cast(write_items: Write) -> None:
    data = write_items(
        item_id=pa.array(["a", "b", "c"]).dictionary_encode(),
        title=pa.array(["Ants", "Bees", "Crabs"], pa.large_string()),
        thumbnail=pa.nulls(3),
        video=pa.nulls(3),
        created_at=pa.array([1, 2, 3], pa.int32()),
        vector=pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.float64(), 2)),
        comment=["ignored", "", ""],
    )
    table = read_items_table(data)
    assert table.schema.names == list(schema.ITEMS.names)
    for field in schema.ITEMS.to_arrow():
        assert table.schema.field(field.name).type == field.type
    assert table.column("vector").to_pylist() == [[1, 2], [3, 4], [5, 6]]
    assert [i.thumbnail for i in read_items(data)] == [None, None, None]


def test_columns_can_be_chosen(write_items: Write) -> None:
    table = read_items_table(write_items(created_at=["wrong", "but", "not read"]), ["title"])
    assert table.schema.names == ["item_id", "title"]


@pytest.mark.parametrize(
    ("changes", "column", "row", "message"),
    [
        ({"created_at": None}, "created_at", None, "no such column"),
        ({"thumbnail": None}, "thumbnail", None, "no such column"),
        ({"created_at": ["1", "2", "3"]}, "created_at", None, "must be int64, is string"),
        ({"created_at": [1.0, 2.0, 3.0]}, "created_at", None, "must be int64, is double"),
        ({"thumbnail": [1, 2, 3]}, "thumbnail", None, "must be string or binary"),
        ({"item_id": [1, 2, 3]}, "item_id", None, "must be string, is int64"),
        ({"item_id": ["a", "b", "a"]}, "item_id", 2, "not the first"),
        ({"item_id": ["a", "", "c"]}, "item_id", 1, "1 to 256 bytes"),
        ({"item_id": ["a", "b", "é" * 129]}, "item_id", 2, "1 to 256 bytes"),
        ({"item_id": ["a", None, "c"]}, "item_id", 1, "must not be null"),
        ({"title": ["x", "y", None]}, "title", 2, "must not be null"),
        ({"text": pa.nulls(3)}, "text", 0, "must not be null"),
        ({"created_at": pa.array([1, 2**63, 3], pa.uint64())}, "created_at", None, "cannot"),
        ({"vector": [[1.0], [1.0, 2.0], [1.0]]}, "vector", 1, "as many numbers"),
        ({"vector": [[1.0, 2.0], [1.0, 2.0], [1.0, float("nan")]]}, "vector", 2, "finite"),
        ({"vector": [[1.0, 2.0], [None, 2.0], [1.0, 2.0]]}, "vector", 1, "finite"),
        ({"vector": [[1.0], None, [1.0]]}, "vector", 1, "must not be null"),
        ({"vector": ["1", "2", "3"]}, "vector", None, "must be list"),
    ],
)
def test_a_broken_column_is_named(
    write_items: Write, changes: dict[str, Any], column: str, row: int | None, message: str
) -> None:
    with pytest.raises(InvalidData, match=message) as caught:
        read_items_table(write_items(**changes))
    assert caught.value.field == f"items.parquet:{column}"
    assert caught.value.row == row
    assert caught.value.remedy


def test_text_that_is_no_utf8_is_named(write_items: Write) -> None:
    valid, broken = b"fine", b"\xff\xfe"
    text = pa.array([valid, valid, broken], pa.binary()).view(pa.string())
    with pytest.raises(InvalidData, match="UTF-8") as caught:
        read_items_table(write_items(title=text))
    assert (caught.value.field, caught.value.row) == ("items.parquet:title", 2)


def test_an_empty_catalogue_is_refused(write_items: Write) -> None:
    empty = pa.array([], pa.string())
    data = write_items(
        item_id=empty,
        title=empty,
        text=empty,
        thumbnail=empty,
        video=empty,
        created_at=pa.array([], pa.int64()),
    )
    with pytest.raises(InvalidData, match="no rows"):
        read_items_table(data)


def test_a_column_twice_is_refused(tmp_path: Path) -> None:
    column = pa.array(["a"])
    table = pa.Table.from_arrays([column, column], ["item_id", "item_id"])
    pq.write_table(table, tmp_path / "items.parquet")
    with pytest.raises(InvalidData, match="twice"):
        read_items_table(tmp_path)


def test_a_missing_file_and_a_file_that_is_no_parquet(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="no such file") as caught:
        read_items_table(tmp_path)
    assert caught.value.value == str(tmp_path / "items.parquet")
    (tmp_path / "items.parquet").write_text("item_id,title\n")
    with pytest.raises(InvalidData, match="cannot be read as parquet"):
        read_items(tmp_path)


def test_a_damaged_parquet_file_is_refused(write_items: Write) -> None:
    data = write_items(text=["word " * 3000] * 3)
    path = data / "items.parquet"
    content = bytearray(path.read_bytes())
    content[4:200] = b"\xff" * 196
    path.write_bytes(content)
    with pytest.raises(InvalidData):
        list(read_items(data))


@pytest.mark.parametrize(
    "bad", ["/etc/hostname", "../outside.jpg", "media/../../outside.jpg", "", ".", "..", "a\0b"]
)
@pytest.mark.parametrize("column", ["thumbnail", "video"])
def test_a_path_out_of_the_folder_is_refused(write_items: Write, column: str, bad: str) -> None:
    items = read_items(write_items(**{column: [None, bad, None]}))
    next(items)
    with pytest.raises(InvalidData, match="inside the data folder") as caught:
        next(items)
    assert (caught.value.field, caught.value.row) == (f"items.parquet:{column}", 1)


def test_an_absolute_path_is_refused(write_items: Write) -> None:
    data = write_items()
    with pytest.raises(InvalidData, match="relative to the data folder"):
        list(read_items(write_items(thumbnail=[str(data.resolve() / "a.jpg"), None, None])))


def test_a_link_out_of_the_folder_is_refused(
    write_items: Write, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.jpg").write_bytes(b"")
    data = write_items(thumbnail=["media/secret.jpg", "link/secret.jpg", "media/inside.jpg"])
    (data / "media").mkdir()
    (data / "media/secret.jpg").symlink_to(outside / "secret.jpg")
    (data / "media/inside.jpg").symlink_to(data / "items.parquet")
    (data / "link").symlink_to(outside)
    with pytest.raises(InvalidData, match="row 0"):
        list(read_items(data))
    data = write_items(thumbnail=[None, "link/secret.jpg", None])
    with pytest.raises(InvalidData, match="row 1"):
        list(read_items(data))
    data = write_items(thumbnail=[None, None, "media/inside.jpg"])
    assert list(read_items(data))[2].thumbnail == data.resolve() / "items.parquet"


def test_captions_as_bytes_and_as_paths(tmp_path: Path) -> None:
    assert list(read_captions(tmp_path)) == []
    path = tmp_path / "captions.parquet"
    pq.write_table(pa.table({"image": [b"1", b"2"], "caption": ["one", "two"]}), path)
    assert list(read_captions(tmp_path)) == [(b"1", "one"), (b"2", "two")]
    pq.write_table(pa.table({"image": ["x/1.png"], "caption": ["one"]}), path)
    assert list(read_captions(tmp_path)) == [(tmp_path.resolve() / "x/1.png", "one")]
    for image, message in (["../1.png"], "inside"), ([None], "null"), ([b"1", None], "null"):
        captions = ["one"] * len(image)
        pq.write_table(pa.table({"image": image, "caption": captions}), path)
        with pytest.raises(InvalidData, match=message):
            list(read_captions(tmp_path))


def test_the_fingerprint_follows_the_tables(
    write_items: Write, write_interactions: Write, tmp_path: Path
) -> None:
    with pytest.raises(InvalidData, match="no such file"):
        fingerprint(tmp_path)
    data = write_items()
    seen = [fingerprint(data)]
    assert len(seen[0]) == 12
    assert int(seen[0], 16) >= 0
    assert fingerprint(data) == seen[0]
    write_interactions()
    seen.append(fingerprint(data))
    write_interactions(timestamp=[1, 2, 3, 4])
    seen.append(fingerprint(data))
    # The same bytes under another name are other data.
    (data / "interactions.parquet").rename(data / "impressions.parquet")
    seen.append(fingerprint(data))
    (data / "truth.parquet").write_bytes(b"planted")
    assert len(set(seen)) == 4
    assert fingerprint(data) == seen[-1]
