"""What a user installs: the package from a clean copy of the source."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = (
    "pyproject.toml", "README.md", "LICENSE", "serendip", "clients", "planner_server",
    "retriever_server",
)  # fmt: skip


def test_an_installed_package_has_stubs_client_and_sql(tmp_path):
    source, target = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for name in SOURCE:
        path = ROOT / name
        if path.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(path, source / name, ignore=ignored)
        else:
            shutil.copy(path, source / name)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
    subprocess.run([*pip, str(source)], check=True, capture_output=True)
    code = (
        "import serendip_client, serendip.v1.planner_pb2_grpc, serendip.v1.recommender_pb2\n"
        "from serendip.curation.engine import sql\n"
        "assert 'SELECT' in sql('held_out', first_hash='0', end_hash='1')\n"
        "import serendip; print(serendip.__file__)"
    )
    environment = {**os.environ, "PYTHONPATH": str(target), "PYTHONSAFEPATH": "1"}
    made = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout.strip().startswith(str(target))
    assert (target / "serendip" / "py.typed").is_file()
