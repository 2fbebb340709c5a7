"""``serendip loadtest data``: requests for load tests, made of what is served and of the log.

Real users with their real histories, the items that they had just enjoyed, the clusters that are
planned for those: files that ghz reads, an array of requests a file, each a protobuf JSON with the
proto's field names. The same release, log and seed give the same bytes. Sends nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from serendip.config import load_config
from serendip.core import InvalidData, InvalidRequest, MediaError
from serendip.storage import storage_errors, write_atomically

if TYPE_CHECKING:
    from numpy.random import Generator

    from serendip.artifacts import Artifacts
    from serendip.config import Config
    from serendip.core import Item
    from serendip.planning.lmdb_store import LmdbStore
    from serendip.tree.cluster_tree import ClusterTree
    from serendip.v1 import common_pb2, planner_pb2, recommender_pb2, retriever_pb2

T = TypeVar("T")

app = typer.Typer(help="Requests for load tests (clients/ghz).", no_args_is_help=True)

FOLDER = Path("clients/ghz/data")
REQUESTS = 256
_HISTORY = 50  # events sent: what a service keeps of a user
_K = 20
_BATCH = 32  # requests of a RetrieveBatch or a RecommendBatch
_ITEMS = 64  # of a Plan of many
_TEXTS = 16  # of a Resolve, one of which is no description
_CONTENTS = 16  # a thumbnail each: live plans are slow, and their pictures large
_TITLE = 2000  # bytes: a PlanContent's bound
_QUERY = 200  # bytes: a ListClusters's


@app.callback()
def _group() -> None:
    """Keeps the verb's name: a typer application of one command has none."""


@app.command()
def data(
    out: Annotated[Path, typer.Option(help="Folder that gets the files.")] = FOLDER,
    requests: Annotated[int, typer.Option(min=1, max=10_000, help="Requests a file.")] = REQUESTS,
    config: Annotated[str, typer.Option("--config", help="tiny, or a TOML file.")] = "tiny",
    seed: Annotated[int | None, typer.Option(help="Overrides the configuration's seed.")] = None,
) -> None:
    """Writes a file of requests a call, of the current release and the log."""
    from serendip.artifacts import Artifacts

    settings = load_config(config, seed=seed)
    written = write_data(settings, Artifacts(settings.artifacts_path), out, requests)
    for file, count in written.items():
        print(f"{file}  {count} requests, {file.stat().st_size:,} bytes")


def write_data(
    config: Config, artifacts: Artifacts, out: Path, requests: int = REQUESTS
) -> dict[Path, int]:
    """Writes NAME.json for each of ``made_requests`` into a folder, which is made.

    All are made before the first is written. Where a call has many rows, a file has ``requests``
    rows in all. Returns the number of requests of each file.

    Raises:
        NotFound: there is no release.
        InvalidData: the log has no user with an item that has a plan.
        InvalidRequest: ``out`` is a file, or below one.
        StorageError: the folder cannot be written.
    """
    made = {
        out / f"{name}.json": (_as_json(messages), len(messages))
        for name, messages in made_requests(config, artifacts, requests).items()
    }
    with storage_errors(out, "run serendip loadtest data again"):
        try:
            out.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as e:
            raise InvalidRequest(
                "is no folder", field="--out", value=str(out), remedy="Name another."
            ) from e
        for path, (text, _) in made.items():
            write_atomically(path, text.encode())
    return {path: count for path, (_, count) in made.items()}


def _as_json(messages: Sequence[Any]) -> str:
    from google.protobuf import json_format

    rows = [json_format.MessageToDict(m, preserving_proto_field_name=True) for m in messages]
    lines = ",\n".join(json.dumps(row, ensure_ascii=False, sort_keys=True) for row in rows)
    # ghz takes the file for a template: two braces of a title would be code in it. They stand
    # nowhere but in texts, so the second one may be written as its number.
    return f"[{lines}]\n".replace("{{", "{\\u007b")


def made_requests(
    config: Config, artifacts: Artifacts, requests: int = REQUESTS
) -> dict[str, list[Any]]:
    """Requests by the name of their file, each accepted by servers of the current release.

    Raises:
        NotFound, InvalidData: as ``write_data``.
    """
    import numpy as np

    from serendip.planning.lmdb_store import FILE, LmdbStore
    from serendip.tree.cluster_tree import ClusterTree
    from serendip.v1 import planner_pb2, recommender_pb2, retriever_pb2

    draw = np.random.default_rng(config.seed)
    release = artifacts.current("release")
    tree, planner, plans = (
        artifacts.open(k, release.inputs[k]) for k in ("tree", "planner", "plans")
    )
    clusters = ClusterTree.open(tree)
    store = LmdbStore(plans.file(FILE))
    try:
        asked = list(_asked(config, store, draw, requests))
    finally:
        store.close()
    recommend = [one.request for one in asked]
    retrieve = [_followed(one) for one in asked]
    items = [request.context_item_id for request in recommend]
    return {
        "recommend": recommend,
        "recommend-batch": [
            recommender_pb2.RecommendBatchRequest(requests=part)
            for part in _parts(recommend, _BATCH)
        ],
        "plan": [planner_pb2.PlanRequest(context_item_ids=[item], k=8) for item in items],
        "plan-many": [
            planner_pb2.PlanRequest(context_item_ids=part, k=8) for part in _parts(items, _ITEMS)
        ],
        "plan-content": _contents(config, draw),
        "resolve": _texts(clusters, int(planner.config["level"]), draw, requests),
        **_of_the_tree(clusters, draw, requests),
        "retrieve": retrieve,
        "retrieve-batch": [
            retriever_pb2.RetrieveBatchRequest(requests=part) for part in _parts(retrieve, _BATCH)
        ],
    }


# --- users -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A recommendation that somebody could have asked for, and the plan that it follows."""

    request: recommender_pb2.RecommendRequest
    plan: planner_pb2.Plan


def _asked(config: Config, store: LmdbStore, draw: Generator, count: int) -> Iterator[Asked]:
    """For users of the log, each at a moment when they had just seen an item that has a plan."""
    from serendip.planning.plan_store import plan_message
    from serendip.v1 import recommender_pb2

    histories = _histories(config, draw, 4 * count)
    seen = sorted({event.item_id for history in histories for event in history})
    plans = {
        item: plan_message(found)
        for item, found in zip(seen, store.get_many(seen), strict=True)
        if found is not None
    }
    plans = {item: plan for item, plan in plans.items() if plan.clusters}
    moments = []
    for history in histories:
        ends = [at + 1 for at, event in enumerate(history) if event.item_id in plans]
        if ends:
            moments.append((history, ends))
    if not moments:
        raise InvalidData(
            "has no user with an item that has a plan",
            field="interactions.parquet",
            remedy="Plan more items (serendip plan), or bring a longer log.",
        )
    for at in range(count):
        history, ends = moments[at % len(moments)]
        end = ends[int(draw.integers(len(ends)))]
        item = history[end - 1].item_id
        request = recommender_pb2.RecommendRequest(
            history=history[max(0, end - _HISTORY) : end], context_item_id=item, k=_K
        )
        yield Asked(request, plans[item])


def _followed(asked: Asked) -> retriever_pb2.RetrieveRequest:
    """The plan's first cluster, then the next ones; never the context item's own."""
    from serendip.v1 import retriever_pb2

    plan = asked.plan
    first, *rest = [cluster.node_id for cluster in plan.clusters]
    return retriever_pb2.RetrieveRequest(
        history=asked.request.history,
        node_ids=[first],
        widen_node_ids=rest,
        exclude_node_ids=[plan.own_node_id] if plan.HasField("own_node_id") else [],
        tree_version=plan.tree_version,
        k=_K,
    )


def _histories(config: Config, draw: Generator, users: int) -> list[list[common_pb2.HistoryItem]]:
    """The whole histories of at most so many users, drawn from all, oldest event first."""
    import pyarrow.compute as pc

    from serendip.catalog.logs import read_interactions
    from serendip.v1 import common_pb2

    log = read_interactions(config.data_path, max_unknown_share=config.max_unknown_share)
    everybody = pc.unique(log.column("user_id"))
    everybody = everybody.take(pc.sort_indices(everybody))
    drawn = everybody.take(draw.permutation(len(everybody))[:users])
    rows = log.filter(pc.is_in(log.column("user_id"), value_set=drawn)).sort_by(
        [("user_id", "ascending"), ("timestamp", "ascending"), ("item_id", "ascending")]
    )
    columns = (
        rows.column(c).to_pylist() for c in ("user_id", "item_id", "timestamp", "satisfaction")
    )
    histories: dict[str, list[common_pb2.HistoryItem]] = {u: [] for u in drawn.to_pylist()}
    for user, item_id, timestamp, satisfaction in zip(*columns, strict=True):
        event = common_pb2.HistoryItem(
            item_id=item_id, timestamp_ms=timestamp, satisfaction=satisfaction
        )
        histories[user].append(event)
    return list(histories.values())


def _parts(rows: list[T], size: int) -> list[list[T]]:
    return [rows[at : at + size] for at in range(0, len(rows), size)]


# --- the tree and the catalogue ----------------------------------------------------------


def _texts(
    tree: ClusterTree, level: int, draw: Generator, count: int
) -> list[planner_pb2.ResolveRequest]:
    """What a model could have written: descriptions, and one text a request that is none."""
    from serendip.v1 import planner_pb2

    descriptions = [tree.nodes.description[node] for node in tree.nodes.at_level(level)]
    made = []
    for _ in range(count):
        texts = [descriptions[at] for at in draw.integers(len(descriptions), size=_TEXTS).tolist()]
        texts[-1] += ", or so"
        made.append(planner_pb2.ResolveRequest(texts=texts))
    return made


def _of_the_tree(tree: ClusterTree, draw: Generator, count: int) -> dict[str, list[Any]]:
    """Pages of a level, children of a node, and searches, in turns; and single nodes."""
    from serendip.tree.cluster_tree import LEVELS
    from serendip.v1 import planner_pb2

    nodes = tree.nodes
    inner = nodes.at_level(LEVELS).start
    listed = []
    for at, node in enumerate(draw.integers(1, len(nodes), size=count).tolist()):
        if at % 3 == 0:
            one = planner_pb2.ListClustersRequest(level=int(nodes.level[node]))
        elif at % 3 == 1:
            one = planner_pb2.ListClustersRequest(parent_node_id=node % inner)
        else:
            words = nodes.description[node].split()
            word = words[int(draw.integers(len(words)))]
            query = word.encode()[:_QUERY].decode(errors="ignore")
            one = planner_pb2.ListClustersRequest(query=query)
        one.page_size = 100
        listed.append(one)
    single = draw.integers(len(nodes), size=count).tolist()
    return {
        "list-clusters": listed,
        "get-cluster": [planner_pb2.GetClusterRequest(node_id=node) for node in single],
    }


def _contents(config: Config, draw: Generator) -> list[planner_pb2.PlanContentRequest]:
    """Items of the catalogue as content: those with a picture that can be read, if any has."""
    from serendip.catalog.items import read_items, read_items_table
    from serendip.v1 import planner_pb2

    order = draw.permutation(len(read_items_table(config.data_path, ()))).tolist()
    rank = {row: at for at, row in enumerate(order[: 4 * _CONTENTS])}
    found: list[tuple[bool, int, planner_pb2.PlanContentRequest]] = []
    for row, item in enumerate(read_items(config.data_path)):
        if row in rank and 1 <= len(item.title.encode()) <= _TITLE:
            picture = _picture(item)
            content = planner_pb2.PlanContentRequest(title=item.title, thumbnail=picture, k=3)
            found.append((not picture, rank[row], content))
    found.sort(key=lambda one: one[:2])
    with_picture = [content for blind, _, content in found if not blind]
    return (with_picture or [content for _, _, content in found])[:_CONTENTS]


def _picture(item: Item) -> bytes:
    """The item's thumbnail as it is stored; empty if it has none, or none that a server takes."""
    from serendip.catalog.media import decode_image

    if item.thumbnail is None:
        return b""
    try:
        data = item.thumbnail if isinstance(item.thumbnail, bytes) else item.thumbnail.read_bytes()
        decode_image(data)
    except (OSError, MediaError):
        return b""
    return data
