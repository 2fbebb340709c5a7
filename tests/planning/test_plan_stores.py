"""What every plan store promises: one suite, over LMDB and over Redis."""

from contextlib import closing
from threading import Thread

import pytest
from stores import info_of, make_plan, plans_of

from serendip.core import MAX_ID_BYTES, CorruptArtifact, InvalidData, InvalidRequest, NotReady
from serendip.planning.lmdb_store import LmdbStore, write_lmdb
from serendip.planning.plan_store import StoreInfo, decode_plan, encode_plan, planned_at_s
from serendip.v1 import planner_pb2
from serendip.wire_plans import plan_to_proto


class InLmdb:
    """One file a version."""

    def __init__(self, folder):
        self.folder = folder

    def write(self, plans, info):
        write_lmdb(self.folder / info.version, plans, info)

    def open(self, version):
        return LmdbStore(self.folder / version)

    def holds(self, version):
        return (self.folder / version).exists()


class InRedis:
    """One set of keys a version."""

    def __init__(self, client):
        from serendip.planning import redis_store

        self.client = client
        self.room = redis_store

    def write(self, plans, info):
        self.room.write_redis(self.client, plans, info)

    def open(self, version):
        return self.room.RedisStore(self.client, version)

    def holds(self, version):
        return any(version.encode() in key for key in self.client.scan_iter())


@pytest.fixture(params=["lmdb", "redis"])
def engine(request, tmp_path):
    if request.param == "lmdb":
        return InLmdb(tmp_path)
    return InRedis(request.getfixturevalue("redis_client"))


@pytest.fixture
def store(engine):
    engine.write(plans_of(2500), info_of(2500))
    with closing(engine.open("0" * 12)) as opened:
        yield opened


def test_a_plan_comes_back_byte_for_byte(store):
    for item_id, plan in plans_of(2500):
        assert store.get(item_id) == plan
    assert decode_plan(store.get("i7")) == make_plan("i7")
    assert store.get("nobody") is None


def test_many_come_in_the_order_asked_for(store):
    plans = dict(plans_of(2500))
    asked = ["i9", "nobody", "i2499", "i9", "i0"]
    assert store.get_many(asked) == [plans.get(item_id) for item_id in asked]
    assert store.get_many([]) == []


def test_a_store_says_what_it_holds(store):
    assert store.info() == StoreInfo("0" * 12, "a" * 12, "b" * 12, 2500)


def test_any_item_id_that_the_schema_allows_is_a_key(engine):
    ids = ["x" * MAX_ID_BYTES, "é" * (MAX_ID_BYTES // 2), "a b\n\0", "0", "info", "\U0010ffff"]
    engine.write([(i, encode_plan(make_plan(i))) for i in ids], info_of(len(ids)))
    with closing(engine.open("0" * 12)) as store:
        assert [decode_plan(p).context_item_id for p in store.get_many(ids)] == ids


@pytest.mark.parametrize("item_id", ["", "x" * (MAX_ID_BYTES + 1), "é" * 129, "x" * 600])
def test_an_id_that_no_item_may_have_is_refused_at_both_borders(engine, store, item_id):
    with pytest.raises(InvalidRequest, match="item_id: must be 1 to 256 bytes"):
        store.get(item_id)
    with pytest.raises(InvalidRequest, match="item_ids: must be 1 to 256 bytes"):
        store.get_many(["i0", item_id])
    with pytest.raises(InvalidRequest, match="must be 1 to 256 bytes"):
        engine.write([("i0", b""), (item_id, b"")], info_of(2, "1" * 12))
    assert not engine.holds("1" * 12)


def test_two_plans_of_one_item_are_refused_and_nothing_is_half_written(engine):
    twice = [*plans_of(3000), ("i1234", b"another")]
    with pytest.raises(InvalidData, match=r"one plan.*'i1234'"):
        engine.write(twice, info_of(3001))
    assert not engine.holds("0" * 12)


@pytest.mark.parametrize("said", [2, 4])
def test_a_plan_that_is_missing_is_not_lost_in_silence(engine, said):
    with pytest.raises(InvalidData, match=rf"must be {said} plans, got 3"):
        engine.write(plans_of(3), info_of(said))
    assert not engine.holds("0" * 12)


def test_an_interrupted_build_leaves_the_versions_before_and_can_be_repeated(engine):
    engine.write(plans_of(10), info_of(10))

    def interrupted():
        yield from plans_of(4000, "1" * 12)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.write(interrupted(), info_of(4000, "1" * 12))
    assert not engine.holds("1" * 12)
    with closing(engine.open("0" * 12)) as store:
        assert store.get("i7") is not None
    engine.write(plans_of(4000, "1" * 12), info_of(4000, "1" * 12))
    with closing(engine.open("1" * 12)) as store:
        assert store.info().count == 4000


def test_an_empty_version_holds_nothing(engine):
    engine.write([], info_of(0))
    with closing(engine.open("0" * 12)) as store:
        assert store.get("i0") is None
        assert store.info().count == 0


def test_a_reader_keeps_its_version_beside_a_new_one(engine, store):
    engine.write(plans_of(5, "1" * 12), info_of(5, "1" * 12))
    with closing(engine.open("1" * 12)) as new:
        assert decode_plan(new.get("i3")).reasoning == "1" * 12
        assert new.get("i7") is None
        assert decode_plan(store.get("i7")).reasoning == "0" * 12


def test_threads_share_a_store(store):
    plans, wrong = dict(plans_of(2500)), []

    def read(part):
        wrong.extend(i for i in list(plans)[part::4] if store.get(i) != plans[i])

    threads = [Thread(target=read, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_closed_store_says_so(engine, store):
    with closing(engine.open("0" * 12)) as other:
        pass
    with pytest.raises(NotReady, match="closed"):
        other.get("i0")
    assert store.get("i0") is not None


def test_bytes_that_are_no_plan_are_a_typed_error():
    for data in (b"\xff\xff", b"\x12\x05abcde"):
        with pytest.raises(CorruptArtifact, match="serendip plan"):
            decode_plan(data)
    twice = 2 * encode_plan(make_plan("i0"))  # merged: its cluster twice
    with pytest.raises(CorruptArtifact, match="each cluster once"):
        decode_plan(twice)


def test_when_a_plan_was_made_is_read_wherever_it_stands():
    plan = make_plan("i0")
    message = plan_to_proto(plan)
    in_order = message.SerializeToString(deterministic=True)
    assert encode_plan(plan) != in_order
    assert planner_pb2.Plan.FromString(encode_plan(plan)) == message
    for data in (encode_plan(plan), in_order):
        assert planned_at_s(data) == plan.planned_at_ms // 1000
    assert planned_at_s(b"") == 0  # a plan that says nothing
    for data in (b"\x3a\x02\x08", b"\xff\xff"):
        with pytest.raises(CorruptArtifact, match="serendip plan"):
            planned_at_s(data)
