"""The peers' environments, and running one of them in a process of its own.

    .venv/bin/python benchmarks/peers/environment.py

makes .venv-peers, which sees the project's own environment behind its own packages, so that
torch is not installed twice. A peer that panics or takes too long is a row of a table. Servers
whose needs clash with the project's have environments that share nothing with it (``Apart``).
"""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".venv-peers"
PYTHON = FOLDER / "bin" / "python"

# Without their dependencies: what they need is in the project's environment, or listed here.
PACKAGES = (
    "xgrammar==0.2.8",
    "apache-tvm-ffi==0.1.15.post2",
    "llguidance==1.9.1",
    "outlines-core==0.2.14",
    "faiss-cpu==1.15.1",
    "k-means-constrained==0.9.1",
    "ortools==9.15.6755",
    "absl-py==2.3.1",
    "six==1.17.0",
    "polars==2.1.0",
    "polars-runtime-32==2.1.0",
    "py4j==0.10.9.9",
    "pyspark==4.3.0",
    "numba==0.68.1",
    "llvmlite==0.50.0",
)
# Built from source: where there is no C++ compiler its row says so.
BUILT = ("hnswlib==0.8.0",)


def make() -> None:
    """Makes the environment, unless it stands with these very packages."""
    stamp = FOLDER / "packages"
    wanted = "\n".join(PACKAGES + BUILT)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"setting up {FOLDER.name} (once)", file=sys.stderr)
    venv.create(FOLDER, with_pip=True)
    own = next(FOLDER.glob("lib/python*/site-packages"))
    (own / "project.pth").write_text("\n".join(site.getsitepackages()))
    install = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "--no-deps", *PACKAGES], check=True, stdout=sys.stderr)
    subprocess.run([*install, "--no-deps", *BUILT], check=False, stdout=sys.stderr)
    stamp.write_text(wanted)


@dataclass(frozen=True)
class Apart:
    """An environment that shares nothing with the project's.

    Attributes:
        base: the interpreter that it is made of.
        packages: installed with what they need.
    """

    name: str
    base: str
    packages: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return ROOT / f".venv-{self.name}"

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def make(self) -> str:
        """Makes the environment, unless it stands; returns why it cannot be made, or ""."""
        stamp = self.folder / "packages"
        wanted = "\n".join((self.base, *self.packages))
        if stamp.exists() and stamp.read_text() == wanted:
            return ""
        print(f"setting up {self.folder.name} (once)", file=sys.stderr)
        install = [str(self.python), "-m", "pip", "install", "--disable-pip-version-check"]
        for command in (
            [self.base, "-m", "venv", "--clear", str(self.folder)],
            [*install, "--quiet", *self.packages],
        ):
            try:
                ended = subprocess.run(command, capture_output=True, text=True)
            except OSError as e:
                return f"{self.base}: {e.strerror}"
            if ended.returncode:
                said = [line for line in ended.stderr.splitlines() if "error" in line.lower()]
                return (said or [f"{command[0]} ends with {ended.returncode}"])[-1][:200]
        stamp.write_text(wanted)
        return ""


def variables() -> dict[str, str]:
    """The environment variables of a process that runs a module of benchmarks/."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")]),
    }


def run(module: str, *arguments: object, limit_s: float) -> dict[str, Any]:
    """The JSON object that a module of this folder prints last, or {"failed": how}."""
    make()
    command = [str(PYTHON), "-m", f"peers.{module}", *map(str, arguments)]
    try:
        ended = subprocess.run(
            command, env=variables(), capture_output=True, text=True, timeout=limit_s
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"over {limit_s:.0f} s"}
    if ended.returncode:
        lines = [line.strip() for line in ended.stderr.splitlines() if line.strip()]
        panics = [line for line in lines if "panic" in line]
        return {"failed": "panics" if panics else "fails", "said": (panics or lines)[-1][:200]}
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    make()
