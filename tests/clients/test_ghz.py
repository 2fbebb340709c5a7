"""The load tests' files: what can be known without a server, and who judges a run."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2

from serendip.v1 import planner_pb2, recommender_pb2, retriever_pb2

ROOT = Path(__file__).parents[2]
GHZ = ROOT / "clients" / "ghz"
CONFIGS = sorted(GHZ.glob("*.json"))
MODULES = {"planner": planner_pb2, "recommender": recommender_pb2, "retriever": retriever_pb2}

# What ghz v0.121 reads of a configuration (runner/config.go); it drops the others silently.
KNOWN_KEYS = set(
    re.findall(
        r"\S+",
        """
    proto protoset call cacert cert key skipTLS skipFirst cname authority insecure total async
    concurrency concurrency-schedule concurrency-start concurrency-end concurrency-step
    concurrency-step-duration concurrency-max-duration connections rps duration duration-stop
    max-duration timeout data data-file binary-file metadata metadata-file stream-interval output
    format connect-timeout keepalive cpus import-paths name tags reflect-metadata debug host
    enable-compression load-schedule load-start load-end load-step load-step-duration
    load-max-duration
    """,
    )
)


def method_of(call):
    service, _, name = call.replace("/", ".").rpartition(".")
    return descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_configuration_is_what_ghz_reads(path):
    config = json.loads(path.read_text())
    assert set(config) <= KNOWN_KEYS
    method = method_of(config["call"])
    assert config["insecure"] is True
    assert 1 <= config["total"] <= 20_000
    assert "max-duration" not in config, "it would take the place of total"
    assert "duration" not in config, "it would take the place of total"
    assert 1 <= config["connections"] <= config["concurrency"] <= 64
    for key in ("timeout", "connect-timeout"):
        assert re.fullmatch(r"\d+(ms|s|m)", config[key])
    planner = method.containing_service.name in ("Planner", "Recommender")
    ports = {"50051"} if planner else {"50052"}
    if method.containing_service.name == "Health":
        ports = {"50051" if path.stem.startswith("planner") else "50052"}
    assert config["host"] in {f"127.0.0.1:{port}" for port in ports}
    assert ("data" in config) != ("data-file" in config)
    if "data" in config:
        assert config["data"] == {}
        assert not method.input_type.fields or method.containing_service.name == "Health"
    else:
        file = Path(config["data-file"])
        assert file.parent == Path("clients/ghz/data"), "where loadtest data writes"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_its_proto_is_found_from_the_root(path, tmp_path):
    config = json.loads(path.read_text())
    if "proto" not in config:
        assert config["call"] == "grpc.health.v1.Health.Check", "by reflection"
        assert health_pb2.DESCRIPTOR.services_by_name["Health"]
        return
    # As ghz does: the file by its name, imports from its folder, from here, from import-paths.
    folders = [str(Path(config["proto"]).parent), ".", *config["import-paths"]]
    assert config["proto"].startswith("protos/")
    out = tmp_path / "set"
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        *(f"-I{folder}" for folder in folders[1:]),
    ]
    run = subprocess.run(
        [*command, f"--descriptor_set_out={out}", config["proto"]],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    service, _, name = config["call"].rpartition(".")
    file = MODULES[Path(config["proto"]).stem].DESCRIPTOR
    assert name in file.services_by_name[service.removeprefix("serendip.v1.")].methods_by_name


def test_every_call_of_both_servers_has_a_configuration():
    asked = {method_of(json.loads(p.read_text())["call"]).full_name for p in CONFIGS}
    every = {
        method.full_name
        for module in MODULES.values()
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert asked == {*every, "grpc.health.v1.Health.Check"}


def test_the_readme_names_every_configuration():
    rows = re.findall(r"^\| `(\S+\.json)` \| (\S+) \|", (GHZ / "README.md").read_text(), re.M)
    calls = {
        p.name: json.loads(p.read_text())["call"].removeprefix("serendip.v1.") for p in CONFIGS
    }
    assert dict(rows) == calls


# --- the judge ---------------------------------------------------------------------------


def report(codes, **changes):
    made = {
        "count": sum(codes.values()),
        "rps": 812.3,
        "statusCodeDistribution": codes,
        "errorDistribution": {},
        "latencyDistribution": [
            {"percentage": 50, "latency": 1_500_000},
            {"percentage": 99, "latency": 9_000_000},
        ],
    }
    return json.dumps({**made, **changes})


def judge(*arguments, text=None):
    command = [sys.executable, str(GHZ / "check.py"), *map(str, arguments)]
    return subprocess.run(command, input=text, capture_output=True, text=True)


def test_a_run_of_ok_alone_passes():
    run = judge(text=report({"OK": 200}))
    assert run.returncode == 0, run.stderr
    said = "standard input: ok: 200 calls: OK 200; 812 calls/s, p50 1.5 ms, p99 9.0 ms"
    assert run.stdout.strip() == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (report({"OK": 199, "Unavailable": 1}), "FAILED: 200 calls: OK 199, Unavailable 1"),
        (
            report({"NotFound": 5}, errorDistribution={"rpc error: no such node": 5}),
            "5 x rpc error: no such node",
        ),
        (report({}, count=0), "FAILED: 0 calls: none"),
        (report({}, statusCodeDistribution=None, latencyDistribution=None), "FAILED: 0 calls"),
        (report({"OK": 5}, count=7), "FAILED: 7 calls: OK 5"),
    ],
)
def test_a_run_with_anything_else_fails(text, said):
    run = judge(text=text)
    assert run.returncode == 1
    assert said in run.stdout


@pytest.mark.parametrize("text", ["", "Summary:\n  Count: 200\n", "[]", "{}", '{"count": 3}'])
def test_what_is_no_report_is_not_a_pass(text):
    run = judge(text=text)
    assert run.returncode == 2
    assert "no report of ghz -O json" in run.stderr
    assert "Traceback" not in run.stderr


def test_several_reports_are_judged_together(tmp_path):
    for name, codes in (("good", {"OK": 3}), ("bad", {"OK": 3, "Internal": 1})):
        (tmp_path / name).write_text(report(codes))
    assert judge(tmp_path / "good").returncode == 0
    run = judge(tmp_path / "good", tmp_path / "bad")
    assert run.returncode == 1
    assert len(run.stdout.splitlines()) == 2
    assert judge(tmp_path / "good", tmp_path / "none").returncode == 2
