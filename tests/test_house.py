"""The house stands as docs/architecture.md says: which room may import which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

BASE = {"core", "artifacts", "config", "curves", "progress", "storage"}
CATALOG = BASE | {"catalog"}
TREE = CATALOG | {"tree"}
CURATION = TREE | {"curation"}
PLANNING = CURATION | {"planning", "wire", "wire_bytes", "wire_plans", "v1"}
RETRIEVAL = CURATION | {"retrieval"}
EVALUATION = PLANNING | RETRIEVAL | {"evaluation"}
# Room -> the rooms that it may import; "x" of serendip.x, and the other packages' own names.
MAY_IMPORT = {
    "core": set(),
    "v1": {"v1"},
    "storage": {"core"},
    "artifacts": {"core", "storage"},
    "config": {"core"},
    "progress": set(),
    "curves": set(),
    "wire": {"core", "v1", "wire_filters", "wire_plans"},
    "wire_filters": {"core", "v1"},
    "wire_plans": {"core", "v1"},
    "wire_bytes": set(),
    "wire_recommend": {"core", "v1", "wire", "wire_bytes", "wire_filters", "wire_plans"},
    "inventory": BASE,
    "release": BASE | {"tree", "planning"},
    "lineage": BASE | {"inventory", "planning"},
    "artifacts_cli": BASE | {"inventory", "lineage"},
    "local": {"core"},
    "loadtest": PLANNING,
    "catalog": CATALOG,
    "tree": TREE,
    "curation": CURATION,
    "planning": PLANNING,
    "retrieval": RETRIEVAL,
    "evaluation": EVALUATION,
    "cli": EVALUATION | {"artifacts_cli", "release", "local", "loadtest", "serendip_client"},
    "serving": {"core", "wire", "v1", "serving"},
    "planner_server": PLANNING | {"serving", "wire_recommend", "planner_server"},
    "retriever_server": RETRIEVAL - {"config", "catalog", "curation", "curves", "progress"}
    | {"serving", "wire", "wire_filters", "wire_bytes", "v1", "retriever_server"},
    "serendip_client": {"core", "v1", "serendip_client"}
    | {"wire", "wire_filters", "wire_plans", "wire_recommend"},
}
PACKAGES = {"planner_server": "", "retriever_server": "", "serendip_client": "clients/"}
OURS = {"serendip", *PACKAGES}


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[0] if parts[0] != "serendip" else (parts[1] if len(parts) > 1 else "serendip")


def imported(source: str) -> set[str]:
    """Modules of this project that a source imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "no relative imports here"
            if node.module == "serendip":
                found |= {f"serendip.{alias.name}" for alias in node.names}
            else:
                found.add(node.module or "")
    return {m for m in found if m.split(".")[0] in OURS}


def forbidden(room: str, source: str) -> set[str]:
    return {m for m in imported(source) if room_of(m) not in MAY_IMPORT[room]}


def sources():
    folders = [ROOT / "serendip", *(ROOT / f"{at}{name}" for name, at in PACKAGES.items())]
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            relative = path.relative_to(folder.parent).with_suffix("")
            if relative.parts != ("serendip", "__init__"):
                yield room_of(".".join(relative.parts)), path


@pytest.mark.parametrize(("room", "path"), sources(), ids=lambda v: getattr(v, "stem", v))
def test_imports_run_one_way(room, path):
    assert forbidden(room, path.read_text()) == set()


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("retrieval", "from serendip.planning.trie import DescriptionTrie"),
        ("planning", "def f():\n    import serendip.retrieval.model"),
        ("catalog", "from serendip.tree import build"),
        ("evaluation", "import planner_server.service"),
        ("serving", "from serendip.artifacts import Artifacts"),
        ("core", "from serendip.config import Config"),
        ("serendip_client", "from serendip.catalog.items import read_items"),
        ("retriever_server", "from serendip.catalog.items import read_items"),
        ("planner_server", "from serendip import retrieval"),
    ],
)
def test_a_forbidden_import_is_found(room, line):
    assert forbidden(room, line)


def test_every_room_of_the_house_is_known():
    rooms = {room for room, _ in sources()}
    assert rooms == set(MAY_IMPORT)


def loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*{{m.split('.')[0] for m in sys.modules}})"
    run = [sys.executable, "-c", code]
    return set(subprocess.run(run, check=True, capture_output=True, text=True).stdout.split())


def test_the_client_loads_no_runtime_of_a_server():
    heavy = {"onnxruntime", "torch", "transformers", "pyarrow", "pydantic", "duckdb", "sklearn"}
    assert not heavy & loaded_by("import serendip_client")


def test_the_retriever_server_loads_no_training_library():
    modules = "import retriever_server.__main__, retriever_server.release, retriever_server.service"
    assert not {"torch", "transformers", "duckdb", "sklearn", "PIL", "av"} & loaded_by(modules)


def test_the_planner_server_leaves_the_model_to_its_workers():
    modules = "planner_server.__main__, planner_server.app, planner_server.check"
    assert not {"torch", "transformers", "onnxruntime"} & loaded_by(f"import {modules}")


def test_no_module_is_two_rooms():
    long = {
        str(path.relative_to(ROOT)): lines
        for room, path in sources()
        if room != "v1" and (lines := len(path.read_text().splitlines())) > 450
    }
    assert long == {}
