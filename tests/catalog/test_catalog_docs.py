"""The data page says what the code does: its examples run, its tables are the schemas."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest

from serendip.catalog.items import read_items
from serendip.catalog.schema import FILES
from serendip.core import BOUNDS

NAMES = {pa.float64(): "float64", pa.list_(pa.float32()): "list&lt;float32&gt;"}
PAGE = (Path(__file__).resolve().parents[2] / "docs/data.md").read_text()


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        exec(compile(example, "docs/data.md", "exec"), {})
    assert next(read_items(tmp_path / "data/mine")).title == "How bees dance"


def test_the_tables_list_every_column_with_its_type() -> None:
    for schema in FILES:
        section = PAGE.split(f"## {schema.file}\n")[1].split("\n## ")[0]
        rows = re.findall(r"^\| (\w+) \| ([^|]+) \|", section, re.MULTILINE)
        listed = {name: kind.strip() for name, kind in rows if name != "column"}
        expected = {}
        for column in schema.columns:
            kinds = [k for k in (column.type, column.or_type) if k is not None]
            expected[column.name] = " or ".join(NAMES.get(k, str(k)) for k in kinds)
        assert listed == expected


def test_the_bounds_are_the_ones_in_the_code() -> None:
    assert f"{BOUNDS.image_bytes >> 20} MiB, {BOUNDS.pixels // 10**6} million pixels |" in PAGE
    assert f"{BOUNDS.video_bytes >> 20} MiB, {BOUNDS.video_seconds:g} s, " in PAGE
