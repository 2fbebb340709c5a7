"""The pages that are made of the code are of this code, and lead somewhere."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import api_docs
import cli_docs
import pytest
from google.rpc import code_pb2

from serendip import core
from serendip.config import Config
from serendip.serving.errors import status_of
from serendip.v1 import common_pb2, planner_pb2, recommender_pb2, retriever_pb2

ROOT = Path(__file__).parents[1]
FILES = [m.DESCRIPTOR for m in (common_pb2, planner_pb2, recommender_pb2, retriever_pb2)]


def test_the_api_s_page_is_that_of_the_protos():
    assert api_docs.PATH.read_text() == api_docs.text(), "run ./build.sh docs"


def test_the_api_s_page_has_every_call_message_field_and_value():
    page = api_docs.PATH.read_text()
    headings = re.findall(r"^#+ (\S+)$", page, re.MULTILINE)
    sections = dict(re.findall(r"^### (\S+)\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL))
    for file in FILES:
        for service in file.services_by_name.values():
            assert service.name in headings
            for method in service.methods:
                section = sections[f"{service.name}.{method.name}"]
                assert f"#{method.input_type.name.lower()})" in section
                assert len(section.splitlines()) > 4, "what the call does"
        for name, message in file.message_types_by_name.items():
            assert not message.nested_types, "the page would not have it"
            rows = dict(re.findall(r"^\| `(\w+)` = \d+ \| .*? \| (.*) \|$", sections[name], re.M))
            assert list(rows) == [field.name for field in message.fields]
            assert all(rows.values()), name
        for name, enum in file.enum_types_by_name.items():
            rows = dict(re.findall(r"^\| `(\w+)` = \d+ \| (.*) \|$", sections[name], re.MULTILINE))
            assert list(rows) == [value.name for value in enum.values]
            assert all(rows.values()), name


def test_the_api_s_page_has_every_status_that_an_error_becomes():
    told = {status for status, _, _ in api_docs.STATUS_ROWS}
    kinds = [error for error in vars(core).values() if isinstance(error, type)]
    kinds = [error for error in kinds if issubclass(error, core.SerendipError)]
    assert {code_pb2.Code.Name(status_of(kind("x")).code) for kind in kinds} <= told


def test_what_is_wrong_with_a_proto_is_said(tmp_path):
    for file in api_docs.FILES:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('syntax = "proto3";\nmessage {')
    with pytest.raises(RuntimeError, match=r"recommender\.proto:2:9: Expected message name"):
        api_docs.text(tmp_path)


def test_the_commands_page_is_what_help_says():
    assert cli_docs.PATH.read_text() == cli_docs.text(), "run ./build.sh docs"


def test_the_commands_page_has_every_verb_without_colours():
    page = cli_docs.PATH.read_text()
    assert "\x1b" not in page
    assert "─" not in page
    titles = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    for verb in ("synth", "artifacts", "artifacts prune", "loadtest data"):
        assert f"serendip {verb}" in titles
    assert "python -m planner_server" in titles
    assert "--worker <" not in page, "hidden: what a process tells its own"


def test_the_page_does_not_depend_on_the_terminal():
    code = "import cli_docs, hashlib; print(hashlib.sha256(cli_docs.text().encode()).hexdigest())"
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"COLUMNS": columns, "TERM": "xterm", "FORCE_COLOR": "1",
                 "PYTHONPATH": f"{ROOT / 'examples'}:{ROOT}:{ROOT / 'clients'}"},
            capture_output=True, text=True, check=True,
        ).stdout
        for columns in ("40", "300")
    }  # fmt: skip
    assert len(said) == 1


@pytest.mark.parametrize("bench", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.stem)
def test_every_bench_is_in_the_index(bench):
    page = (ROOT / "docs/benchmarks.md").read_text()
    assert re.search(rf"`\./build\.sh bench {bench.stem}\b", page), "name it in docs/benchmarks.md"


def test_the_configs_for_real_checkpoints_are_configs():
    page = (ROOT / "docs/real-models.md").read_text()
    configs = [tomllib.loads(t) for t in re.findall(r"```toml\n(.*?)```", page, re.DOTALL)]
    whole = configs[0]["planner"]
    for config in configs:  # the later ones are what differs
        Config.model_validate({**config, "planner": {**whole, **config["planner"]}})
    shapes = (ROOT / "configs/models").glob("*.toml")
    known = {tomllib.loads(path.read_text())["name"] for path in shapes}
    named = {config["planner"]["checkpoint"] for config in configs}
    assert len(named) > 3
    assert named <= known


def slug(title):
    kept = re.sub(r"[^\w\- ]", "", title.replace("`", "").lower())
    return kept.replace(" ", "-")


@pytest.mark.parametrize(
    "page", [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"], ids=lambda p: p.name
)
def test_links_within_the_tree_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            assert anchor in {slug(title) for title in titles}, target
