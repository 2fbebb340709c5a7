"""Live plans before a real worker: shared, dropped, tried again, kept."""

import asyncio
import gc
import time
import weakref
from contextlib import asynccontextmanager
from dataclasses import replace

import parts
import pytest
import tiny_planner
from prometheus_client import CollectorRegistry

from planner_server import live
from planner_server.live import LivePlanner
from planner_server.live_metrics import LiveMetrics
from serendip.core import Constraint, DeadlineSpent, InvalidRequest, NotReady, Overloaded
from serendip.planning.kept_plans import KeptPlans
from serendip.planning.live_worker import Query
from serendip.planning.plan_store import decode_plan
from serendip.planning.prompt import Upload
from serendip.planning.rows import plans_made_of
from serendip.serving.batching import _Rate


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return tiny_planner.publish(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def event_loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


class Served:
    """A live planner on an event loop of the test's own."""

    def __init__(self, planner, registry, loop):
        self.planner, self._registry, self._loop = planner, registry, loop

    def run(self, coroutine):
        return self._loop.run_until_complete(asyncio.wait_for(coroutine, 60))

    def value(self, name, **labels):
        return self._registry.get_sample_value(f"serendip_live_{name}", labels or None) or 0.0


def served_with(published, loop, kept=None):
    _, tree, planner = published
    registry = CollectorRegistry()
    metrics = LiveMetrics(registry)
    setup = tiny_planner.setup_of(planner, tree, tiny_planner.load)
    return Served(LivePlanner(setup, metrics=metrics, kept=kept), registry, loop)


@pytest.fixture(scope="module")
def up(published, event_loop):
    served = served_with(published, event_loop)
    yield served
    event_loop.run_until_complete(served.planner.close())


@pytest.fixture
def gate(tmp_path):
    """Queries that hold both of the worker's turns until ``open`` is called."""
    return Gate(tmp_path)


class Gate:
    def __init__(self, folder):
        self._folder = folder
        self._file = folder / "open"

    def query(self, name):
        item = tiny_planner.item_of(self._folder, name, f"wait for {self._file}")
        return Query(item, None)

    def open(self):
        self._file.touch()

    @asynccontextmanager
    async def held(self, planner):
        """Both turns are taken while the block runs, and let go at its end.

        What batches took before is forgotten: no deadline is too short by it.
        """
        planner._batcher._rate = _Rate()
        first = asyncio.create_task(planner.plan(self.query("held0"), None))
        await until(lambda: planner.busy and planner.waiting == 0)
        second = asyncio.create_task(planner.plan(self.query("held1"), None))
        await until(lambda: len(planner._runs) == 2 and planner.waiting == 0)
        try:
            yield
        finally:
            self.open()
            await asyncio.gather(first, second)


async def until(condition, seconds=20):
    end = time.monotonic() + seconds
    await asyncio.sleep(0.01)
    while not condition():
        assert time.monotonic() < end, "it never came true"
        await asyncio.sleep(0.01)


def nodes(data):
    return [c.node_id for c in decode_plan(data).clusters]


def test_the_same_query_is_run_once(up, gate, tmp_path):
    query = Query(tiny_planner.item_of(tmp_path), None)
    same = Query(tiny_planner.item_of(tmp_path), None)
    upload = Upload("x", thumbnail=tiny_planner.picture(tmp_path / "x.png").read_bytes())
    rows, shared = up.value("batch_rows_sum"), up.value("shared_total")

    async def ask():
        # None may end before the digests of all uploads are made, which is in threads.
        async with gate.held(up.planner):
            asked = asyncio.gather(
                *(up.planner.plan(q, None) for q in (query, same, query)),
                *(up.planner.plan(Query(replace(upload)), None) for _ in range(3)),
                up.planner.plan(replace(query, constraint=Constraint.NONE, exclude=(4,)), None),
            )
            await until(lambda: up.value("shared_total") == shared + 4)
        return await asked

    found = up.run(ask())
    assert found[0] == found[1] == found[2]
    assert found[3] == found[4] == found[5]
    assert 4 not in nodes(found[6])
    assert up.value("batch_rows_sum") == rows + 2 + 3  # what held the worker, and these
    assert up.value("shared_total") == shared + 4
    assert not up.planner.busy


def test_everyone_has_their_own_deadline(up, gate):
    async def ask():
        query = gate.query("a")
        now = time.monotonic()
        hasty = asyncio.create_task(up.planner.plan(query, now + 0.3))
        patient = asyncio.create_task(up.planner.plan(query, now + 60))
        with pytest.raises(DeadlineSpent):
            await hasty
        assert not patient.done()
        later = asyncio.create_task(up.planner.plan(query, None))
        await asyncio.sleep(0)
        gate.open()
        assert await patient == await later

    rows = up.value("batch_rows_sum")
    up.run(ask())
    assert up.value("batch_rows_sum") == rows + 1


def test_a_run_outlives_the_deadline_of_who_asked_first(up, gate, tmp_path):
    async def ask():
        query = Query(tiny_planner.item_of(tmp_path, "b"), None)
        async with gate.held(up.planner):
            first = asyncio.create_task(up.planner.plan(query, time.monotonic() + 0.2))
            await asyncio.sleep(0)
            second = asyncio.create_task(up.planner.plan(query, time.monotonic() + 60))
            with pytest.raises(DeadlineSpent):
                await first
        assert len(nodes(await second)) == 4

    up.run(ask())


def test_what_nobody_waits_for_is_dropped_before_it_runs(up, gate, tmp_path):
    rows = up.value("batch_rows_sum")

    async def ask():
        query = Query(tiny_planner.item_of(tmp_path, "c"), None)
        async with gate.held(up.planner):
            with pytest.raises(DeadlineSpent):
                await up.planner.plan(query, time.monotonic() + 0.1)
            await until(lambda: up.planner.waiting == 0)

    up.run(ask())
    assert up.value("batch_rows_sum") == rows + 2
    dropped = [up.value("dropped_rows_total", reason=why) for why in ("cancelled", "expired")]
    assert sum(dropped) >= 1


def test_media_that_wait_are_bounded_in_bytes(up, gate, monkeypatch):
    monkeypatch.setattr(live, "_MAX_WAITING_BYTES", 1000)

    async def ask():
        async with gate.held(up.planner):
            first = asyncio.create_task(
                up.planner.plan(Query(Upload("a", thumbnail=bytes(900))), None)
            )
            await until(lambda: up.planner._bytes == 900)
            with pytest.raises(Overloaded, match="media are waiting"):
                await up.planner.plan(Query(Upload("b", thumbnail=bytes(200))), None)
        with pytest.raises(InvalidRequest):
            await first

    up.run(ask())
    assert up.value("refused_rows_total", reason="bytes") == 1
    assert up.planner._bytes == 0


def test_content_without_a_picture_is_refused_before_it_waits(up):
    rows = up.value("batch_rows_sum")
    with pytest.raises(InvalidRequest, match=r"thumbnail: needs at least one image.*video_cot"):
        up.run(up.planner.plan(Query(Upload("x")), None))
    assert up.value("batch_rows_sum") == rows


def test_a_row_that_kills_the_worker_fails_alone(up, tmp_path):
    restarts = up.value("worker_restarts_total")

    async def ask():
        good = [Query(tiny_planner.item_of(tmp_path, f"good{n}"), None) for n in range(4)]
        bad = Query(tiny_planner.item_of(tmp_path, "bad", "deadly"), None)
        tasks = [asyncio.create_task(up.planner.plan(q, None)) for q in (*good[:2], bad, *good[2:])]
        await asyncio.gather(*tasks, return_exceptions=True)
        found = [task.exception() or len(nodes(task.result())) for task in tasks]
        with pytest.raises(NotReady, match="live worker ended"):
            raise found.pop(2)
        assert found == [4] * 4
        assert len(nodes(await up.planner.plan(good[0], None))) == 4

    up.run(ask())
    assert up.value("worker_restarts_total") >= restarts + 1


def test_a_plan_of_all_defaults_is_kept_and_no_other(published, event_loop, tmp_path, gate):
    artifacts, tree, planner = published
    made_of = plans_made_of(tree.version, planner, tiny_planner.SEARCH)
    kept = KeptPlans(artifacts.root, planner.version, made_of, tiny_planner.CONFIG.text_chars)
    served = served_with(published, event_loop, kept)
    item, other, changing = (
        tiny_planner.item_of(tmp_path, name, title)
        for name, title in (("i0", "rye"), ("i1", "rye"), ("i2", "changes"))
    )
    own = tree.node_of("i0", parts.LEVEL)

    async def ask():
        plan, *_ = await asyncio.gather(
            served.planner.plan(Query(item, own), None),
            served.planner.plan(Query(other, own, constraint=Constraint.SIBLINGS), None),
            served.planner.plan(Query(other, own, exclude=(4,)), None),
            served.planner.plan(Query(changing, own), None),
        )
        assert kept.get(item, own) == plan
        assert [i in kept for i in ("i0", "i1", "i2")] == [True, False, False]
        # A worker that is held up holds up no end.
        held = asyncio.create_task(served.planner.plan(gate.query("held"), None))
        await until(lambda: served.planner.busy and not served.planner.waiting)
        await asyncio.wait_for(served.planner.close(), 12)
        with pytest.raises(NotReady, match="live worker ended"):
            await held
        return plan

    plan = served.run(ask())
    again = KeptPlans(artifacts.root, planner.version, made_of, tiny_planner.CONFIG.text_chars)
    assert again.get(item, own) == plan
    again.close()


def test_a_planner_that_is_closed_is_let_go_without_the_collector(published, event_loop, tmp_path):
    """What a server starts with is left out of collections, and another release takes its place."""
    served = served_with(published, event_loop)
    assert served.run(served.planner.plan(Query(tiny_planner.item_of(tmp_path), None), None))
    planner, seat = weakref.ref(served.planner), weakref.ref(served.planner._seats[0])
    gc.collect()
    gc.disable()
    try:
        served.run(served.planner.close())
        del served
        assert planner() is None
        assert seat() is None
    finally:
        gc.enable()
