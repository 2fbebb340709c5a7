"""The examples in Go and Java name what the protos have; the lock file of Node.js names no host.

What they name is compared with the descriptors, by the names that each language's generator makes.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serendip.v1 import common_pb2, planner_pb2, recommender_pb2, retriever_pb2

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / "clients"
FILES = [m.DESCRIPTOR for m in (common_pb2, planner_pb2, recommender_pb2, retriever_pb2)]
MESSAGES = {name: m for file in FILES for name, m in file.message_types_by_name.items()}
ENUMS = {name: e for file in FILES for name, e in file.enum_types_by_name.items()}
SERVICES = {name: s for file in FILES for name, s in file.services_by_name.items()}
STATUS = {"code", "message", "details"}  # google.rpc.Status, of a row


def camel(name):
    return "".join(word.capitalize() for word in name.split("_"))


FIELDS = {camel(f.name) for m in MESSAGES.values() for f in m.fields} | {camel(n) for n in STATUS}
METHODS = {method.name for service in SERVICES.values() for method in service.methods}


# --- Go ----------------------------------------------------------------------------------


def go_unknown(source):
    """Names of the stubs' package, getters and literals' keys that its generator would not make."""
    known = {*MESSAGES, *ENUMS, *(f"New{name}Client" for name in SERVICES)}
    known |= {f"{name}_{v.name}" for name, enum in ENUMS.items() for v in enum.values}
    unknown = {name for name in re.findall(r"\bpb\.(\w+)", source) if name not in known}
    unknown |= {g for g in re.findall(r"\.Get([A-Z]\w*)\(", source) if g not in FIELDS}
    for service, method in re.findall(r"pb\.New(\w+)Client\([^)]*\)\.(\w+)\(", source):
        if service in SERVICES and method not in SERVICES[service].methods_by_name:
            unknown.add(f"{service}.{method}")
    for name, body in re.findall(r"&pb\.(\w+)\{((?:[^{}]|\{[^{}]*\})*)\}", source):
        fields = {camel(f.name) for f in MESSAGES[name].fields} if name in MESSAGES else set()
        keys = re.findall(r"(?:^|,)\s*(\w+):\s", body, re.MULTILINE)
        unknown |= {f"{name}.{key}" for key in keys if key not in fields}
    return unknown


def test_the_example_in_go_names_what_there_is():
    source = (CLIENTS / "go" / "main.go").read_text()
    assert go_unknown(source) == set()
    assert {"Recommend", "Plan", "Retrieve"} <= set(re.findall(r"Client\(\w+\)\.(\w+)", source))


@pytest.mark.parametrize(
    ("right", "wrong", "found"),
    [
        ("pb.PlanRow", "pb.PlanLine", "PlanLine"),
        ("ContextItemId: contextItem", "ContextItem: contextItem", "RecommendRequest.ContextItem"),
        ("K:              8", "Count:          8", "PlanRequest.Count"),
        ("ItemId: item", "Item: item", "HistoryItem.Item"),
        ("GetTreeVersion()", "GetTree()", "Tree"),
        ("CONSTRAINT_NOT_OWN", "CONSTRAINT_OTHER", "Constraint_CONSTRAINT_OTHER"),
        (").Retrieve(ctx", ").Fetch(ctx", "Retriever.Fetch"),
    ],
)
def test_a_name_that_go_would_not_find_is_found(right, wrong, found):
    source = (CLIENTS / "go" / "main.go").read_text()
    spaced = re.sub(r"[ \t]+", " ", source)
    right, wrong = (re.sub(r"[ \t]+", " ", text) for text in (right, wrong))
    assert right in spaced
    assert found in go_unknown(spaced.replace(right, wrong))


# --- Java --------------------------------------------------------------------------------


def java_unknown(source):
    """Imports, builders' setters, getters, calls and values that its generator would not make."""
    known = {*MESSAGES, *ENUMS, *(f"{name}Grpc" for name in SERVICES)}
    imported = set(re.findall(r"import dev\.serendip\.v1\.(\w+);", source))
    unknown = imported - known
    unknown |= {
        word
        for word in re.findall(r"\.(?:get|set|add|has)([A-Z]\w*)\(", source)
        if word not in FIELDS | {"Description"}  # of io.grpc.Status as well
        and word.removesuffix("List").removeprefix("All") not in FIELDS
    }
    stubs = r"(\w+)Grpc\.newBlockingStub\([^)]*\)\s*\.with\w+\([^)]*\)\s*\.(\w+)\("
    for service, method in re.findall(stubs, source):
        names = [m[0].lower() + m[1:] for m in SERVICES[service].methods_by_name]
        unknown |= {f"{service}.{method}"} - {f"{service}.{name}" for name in names}
    for enum, value in re.findall(r"\b(\w+)\.([A-Z_]{4,})\b", source):
        if enum in ENUMS and value not in ENUMS[enum].values_by_name:
            unknown.add(value)
    return unknown


def test_the_example_in_java_names_what_there_is():
    source = (CLIENTS / "java" / "Main.java").read_text()
    assert java_unknown(source) == set()
    used = set(re.findall(r"\b([A-Z]\w+)\b", re.sub(r"import .*;", "", source)))
    imported = set(re.findall(r"import dev\.serendip\.v1\.(\w+);", source))
    assert imported <= used
    assert (set(MESSAGES) | set(ENUMS)) & used <= imported | {"Filter"}


@pytest.mark.parametrize(
    ("right", "wrong", "found"),
    [
        ("import dev.serendip.v1.PlanRow;", "import dev.serendip.v1.PlanLine;", "PlanLine"),
        ("setContextItemId(", "setContextItem(", "ContextItem"),
        ("addWidenNodeIds(", "addWidenNodes(", "WidenNodes"),
        ("addAllHistory(", "addAllEvents(", "AllEvents"),
        ("getCandidatesList(", "getItemsList(", "ItemsList"),
        (".recommend(", ".suggest(", "Recommender.suggest"),
        ("CONSTRAINT_NOT_OWN", "CONSTRAINT_OTHER", "CONSTRAINT_OTHER"),
    ],
)
def test_a_name_that_java_would_not_find_is_found(right, wrong, found):
    source = (CLIENTS / "java" / "Main.java").read_text()
    assert right in source
    assert found in java_unknown(source.replace(right, wrong))


def test_the_example_in_java_parses(tmp_path):
    if shutil.which("javac") is None:
        pytest.skip("javac is not installed: the example in Java is not parsed")

    def parse(path):
        command = ["javac", "-proc:none", "-XDshould-stop.ifNoError=PARSE", "-d", str(tmp_path)]
        return subprocess.run([*command, str(path)], capture_output=True, text=True, timeout=120)

    source = CLIENTS / "java" / "Main.java"
    run = parse(source)
    assert run.returncode == 0, run.stderr
    (tmp_path / "Main.java").write_text(source.read_text().replace(".build();", ".build()", 1))
    assert parse(tmp_path / "Main.java").returncode != 0, "a slip is found"


# --- how stubs are made ------------------------------------------------------------------


@pytest.mark.parametrize("language", ["go", "java"])
def test_the_protos_that_a_readme_names_are_all_there_are(language, tmp_path):
    text = (CLIENTS / language / "README.md").read_text().replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if line.startswith("protoc ")]
    words = shlex.split(line)[1:]
    assert words[:2] == ["-I", "../../protos"]
    named = [word for word in words if word.endswith(".proto")]
    assert set(named) == {file.name for file in FILES}
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"--descriptor_set_out={tmp_path}/set"]
    run = subprocess.run(
        [*protoc, *words[:2], *named], cwd=CLIENTS / language, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    package = {"go": "go_package", "java": "java_package"}[language]
    options = {getattr(file.GetOptions(), package) for file in FILES}
    assert len(options) == 1
    if language == "go":
        module = next(w for w in words if w.startswith("--go_opt=module=")).split("=", 2)[2]
        path = options.pop().partition(";")[0].removeprefix(module)
        assert f'"recommend/gen{path}"' in (CLIENTS / "go" / "main.go").read_text()
    else:
        assert options == {"dev.serendip.v1"}


def test_the_lock_file_pins_every_package_and_names_no_registry():
    node = CLIENTS / "node"
    wanted = json.loads((node / "package.json").read_text())["dependencies"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in wanted.values())
    packages = json.loads((node / "package-lock.json").read_text())["packages"]
    assert packages[""]["dependencies"] == wanted
    for name, package in packages.items():
        assert "resolved" not in package, "npm install --omit-lockfile-registry-resolved"
        assert not name or package["integrity"].startswith("sha512-"), name
    assert "omit-lockfile-registry-resolved=true" in (node / ".npmrc").read_text()
