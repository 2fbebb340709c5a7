"""Both servers as processes on the small world, called over gRPC as a service would."""

import base64
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, json_format, message_factory
from google.protobuf import descriptor_pool as default_pool
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_status import rpc_status
from grpcurl_page import commands
from node_client import node_client
from own_redis import need_redis, redis_server
from PIL import Image
from serendip_client import RecommendQuery, SerendipClient
from typer.testing import CliRunner

from serendip.catalog.items import read_items
from serendip.catalog.logs import read_interactions
from serendip.cli import app as cli
from serendip.core import InvalidRequest, NotFound, NotReady, PlanSource, WrongTree
from serendip.local import start_server
from serendip.planning.lmdb_store import FILE
from serendip.v1 import (
    planner_pb2,
    planner_pb2_grpc,
    recommender_pb2,
    recommender_pb2_grpc,
    retriever_pb2,
)

GHZ = sorted((Path(__file__).parents[2] / "clients" / "ghz").glob("*.json"))


@pytest.fixture
def client(up):
    with SerendipClient(up.planner.address, up.retriever.address, timeout_s=20) as made:
        yield made


def status_of(call):
    """Code, and the fields of its BadRequest, of a call that fails."""
    with pytest.raises(grpc.RpcError) as error:
        call()
    rich = rpc_status.from_call(error.value)
    fields = []
    for detail in rich.details if rich else ():
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(bad):
            fields += [v.field for v in bad.field_violations]
    return error.value.code(), fields, error.value.details()


@pytest.fixture
def stub(up):
    with grpc.insecure_channel(up.planner.address) as channel:
        yield planner_pb2_grpc.PlannerStub(channel)


def test_a_plan_comes_from_the_store_or_the_model_or_the_fallback(up, client):
    rows = client.plan([up.stored, up.live, up.broken, "nobody"], k=3)
    assert [r.source for r in rows] == [
        PlanSource.STORE, PlanSource.LIVE, PlanSource.FALLBACK, None,
    ]  # fmt: skip
    for row, item_id in zip(rows[:3], (up.stored, up.live, up.broken), strict=True):
        plan = row.require()
        own = up.tree.node_of(item_id, 4)
        assert plan.context_item_id == item_id
        assert len(plan.clusters) == 3
        assert plan.own_node_id == own
        assert own not in {c.node_id for c in plan.clusters}
        assert row.versions.tree_version == up.tree.version == plan.tree_version
    assert rows[0].age_s > 0 == rows[1].age_s
    assert rows[0].versions.plans_version
    assert not rows[1].versions.plans_version
    assert not rows[2].versions.planner_version
    with pytest.raises(NotFound, match=r"context_item_ids.*got 'nobody'.*PlanContent"):
        rows[3].require()


def test_the_fallback_is_the_siblings_by_satisfaction(up, client):
    (row,) = client.plan([up.broken])
    clusters = row.require().clusters
    assert len(clusters) == 3
    assert all(c.serendipitous for c in clusters)
    scores = [c.score for c in clusters]
    assert scores == sorted(scores, reverse=True)


def jpeg(side=32):
    out = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), 90, np.uint8)).save(out, "JPEG")
    return out.getvalue()


def test_content_that_the_catalogue_does_not_have_is_planned_live(up, client):
    clusters = list(up.tree.nodes.at_level(4))
    plan = client.plan_content("dough oven", thumbnail=jpeg(), k=8, exclude_node_ids=clusters[:60])
    plan = getattr(plan, "plan", plan)
    assert {c.node_id for c in plan.clusters} == set(clusters[60:])
    assert plan.own_node_id is None
    assert plan.reasoning


def test_a_video_is_planned_from_its_frames(up, client):
    video = next(item.video for item in read_items(up.data) if item.video)
    plans = [client.plan_content("dough oven", video=video.read_bytes(), k=8) for _ in range(2)]
    assert [c.node_id for c in plans[0].plan.clusters] == [
        c.node_id for c in plans[1].plan.clusters
    ]
    assert len(plans[0].plan.clusters) == 8


def test_a_text_that_is_no_utf_8_is_refused(up):
    raw = b"\x0a\x02\xc3\x28\x28\x03"  # title: two bytes that are none; k: 3
    with grpc.insecure_channel(up.planner.address) as channel:
        call = channel.unary_unary("/serendip.v1.Planner/PlanContent")
        code, _, details = status_of(lambda: call(raw))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "PlanContent" in details


def test_a_live_plan_is_kept_and_then_a_stored_one(up, client):
    whole, *_ = first = client.plan([up.live], k=8)
    (again,) = client.plan([up.live], k=8)
    assert again.source is PlanSource.STORE
    assert again.plan.clusters == whole.plan.clusters
    assert not again.versions.plans_version
    assert again.age_s >= 0
    (cut,) = client.plan([up.live], k=8, exclude_node_ids=[whole.plan.clusters[0].node_id])
    assert cut.source is PlanSource.LIVE, "as where a stored plan is left too few"
    assert first


def test_a_title_that_looks_like_markup_is_planned_like_any_other(client):
    plan = client.plan_content("rye <start_of_image> <image_soft_token>", thumbnail=jpeg(), k=2)
    assert len(getattr(plan, "plan", plan).clusters) == 2


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"thumbnail": b""}, "thumbnail"),
        ({"thumbnail": b"GIF89a" + bytes(100)}, "thumbnail"),
        ({"thumbnail": jpeg()[:200]}, "thumbnail"),
        ({"frames": [jpeg(), b"x"]}, r"frames[1]"),
        ({"title": ""}, "title"),
        ({"title": "x" * 2001}, "title"),
        ({"text": "x" * (1 << 20)}, "text"),
        ({"frames": [jpeg()] * 33}, "frames"),
        ({"frames": [bytes((8 << 20) + 1)]}, "frames[0]"),
        ({"video": b"no video"}, "video"),
        ({"video": bytes((16 << 20) + 1)}, "video"),
        ({"video": b"x", "frames": [jpeg()]}, "video"),
        ({"k": 0}, "k"),
        ({"k": 9}, "k"),
        ({"exclude_node_ids": [1]}, "exclude_node_ids"),
        ({"exclude_node_ids": range(21, 85)}, "exclude_node_ids"),
    ],
)
def test_bad_content_is_refused_by_field(stub, changes, field):
    request = {"title": "dough", "thumbnail": jpeg(), "k": 3, **changes}
    code, fields, _ = status_of(lambda: stub.PlanContent(planner_pb2.PlanContentRequest(**request)))
    assert (code, fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])


@pytest.mark.parametrize(
    ("request_", "code", "field"),
    [
        ({"context_item_ids": [], "k": 1}, "INVALID_ARGUMENT", "context_item_ids"),
        ({"context_item_ids": ["x"] * 257, "k": 1}, "INVALID_ARGUMENT", "context_item_ids"),
        ({"context_item_ids": ["x", ""], "k": 1}, "INVALID_ARGUMENT", "context_item_ids[1]"),
        ({"context_item_ids": ["x"]}, "INVALID_ARGUMENT", "k"),
        ({"context_item_ids": ["x"], "k": 10_000}, "INVALID_ARGUMENT", "k"),
        (
            {"context_item_ids": ["x"], "k": 1, "tree_version": "0" * 12},
            "FAILED_PRECONDITION",
            None,
        ),
    ],
)
def test_a_bad_plan_request_is_refused_by_field(stub, up, request_, code, field):
    got, fields, details = status_of(lambda: stub.Plan(planner_pb2.PlanRequest(**request_)))
    assert got.name == code
    assert fields == ([field] if field else [])
    if not field:
        assert up.tree.version in details


def test_the_tree_is_listed_page_by_page(up, client, stub):
    assert [c.node_id for c in client.list_clusters()] == list(range(len(up.tree.nodes)))
    leaves = client.list_clusters(level=4)
    assert [c.description for c in leaves] == [
        up.tree.nodes.description[n] for n in up.tree.nodes.at_level(4)
    ]
    page = stub.ListClusters(planner_pb2.ListClustersRequest(page_size=10))
    assert len(page.clusters) == 10
    children = client.list_clusters(parent_node_id=0)
    assert [c.parent_node_id for c in children] == [0, 0]
    assert sum(c.item_count for c in children) == len(up.tree.item_ids)
    assert client.get_cluster(leaves[0].node_id) == leaves[0]
    with pytest.raises(NotFound, match="no such node"):
        client.get_cluster(10_000)
    with pytest.raises(NotFound):
        client.list_clusters(parent_node_id=-1)
    for bad in ({"page_token": "x"}, {"page_size": 1001}, {"level": 5}):
        request = planner_pb2.ListClustersRequest(**bad)
        code, fields, _ = status_of(lambda r=request: stub.ListClusters(r))
        assert (code, fields) == (grpc.StatusCode.INVALID_ARGUMENT, list(bad))


def test_texts_are_resolved_by_equality_after_normalisation(up, client):
    node = up.tree.nodes.at_level(4)[5]
    text = up.tree.nodes.description[node]
    found = client.resolve([text, f"  {text.replace(' ', '   ')} ", text.upper(), "nonsense"])
    assert found.node_ids == (node, node, None, None)
    assert found.match_rate == 0.5


def test_the_tree_is_searched_by_words(up, stub):
    nodes = up.tree.nodes
    words = nodes.description[nodes.at_level(4)[9]].split()

    def found(**asked):
        clusters, token = [], ""
        while True:
            request = planner_pb2.ListClustersRequest(page_token=token, **asked)
            page = stub.ListClusters(request)
            clusters += [c.node_id for c in page.clusters]
            token = page.next_page_token
            if not token:
                return clusters

    def having(*parts):
        return [n for n, text in enumerate(nodes.description) if all(p in text for p in parts)]

    both = found(query=f"{words[0].upper()}  {words[-1][1:]}")
    assert both == having(words[0], words[-1][1:])
    assert nodes.at_level(4)[9] in both
    whole = having("an")
    assert len(whole) > 5
    assert found(query="AN", page_size=2) == whole
    assert found(query="an", level=4) == [n for n in whole if nodes.level[n] == 4]
    above = int(nodes.parent[whole[-1]])
    assert found(query="an", parent_node_id=above) == [n for n in whole if nodes.parent[n] == above]
    assert found(query="nowhere") == []
    request = planner_pb2.ListClustersRequest(query="x" * 201)
    code, fields, _ = status_of(lambda: stub.ListClusters(request))
    assert (code, fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["query"])


def test_resolved_texts_are_counted_by_outcome(up, stub):
    text = up.tree.nodes.description[up.tree.nodes.at_level(4)[5]]

    def counted():
        return [
            metric(up.planner.metrics, "serendip_resolve_texts_total", outcome=outcome)
            for outcome in ("matched", "unmatched", "invalid")
        ]

    before = counted()
    answer = stub.Resolve(planner_pb2.ResolveRequest(texts=[text, text, "none", "é" * 500_000]))
    assert [row.status.code for row in answer.rows] == [0, 0, 5, 3]
    assert answer.match_rate == 0.5
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [2, 1, 1]


def test_text_that_is_no_utf_8_is_refused_in_words(up):
    with grpc.insecure_channel(up.planner.address) as channel:
        for method in ("Resolve", "ListClusters"):
            field = b"\x0a" if method == "Resolve" else b"\x2a"
            call = channel.unary_unary(f"/serendip.v1.Planner/{method}")
            code, _, details = status_of(lambda c=call, f=field: c(f + b"\x02\xff\xfe", timeout=20))
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert details.startswith(f"the request is no {method} message")
            assert "UTF-8" in details


def test_info_tells_versions_level_and_size(up, stub):
    info = stub.GetInfo(planner_pb2.PlannerGetInfoRequest())
    assert (info.level, info.level_gap, info.prompt_style) == (4, 1, "video_cot")
    assert info.cluster_count == 64
    assert info.plan_count > 100
    assert info.versions.tree_version == up.tree.version
    assert info.recommends
    limits = info.limits
    assert (limits.context_items, limits.clusters, limits.excluded_nodes) == (256, 8, 1024)
    assert (limits.texts, limits.page_size, limits.frames) == (1024, 1000, 32)
    assert (limits.image_bytes, limits.pixels) == (8 << 20, 40_000_000)
    assert (limits.video_bytes, limits.video_seconds) == (16 << 20, 60)
    assert limits.request_bytes == 32 << 20


def users(up, count):
    log = read_interactions(up.data).sort_by([("user_id", "ascending"), ("timestamp", "ascending")])
    histories = {}
    for user, item in zip(
        log.column("user_id").to_pylist(), log.column("item_id").to_pylist(), strict=True
    ):
        histories.setdefault(user, []).append(item)
    return list(histories.values())[:count]


def test_recommendations_lie_in_the_planned_cluster_or_say_that_they_do_not(up, client):
    for history in users(up, 15):
        answer = client.recommend(history, up.stored, 20)
        own = up.tree.slice(up.tree.node_of(up.stored, 4))
        start, end = up.tree.slice(answer.plan.clusters[0].node_id)
        planned, never = set(up.tree.item_ids[start:end]), set(up.tree.item_ids[slice(*own)])
        assert len(answer.candidates) == 20
        for c in answer.candidates:
            assert c.item_id not in history
            assert c.item_id not in never
            assert c.widened == (c.item_id not in planned)
            low, high = up.tree.slice(c.node_id)
            assert c.item_id in up.tree.item_ids[low:high]
        assert set(answer.widened_to) == {c.node_id for c in answer.candidates if c.widened}


WAYS = (
    {},
    {"clusters": 3},
    {"clusters": 3, "merge": "quota", "max_per_leaf": 2},
    {"clusters": 8, "merge": "quota", "constraint": "siblings", "include_seen": True},
    {"min_score": -40.0, "clusters": 2, "deny_item_ids": ["i00000"]},
)


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_one_call_and_two_stubs_give_the_same(up, client, options):
    asked = [(h, item) for h in [*users(up, 3), []] for item in (up.stored, up.broken)]
    both = []
    for via in ("server", "client"):
        both.append([client.recommend(*one, 30, via=via, **options) for one in asked])
        queries = [RecommendQuery(*one, 30, **options) for one in asked]
        both.append([row.require() for row in client.recommend_batch(queries, via=via)])
    first, *others = both
    for answers in others:
        for answer, expected in zip(answers, first, strict=True):
            assert [c.item_id for c in answer.candidates] == [
                c.item_id for c in expected.candidates
            ]
            assert [c.score for c in answer.candidates] == pytest.approx(
                [c.score for c in expected.candidates], abs=1e-5
            )
            assert (answer.source, answer.widened_to) == (expected.source, expected.widened_to)
            assert answer.plan.clusters == expected.plan.clusters


def test_known_clusters_are_neither_planned_nor_widened_to(up, client):
    (row,) = client.plan([up.stored])
    known = [c.node_id for c in row.plan.clusters[:3]]
    never = {item for node in known for item in up.tree.item_ids[slice(*up.tree.slice(node))]}
    for via in ("server", "client"):
        answer = client.recommend([], up.stored, 400, exclude_node_ids=known, via=via)
        assert answer.source is PlanSource.LIVE, "a stored plan has too few left"
        assert not set(known) & {c.node_id for c in answer.plan.clusters}
        assert len(answer.candidates) == 400
        assert not never & {c.item_id for c in answer.candidates}


def test_what_is_wrong_with_a_recommendation_is_named(up, client):
    with pytest.raises(NotFound, match="neither the plans nor the tree"):
        client.recommend([], "nobody", 5)
    for k in (0, 10_000):
        with pytest.raises(InvalidRequest, match=r"k: must lie in 1 to 1000"):
            client.recommend([], up.stored, k)
    with pytest.raises(WrongTree, match=up.tree.version):
        client.retrieve([], [1], k=3, tree_version="0" * 12)
    with pytest.raises(NotFound, match="node"):
        client.retrieve([], [9_999], k=3, tree_version=up.tree.version)


def test_a_call_by_reflection_alone_works(up):
    with grpc.insecure_channel(up.planner.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {"serendip.v1.Planner", "serendip.v1.Recommender"} <= set(database.get_services())
        pool = DescriptorPool(database)
        method = pool.FindServiceByName("serendip.v1.Recommender").FindMethodByName("Recommend")
        ask, answer = map(message_factory.GetMessageClass, (method.input_type, method.output_type))
        call = channel.unary_unary(
            "/serendip.v1.Recommender/Recommend",
            request_serializer=ask.SerializeToString,
            response_deserializer=answer.FromString,
        )
        assert len(call(ask(context_item_id=up.stored, k=4)).candidates) == 4


# --- callers from outside: reflection, ghz, grpcurl, Node.js ------------------------------------


def unary(channel, method, request, **options):
    """A call by its descriptor alone."""
    answer = message_factory.GetMessageClass(method.output_type)
    call = channel.unary_unary(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=answer.FromString,
    )
    return call(request, timeout=60, **options)


def method_of(call):
    service, _, name = call.replace("/", ".").rpartition(".")
    return default_pool.Default().FindServiceByName(service).methods_by_name[name]


def rows_that_failed(response):
    return [row.status for row in getattr(response, "rows", ()) if row.status.code]


@pytest.fixture(scope="module")
def channels(up):
    with (
        grpc.insecure_channel(up.planner.address) as planner,
        grpc.insecure_channel(up.retriever.address) as retriever,
    ):
        yield {"127.0.0.1:50051": planner, "127.0.0.1:50052": retriever}


@pytest.mark.parametrize(
    "file", [planner_pb2, recommender_pb2, retriever_pb2], ids=lambda f: f.__name__
)
def test_reflection_finds_every_method_by_its_name_as_ghz_asks(channels, file):
    (service,) = file.DESCRIPTOR.services_by_name.values()
    planner, retriever = channels.values()
    stub = reflection_pb2_grpc.ServerReflectionStub(
        retriever if service.name == "Retriever" else planner
    )
    wanted = {method.full_name: file.DESCRIPTOR.name for method in service.methods}
    wanted["grpc.health.v1.Health.Check"] = health_pb2.DESCRIPTOR.name
    asked = [reflection_pb2.ServerReflectionRequest(file_containing_symbol=s) for s in wanted]
    answers = list(stub.ServerReflectionInfo(iter(asked), timeout=20))
    for name, answer in zip(wanted.values(), answers, strict=True):
        files = answer.file_descriptor_response.file_descriptor_proto
        assert name in {descriptor_pb2.FileDescriptorProto.FromString(f).name for f in files}


@pytest.fixture(scope="module")
def load_data(up, tmp_path_factory):
    """What ``serendip loadtest data`` writes, by the name of the file."""
    folder = tmp_path_factory.mktemp("loadtest")
    config = folder / "config.toml"
    paths = up.world.config
    config.write_text(f'data_dir = "{paths.data_path}"\nartifacts_dir = "{paths.artifacts_path}"\n')

    def write(out):
        options = ["--config", str(config), "--out", str(folder / out), "--requests", "40"]
        run = CliRunner().invoke(cli, ["loadtest", "data", *options], catch_exceptions=False)
        assert run.exit_code == 0
        files = {path.name: path.read_bytes() for path in (folder / out).iterdir()}
        assert {Path(line.split("  ")[0]).name for line in run.output.splitlines()} == set(files)
        return files

    first = write("data")
    assert write("again") == first, "the same release, log and seed"
    return first


@pytest.mark.parametrize("path", GHZ, ids=lambda p: p.stem)
def test_the_servers_take_every_request_of_the_load_tests(up, channels, load_data, path):
    config = json.loads(path.read_text())
    method = method_of(config["call"])
    if "data" in config:
        payloads = [config["data"]]
    else:
        text = load_data[Path(config["data-file"]).name].decode()
        assert text.startswith("["), "else ghz takes it for one request"
        assert "{{" not in text, "else ghz takes it for a template"
        payloads = json.loads(text)
    ask = message_factory.GetMessageClass(method.input_type)
    for payload in payloads:
        request = json_format.ParseDict(payload, ask())
        assert json_format.MessageToDict(request, preserving_proto_field_name=True) == payload
        response = unary(channels[config["host"]], method, request)
        failed = rows_that_failed(response)
        if method.name == "Resolve":  # one of 16 texts is no description
            assert len(failed) == 1
            assert response.match_rate == pytest.approx(15 / 16)
        else:
            assert failed == []


def test_load_tests_ask_as_users_do(up, load_data):
    asked = json.loads(load_data["recommend.json"])
    histories = [tuple(e["item_id"] for e in request["history"]) for request in asked]
    assert len(set(histories)) > 30
    log = {tuple(h) for h in users(up, 10_000)}
    for request, history in zip(asked, histories, strict=True):
        assert history[-1] == request["context_item_id"]
        assert any(set(history) <= set(whole) for whole in log)
    for request in json.loads(load_data["retrieve.json"]):
        assert request["tree_version"] == up.tree.version
        assert request["node_ids"][0] not in request["exclude_node_ids"]


def test_every_grpcurl_command_of_the_docs_is_answered(up, channels):
    thumbnail = base64.b64encode(
        (up.world.config.data_path / "thumbnails" / "i00001.jpg").read_bytes()
    ).decode()
    called = set()
    for command in commands():
        if not command.call:
            assert not command.symbol or default_pool.Default().FindFileContainingSymbol(
                command.symbol.removesuffix(".Recommend")
            )
            continue
        called.add(command.call)
        method = method_of(command.call)
        data = command.data.replace("$tree", up.tree.version).replace("$thumbnail", thumbnail)
        request = json_format.Parse(data, message_factory.GetMessageClass(method.input_type)())
        if command.printed:
            code, _, details = status_of(
                lambda m=method, r=request, c=command: unary(channels[c.address], m, r)
            )
            assert f"Code: {code.name.title().replace('_', '')}" in command.printed
            assert f"Message: {details}" in command.printed
            continue
        response = unary(channels[command.address], method, request)
        if method.name != "Resolve":  # whose texts are the demo's
            assert rows_that_failed(response) == []
    services = (planner_pb2, recommender_pb2, retriever_pb2)
    every = {
        f"{service.full_name}/{name}"
        for file in services
        for service in file.DESCRIPTOR.services_by_name.values()
        for name in service.methods_by_name
    }
    assert called == {*every, "grpc.health.v1.Health/Check"}


def test_the_example_in_node_runs(up):
    folder = node_client()
    where = {"PLANNER": up.planner.address, "RETRIEVER": up.retriever.address}

    def run(*arguments, **more):
        return subprocess.run(
            ["node", "recommend.js", *arguments], cwd=folder, capture_output=True, text=True,
            timeout=60, env={**os.environ, "DEADLINE_MS": "30000", **where, **more},
        )  # fmt: skip

    found = run(up.stored, "i00004", "i00010", TOKEN="secret")
    assert found.returncode == 0, found.stderr
    one, two = re.split(r"^tier by tier", found.stdout, flags=re.MULTILINE)
    assert one.splitlines()[0].endswith("(PLAN_SOURCE_STORE)")
    assert len(one.splitlines()) == 11
    assert one.splitlines()[1:] == two.splitlines()[1:]
    nobody = run("nobody")
    assert (nobody.returncode, nobody.stdout) == (1, "")
    assert nobody.stderr.startswith("NOT_FOUND: ")
    away = run(up.stored, PLANNER="127.0.0.1:1")
    assert away.returncode == 1
    assert away.stderr.startswith("UNAVAILABLE: ")


# --- metrics, health, faults -------------------------------------------------------------------


def metric(url, name, **labels):
    text = urllib.request.urlopen(url).read().decode()
    total = 0.0
    for line in text.splitlines():
        if line.startswith(name + "{") and all(f'{k}="{v}"' in line for k, v in labels.items()):
            total += float(line.rsplit(" ", 1)[1])
    return total


def test_metrics_count_what_was_called(up, client):
    url, labels = up.planner.metrics, {"grpc_service": "serendip.v1.Planner", "grpc_method": "Plan"}
    before = metric(url, "grpc_server_handled_total", grpc_code="OK", **labels)
    started = metric(url, "grpc_server_started_total", **labels)
    for _ in range(5):
        client.plan([up.stored])
    assert metric(url, "grpc_server_handled_total", grpc_code="OK", **labels) == before + 5
    assert metric(url, "grpc_server_started_total", **labels) == started + 5
    assert metric(url, "grpc_server_handling_seconds_count", **labels) >= before + 5
    for page, kind in ((url, "plans"), (up.retriever.metrics, "retriever")):
        assert metric(page, "serendip_artifact_info", kind=kind) == 1


def test_both_say_that_they_are_healthy(up):
    for server in (up.planner, up.retriever):
        with grpc.insecure_channel(server.address) as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def arguments(up, *more):
    return ["--artifacts", str(up.world.config.artifacts_path), "--port", "0", *more]


def test_without_a_retriever_recommend_is_unavailable_at_once_and_plans_still_come(up, tmp_path):
    gone = start_server("retriever_server", *arguments(up), log=tmp_path / "r.log")
    planner = start_server(
        "planner_server",
        *arguments(up, "--no-live", "--retriever", gone.address),
        log=tmp_path / "p.log",
    )
    try:
        assert gone.stop() == 0
        with SerendipClient(planner.address, timeout_s=20) as client:
            with pytest.raises(NotReady):
                client.recommend([], up.stored, 5)
            (row,) = client.plan([up.stored])
            assert row.source is PlanSource.STORE
            with pytest.raises(NotReady, match="live planning is off"):
                client.plan_content("dough", thumbnail=jpeg(), k=1)
    finally:
        planner.process.send_signal(signal.SIGINT)
        assert planner.process.wait(20) == 0


def test_plans_come_from_redis_as_from_the_file(up, client, tmp_path):
    need_redis()
    from serendip.planning.redis_store import copy_to_redis

    with redis_server() as url:
        options = arguments(up, "--no-live", "--redis", url)
        run = [sys.executable, "-m", "planner_server", *options]
        without = subprocess.run(run, capture_output=True, text=True, timeout=120)
        assert without.returncode == 2
        assert re.fullmatch(
            r"planner_server: .*no such version in Redis.*serendip plan --redis.*\n", without.stderr
        )
        plans = up.world.artifacts.current("plans")
        copy_to_redis(plans.file(FILE), url)
        server = start_server("planner_server", *options, log=tmp_path / "redis.log")
        try:
            with SerendipClient(server.address, timeout_s=20) as over_redis:
                ours, theirs = (c.plan([up.stored, up.broken], k=3) for c in (client, over_redis))
                assert [row.plan for row in theirs] == [row.plan for row in ours]
                assert [row.source for row in theirs] == [PlanSource.STORE, PlanSource.FALLBACK]
        finally:
            assert server.stop() == 0


@pytest.mark.parametrize("server", ["planner_server", "retriever_server"])
def test_a_server_that_cannot_start_says_why_in_one_line(server, tmp_path, up):
    def run(artifacts):
        command = [sys.executable, "-m", server, "--artifacts", str(artifacts), "--port", "0"]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    nothing = run(tmp_path)
    assert nothing.returncode == 2
    assert re.fullmatch(
        rf"{server}: release: nothing published.*serendip release.*\n", nothing.stderr
    )

    shutil.copytree(up.world.config.artifacts_path, tmp_path / "broken")
    kind, name = (
        ("plans", "plans.lmdb") if server == "planner_server" else ("retriever", "items.npy")
    )
    (file,) = (tmp_path / "broken" / kind).glob(f"*/{name}")
    with file.open("r+b") as f:
        f.seek(file.stat().st_size // 2)
        byte = f.read(1)
        f.seek(-1, 1)
        f.write(bytes([byte[0] ^ 1]))
    corrupt = run(tmp_path / "broken")
    assert corrupt.returncode == 2
    assert f"{name}: differs from its sha256" in corrupt.stderr
    assert "Traceback" not in corrupt.stderr


def test_no_inside_of_the_server_reaches_a_caller(up):
    with grpc.insecure_channel(up.planner.address) as channel:
        recommend = recommender_pb2_grpc.RecommenderStub(channel).Recommend
        request = recommender_pb2.RecommendRequest(context_item_id="x" * 300, k=1)
        code, fields, details = status_of(lambda: recommend(request))
    assert (code, fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["context_item_id"])
    assert "Traceback" not in details
    assert ".py" not in details


def test_the_readme_s_client_code_runs(up, capsys):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    code = code.replace("127.0.0.1:50051", up.planner.address).replace("i00001", up.stored)
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "->" in printed
    assert len(printed.splitlines()) >= 6
