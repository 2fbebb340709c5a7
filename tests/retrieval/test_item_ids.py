"""Item IDs by rank and back, over arrays in memory and over mapped files."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serendip.core import CorruptArtifact
from serendip.retrieval import item_ids
from serendip.retrieval.item_ids import FILES, ItemIds

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@settings(deadline=None)
@given(st.lists(names, unique=True, max_size=60), st.lists(names, max_size=20))
def test_they_are_what_a_dict_says(ids: list[str], others: list[str]) -> None:
    found = ItemIds.of(ids)
    if ids:
        found.check()
    expected = {item_id: rank for rank, item_id in enumerate(ids)}
    for _ in range(2):  # looked up, then remembered
        assert [found.rank(i) for i in (*ids, *others)] == [
            expected.get(i) for i in (*ids, *others)
        ]
        assert found.known((*others, *ids)) == [
            expected[i] for i in (*others, *ids) if i in expected
        ]
        assert found.names(range(len(ids))) == list(map(str.encode, ids))
    assert found.array().to_pylist() == ids
    assert len(found) == len(ids)


def test_files_give_back_what_was_saved(tmp_path: Path) -> None:
    ids = [f"item-{n}" for n in range(500)]
    ItemIds.of(ids).save(tmp_path)
    mapped = ItemIds(*(np.load(tmp_path / name, mmap_mode="r") for name in FILES))
    mapped.check()
    assert mapped.known(reversed(ids)) == list(reversed(range(500)))
    assert mapped.rank("item-500") is None


def test_ids_that_meet_in_a_slot_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    # Every ID has the same hash: the table is one long run, around its end.
    monkeypatch.setattr(item_ids, "crc32", lambda _: zlib.crc32(b"x") | 0xFFF)
    ids = [f"i{n}" for n in range(40)]
    found = ItemIds.of(ids)
    found.check()
    assert [found.rank(i) for i in ids] == list(range(40))
    assert found.rank("i40") is None


def test_what_is_remembered_is_bounded_and_the_rest_is_found_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(item_ids, "_REMEMBERED", 8)
    ids = [f"i{n}" for n in range(40)]
    found = ItemIds.of(ids)
    for _ in range(2):
        assert found.known(ids) == list(range(40))
        assert found.names(range(40)) == list(map(str.encode, ids))
    assert (len(found._ranks), len(found._names)) == (8, 8)


def test_an_id_of_two_items_is_refused() -> None:
    with pytest.raises(CorruptArtifact, match="twice"):
        ItemIds.of(["a", "b", "a"])
