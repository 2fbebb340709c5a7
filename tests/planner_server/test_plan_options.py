"""What a Plan call's options leave of a plan, over gRPC on the small world."""

import contextlib
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serendip_client import SerendipClient

from planner_server.encode import encode_response, encode_stored, head_of
from planner_server.plan_rows import Wanted
from serendip.core import Constraint, DeadlineSpent, InvalidRequest, NotFound, PlanSource, Versions
from serendip.curation.curate import read_pairs
from serendip.local import start_server
from serendip.planning.lmdb_store import FILE, LmdbStore
from serendip.tree.cluster_tree import ClusterTree
from serendip.v1 import common_pb2, planner_pb2, planner_pb2_grpc


@pytest.fixture(scope="module")
def tree(small_world):
    return ClusterTree.open(small_world.artifacts.current("tree"))


@pytest.fixture(scope="module")
def stored(small_world):
    """An item whose stored plan has clusters that are serendipitous, and others."""
    store = LmdbStore(small_world.artifacts.current("plans").file(FILE))
    for item_id, plan in store.rows():
        found = [c.serendipitous for c in planner_pb2.Plan.FromString(plan).clusters]
        if any(found) and not all(found):
            return item_id
    raise AssertionError("no plan of the small world is fit for these tests")


def served(small_world, tmp_path_factory, *options):
    artifacts = str(small_world.config.artifacts_path)
    log = tmp_path_factory.mktemp("plans") / "log"
    return start_server(
        "planner_server", "--artifacts", artifacts, "--port", "0", *options, log=log
    )


@pytest.fixture(scope="module")
def look_up(small_world, tmp_path_factory):
    """A server that only looks plans up."""
    server = served(small_world, tmp_path_factory, "--no-live")
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def live(small_world, tmp_path_factory):
    catalogue = str(small_world.config.data_path)
    server = served(small_world, tmp_path_factory, "--catalogue", catalogue)
    yield server
    assert server.stop() == 0


def test_who_serves_loads_no_model_library(look_up, live, stored, tree):
    with SerendipClient(live.address, timeout_s=60) as client:
        (row,) = client.plan([stored], exclude_node_ids=list(tree.nodes.at_level(4))[:60])
    assert row.source is PlanSource.LIVE
    for server in (look_up, live):
        mapped = Path(f"/proc/{server.process.pid}/maps").read_text()
        assert not [name for name in ("libtorch", "libonnxruntime") if name in mapped]


@pytest.fixture
def client(look_up):
    with SerendipClient(look_up.address, timeout_s=20) as made:
        yield made


def nodes(row):
    return [cluster.node_id for cluster in row.require().clusters]


def test_a_stored_plan_is_answered_as_it_lies(client, stored):
    (row,) = client.plan([stored])
    assert row.source is PlanSource.STORE
    assert len(row.plan.clusters) == 8
    assert row.plan.reasoning
    assert row.left_out == 0
    assert 0 < row.age_s < 24 * 3600


def test_the_best_k_of_it_come_in_its_order(client, stored):
    whole = nodes(client.plan([stored])[0])
    (row,) = client.plan([stored], k=3)
    assert nodes(row) == whole[:3]
    assert row.left_out == 0


def test_siblings_leave_out_what_is_not_serendipitous(client, stored):
    (whole,), (row,) = client.plan([stored]), client.plan([stored], constraint="siblings")
    left = [c for c in whole.plan.clusters if c.serendipitous]
    assert list(row.plan.clusters) == left
    assert row.left_out == 8 - len(left)


def test_no_constraint_is_what_a_stored_plan_has(client, stored):
    for constraint in ("none", Constraint.NOT_OWN):
        assert nodes(client.plan([stored], constraint=constraint)[0]) == nodes(
            client.plan([stored])[0]
        )


def test_known_clusters_are_left_out_and_said(client, tree, stored):
    whole = nodes(client.plan([stored])[0])
    (row,) = client.plan([stored], exclude_node_ids=[whole[0], whole[3]])
    assert nodes(row) == [n for at, n in enumerate(whole) if at not in (0, 3)]
    assert row.left_out == 2
    above = tree.nodes.ancestor(whole[0], 1)
    (row,) = client.plan([stored], exclude_node_ids=[above])
    assert nodes(row) == [n for n in whole if tree.nodes.ancestor(n, 1) != above]
    (row,) = client.plan([stored], exclude_node_ids=[0])  # the root: everything
    assert (nodes(row), row.left_out) == ([], 8)


def test_low_scores_are_left_out(client, stored):
    scores = [c.score for c in client.plan([stored])[0].plan.clusters]
    (row,) = client.plan([stored], min_score=scores[2])
    assert [c.score for c in row.plan.clusters] == scores[:3]
    assert row.left_out == 5


def test_the_reasoning_can_be_left_out(client, stored):
    (row,) = client.plan([stored], reasoning=False)
    assert row.plan.reasoning == ""
    assert len(row.plan.clusters) == 8


def test_bad_options_are_named(client, look_up, tree, stored):
    with pytest.raises(NotFound, match="exclude_node_ids"):
        client.plan([stored], exclude_node_ids=[9_999])
    with pytest.raises(InvalidRequest, match=r"exclude_node_ids.*1024"):
        client.plan([stored], exclude_node_ids=[1] * 1025)
    with pytest.raises(InvalidRequest, match="min_score"):
        client.plan([stored], min_score=math.nan)
    with pytest.raises(InvalidRequest, match=r"'cousins'.*siblings"):
        client.plan([stored], constraint="cousins")
    with grpc.insecure_channel(look_up.address) as channel:
        request = planner_pb2.PlanRequest(context_item_ids=[stored], k=1, constraint=9)
        with pytest.raises(grpc.RpcError) as error:
            planner_pb2_grpc.PlannerStub(channel).Plan(request)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "constraint" in error.value.details()


def test_256_items_are_answered_in_one_call(client, small_world, stored):
    rows = client.plan([stored, "nobody"] * 128)
    assert [row.source for row in rows] == [PlanSource.STORE, None] * 128
    assert len({tuple(nodes(row)) for row in rows[::2]}) == 1


def test_where_too_few_are_left_a_live_plan_is_made(live, tree, stored):
    with SerendipClient(live.address, timeout_s=60) as client:
        whole = nodes(client.plan([stored])[0])
        (row,) = client.plan([stored], exclude_node_ids=whole[:6])
        assert row.source is PlanSource.LIVE
        assert len(nodes(row)) == 8
        assert not {*whole[:6], tree.node_of(stored, 4)} & set(nodes(row))
        # As many as wanted are left: the stored plan does.
        (row,) = client.plan([stored], k=2, exclude_node_ids=whole[:6])
        assert (row.source, nodes(row)) == (PlanSource.STORE, whole[6:])
        # What is lost to a low score, no other plan would have.
        (row,) = client.plan([stored], min_score=0.0)
        assert (row.source, nodes(row), row.left_out) == (PlanSource.STORE, [], 8)


def test_without_the_time_for_a_live_plan_what_is_left_comes(small_world, live, tree, stored):
    corpus = read_pairs(small_world.artifacts.current("pairs"), "corpus").column("item_id")
    many, leaves = corpus.to_pylist()[-200:], list(tree.nodes.at_level(4))
    end = time.monotonic() + 60
    with (
        SerendipClient(live.address, timeout_s=60) as client,
        SerendipClient(live.address, timeout_s=0.1) as hasty,
        ThreadPoolExecutor(1) as beside,
    ):
        whole = nodes(client.plan([stored])[0])
        rows = []
        while not rows or {row.source for row in rows} != {PlanSource.STORE}:
            assert time.monotonic() < end
            # Seconds of work before it in the queue.
            queue = beside.submit(client.plan, many, exclude_node_ids=leaves[:60])
            while not queue.done() and {row.source for row in rows} != {PlanSource.STORE}:
                with contextlib.suppress(DeadlineSpent):  # this process had no time either
                    rows = hasty.plan([stored, stored], exclude_node_ids=whole[:6])
            queue.result()
    for row in rows:
        assert (row.source, nodes(row), row.left_out) == (PlanSource.STORE, whole[6:], 6)


PLANS = st.builds(
    lambda rows: planner_pb2.Plan(
        clusters=[
            common_pb2.PlannedCluster(node_id=node, score=score, serendipitous=near)
            for node, score, near in rows
        ],
        reasoning="because",
    ),
    st.lists(
        st.tuples(st.integers(1, 12), st.integers(-4, 0), st.booleans()),
        max_size=8,
        unique_by=lambda row: row[0],
    ),
)


@given(
    PLANS,
    st.integers(1, 8),
    st.sampled_from(Constraint),
    st.frozensets(st.integers(1, 12)),
    st.none() | st.integers(-4, 1),
    st.booleans(),
)
def test_a_cut_is_the_best_k_of_what_the_options_allow(
    plan, k, constraint, exclude, least, reasoning
):
    allowed = [
        c.node_id
        for c in plan.clusters
        if c.node_id not in exclude
        and (c.serendipitous or constraint is not Constraint.SIBLINGS)
        and (least is None or c.score >= least)
    ]
    before = len(plan.clusters)
    wanted = Wanted(k, constraint, exclude, least, reasoning)
    whole = planner_pb2.Plan.FromString(plan.SerializeToString())
    left_out = wanted.cut(plan, PlanSource.STORE)
    assert [c.node_id for c in plan.clusters] == allowed[:k]
    assert left_out == before - len(allowed)
    assert bool(plan.reasoning) is reasoning
    if wanted.all:  # then the stored bytes are sent
        assert plan == whole


def test_nothing_is_left_of_a_plan_without_clusters():
    for k in (1, 8):
        assert not Wanted(k, Constraint.NOT_OWN, frozenset(), None, True).leaves_some(
            planner_pb2.Plan(own_node_id=3)
        )


@given(PLANS, st.integers(0, 10**9))
def test_bytes_by_hand_are_those_of_the_messages(plan, age):
    versions = Versions(tree_version="t" * 12, planner_version="p" * 12, plans_version="s" * 12)
    row = encode_stored(plan.SerializeToString(), head_of(PlanSource.STORE, versions), age)
    failed = planner_pb2.PlanRow(status={"code": 5, "message": "x" * 200})
    got = planner_pb2.PlanResponse.FromString(
        encode_response([row, failed.SerializeToString(), row])
    )
    assert got.rows[1] == failed
    assert got.rows[0] == got.rows[2]
    assert got.rows[0].plan == plan
    assert got.rows[0].age.ToSeconds() == age
    assert got.rows[0].source == planner_pb2.PLAN_SOURCE_STORE
    assert got.rows[0].HasField("status")
    assert got.rows[0].versions.plans_version == "s" * 12
