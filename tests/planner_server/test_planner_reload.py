"""A planner server follows the release while it serves: plans and tree together, or not at all."""

import shutil
import signal
import threading
import time
from dataclasses import dataclass

import grpc
import parts
import pytest
from faults import metric, until
from serendip_client import SerendipClient

from serendip.artifacts import Artifacts
from serendip.core import PlanSource, WrongTree
from serendip.local import ServerProcess, start_server
from serendip.planning.lmdb_store import FILE
from serendip.v1 import retriever_pb2, retriever_pb2_grpc

ITEM = parts.ITEMS[0]


@dataclass
class Served:
    """A server of look-ups over two releases of different trees; the first is current."""

    artifacts: Artifacts
    releases: list
    server: ServerProcess
    log: object

    def make_current(self, at):
        self.artifacts.make_current("release", self.releases[at].version)

    def tree(self, at):
        return self.releases[at].tree_version


def server_of(artifacts, log, *options):
    arguments = ["--artifacts", str(artifacts.root), "--port", "0", "--metrics-port", "0"]
    return start_server("planner_server", *arguments, "--poll-s", "0.1", *options, log=log)


@pytest.fixture
def releases(tmp_path):
    artifacts = Artifacts(tmp_path / "artifacts")
    made = [parts.publish_all(artifacts, seed) for seed in (0, 1)]
    artifacts.make_current("release", made[0].version)
    return artifacts, made


@pytest.fixture
def served(releases, tmp_path):
    artifacts, made = releases
    log = tmp_path / "server.log"
    server = server_of(artifacts, log, "--no-live")
    yield Served(artifacts, made, server, log)
    assert server.stop() == 0


@pytest.fixture
def client(served):
    with SerendipClient(served.server.address, timeout_s=10) as made:
        yield made


def tree_of(client):
    (row,) = client.plan([ITEM])
    return row.require().tree_version


def test_a_new_release_is_served_without_a_failed_or_a_mixed_answer(served, client):
    stop, seen, wrong = threading.Event(), [], []

    def ask():
        with SerendipClient(served.server.address, timeout_s=10) as own:
            while not stop.is_set():
                try:
                    rows = own.plan([ITEM, parts.ITEMS[1]])
                    trees = {row.require().tree_version for row in rows}
                    trees |= {row.versions.tree_version for row in rows}
                    seen.append(trees)
                except Exception as e:
                    wrong.append(e)

    asking = [threading.Thread(target=ask) for _ in range(3)]
    for thread in asking:
        thread.start()
    try:
        for turn, at in enumerate((1, 0, 1), start=1):
            served.make_current(at)
            until(lambda at=at: tree_of(client) == served.tree(at))
            assert metric(served.server.metrics, "serendip_reloads_total") == turn
    finally:
        stop.set()
        for thread in asking:
            thread.join()
    assert wrong == []
    assert len(seen) > 20
    assert all(len(trees) == 1 for trees in seen), "one answer from two releases"
    assert {tree for trees in seen for tree in trees} == {served.tree(0), served.tree(1)}
    texts = {c.tree_version for c in client.list_clusters()}
    assert texts == {served.tree(1)}
    with pytest.raises(WrongTree, match=served.tree(1)):
        client.plan([ITEM], tree_version=served.tree(0))


def test_a_release_that_cannot_be_opened_leaves_the_old_one_and_is_told_once(served, client):
    plans = served.artifacts.open("plans", served.releases[1].inputs["plans"]).file(FILE)
    good = plans.read_bytes()
    plans.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    served.make_current(1)
    until(lambda: metric(served.server.metrics, "serendip_reload_failures_total") >= 1, 40)
    assert tree_of(client) == served.tree(0)
    said = served.log.read_text()
    assert said.count("is not served") == 1
    assert f"{FILE}: differs from its sha256" in said
    plans.write_bytes(good)
    served.server.process.send_signal(signal.SIGHUP)
    until(lambda: tree_of(client) == served.tree(1))


class Trees(retriever_pb2_grpc.RetrieverServicer):
    """A retriever that says which trees it has, and no more."""

    def __init__(self, *open_ones):
        self.open_ones = list(open_ones)

    def GetInfo(self, request, context):
        return retriever_pb2.RetrieverGetInfoResponse(tree_versions=self.open_ones)


def test_a_tree_is_not_planned_under_before_the_retriever_has_it(releases, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    artifacts, made = releases
    trees = Trees(made[0].tree_version)
    retriever = grpc.server(ThreadPoolExecutor(2))
    retriever_pb2_grpc.add_RetrieverServicer_to_server(trees, retriever)
    port = retriever.add_insecure_port("127.0.0.1:0")
    retriever.start()
    log = tmp_path / "server.log"
    server = server_of(artifacts, log, "--no-live", "--retriever", f"127.0.0.1:{port}")
    try:
        with SerendipClient(server.address, timeout_s=10) as client:
            artifacts.make_current("release", made[1].version)
            time.sleep(4)
            assert tree_of(client) == made[0].tree_version
            assert metric(server.metrics, "serendip_reload_failures_total") == 0
            trees.open_ones.append(made[1].tree_version)
            until(lambda: tree_of(client) == made[1].tree_version)
    finally:
        assert server.stop() == 0
        retriever.stop(0)


def test_a_model_is_reloaded_with_its_plans(small_world, tmp_path):
    root = tmp_path / "artifacts"
    shutil.copytree(small_world.config.artifacts_path, root)
    artifacts = Artifacts(root)
    first = artifacts.current("release")
    options = ("--catalogue", str(small_world.config.data_path))
    server = server_of(artifacts, tmp_path / "server.log", *options)
    try:
        with SerendipClient(server.address, timeout_s=60) as client:
            item = artifacts.open("plans", first.inputs["plans"])
            stored = stored_item(item)
            whole = [c.node_id for c in client.plan([stored])[0].require().clusters]
            excluded = {"exclude_node_ids": whole}
            assert client.plan([stored], **excluded)[0].source is PlanSource.LIVE
            # The same parts under another name: a release of its own all the same.
            with artifacts.publish("release", {"again": 1}, first.inputs) as draft:
                draft.facts |= first.facts
            until(lambda: metric(server.metrics, "serendip_reloads_total") == 1, 120)
            assert client.plan([stored], **excluded)[0].source is PlanSource.LIVE
    finally:
        assert server.stop() == 0


def stored_item(plans):
    from serendip.planning.lmdb_store import LmdbStore

    return next(LmdbStore(plans.file(FILE)).rows())[0]
