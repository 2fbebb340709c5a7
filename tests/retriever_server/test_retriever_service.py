"""The retriever server over a real channel, held against the library and the torch model."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from cyclic_world import World
from google.rpc import code_pb2, status_pb2
from prometheus_client import CollectorRegistry

from retriever_server.app import serve
from retriever_server.release import open_release
from retriever_server.service import RetrieverService
from serendip.artifacts import Artifacts
from serendip.core import (
    CorruptArtifact,
    DeadlineSpent,
    NotFound,
    Retrieval,
    RetrievalQuery,
    WrongTree,
)
from serendip.retrieval.export import load_model
from serendip.retrieval.ranker import ClusterRanker
from serendip.serving.handlers import Call
from serendip.serving.server import Running, ServerOptions
from serendip.v1 import retriever_pb2, retriever_pb2_grpc
from serendip.wire import error_from_status, query_to_proto, retrieval_from_proto


@pytest.fixture(scope="session")
def released(cyclic: World) -> World:
    inputs = {
        "tree": cyclic.tree.version,
        "planner": "b" * 12,
        "plans": "c" * 12,
        "retriever": cyclic.retriever.version,
    }
    with cyclic.artifacts.publish("release", {}, inputs) as draft:
        draft.facts["tree_version"] = cyclic.tree.version
    return cyclic


def with_server(
    released: World,
    body: Callable[[Any, Running], Awaitable[None]],
    options: ServerOptions | None = None,
) -> None:
    """Runs ``body(stub, running)`` against a server on a free port."""

    async def run() -> None:
        async with (
            serve(open_release(released.artifacts), options) as running,
            grpc.aio.insecure_channel(running.address) as channel,
        ):
            await body(retriever_pb2_grpc.RetrieverStub(channel), running)

    asyncio.run(run())


def random_queries(world: World, count: int) -> list[RetrievalQuery]:
    rng = np.random.default_rng(11)
    nodes = len(world.tree.nodes)
    ids = (*world.tree.item_ids, "unknown-1", "unknown-2")

    def some(values: Any, most: int, least: int = 0) -> tuple[Any, ...]:
        return tuple(rng.choice(values, rng.integers(least, most + 1)).tolist())

    return [
        RetrievalQuery(
            history=some(ids, 20),
            node_ids=some(nodes, 4, 1),
            k=int(rng.integers(1, 60)),
            exclude_node_ids=some(np.arange(3, nodes), 3),
            widen_node_ids=some(nodes, 3),
            deny_item_ids=some(ids, 10),
            include_seen=bool(rng.integers(2)),
            widening=bool(rng.integers(2)),
        )
        for _ in range(count)
    ]


def request(world: World, **changes: Any) -> retriever_pb2.RetrieveRequest:
    fields: dict[str, Any] = {"history": ("item-3",), "node_ids": (0,), "k": 5, **changes}
    tree_version = fields.pop("tree_version", world.tree.version)
    return query_to_proto(RetrievalQuery(**fields), tree_version=tree_version)


# --- one answer, three ways --------------------------------------------------------------


def test_the_server_the_library_and_the_torch_model_agree(released: World) -> None:
    queries = random_queries(released, 80)
    ranker = ClusterRanker.open(released.retriever)
    local = ranker.retrieve(queries)

    async def body(stub: Any, _: Running) -> None:
        requests = [query_to_proto(q, tree_version=released.tree.version) for q in queries]
        single = await asyncio.gather(*(stub.Retrieve(r) for r in requests))
        batch = await stub.RetrieveBatch(retriever_pb2.RetrieveBatchRequest(requests=requests))
        for expected, one, row in zip(local, single, batch.rows, strict=True):
            assert isinstance(expected, Retrieval)
            assert row.status.code == code_pb2.OK
            for answer in (one, row.response):
                got, versions = retrieval_from_proto(answer)
                assert versions == ranker.versions
                assert got.widened_to == expected.widened_to
                assert got.unknown_history_items == expected.unknown_history_items
                same_candidates(got, expected)

    with_server(released, body)
    model = load_model(released.retriever)
    for query, retrieval in zip(queries, local, strict=True):
        assert isinstance(retrieval, Retrieval)
        agree_with_torch(model, released, query, retrieval)


def same_candidates(got: Retrieval, expected: Retrieval) -> None:
    assert [(c.item_id, c.node_id, c.widened) for c in got.candidates] == [
        (c.item_id, c.node_id, c.widened) for c in expected.candidates
    ]
    scores = [[c.score for c in r.candidates] for r in (got, expected)]
    assert np.allclose(*scores, rtol=1e-6, atol=1e-5)


def agree_with_torch(model: Any, world: World, query: RetrievalQuery, retrieval: Retrieval) -> None:
    """The requested nodes' part of the answer is a full sort of the full model's scores."""
    tree = world.tree
    known = [tree.item_ids.index(i) for i in query.history if i in tree.item_ids]
    if known:
        ids = torch.tensor([known[-model.shape.max_history :]]) + 1
        with torch.inference_mode():
            vector = model(ids, torch.tensor([ids.shape[1]]))[0, -1]
            scores = (model.item.weight[1:] @ vector + model.bias[1:]).numpy()
    else:
        scores = np.load(world.retriever.file("satisfaction.npy"))

    def inside(nodes: tuple[int, ...]) -> set[int]:
        return {rank for node in nodes for rank in range(*tree.slice(node))}

    hidden = set(query.deny_item_ids) | (set() if query.include_seen else set(query.history))
    allowed = [
        rank
        for rank in sorted(inside(query.node_ids) - inside(query.exclude_node_ids))
        if tree.item_ids[rank] not in hidden
    ]
    best = sorted(allowed, key=lambda rank: -scores[rank])[: query.k]
    own = [c for c in retrieval.candidates if not c.widened]
    assert [c.item_id for c in own] == [tree.item_ids[rank] for rank in best]
    assert np.allclose([c.score for c in own], scores[best], rtol=1e-6, atol=1e-5)


def test_the_cache_of_user_vectors_is_counted_and_changes_no_answer(released: World) -> None:
    query = request(released, history=("item-3", "item-9"))

    async def run() -> None:
        async with (
            serve(
                open_release(released.artifacts, user_cache=5), ServerOptions(metrics_port=0)
            ) as running,
            grpc.aio.insecure_channel(running.address) as channel,
        ):
            stub = retriever_pb2_grpc.RetrieverStub(channel)
            first, second = await stub.Retrieve(query), await stub.Retrieve(query)
            assert first == second
            await stub.Retrieve(request(released, history=()))
            url = f"http://127.0.0.1:{running.metrics_port}/metrics"
            page = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
            lines = dict(line.rsplit(" ", 1) for line in page.splitlines() if line[0] != "#")
            assert lines["serendip_user_cache_hits_total"] == "1.0"
            assert lines["serendip_user_cache_misses_total"] == "1.0"

    asyncio.run(run())


def test_a_batch_of_many_widths_gives_each_caller_its_own(released: World) -> None:
    queries = random_queries(released, 40)
    ranker = ClusterRanker.open(released.retriever)

    async def body(stub: Any, _: Running) -> None:
        async def call(query: RetrievalQuery) -> None:
            answer = await stub.Retrieve(query_to_proto(query, tree_version=released.tree.version))
            (expected,) = ranker.retrieve([query])
            assert isinstance(expected, Retrieval)
            same_candidates(retrieval_from_proto(answer)[0], expected)

        await asyncio.gather(*(call(query) for query in queries * 4))

    with_server(released, body)


# --- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"tree_version": ""}, "INVALID_ARGUMENT", "tree_version"),
        ({"tree_version": "f" * 12}, "FAILED_PRECONDITION", "open are"),
        ({"node_ids": (31_000,)}, "NOT_FOUND", "node_ids"),
        ({"exclude_node_ids": (-1,)}, "NOT_FOUND", "exclude_node_ids"),
    ],
)
def test_what_is_wrong_has_its_code_in_a_call_and_in_a_row(
    released: World, changes: dict[str, Any], code: str, says: str
) -> None:
    async def body(stub: Any, _: Running) -> None:
        good, bad = request(released), request(released, **changes)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.Retrieve(bad)
        assert error.value.code().name == code
        assert says in str(error.value.details())
        batch = await stub.RetrieveBatch(
            retriever_pb2.RetrieveBatchRequest(requests=[good, bad, good])
        )
        first, second, third = batch.rows
        assert code_pb2.Code.Name(second.status.code) == code
        assert not second.HasField("response")
        assert first.status == third.status == status_pb2.Status()
        assert first.response == third.response == await stub.Retrieve(good)

    with_server(released, body)


def test_a_wrong_tree_is_told_which_are_open(released: World) -> None:
    serving = open_release(released.artifacts)
    with pytest.raises(WrongTree, match=released.tree.version):
        serving.ranker("f" * 12)


@pytest.mark.parametrize("count", [0, 257])
def test_a_batch_of_no_or_too_many_requests_fails_as_a_whole(released: World, count: int) -> None:
    async def body(stub: Any, _: Running) -> None:
        requests = [request(released)] * count
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.RetrieveBatch(retriever_pb2.RetrieveBatchRequest(requests=requests))
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "requests" in str(error.value.details())

    with_server(released, body)


def test_an_expired_call_is_dropped_and_never_run(
    released: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    real = ClusterRanker.find

    def slow(self: ClusterRanker, queries: Any) -> Any:
        ran.append(len(queries))
        time.sleep(0.4)
        return real(self, queries)

    monkeypatch.setattr(ClusterRanker, "find", slow)

    async def body(stub: Any, _: Running) -> None:
        first = asyncio.create_task(_call(stub, released, None))
        await asyncio.sleep(0.15)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await _call(stub, released, 0.1)
        assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert len((await first).candidates) == 5
        await asyncio.sleep(0.5)

    with_server(released, body)
    assert ran == [1]


def test_the_callers_deadline_reaches_the_batcher(released: World) -> None:
    async def run() -> None:
        service = RetrieverService(open_release(released.artifacts), CollectorRegistry())
        try:
            with pytest.raises(DeadlineSpent):
                await service.Retrieve(request(released), Call(time.monotonic() - 1))
        finally:
            await service.close()

    asyncio.run(run())


async def _call(stub: Any, world: World, timeout: float | None) -> Any:
    return await stub.Retrieve(request(world), timeout=timeout)


# --- what it tells of itself -------------------------------------------------------------


def test_get_info_names_the_release_and_its_size(released: World) -> None:
    async def body(stub: Any, _: Running) -> None:
        info = await stub.GetInfo(retriever_pb2.RetrieverGetInfoRequest())
        assert info.versions.tree_version == released.tree.version
        assert info.versions.planner_version == "b" * 12
        assert info.versions.plans_version == "c" * 12
        assert info.versions.retriever_version == released.retriever.version
        assert info.versions.order_version == released.retriever.facts["order_version"]
        assert list(info.tree_versions) == [released.tree.version]
        assert (info.item_count, info.max_history, info.dimensions) == (120, 10, 25)

    with_server(released, body)


def test_metrics_count_calls_candidates_and_widenings(released: World) -> None:
    leaf = released.tree.nodes.at_level(4)[0]

    async def body(stub: Any, running: Running) -> None:
        await stub.Retrieve(request(released))
        await stub.Retrieve(request(released, history=(), node_ids=(leaf,), k=100))
        url = f"http://127.0.0.1:{running.metrics_port}/metrics"
        page = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
        lines = dict(line.rsplit(" ", 1) for line in page.splitlines() if line[0] != "#")
        assert lines["serendip_retrieve_candidates_count"] == "2.0"
        assert lines["serendip_retrieve_candidates_sum"] == "105.0"
        assert lines["serendip_retrieve_widened_total"] == "1.0"
        assert lines["serendip_retrieve_cold_total"] == "1.0"
        assert lines["serendip_batch_rows_sum"] == "2.0"
        handled = [v for k, v in lines.items() if k.startswith("grpc_server_handled_total")]
        assert "2.0" in handled
        version = released.retriever.version
        assert lines[f'serendip_artifact_info{{kind="retriever",version="{version}"}}'] == "1.0"

    with_server(released, body, ServerOptions(metrics_port=0))


# --- the release -------------------------------------------------------------------------


def test_without_a_release_it_says_which_stage_to_run(cyclic: World, tmp_path: Any) -> None:
    with pytest.raises(NotFound, match="serendip release"):
        open_release(Artifacts(tmp_path))


def test_a_release_of_two_trees_is_refused(released: World) -> None:
    artifacts = released.artifacts
    good = artifacts.current_version("release")
    assert good is not None
    inputs = {"tree": "d" * 12, "retriever": released.retriever.version}
    try:
        with artifacts.publish("release", {}, inputs) as draft:
            draft.facts["tree_version"] = "d" * 12
        with pytest.raises(CorruptArtifact, match="made for another"):
            open_release(artifacts)
    finally:
        artifacts.make_current("release", good)
        (artifacts.root / "release" / "previous").unlink()


@pytest.mark.parametrize("name", ["items.npy", "model.onnx.data", "item_id_table.npy"])
def test_a_file_that_differs_from_its_hash_is_refused(
    released: World, tmp_path: Any, name: str
) -> None:
    shutil.copytree(released.artifacts.root, tmp_path / "artifacts")
    artifacts = Artifacts(tmp_path / "artifacts")
    path = artifacts.open("retriever", released.retriever.version, verify=False).path
    # What only training reads is neither hashed nor needed.
    (path / "model.safetensors").write_bytes(b"")
    open_release(artifacts)
    data = bytearray((path / name).read_bytes())
    data[-1] ^= 1
    (path / name).write_bytes(data)
    with pytest.raises(CorruptArtifact, match=rf"{name}: differs from its sha256"):
        open_release(artifacts)


# --- the process -------------------------------------------------------------------------


def test_the_server_loads_no_training_library() -> None:
    code = (
        "import json, sys, retriever_server.__main__, retriever_server.app; "
        "print(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(out.stdout))
    assert {"onnxruntime", "grpc"} <= loaded
    assert not loaded & {"torch", "transformers", "sklearn", "duckdb", "onnx", "pydantic"}


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "retriever_server", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def test_a_start_that_fails_says_so_in_one_line(tmp_path: Any) -> None:
    out, err = (process := start("--artifacts", str(tmp_path))).communicate(timeout=30)
    assert process.returncode == 2
    assert out == ""
    assert err.count("\n") == 1
    assert "serendip release" in err


def test_it_starts_answers_and_stops_with_zero(released: World) -> None:
    process = start("--artifacts", str(released.artifacts.root), "--port", "0")
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("retriever ready on 127.0.0.1:")
        address = line.split()[3].rstrip(",")
        with grpc.insecure_channel(address) as channel:
            answer = retriever_pb2_grpc.RetrieverStub(channel).Retrieve(request(released))
        assert len(answer.candidates) == 5
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (0, "")
    finally:
        process.kill()
        process.wait()


def test_error_rows_come_back_as_typed_errors(released: World) -> None:
    async def body(stub: Any, _: Running) -> None:
        bad = request(released, node_ids=(31_000,))
        batch = await stub.RetrieveBatch(retriever_pb2.RetrieveBatchRequest(requests=[bad]))
        assert isinstance(error_from_status(batch.rows[0].status), NotFound)

    with_server(released, body)
