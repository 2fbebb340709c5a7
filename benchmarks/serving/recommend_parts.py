"""What Recommend adds to the sum of its two parts, the planner's Plan and the retriever's Retrieve.

Both servers and the client as processes, each on whichever core the system gives it: with one call
in flight, two cores do what three machines would. Each request is made as Plan, then Retrieve with
what a client makes of the plan, and as Recommend, in turns, and the candidates are compared.
Requests and responses are bytes on the client's side: servers and gRPC alone are timed.

    python -m serving.recommend_parts [--quick]
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from common import descriptions
from rich.console import Console
from rich.table import Table

from serendip.artifacts import Artifacts
from serendip.core import Plan, PlannedCluster
from serendip.planning.lmdb_store import FILE, write_lmdb
from serendip.planning.plan_store import StoreInfo, encode_plan
from serendip.planning.trie import DescriptionTrie
from serendip.tree.cluster_tree import ClusterTree
from serendip.v1 import planner_pb2, recommender_pb2
from serendip.wire import history_to_proto
from serendip.wire_recommend import batches, followed_by, merged, rows_of, to_plan_request
from serving import material, servers

SIZE = material.SIZES["62k", 2]
LEVEL = 4
PLANNED_AT_MS = 1_750_000_000_000
PLAN, RECOMMEND = "/serendip.v1.Planner/Plan", "/serendip.v1.Recommender/Recommend"

Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Way:
    """A recommendation that is asked for.

    Attributes:
        clusters, merge: as RecommendRequest's.
    """

    name: str
    clusters: int
    merge: recommender_pb2.Merge


WAYS = (
    Way("1 cluster", 1, recommender_pb2.MERGE_SCORE),
    Way("3 clusters, by score", 3, recommender_pb2.MERGE_SCORE),
    Way("3 clusters, by quota", 3, recommender_pb2.MERGE_QUOTA),
)


@dataclass(frozen=True)
class Parts:
    """Seconds of each call of one way: float64[calls]."""

    plan: Seconds
    retrieve: Seconds
    recommend: Seconds

    def p50_ms(self) -> dict[str, float]:
        """Medians, and Recommend's over the sum of the others'."""
        plan, retrieve, whole = (
            float(np.median(took)) * 1e3 for took in (self.plan, self.retrieve, self.recommend)
        )
        return {
            "plan_p50_ms": plan,
            "retrieve_p50_ms": retrieve,
            "recommend_p50_ms": whole,
            "over_parts": whole / (plan + retrieve),
        }


def figures(quick: bool) -> dict[str, dict[str, float]]:
    """Medians by way; prints a table."""
    calls = 200 if quick else 3000
    artifacts = make()
    taken = {}
    with servers.running([servers.ours(artifacts.root)], pinned=False) as (retriever,):
        planner = servers.Kind(
            "planner server",
            (
                *(sys.executable, "-m", "planner_server", "--artifacts", str(artifacts.root)),
                *("--no-live", "--port", "0", "--metrics-port", "0"),
                *("--retriever", retriever.address),
            ),
            RECOMMEND,
            "grpc_server_handled_total",
        )
        with servers.running([planner], pinned=False) as (front,):
            for way in WAYS:
                measure(front.address, retriever.address, way, 50)  # to warm up
                taken[way.name] = measure(front.address, retriever.address, way, calls).p50_ms()
    table = Table("Recommend", "Plan p50 ms", "Retrieve p50 ms", "Recommend p50 ms", "over the sum")
    for name, found in taken.items():
        table.add_row(name, *(f"{value:.3g}" for value in found.values()))
    Console(stderr=True, highlight=False).print(table)
    return taken


def measure(planner: str, retriever: str, way: Way, calls: int) -> Parts:
    """Times so many requests of different users, both ways in turns."""
    took: dict[str, list[float]] = {"plan": [], "retrieve": [], "recommend": []}

    def timed(name: str, call: Callable[[bytes], bytes], request: bytes) -> bytes:
        began = time.perf_counter()
        answer = call(request)
        took[name].append(time.perf_counter() - began)
        return answer

    with grpc.insecure_channel(planner) as front, grpc.insecure_channel(retriever) as back:
        plan, recommend = front.unary_unary(PLAN), front.unary_unary(RECOMMEND)
        one, many = back.unary_unary(servers.RETRIEVE), back.unary_unary(servers.RETRIEVE_BATCH)

        def parts(request: recommender_pb2.RecommendRequest) -> bytes:
            raw = timed("plan", plan, to_plan_request([request]).SerializeToString())
            (row,) = planner_pb2.PlanResponse.FromString(raw).rows
            asked = followed_by(request, row)
            if len(asked) == 1:
                return merged(request, row, [timed("retrieve", one, asked[0])])
            ((count, batch),) = batches(asked)
            return merged(request, row, rows_of(timed("retrieve", many, batch), count))

        for turn, request in enumerate(requests(way, calls)):
            raw = request.SerializeToString()
            if turn % 2:
                whole = timed("recommend", recommend, raw)
                composed = parts(request)
            else:
                composed = parts(request)
                whole = timed("recommend", recommend, raw)
            read = recommender_pb2.RecommendResponse.FromString
            assert read(whole).candidates == read(composed).candidates
    return Parts(*(np.array(values) for values in took.values()))


def requests(way: Way, count: int) -> Iterator[recommender_pb2.RecommendRequest]:
    """Of different users, who have just enjoyed the last item of their history."""
    for user in material.users(SIZE, count, seed=7):
        yield recommender_pb2.RecommendRequest(
            history=history_to_proto(user.history),
            context_item_id=user.history[-1],
            k=user.k,
            clusters=way.clusters,
            merge=way.merge,
        )


# --- what is served ------------------------------------------------------------------------


def make() -> Artifacts:
    """The serving bench's tree and retriever, with a plan for every item; made unless there."""
    artifacts = material.make(SIZE)
    if artifacts.current_version("plans") is None:
        _publish(artifacts)
    return artifacts


def _publish(artifacts: Artifacts) -> None:
    made = {"items": SIZE.items, "made": "for the parts of Recommend"}
    tree = ClusterTree.open(artifacts.current("tree"))
    inputs = {"tree": tree.version}
    leaves = list(tree.nodes.at_level(LEVEL))
    texts = descriptions.texts("words", len(leaves))
    with artifacts.publish("planner", made | {"level": LEVEL, "level_gap": 1}, inputs) as draft:
        tokens = [list(text.encode()) for text in texts]
        trie = DescriptionTrie.build(tokens, leaves, 256, texts=texts, tree_version=tree.version)
        trie.save(draft.path / "trie")
        draft.facts["tree_version"] = tree.version
    planner = draft.version
    inputs |= {"planner": planner}
    with artifacts.publish("plans", made, inputs) as draft:
        info = StoreInfo(draft.version, tree.version, planner, SIZE.items)
        write_lmdb(draft.path / FILE, _plans(tree, planner, leaves, texts), info)
        _no_transitions(draft.path)
        draft.facts["tree_version"] = tree.version
    inputs |= {"plans": draft.version, "retriever": artifacts.current("retriever").version}
    with artifacts.publish("release", made, inputs) as draft:
        draft.facts["tree_version"] = tree.version


def _plans(
    tree: ClusterTree, planner: str, leaves: list[int], texts: list[str]
) -> Iterator[tuple[str, bytes]]:
    rng = np.random.default_rng(0)
    for item_id in tree.item_ids:
        own = tree.node_of(item_id, LEVEL)
        at = [n for n in rng.choice(len(leaves), 9, replace=False).tolist() if leaves[n] != own][:8]
        clusters = tuple(
            PlannedCluster(leaves[n], texts[n], -float(rank), rank % 2 == 0)
            for rank, n in enumerate(at)
        )
        reasoning = f"Topic: {texts[at[-1]]}\nNext: {texts[at[0]]}"
        plan = Plan(item_id, clusters, own, reasoning, tree.version, planner, PLANNED_AT_MS)
        yield item_id, encode_plan(plan)


def _no_transitions(folder: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    none = {"own_id": pa.int32(), "node_id": pa.int32(), "satisfaction": pa.float64()}
    columns = {name: pa.array([], kind) for name, kind in none.items()}
    pq.write_table(pa.table(columns), folder / "transitions.parquet")


if __name__ == "__main__":
    print(json.dumps(figures("--quick" in sys.argv)))
