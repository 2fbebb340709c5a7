"""The protos stand alone, and the stubs beside the code are theirs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import google.rpc
import pytest

ROOT = Path(__file__).parents[1]
PROTOS = sorted((ROOT / "protos" / "serendip" / "v1").glob("*.proto"))


def protoc(*arguments):
    command = [sys.executable, "-m", "grpc_tools.protoc", "-Iprotos", *arguments]
    run = subprocess.run(
        [*command, *(str(p.relative_to(ROOT)) for p in PROTOS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run


def test_a_stub_of_any_language_can_be_made_from_the_folder_alone(tmp_path):
    written = protoc(f"--descriptor_set_out={tmp_path / 'set.bin'}", "--include_imports")
    assert written.stderr == ""
    assert (tmp_path / "set.bin").stat().st_size > 5_000


def test_the_stubs_are_those_of_the_protos(tmp_path):
    protoc(f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", f"--grpc_python_out={tmp_path}")
    made = sorted((tmp_path / "serendip" / "v1").iterdir())
    assert len(made) == 3 * len(PROTOS)
    for path in made:
        ours = ROOT / "serendip" / "v1" / path.name
        assert ours.read_text() == path.read_text(), f"{path.name}: run ./build.sh protos"


def test_the_status_that_is_shipped_is_the_published_one():
    published = Path(next(iter(google.rpc.__path__))) / "status.proto"
    assert (ROOT / "protos/google/rpc/status.proto").read_text() == published.read_text()


@pytest.mark.parametrize("path", PROTOS, ids=lambda p: p.name)
def test_every_field_message_and_call_is_documented(path):
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"\s*(message|service|enum|rpc|\w[\w. ]* \w+ = \d+)", line) and not re.match(
            r"\s*(syntax|package|option|import)", line
        ):
            assert lines[number - 1].strip().startswith("//"), f"{path.name}:{number + 1} {line}"


def test_buf_lint_passes():
    buf = shutil.which("buf", path=f"{ROOT}/.tools/node_modules/.bin:{os.environ['PATH']}")
    if buf is None:
        pytest.skip("buf is not installed: npm install -g @bufbuild/buf")
    run = subprocess.run([buf, "lint"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
