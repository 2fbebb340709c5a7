"""The plan store in Redis: what is removed, what is refused, and what a dead writer leaves."""

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from own_redis import redis_server
from stores import info_of, plans_of

from serendip.core import CorruptArtifact, InvalidRequest, NotFound, NotReady, SerendipError

OLD, NEW = "0" * 12, "1" * 12


@pytest.fixture
def room(redis_client):
    from serendip.planning import redis_store

    return redis_store


def write(room, client, version, count=10, **options):
    room.write_redis(client, plans_of(count, version), info_of(count, version), **options)


def keys_of(client, version):
    return [key for key in client.scan_iter() if version.encode() in key]


def test_versions_are_kept_by_count_the_newest_first(room, redis_client):
    versions = [f"{n:012x}" for n in range(5)]
    for version in versions:
        write(room, redis_client, version, count=2500, keep=3)
        assert room.current_version(redis_client) == version
    assert [v for v in versions if keys_of(redis_client, v)] == versions[-3:]
    with pytest.raises(InvalidRequest, match="keep: must be at least 1"):
        write(room, redis_client, OLD, keep=0)


def test_a_reader_of_a_version_that_is_gone_is_told_so(room, redis_client):
    write(room, redis_client, OLD)
    with closing(room.RedisStore(redis_client, OLD)) as store:
        write(room, redis_client, NEW, keep=1)
        with pytest.raises(NotFound, match="no such version in Redis"):
            store.get("i0")  # and is not told that the item has no plan
        with pytest.raises(NotFound):
            store.get_many(["i0", "i1"])
    with pytest.raises(NotFound):
        room.RedisStore(redis_client, OLD)


def test_a_version_that_is_there_becomes_current_again_and_is_not_written(room, redis_client):
    write(room, redis_client, OLD)
    write(room, redis_client, NEW)
    room.write_redis(redis_client, iter([]), info_of(10, OLD))
    assert room.current_version(redis_client) == OLD
    assert room.RedisStore(redis_client, OLD).get("i3") == dict(plans_of(10, OLD))["i3"]


def test_a_version_that_lost_plans_is_refused_and_mended_by_writing_it_again(room, redis_client):
    write(room, redis_client, OLD, count=2500)
    redis_client.delete(f"{room.PREFIX}:{OLD}:1")
    with pytest.raises(CorruptArtifact, match=r"must hold 2500 plans.*noeviction"):
        room.RedisStore(redis_client, OLD)
    write(room, redis_client, OLD, count=2500)
    assert room.RedisStore(redis_client, OLD).info().count == 2500


def test_memory_that_is_full_leaves_the_version_before(room, redis_client):
    write(room, redis_client, OLD)
    redis_client.config_set("maxmemory", redis_client.info("memory")["used_memory"] + 500_000)
    with pytest.raises(SerendipError, match=r"Redis refuses.*memory"):
        write(room, redis_client, NEW, count=20_000)
    assert room.current_version(redis_client) == OLD
    assert not keys_of(redis_client, NEW)
    assert room.RedisStore(redis_client, OLD).get("i0")
    redis_client.config_set("maxmemory", 0)
    write(room, redis_client, NEW, count=20_000)


# Says where it is after some plans, then waits to be killed.
DIE = """
import sys
sys.path.insert(0, sys.argv[1])
from stores import info_of, plans_of
from serendip.planning.redis_store import connect, write_redis

def plans():
    yield from plans_of(4000, "1" * 12)
    print("half", flush=True)
    sys.stdin.read()

write_redis(connect(sys.argv[2], retries=0), plans(), info_of(8000, "1" * 12))
"""


def test_what_a_killed_writer_left_goes_with_the_next_one(room, redis_client, redis_url):
    write(room, redis_client, OLD)
    command = [sys.executable, "-c", DIE, str(Path(__file__).parent), redis_url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"half\n"
        with pytest.raises(InvalidRequest, match="another process is writing"):
            write(room, redis_client, "2" * 12)
        writer.kill()
    assert keys_of(redis_client, NEW)
    with pytest.raises(InvalidRequest, match="that was killed counts for 60 s"):
        write(room, redis_client, "2" * 12)
    redis_client.delete(f"{room.PREFIX}:lock")  # as its time does
    write(room, redis_client, "2" * 12)
    assert not keys_of(redis_client, NEW)
    assert room.current_version(redis_client) == "2" * 12


def test_a_writer_that_was_taken_for_dead_does_not_go_on(room, redis_client):
    def plans():
        yield from plans_of(3000, OLD)
        redis_client.delete(f"{room.PREFIX}:lock")
        yield ("late", b"")

    with pytest.raises(InvalidRequest, match="one write at a time"):
        room.write_redis(redis_client, plans(), info_of(3001, OLD))
    assert room.current_version(redis_client) is None


def test_a_redis_that_is_away_is_named(room):
    with redis_server() as url, closing(room.connect(url, retries=0)) as client:
        write(room, client, OLD)
        store = room.RedisStore(client, OLD)
        client.shutdown(nosave=True)
        for read in (lambda: store.get("i0"), lambda: store.get_many(["i0"])):
            with pytest.raises(NotReady, match="Redis cannot be reached"):
                read()
        with pytest.raises(NotReady):
            write(room, client, NEW)
    for url, error in (("unix:///none", NotReady), ("http://x", InvalidRequest)):
        with pytest.raises(error, match="redis"):
            room.connect(url)
