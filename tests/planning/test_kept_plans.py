"""Live plans that are kept: found again, while they are what would be planned now."""

import logging
import os
import time

import pyarrow.parquet as pq
import pytest
import tiny_planner

from serendip.planning import kept_plans
from serendip.planning.kept_plans import KeptPlans, kept_chunks
from serendip.planning.rows import SCHEMA, hash_media

PLANNER = "aaaaaaaaaaaa"


@pytest.fixture
def root(tmp_path):
    (tmp_path / "planner" / PLANNER).mkdir(parents=True)
    return tmp_path


@pytest.fixture
def opened(root):
    """Opens the plans kept under the root; closes all of them at the end."""
    made = []

    def open_(made_of=("tree", "planner"), **options):
        made.append(KeptPlans(root, PLANNER, made_of, 400, **options))
        return made[-1]

    yield open_
    for kept in made:
        kept.close()


def media_of(item):
    return next(hash_media([item], {}))


def keep(kept, item, plan=b"plan", own=4):
    kept.keep(item, own, media_of(item), plan)


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def test_a_plan_is_found_at_once_and_by_whoever_comes_after(root, opened, tmp_path):
    told = []
    kept = opened(on_kept=lambda: told.append(1))
    item = tiny_planner.item_of(tmp_path)
    assert kept.get(item, 4) is None
    keep(kept, item)
    keep(kept, item)
    assert kept.get(item, 4) == b"plan"
    assert len(told) == 1
    kept.close()
    assert opened().get(item, 4) == b"plan"
    (path,) = kept_chunks(root, PLANNER)
    assert pq.read_schema(path) == SCHEMA


def test_it_is_written_while_the_server_runs(root, opened, tmp_path):
    kept = opened(flush_s=0.05)
    for n in range(3):
        keep(kept, tiny_planner.item_of(tmp_path, f"i{n}"))
        until(
            lambda n=n: (
                sum(pq.ParquetFile(p).metadata.num_rows for p in kept_chunks(root, PLANNER))
                == n + 1
            )
        )
    assert len(kept_chunks(root, PLANNER)) == 1, "one file a process until it is full"


def test_a_plan_that_would_be_made_otherwise_now_is_not_given(opened, tmp_path):
    kept = opened()
    item = tiny_planner.item_of(tmp_path)
    keep(kept, item)
    assert kept.get(item, 5) is None, "the item has moved"
    keep(kept, item)
    tiny_planner.picture(item.thumbnail, seed=7)
    assert kept.get(item, 4) is None, "its thumbnail is another"
    assert item.item_id not in kept
    keep(kept, item, b"newer")
    kept.close()
    assert opened(("another tree", "planner")).get(item, 4) is None
    assert opened().get(item, 4) == b"newer"


def test_only_the_newest_are_kept(opened, tmp_path, root, monkeypatch):
    monkeypatch.setattr(kept_plans, "_FILE_ROWS", 2)
    monkeypatch.setattr(kept_plans, "_MAX_FILES", 3)
    items = [tiny_planner.item_of(tmp_path, f"i{n}") for n in range(20)]
    kept = opened(max_plans=5)
    for item in items:
        keep(kept, item)
    assert [item.item_id in kept for item in items] == [False] * 15 + [True] * 5
    kept.close()
    assert len(kept_chunks(root, PLANNER)) == 3
    assert items[-1].item_id in opened()


@pytest.mark.parametrize("fault", ["a file is in the way", "torn"])
def test_a_folder_that_is_no_good_costs_no_call(root, opened, tmp_path, fault, caplog):
    folder = root / "live" / PLANNER
    if fault == "torn":
        folder.mkdir(parents=True)
        (folder / "00000000000000000001-1.parquet").write_bytes(b"PAR1 cut off")
    else:
        (root / "live").write_text("")
    failed = []
    item, other = (tiny_planner.item_of(tmp_path, name) for name in ("i0", "i1"))
    with caplog.at_level(logging.ERROR):
        kept = opened(on_failed=lambda: failed.append(1), flush_s=0.05)
        for at, one in enumerate((item, other), start=1):
            keep(kept, one)
            assert kept.get(one, 4) == b"plan"
            if fault != "torn":
                until(lambda at=at: len(failed) == at)
        kept.close()
    lines = [r for r in caplog.records if "live plans in" in r.getMessage()]
    if fault == "torn":
        assert failed == lines == []
        assert opened().get(other, 4) == b"plan"
    else:
        assert len(lines) == 1
        (root / "live").unlink()
        keep(again := opened(), item)
        again.close()
        assert opened().get(item, 4) == b"plan"


def test_chunks_that_cannot_be_read_cost_no_other(root, opened, tmp_path, caplog):
    items = [tiny_planner.item_of(tmp_path, f"i{n}") for n in range(3)]
    for item in items:
        keep(kept := opened(), item)
        kept.close()
    for path in kept_chunks(root, PLANNER)[1:]:  # the older two; their footers stay whole
        whole = path.read_bytes()
        path.write_bytes(whole[:4] + b"\xff" * 60 + whole[64:])
    with caplog.at_level(logging.ERROR):
        kept = opened()
    assert [item.item_id in kept for item in items] == [False, False, True]
    assert len([r for r in caplog.records if "cannot be read" in r.getMessage()]) == 1


def test_a_plan_that_no_longer_holds_leaves_nothing(opened, tmp_path):
    kept = opened()
    item = tiny_planner.item_of(tmp_path)
    keep(kept, item)
    assert kept.get(item, 5) is None
    assert item.item_id not in kept._media


def test_a_file_that_another_process_finishes_meanwhile_costs_nothing(root, opened, tmp_path):
    item = tiny_planner.item_of(tmp_path)
    keep(first := opened(), item)
    first.close()
    (root / "live" / PLANNER / "gone.partial").symlink_to(root / "nowhere")  # stat: no such file
    assert item.item_id in opened()


def test_what_is_nobody_s_is_cleared_away(root, opened):
    gone, own = root / "live" / "bbbbbbbbbbbb", root / "live" / PLANNER
    for folder in (gone, own):
        folder.mkdir(parents=True)
        for age_s, name in ((0, "new"), (7200, "old")):
            path = folder / f"{name}.partial"
            path.touch()
            os.utime(path, (time.time() - age_s,) * 2)
    opened()
    assert not gone.exists()
    assert [p.name for p in own.iterdir()] == ["new.partial"]
