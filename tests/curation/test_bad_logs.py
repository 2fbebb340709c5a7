"""What curation makes of a broken log: one error, or a repair that is counted; and of a changed
corpus. A run that fails leaves current as it was.
"""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curated import CONFIG, PLACED, curated

from serendip.artifacts import Artifacts
from serendip.catalog.items import fingerprint
from serendip.catalog.logs import read_impressions, read_interactions
from serendip.config import Config
from serendip.core import InvalidData
from serendip.curation.curate import publish_pairs, read_pairs
from serendip.tree.cluster_tree import ClusterTree

N = 40
ITEMS = [f"i{k:02d}" for k in range(16)]


class Folder:
    """A data folder with a tree of 2 x 2 x 2 x 2 leaves; tests break one thing of its log."""

    def __init__(self, path):
        self.path = path
        self.data = path / "data"
        self.data.mkdir()
        self.artifacts = Artifacts(path / "artifacts")
        columns = dict.fromkeys(("item_id", "title", "text"), ITEMS)
        columns |= {"thumbnail": pa.nulls(16, pa.string()), "created_at": list(range(16))}
        pq.write_table(pa.table(columns), self.data / "items.parquet")

    def write(self, log=None, impressions=None):
        log = self.log() if log is None else log
        pq.write_table(log, self.data / "interactions.parquet")
        if impressions is not None:
            pq.write_table(impressions, self.data / "impressions.parquet")
        inputs = {"data": fingerprint(self.data)}
        with self.artifacts.publish("tree", {}, inputs) as draft:
            texts = [f"node {k}" for k in range(1 + 2 + 4 + 8 + 16)]
            ClusterTree.from_leaves((2, 2, 2, 2), np.arange(16), ITEMS, texts, draft.version).save(
                draft.path
            )
        return self

    def log(self, **changes):
        columns = {
            "user_id": [f"u{k // 10}" for k in range(N)],
            "item_id": [ITEMS[k * 7 % 16 // 2 * 2 + k % 2] for k in range(N)],
            "timestamp": pa.array([k * 1000 for k in range(N)], pa.int64()),
            "satisfaction": [k % 5 / 4 for k in range(N)],
        }
        return pa.table(columns | changes)

    def curate(self, **changes):
        values = {
            "data_dir": str(self.data),
            "artifacts_dir": str(self.path / "artifacts"),
            "level_gap": 4,
            "curation": {"min_support": 0.5, "threads": 1},
        }
        return publish_pairs(Config.model_validate(values | changes), self.artifacts)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def at(values, row, value):
    return [*values[:row], value, *values[row + 1 :]]


TIMES = [k * 1000 for k in range(N)]


@pytest.mark.parametrize(
    ("column", "values", "row", "message"),
    [
        ("timestamp", at(TIMES, 3, -1), 3, "must lie in"),
        ("timestamp", at(TIMES, 9, 2**60), 9, "must lie in"),
        ("timestamp", at(TIMES, 5, None), 5, "must not be null"),
        ("user_id", at(["u"] * N, 2, None), 2, "must not be null"),
        ("user_id", at(["u"] * N, 8, ""), 8, "1 to 256 bytes"),
        ("item_id", at(["i00"] * N, 4, ""), 4, "1 to 256 bytes"),
        ("item_id", at(["i00"] * N, 6, None), 6, "must not be null"),
        ("satisfaction", at([0.5] * N, 7, float("nan")), 7, "must lie in"),
        ("satisfaction", at([0.5] * N, 1, 1.5), 1, "must lie in"),
    ],
)
def test_what_breaks_a_column_is_refused_and_current_stays(folder, column, values, row, message):
    good = folder.write().curate()
    folder.write(folder.log(**{column: pa.array(values)}))
    with pytest.raises(InvalidData, match=message) as caught:
        folder.curate()
    assert (caught.value.field, caught.value.row) == (f"interactions.parquet:{column}", row)
    assert "1 of 40 rows are like this" in caught.value.remedy
    assert folder.artifacts.current("pairs").version == good.version


def test_the_part_that_is_broken_is_named(folder):
    folder.write()
    (folder.data / "interactions.parquet").unlink()
    for day in range(2):
        part = folder.data / "interactions" / f"day={day}"
        part.mkdir(parents=True)
        log = folder.log(timestamp=pa.array(TIMES if not day else at(TIMES, 4, -5)))
        pq.write_table(log, part / "a.parquet")
    with folder.artifacts.publish("tree", {}, {"data": fingerprint(folder.data)}) as draft:
        old = folder.artifacts.current("tree")
        for file in old.files:
            (draft.path / file).write_bytes((old.path / file).read_bytes())
    with pytest.raises(InvalidData) as caught:
        folder.curate()
    assert caught.value.field == "interactions/day=1/a.parquet:timestamp"
    assert (caught.value.row, caught.value.value) == (4, -5)


def test_unknown_items_are_left_out_and_counted_up_to_a_share(folder, capsys):
    log = folder.log(item_id=at(folder.log()["item_id"].to_pylist(), 11, "ghost"))
    folder.write(log)
    facts = folder.curate().facts["interactions"]
    assert (facts["rows_read"], facts["unknown_items"], facts["unknown_rows"]) == (40, 1, 1)
    assert "left out 0 duplicates and 1 of items" in " ".join(capsys.readouterr().err.split())
    kept = read_interactions(folder.data, max_unknown_share=0.05)
    assert kept["item_id"].to_pylist() == [i for i in log["item_id"].to_pylist() if i != "ghost"]
    with pytest.raises(InvalidData, match="not in the catalogue") as caught:
        folder.curate(max_unknown_share=0.01, level_gap=3)
    assert caught.value.value == "ghost"
    assert "1 of 40 rows name 1 items" in caught.value.remedy


def test_duplicates_are_left_out_and_counted(folder, capsys):
    once = folder.write().curate()
    expected = {name: read_pairs(once, name) for name in ("scores", "training", "corpus")}
    log = folder.log()
    folder.write(pa.concat_tables([log, log.slice(3, 5), log.slice(3, 1)]))
    twice = folder.curate()
    assert twice.facts["interactions"]["duplicates"] == 6
    assert {name: read_pairs(twice, name) for name in expected} == expected
    assert "left out 6 duplicates" in " ".join(capsys.readouterr().err.split())
    assert read_interactions(folder.data).equals(log)


def test_one_place_of_one_request_shows_one_item(folder):
    shown = pa.table(
        {
            "request_id": ["r", "r", "r", "s"],
            "user_id": ["u"] * 4,
            "item_id": ["i00", "i01", "i00", "i00"],
            "timestamp": pa.array([1, 1, 2, 3], pa.int64()),
            "position": pa.array([0, 1, 0, 0], pa.int64()),
            "nominated_by": ["x"] * 4,
            "propensity": [0.5] * 4,
            "satisfaction": [None, None, 0.5, None],
        }
    )
    pairs = folder.write(impressions=shown).curate(plans={"coverage": 1.0})
    assert pairs.facts["impressions"]["duplicates"] == 1
    assert read_pairs(pairs, "corpus").to_pylist() == [
        {"item_id": "i00", "impressions": 2},
        {"item_id": "i01", "impressions": 1},
    ]
    assert read_impressions(folder.data)["position"].to_pylist() == [0, 1, 0]


def test_a_giant_user_and_a_giant_item_are_reported(folder):
    items = ["i00" if k % 2 else ITEMS[k % 16] for k in range(N)]
    folder.write(folder.log(user_id=["u0"] * 30 + ["u1"] * 10, item_id=items))
    facts = folder.curate().facts
    assert facts["interactions"]["largest_user_share"] == 0.75
    assert facts["largest_item_share"] >= 0.5


def test_sets_of_very_many_equal_timestamps_are_left_out_and_counted():
    crowd = [("u", item, 0, k / 100) for k, item in enumerate([*PLACED] * 8)]
    events = [*crowd, ("u", "b0", 1000, 1.0), ("w", "a0", 0, 1.0), ("w", "b0", 5, 1.0)]
    tables, repaired = curated(events, CONFIG.model_copy(update={"max_tied_pairs": 39}))
    assert repaired["oversized_sets"] == 1
    assert tables["scores"]["support"].to_pylist() == [1.0]
    everything, repaired = curated(events, CONFIG.model_copy(update={"max_tied_pairs": 40}))
    assert repaired["oversized_sets"] == 0
    assert sum(everything["comparison"]["support"].to_pylist()) == pytest.approx(1.8)


def test_a_file_and_a_folder_of_one_log_are_refused(folder):
    folder.write()
    (folder.data / "interactions").mkdir()
    with pytest.raises(InvalidData, match="folder of the same name"):
        folder.curate()


def test_the_corpus_is_compared_with_the_previous_run_s(folder):
    first = folder.write().curate()
    before = set(read_pairs(first, "corpus")["item_id"].to_pylist())
    assert first.facts["corpus_diff"]["previous"] is None
    assert first.facts["corpus_diff"]["came"] == len(before)
    liked = ["i14"] * 20 + ["i15", "i13", "i11", "i09"] * 5
    second = folder.write(folder.log(item_id=liked)).curate()
    after = set(read_pairs(second, "corpus")["item_id"].to_pylist())
    changes = read_pairs(second, "corpus_diff").to_pylist()
    assert {r["item_id"] for r in changes if r["change"] == "came"} == after - before
    assert {r["item_id"] for r in changes if r["change"] == "left"} == before - after
    assert second.facts["corpus_diff"] == {
        "previous": first.version,
        "came": len(after - before),
        "left": len(before - after),
        "previous_covers": sum(liked.count(i) for i in before) / N,
    }
    assert second.facts["corpus_covers"] == sum(liked.count(i) for i in after) / N
    # Nothing of the scratch files is published.
    manifest = json.loads((second.path / "manifest.json").read_text())
    assert {p.name for p in second.path.iterdir()} == {*manifest["files"], "manifest.json"}
