"""The example in Node.js with its packages, in a folder of its own beside the protos."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "clients" / "node"
_AWAY = re.compile(r"ENOTFOUND|ECONNREFUSED|ECONNRESET|EAI_AGAIN|ETIMEDOUT|ENETUNREACH|ERR_SOCKET")


def node_client() -> Path:
    """The folder to run ``node recommend.js`` in; skips, and says why, where there cannot be one.

    Lies under .tools, so that the packages are fetched once a lock file.
    """
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed: the example in Node.js is not run")
    home = ROOT / ".tools" / "node-client"
    folder, stamp = home / "clients" / "node", home / "installed"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(ROOT / "protos", home / "protos", dirs_exist_ok=True)
    for file in ("recommend.js", "package.json", "package-lock.json", ".npmrc"):
        shutil.copy(SOURCE / file, folder)
    lock = (SOURCE / "package-lock.json").read_text()
    if not stamp.is_file() or stamp.read_text() != lock:
        install = ["npm", "ci", "--ignore-scripts", "--no-fund", "--no-audit"]
        run = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=300)
        if run.returncode and _AWAY.search(run.stderr):
            pytest.skip("npm's registry is away: the example in Node.js is not run")
        assert run.returncode == 0, run.stderr
        stamp.write_text(lock)
    return folder
