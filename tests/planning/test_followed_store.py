"""Readers go over to a new version without a failed read, and a bad one changes nothing."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
import store_reader
from stores import info_of, plans_of

from serendip.artifacts import Artifacts
from serendip.core import CorruptArtifact, NotFound
from serendip.planning.followed_store import FollowedStore
from serendip.planning.lmdb_store import FILE, LmdbStore, write_lmdb
from serendip.planning.plan_store import decode_plan


class Published:
    """Plans published as artefacts; the oldest are removed by hand."""

    kind = "lmdb"

    def __init__(self, root):
        self.where = str(root)
        self.artifacts = Artifacts(root)

    def publish(self, count, name, cut_off=0):
        """Publishes plans that name their version, and returns it."""
        with self.artifacts.publish("plans", {"name": name}, {}) as draft:
            path, rows = draft.path / FILE, plans_of(count, draft.version)
            write_lmdb(path, rows, info_of(count, draft.version))
            os.truncate(path, path.stat().st_size - cut_off)
        return draft.version

    def publish_corrupt(self, name):
        """A version whose file is cut off."""
        return self.publish(3, name, cut_off=4096)

    def remove(self, version):
        shutil.rmtree(self.artifacts.root / "plans" / version)

    def opener(self, version):
        return LmdbStore(self.artifacts.open("plans", version, verify=False).file(FILE))

    def current(self):
        return self.artifacts.current_version("plans")


class InRedis:
    """Plans in Redis, which keeps two versions."""

    kind = "redis"

    def __init__(self, client, url):
        from serendip.planning import redis_store

        self.where, self.client, self.room = url, client, redis_store

    def publish(self, count, name):
        version = f"{name:012x}"
        rows = plans_of(count, version)
        self.room.write_redis(self.client, rows, info_of(count, version), keep=2)
        return version

    def publish_corrupt(self, name):
        """A version whose plans are lost, as by eviction; no reader meets it whole."""
        version = f"{name:012x}"
        self.room.write_redis(
            self.client, plans_of(3, version), info_of(3, version), prefix="aside"
        )
        with self.client.pipeline() as pipe:
            pipe.rename(f"aside:{version}:info", f"{self.room.PREFIX}:{version}:info")
            pipe.set(f"{self.room.PREFIX}:current", version)
            pipe.execute()
        return version

    def remove(self, version):
        """The next publication does."""


@pytest.fixture
def published(tmp_path):
    return Published(tmp_path)


@pytest.fixture(params=["lmdb", "redis"])
def engine(request, tmp_path):
    if request.param == "lmdb":
        return Published(tmp_path)
    return InRedis(*map(request.getfixturevalue, ("redis_client", "redis_url")))


def swap_under_readers(engine, seconds):
    """Four reading processes under swaps, each fifth to a corrupt version; their reports."""
    versions, corrupt = [engine.publish(store_reader.COUNT, 0)], []
    last_name = 1 << 20
    last = last_version(engine, last_name)
    reader = [sys.executable, store_reader.__file__, engine.kind, engine.where, last]
    processes = [
        subprocess.Popen(reader, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    try:
        for process in processes:
            assert process.stdout.readline() == "reading\n", process.stderr.read()
        until, name = time.monotonic() + seconds, 1
        while time.monotonic() < until:
            if name % 5 == 0:
                corrupt.append(engine.publish_corrupt(name))
                time.sleep(0.3)
            else:
                versions.append(engine.publish(store_reader.COUNT, name))
                if len(versions) > 2:
                    engine.remove(versions[-3])
                time.sleep(0.1)
            name += 1
        versions.append(engine.publish(store_reader.COUNT, last_name))
        assert versions[-1] == last
        reports = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return versions, corrupt, reports


def last_version(engine, name):
    """What the version of that name will be."""
    if engine.kind == "redis":
        return f"{name:012x}"
    from serendip.artifacts import version_of

    return version_of("plans", {"name": name}, {})


def check_reports(versions, corrupt, reports):
    for report in reports:
        assert report["failures"] == []
        assert report["reads"] > 100
        assert set(report["seen"]) <= set(versions)
        assert versions[-1] in report["seen"]
        assert set(report["refused"]) <= set(corrupt)
    # A reader may sleep through a version, but not through most of them.
    assert set().union(*(r["refused"] for r in reports))
    assert len(set().union(*(r["seen"] for r in reports))) > len(versions) / 4


def test_four_reading_processes_follow_every_swap_and_no_read_fails(engine):
    check_reports(*swap_under_readers(engine, 5))


@pytest.mark.full
def test_four_reading_processes_follow_swaps_for_a_minute(engine):
    check_reports(*swap_under_readers(engine, 60))


def reasoning(store, item_id="i0"):
    return decode_plan(store.get(item_id)).reasoning


def wait_for(happened):
    until = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_corrupt_version_is_refused_and_told_of_once(published):
    first = published.publish(5, "first")
    refused, tried = [], []

    def open_version(version):
        tried.append(version)
        return published.opener(version)

    with closing(
        FollowedStore(
            published.current,
            open_version,
            every_s=0.01,
            on_refused=lambda version, error: refused.append((version, type(error))),
        )
    ) as store:
        bad = published.publish_corrupt("bad")
        wait_for(lambda: tried == [first, bad, bad])
        assert refused == [(bad, CorruptArtifact)]
        assert reasoning(store) == first
        second = published.publish(5, "second")
        wait_for(lambda: store.info().version == second)
        assert reasoning(store) == second


def test_what_was_left_is_closed_when_its_last_read_has_ended(published):
    first = published.publish(5, "first")
    path = published.artifacts.open("plans", first).file(FILE)
    maps = Path("/proc/self/maps")
    with closing(FollowedStore(published.current, published.opener, every_s=0.01)) as store:
        reading = store.pinned()
        second = published.publish(5, "second")
        wait_for(lambda: store.info().version == second)
        assert reasoning(reading) == first
        assert str(path) in maps.read_text()
        del reading
        wait_for(lambda: str(path) not in maps.read_text())


def test_going_back_to_a_version_that_is_still_read(published):
    first = published.publish(5, "first")
    with closing(FollowedStore(published.current, published.opener, every_s=0.01)) as store:
        reading = store.pinned()
        second = published.publish(5, "second")
        wait_for(lambda: store.info().version == second)
        published.artifacts.make_current("plans", first)
        wait_for(lambda: store.info().version == first)
        assert reasoning(store) == reasoning(reading) == first


def test_a_version_that_is_removed_between_two_looks_fails_no_read(redis_client, redis_url):
    engine = InRedis(redis_client, redis_url)
    engine.publish(5, 1)
    store = FollowedStore(
        lambda: engine.room.current_version(redis_client),
        lambda version: engine.room.RedisStore(redis_client, version),
        every_s=3600,
    )
    with closing(store):
        for name in (2, 3, 4):  # two are kept
            last = engine.publish(5, name)
        assert reasoning(store) == last
        for name in (5, 6, 7):
            last = engine.publish(5, name)
        assert {decode_plan(plan).reasoning for plan in store.get_many(["i0", "i1"])} == {last}


def test_a_pointer_that_is_away_changes_nothing(published):
    first = published.publish(5, "first")
    told = threading.Event()
    with closing(
        FollowedStore(
            published.current,
            published.opener,
            every_s=0.01,
            on_refused=lambda version, error: told.set(),
        )
    ) as store:
        (published.artifacts.root / "plans" / "current").unlink()
        assert told.wait(20)
        assert reasoning(store) == first
        published.artifacts.make_current("plans", published.publish(5, "second"))
        wait_for(lambda: store.info().version != first)


def test_a_callback_that_fails_does_not_end_the_following(published):
    published.publish(5, "first")

    def fails(info):
        raise RuntimeError

    with closing(
        FollowedStore(published.current, published.opener, every_s=0.01, on_swap=fails)
    ) as store:
        for name in ("second", "third"):
            version = published.publish(5, name)
            wait_for(lambda version=version: store.info().version == version)


def test_without_a_current_version_nothing_opens(published):
    with pytest.raises(NotFound, match="no plans are current"):
        FollowedStore(published.current, published.opener)
