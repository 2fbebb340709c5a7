"""The file of withheld items: followed, and never worse than its last good version."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from retriever_server.withheld import MAX_BYTES, WithheldFile, read_withheld
from serendip.core import InvalidData


def test_one_item_id_a_line(tmp_path: Path) -> None:
    file = tmp_path / "withheld.txt"
    file.write_bytes("a\n\nb c\r\nü\na".encode())
    assert read_withheld(file) == {"a", "b c", "ü"}
    file.write_bytes(b"")
    assert read_withheld(file) == frozenset()


@pytest.mark.parametrize(
    ("data", "says"),
    [(b"a\n\xff\n", "cannot be read"), (b"a\n" + b"x" * 257, "row 1: is no item ID")],
)
def test_what_is_no_such_file_says_why(tmp_path: Path, data: bytes, says: str) -> None:
    file = tmp_path / "withheld.txt"
    file.write_bytes(data)
    with pytest.raises(InvalidData, match=says):
        read_withheld(file)
    with pytest.raises(InvalidData, match=says):
        WithheldFile(file, CollectorRegistry())


def test_a_file_that_is_absent_or_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="cannot be read"):
        read_withheld(tmp_path / "none")
    with (tmp_path / "large").open("wb") as f:
        f.truncate(MAX_BYTES + 1)
    with pytest.raises(InvalidData, match="64 MiB"):
        read_withheld(tmp_path / "large")


def test_it_is_read_again_when_it_changes_and_a_broken_one_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry = CollectorRegistry()
    read = registry.get_sample_value
    file = tmp_path / "withheld.txt"
    file.write_text("a\nb\n")
    followed = WithheldFile(file, registry)
    assert (followed.ids, read("serendip_withheld_items")) == ({"a", "b"}, 2)
    assert not followed.refresh()
    file.write_text("a\nb\nc\n")
    assert followed.refresh()
    assert (followed.ids, read("serendip_withheld_items")) == ({"a", "b", "c"}, 3)
    with caplog.at_level(logging.ERROR):
        file.write_bytes(b"\xff")
        for _ in range(3):
            assert not followed.refresh()
        file.unlink()
        for _ in range(3):
            assert not followed.refresh()
    assert followed.ids == {"a", "b", "c"}
    assert read("serendip_withhold_failures_total") == 2
    assert len(caplog.records) == 2
    file.write_text("d\n")
    assert followed.refresh()
    assert followed.ids == {"d"}
