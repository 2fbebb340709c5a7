"""Bulk planning: one row an item, chunks as commits, stale items only, bad media set aside."""

import dataclasses
import os
import shutil
import time
from contextlib import closing
from functools import partial
from itertools import islice
from types import SimpleNamespace

import deadly
import pyarrow.parquet as pq
import pytest
from bulk_rows import rows_of

from serendip.artifacts import Artifacts
from serendip.catalog.items import read_items
from serendip.catalog.media import media_hash
from serendip.config import PlansConfig
from serendip.core import CorruptArtifact, InvalidRequest, Item, SerendipError
from serendip.curation.curate import read_pairs
from serendip.planning import bulk, rows
from serendip.planning.bulk import publish_plans
from serendip.planning.kept_plans import KeptPlans, kept_chunks
from serendip.planning.lmdb_store import FILE, LmdbStore
from serendip.planning.plan_store import decode_plan, encode_plan
from serendip.planning.planner import Planner
from serendip.planning.rows import hash_media, stale_keys
from serendip.planning.style import STYLES
from serendip.planning.workers import Setup, Task, Worker, plan_in_processes
from serendip.tree.cluster_tree import ClusterTree


@pytest.fixture
def own_copy(small_world, tmp_path):
    """The small world in folders of the test's own, to be broken."""
    config = small_world.config.model_copy(
        update={"data_dir": str(tmp_path / "data"), "artifacts_dir": str(tmp_path / "artifacts")}
    )
    shutil.copytree(small_world.config.data_path, config.data_path)
    shutil.copytree(small_world.config.artifacts_path, config.artifacts_path)
    return config, Artifacts(config.artifacts_path)


def test_every_item_of_the_corpus_has_one_row(small_world):
    plans = small_world.artifacts.current("plans")
    corpus = read_pairs(small_world.artifacts.current("pairs"), "corpus")
    rows = rows_of(plans)
    assert sorted(r.item_id for r in rows) == sorted(corpus.column("item_id").to_pylist())
    with closing(LmdbStore(plans.file(FILE))) as store:
        info = store.info()
        assert (info.version, info.count) == (plans.version, len(rows))
        assert (info.tree_version, info.planner_version) == (
            plans.inputs["tree"],
            plans.inputs["planner"],
        )
        assert [decode_plan(store.get(r.item_id)) for r in rows] == [r.plan for r in rows]


def test_plans_are_eight_real_clusters_and_never_the_item_s_own(small_world):
    tree = ClusterTree.open(small_world.artifacts.current("tree"))
    clusters = set(tree.nodes.at_level(4))
    for row in rows_of(small_world.artifacts.current("plans")):
        own = tree.node_of(row.item_id, 4)
        nodes = [c.node_id for c in row.plan.clusters]
        assert len(set(nodes)) == 8
        assert set(nodes) <= clusters - {own}
        scores = [c.score for c in row.plan.clusters]
        assert scores == sorted(scores, reverse=True)
        for c in row.plan.clusters:
            assert c.serendipitous == tree.nodes.is_serendipitous(own, c.node_id, 1)
            assert c.description == tree.nodes.description[c.node_id]


def test_an_unchanged_corpus_is_reused_whole(small_world):
    before = small_world.artifacts.current("plans")
    assert publish_plans(small_world.config, small_world.artifacts).version == before.version


def test_only_what_is_stale_is_planned_again(own_copy):
    config, artifacts = own_copy
    before = {r.item_id: r.plan for r in rows_of(artifacts.current("plans"))}
    first, second, *_ = sorted(before)
    items = {i.item_id: i for i in read_items(config.data_path)}
    shutil.copy(items[second].thumbnail, items[first].thumbnail)
    made = publish_plans(config, artifacts)
    assert (made.facts["planned"], made.facts["reused"]) == (1, len(before) - 1)
    after = {r.item_id: r.plan for r in rows_of(made)}
    assert {i for i in after if after[i] != before[i]} == {first}


def test_what_was_planned_live_is_adopted(own_copy):
    config, artifacts = own_copy
    plans, planner = artifacts.current("plans"), artifacts.current("planner")
    before = {r.item_id: r.plan for r in rows_of(plans)}
    tree = ClusterTree.open(artifacts.current("tree"))
    items = {i.item_id: i for i in read_items(config.data_path)}
    live, again, changed, other = sorted(before)[:4]
    for item_id in (live, again, changed):
        shutil.copy(items[other].thumbnail, items[item_id].thumbnail)
    made_of = rows.plans_made_of(tree.version, planner, config.plans)
    chars = config.planner.text_chars
    now = {i: encode_plan(before[i]) for i in (live, again, changed)}
    # Two servers have kept plans, some of the same item.
    for kept_ids in ((live, changed), (live,)):
        with closing(KeptPlans(artifacts.root, planner.version, made_of, chars)) as kept:
            for item_id in kept_ids:
                item, own = items[item_id], tree.node_of(item_id, 4)
                kept.keep(item, own, next(hash_media([item], {})), now[item_id])
        for path in kept_chunks(artifacts.root, planner.version):
            path.rename(path.with_name(f"{len(kept_ids)}.parquet"))
    other_search = rows.plans_made_of(tree.version, planner, PlansConfig(beams=3))
    with closing(KeptPlans(artifacts.root, planner.version, other_search, chars)) as kept:
        media = next(hash_media([items[again]], {}))
        kept.keep(items[again], tree.node_of(again, 4), media, now[again])
    shutil.copy(items[sorted(before)[5]].thumbnail, items[changed].thumbnail)
    made = publish_plans(config, artifacts)
    facts = made.facts
    assert (facts["adopted"], facts["planned"], facts["reused"]) == (1, 2, len(before) - 3)
    after = rows_of(made)
    assert sorted(r.item_id for r in after) == sorted(before)
    assert next(r.plan for r in after if r.item_id == live) == before[live]


def test_other_words_another_cluster_or_another_search_make_a_plan_stale(small_world):
    item = next(read_items(small_world.config.data_path))

    def key(of, made_of=("tree", "planner"), own=7):
        return stale_keys([of], list(hash_media([of], {})), [own], made_of, 10)

    others = [
        key(dataclasses.replace(item, title="new")),
        key(dataclasses.replace(item, text="new")),
        key(dataclasses.replace(item, thumbnail=None)),
        key(item, ("tree", "planner", 8)),
        key(item, own=8),
    ]
    assert key(item) not in others
    longer = dataclasses.replace(item, text="x" * 10 + "unseen")
    assert key(longer) == key(dataclasses.replace(item, text="x" * 10))


def test_files_are_hashed_again_only_when_size_or_time_of_change_differ(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"first")
    asked = []
    monkeypatch.setattr(rows, "media_hash", lambda item: asked.append(item) or media_hash(item))

    def hashed(item, known=()):
        asked.clear()
        (media,) = hash_media([item], {m.item_id: m for m in known})
        return media, len(asked)

    item = Item("a", "title", thumbnail=path)
    first, _ = hashed(item)
    assert hashed(item, [first]) == (first, 0)
    os.utime(path, ns=(1, 1))
    touched, read = hashed(item, [first])
    assert (touched.hash, read) == (first.hash, 1)
    path.write_bytes(b"other")
    changed, read = hashed(item, [touched])
    assert read == 1
    assert changed.hash != first.hash
    gone = Item("a", "title", thumbnail=tmp_path / "gone.jpg")
    assert hashed(gone, [hashed(gone)[0]])[1] == 1
    held = Item("a", "title", thumbnail=b"bytes")
    assert hashed(held, [hashed(held)[0]])[1] == 1


def test_bad_media_are_quarantined_with_the_reason_and_stop_nothing(own_copy):
    config, artifacts = own_copy
    before = {r.item_id for r in rows_of(artifacts.current("plans"))}
    truncated, no_video, missing, *_ = sorted(before)
    items = {i.item_id: i for i in read_items(config.data_path)}
    picture = items[truncated].thumbnail
    picture.write_bytes(picture.read_bytes()[:500])
    items[no_video].video.write_text("this is no mp4")
    items[missing].video.unlink()
    made = publish_plans(config, artifacts)
    assert made.facts["quarantined"] == 3
    reasons = dict(
        zip(*pq.read_table(made.file("quarantine.parquet")).to_pydict().values(), strict=True)
    )
    assert set(reasons) == {truncated, no_video, missing}
    assert all(str(items[i].thumbnail) in r or str(items[i].video) in r for i, r in reasons.items())
    with closing(LmdbStore(made.file(FILE))) as store:
        assert store.get(truncated) is None
        assert store.info().count == len(before) - 3


def test_a_run_that_was_cut_off_loses_and_repeats_nothing(own_copy):
    config, artifacts = own_copy
    whole = {r.item_id: r.plan for r in rows_of(artifacts.current("plans"))}
    shutil.rmtree(config.artifacts_path / "plans")
    done = []

    def stop_after_two_leases(setup, leases):
        for planned in plan_in_processes(setup, leases):
            yield planned
            done.extend(r.item_id for r in planned.rows)
            if len(done) >= 2 * setup.plans.batch_size:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish_plans(config, artifacts, crew=stop_after_two_leases)
    assert artifacts.current_version("plans") is None
    made = publish_plans(config, artifacts)
    assert made.facts["resumed"] == len(done) > 0
    assert made.facts["planned"] == len(whole) - made.facts["resumed"]
    after = {r.item_id: r.plan for r in rows_of(made)}
    assert len(rows_of(made)) == len(whole)
    for item_id, plan in after.items():
        assert [c.node_id for c in plan.clusters] == [c.node_id for c in whole[item_id].clusters]


def test_what_was_planned_before_the_corpus_changed_is_not_lost(own_copy):
    config, artifacts = own_copy
    count = len(rows_of(artifacts.current("plans")))
    shutil.rmtree(config.artifacts_path / "plans")
    done = []

    def stop_after_a_lease(setup, leases):
        for planned in plan_in_processes(setup, leases):
            yield planned
            done.extend(r.item_id for r in planned.rows)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish_plans(config, artifacts, crew=stop_after_a_lease)
    item = next(i for i in read_items(config.data_path) if i.item_id == done[0])
    with item.thumbnail.open("ab") as f:
        f.write(b"another hash")
    made = publish_plans(config, artifacts)
    assert made.facts["resumed"] == len(done) - 1
    assert made.facts["planned"] == count - len(done) + 1
    assert len(rows_of(made)) == count


def test_a_torn_chunk_is_planned_again(tmp_path):
    chunks = rows.Chunks(tmp_path / "chunks")
    for name in "abc":
        chunks.commit([rows.Row(name, "key", b"plan")])
    chunks.paths()[1].write_bytes(b"")
    assert rows.Chunks(tmp_path / "chunks").item_ids() == {"a", "c"}


def test_an_item_that_brings_its_workers_down_is_quarantined_and_tried_in_the_next_run(own_copy):
    config, artifacts = own_copy
    config = config.model_copy(update={"plans": config.plans.model_copy(update={"batch_size": 4})})
    count = len(rows_of(artifacts.current("plans")))
    shutil.rmtree(config.artifacts_path / "plans")
    corpus = read_pairs(artifacts.current("pairs"), "corpus").column("item_id").to_pylist()
    deadly_one = corpus[5]

    def crew(setup, leases):
        return plan_in_processes(
            dataclasses.replace(setup, load=partial(deadly.load_for_worker, deadly_one)), leases
        )

    made = publish_plans(config, artifacts, crew=crew)
    bad = [r for r in rows_of(made) if r.plan is None]
    assert [r.item_id for r in bad] == [deadly_one]
    assert "brought its workers down" in bad[0].reason
    assert (len(rows_of(made)), made.facts["unsure"]) == (count, 1)
    again = publish_plans(config, artifacts)
    assert (again.facts["planned"], again.facts["quarantined"]) == (1, 0)


def test_a_corpus_of_another_coverage_is_refused(small_world):
    plans = small_world.config.plans.model_copy(update={"coverage": 0.9})
    config = small_world.config.model_copy(update={"plans": plans})
    with pytest.raises(InvalidRequest, match=r"plans.coverage: .* chosen for 0.8, got 0.9"):
        publish_plans(config, small_world.artifacts)


def test_a_planner_of_another_tree_is_refused(small_world, tmp_path):
    planner = small_world.artifacts.current("planner")
    tree = ClusterTree.open(small_world.artifacts.current("tree"))
    ids = list(tree.item_ids)
    other = ClusterTree.from_leaves((2, 2, 4, 4), tree.leaf_of_rank, ids, None, "f" * 12)
    with pytest.raises(CorruptArtifact, match="was trained for tree"):
        Planner.open(planner, other.nodes, small_world.config.plans)


def test_a_corpus_of_bad_media_alone_publishes_nothing(own_copy):
    config, artifacts = own_copy
    before = artifacts.current_version("plans")
    for item in read_items(config.data_path):
        item.thumbnail.write_bytes(b"")
    with pytest.raises(SerendipError, match="no item of the corpus could be planned"):
        publish_plans(config, artifacts)
    assert artifacts.current_version("plans") == before


def test_the_window_s_end_publishes_the_most_impressed_and_the_next_run_goes_on(
    own_copy, monkeypatch
):
    config, artifacts = own_copy
    config = config.model_copy(update={"plans": config.plans.model_copy(update={"batch_size": 8})})
    whole = artifacts.current("plans")
    shutil.rmtree(config.artifacts_path / "plans")
    later = time.monotonic() + 7200

    def slow_after_the_third(setup, leases):
        for at, planned in enumerate(plan_in_processes(setup, leases)):
            yield planned
            if at == 2:
                monkeypatch.setattr(bulk, "time", SimpleNamespace(monotonic=lambda: later))

    part = publish_plans(config, artifacts, max_hours=1, crew=slow_after_the_third)
    monkeypatch.undo()
    corpus = read_pairs(artifacts.current("pairs"), "corpus").column("item_id").to_pylist()
    planned = part.facts["planned"]
    assert 24 <= planned < len(corpus) == planned + part.facts["left"]
    assert {r.item_id for r in rows_of(part)} == set(corpus[:planned])
    with closing(LmdbStore(part.file(FILE))) as store:
        assert store.info().count == planned
    rest = publish_plans(config, artifacts)
    assert (rest.facts["resumed"], rest.facts["planned"]) == (planned, part.facts["left"])
    assert rest.version == whole.version != part.version
    assert artifacts.current("plans").version == whole.version
    assert sorted(r.item_id for r in rows_of(rest)) == sorted(corpus)


def test_a_window_without_time_says_so_and_publishes_nothing(own_copy):
    config, artifacts = own_copy
    shutil.rmtree(config.artifacts_path / "plans")
    with pytest.raises(InvalidRequest, match="--max-hours: was over before an item was planned"):
        publish_plans(config, artifacts, max_hours=0)
    assert artifacts.current_version("plans") is None


def test_torch_and_onnx_runtime_plan_alike(own_copy):
    config, artifacts = own_copy
    by_graph = {r.item_id: r.plan.clusters for r in rows_of(artifacts.current("plans"))}
    assert (artifacts.current("planner").path / "onnx").exists()
    shutil.rmtree(config.artifacts_path / "plans")
    plans = config.plans.model_copy(update={"runtime": "torch", "workers": 2, "decoders": 2})
    made = publish_plans(config.model_copy(update={"plans": plans}), artifacts)
    for row in rows_of(made):
        ours, theirs = row.plan.clusters, by_graph[row.item_id]
        assert [c.node_id for c in ours] == [c.node_id for c in theirs]
        assert [c.score for c in ours] == pytest.approx([c.score for c in theirs], abs=1e-4)


def test_one_item_that_cannot_be_put_to_the_model_stops_nothing(small_world):
    """A worker plans the others of its lease without it."""
    artifacts = small_world.artifacts
    tree = ClusterTree.open(artifacts.current("tree"))
    setup = Setup(
        artifacts.current("planner"), tree.nodes, small_world.config.plans, 1, STYLES["text"], 0
    )
    worker = Worker(dataclasses.replace(setup, load=deadly.load))
    items = list(islice(read_items(small_world.config.data_path), 3))
    # The planner was trained to look: without pictures its prompts cannot be built.
    (row,) = worker.plan([Task(items[0], None, "key")]).rows
    worker.close()
    assert (row.plan, row.stale_key) == (None, "key")
    assert "needs at least one image" in row.reason
