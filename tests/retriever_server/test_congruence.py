"""One answer, three ways: brute force over the torch model, the ranker in process, and the server
through the Python client, for random requests with every option, over a tree that has grown."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from brute_force import Catalogue, brute_force, same
from cyclic_world import ATTRIBUTES, World
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serendip_client import SerendipClient

from retriever_server.app import serve
from retriever_server.release import open_release
from serendip.artifacts import Artifacts
from serendip.core import AttributeType, Filter, InvalidRequest, Retrieval, RetrievalQuery
from serendip.retrieval.export import load_model
from serendip.retrieval.ranker import ClusterRanker
from serendip.tree.cluster_tree import ClusterTree, write_nodes

FRESH = {"fresh-a": 3, "fresh-b": 3, "fresh-c": 0, "fresh-d": 15}
DELETED = [f"item-{i}" for i in range(0, 120, 11)]
UNKNOWN = ("unknown-1", "unknown-2")


@dataclasses.dataclass(frozen=True)
class Grown:
    """A release whose tree has grown since its export, and what must come of it."""

    artifacts: Artifacts
    ranker: ClusterRanker
    catalogue: Catalogue
    tree_version: str


@pytest.fixture(scope="module")
def grown(cyclic: World, tmp_path_factory: pytest.TempPathFactory) -> Grown:
    root = tmp_path_factory.mktemp("grown") / "artifacts"
    shutil.copytree(cyclic.artifacts.root, root)
    artifacts = Artifacts(root)
    tree = cyclic.tree
    rows = [
        (item_id, int(leaf))
        for item_id, leaf in zip(tree.item_ids, tree.leaf_of_rank, strict=True)
        if item_id not in DELETED
    ]
    rows = sorted([*rows, *FRESH.items()], key=lambda row: row[1])
    with artifacts.publish("tree", {"made": "by growing"}, {"tree": tree.version}) as draft:
        write_nodes(tree.nodes, draft.path / "nodes.parquet")
        ids, leaves = zip(*rows, strict=True)
        columns = {"item_id": pa.array(ids), "leaf": pa.array(leaves, pa.int32())}
        pq.write_table(pa.table(columns), draft.path / "items.parquet")
        draft.facts["tree_version"] = tree.version
        version = draft.version
    inputs = {"tree": version, "retriever": cyclic.retriever.version}
    with artifacts.publish("release", {}, inputs) as draft:
        draft.facts["tree_version"] = tree.version
    ranker = ClusterRanker.open(
        artifacts.current("retriever"), artifacts.current("tree"), user_cache=40
    )
    return Grown(artifacts, ranker, _catalogue(cyclic, tree), tree.version)


def _catalogue(world: World, tree: ClusterTree) -> Catalogue:
    model = load_model(world.retriever)
    places = [int(item_id.removeprefix("item-")) for item_id in tree.item_ids]

    def user(known: list[int]) -> npt.NDArray[np.float32]:
        ids = torch.tensor([known[-model.shape.max_history :]]) + 1
        with torch.inference_mode():
            vector = model(ids, torch.tensor([ids.shape[1]]))[0, -1]
        return np.append(vector.numpy(), np.float32(1))

    fresh = dict(sorted(FRESH.items(), key=lambda row: row[1]))
    return Catalogue(
        nodes=tree.nodes,
        leaf={**dict(zip(tree.item_ids, tree.leaf_of_rank.tolist(), strict=True)), **fresh},
        attributes={name: [values[i] for i in places] for name, values in ATTRIBUTES.items()},
        user=user,
        matrix=model.item_matrix().detach().numpy(),
        satisfaction=np.load(world.retriever.file("satisfaction.npy")),
        prior=world.retriever.facts["prior_satisfaction"],
        fresh=tuple(fresh),
        deleted=DELETED,
    )


@pytest.fixture(scope="module")
def address(grown: Grown) -> Iterator[str]:
    """A real server over the grown release, in a thread with an event loop of its own."""
    found: list[str] = []
    ready = threading.Event()
    stop: list[Any] = []

    async def main() -> None:
        ended = asyncio.Event()
        stop.append((asyncio.get_running_loop(), ended))
        async with serve(open_release(grown.artifacts, user_cache=40)) as running:
            found.append(running.address)
            ready.set()
            await ended.wait()

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert ready.wait(30)
    yield found[0]
    loop, ended = stop[0]
    loop.call_soon_threadsafe(ended.set)
    thread.join(30)


ITEMS = [*(f"item-{i}" for i in range(120)), *FRESH, *UNKNOWN]
item_lists = st.lists(st.sampled_from(ITEMS), max_size=14).map(tuple)
nodes = st.integers(0, 30)
numbers = st.none() | st.integers(-2, 19) | st.floats(-2, 19)
conditions = (
    st.builds(
        Filter,
        st.just("language"),
        st.lists(st.sampled_from(["en", "de", "xx"]), min_size=1, max_size=2),
    )
    | st.builds(Filter, st.just("language"), none_of=st.just(["de"]))
    | st.builds(Filter, st.just("age"), at_least=st.integers(-2, 19), at_most=numbers)
    | st.builds(Filter, st.just("created_at"), at_most=st.integers(0, 120_000))
)
queries = st.builds(
    RetrievalQuery,
    history=item_lists,
    node_ids=st.lists(nodes, min_size=1, max_size=4).map(tuple),
    k=st.integers(1, 130),
    exclude_node_ids=st.lists(nodes.filter(bool), max_size=3).map(tuple),
    widen_node_ids=st.lists(nodes, max_size=3).map(tuple),
    deny_item_ids=item_lists,
    include_seen=st.booleans(),
    widening=st.booleans(),
    filters=st.lists(conditions, max_size=2).map(tuple),
    allow_item_ids=st.none() | st.lists(st.sampled_from(ITEMS), min_size=1, max_size=60).map(tuple),
    max_per_leaf=st.sampled_from([0, 0, 1, 3]),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(queries, min_size=1, max_size=5))
def test_the_torch_model_the_ranker_and_the_server_agree(
    grown: Grown, address: str, batch: list[RetrievalQuery]
) -> None:
    expected = [brute_force(grown.catalogue, query) for query in batch]
    for got, wanted in zip(grown.ranker.retrieve(batch), expected, strict=True):
        same(got, wanted)
    with SerendipClient("127.0.0.1:1", address) as client:
        rows = client.retrieve_batch(batch, tree_version=grown.tree_version)
        for row, wanted in zip(rows, expected, strict=True):
            got = row.require()
            assert got.versions == grown.ranker.versions
            same(Retrieval(got.candidates, got.widened_to, got.unknown_history_items), wanted)
        query = batch[0]
        one = client.retrieve(
            query.history,
            query.node_ids,
            tree_version=grown.tree_version,
            k=query.k,
            exclude_node_ids=query.exclude_node_ids,
            widen_node_ids=query.widen_node_ids,
            deny_item_ids=query.deny_item_ids,
            include_seen=query.include_seen,
            widening=query.widening,
            filters=query.filters,
            allow_item_ids=query.allow_item_ids,
            max_per_leaf=query.max_per_leaf,
        )
        same(Retrieval(one.candidates, one.widened_to, one.unknown_history_items), expected[0])


def test_the_server_tells_what_it_serves(grown: Grown, address: str) -> None:
    with SerendipClient("127.0.0.1:1", address) as client:
        info = client.retriever_info()
    assert info.attributes == {
        "language": AttributeType.TEXT,
        "age": AttributeType.INTEGER,
        "created_at": AttributeType.INTEGER,
    }
    counts = info.item_count, info.fresh_item_count, info.deleted_item_count
    assert counts == (120, len(FRESH), len(DELETED))


def test_what_the_retriever_cannot_serve_names_its_field(grown: Grown, address: str) -> None:
    with SerendipClient("127.0.0.1:1", address) as client:
        for options, field, says in (
            ({"filters": [Filter("colour", any_of=["red"])]}, "filters[0].attribute", "age"),
            ({"filters": [Filter("age", any_of=["red"])]}, "filters[0].any_of", "integer"),
            ({"require_known_history": True}, "history[1].item_id", "export"),
        ):
            with pytest.raises(InvalidRequest, match=says) as caught:
                client.retrieve(
                    ["item-1", "fresh-a"], [0], tree_version=grown.tree_version, **options
                )
            assert caught.value.field == field


def test_fresh_and_deleted_are_those_of_the_releases_tree(cyclic: World, grown: Grown) -> None:
    before = ClusterRanker.open(cyclic.retriever)
    assert (before.fresh_count, before.deleted_count) == (0, 0)
    query = RetrievalQuery(history=("item-5",), node_ids=(0,), k=200)
    (old,), (new,) = before.retrieve([query]), grown.ranker.retrieve([query])
    assert isinstance(old, Retrieval)
    assert isinstance(new, Retrieval)
    gained = {c.item_id for c in new.candidates} - {c.item_id for c in old.candidates}
    assert gained == {c.item_id for c in new.candidates if c.fresh} == set(FRESH)
    lost = {c.item_id for c in old.candidates} - {c.item_id for c in new.candidates}
    assert lost == set(DELETED)
