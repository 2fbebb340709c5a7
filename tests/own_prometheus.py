"""A real Prometheus of the tests' own, and its promtool: Debian's."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_UNPACKED = Path(__file__).parents[1] / ".tools" / "prometheus" / "usr" / "bin"


def need_binary(name: str) -> str:
    """The path of "prometheus" or "promtool"; skips, and says so, without it."""
    found = shutil.which(name, path=_UNPACKED) or shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here (./build.sh test fetches Debian's where there is apt-get)")
    return found


class Prometheus:
    """A running one, asked over its HTTP API."""

    def __init__(self, url: str) -> None:
        self._url = url

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer of /api/v1; AssertionError says why there is none."""
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"{self._url}/api/v1/{path}?{query}", timeout=20) as answer:
                said = json.load(answer)
        except urllib.error.HTTPError as error:
            said = json.load(error)
        assert said["status"] == "success", (parameters, said)
        return said["data"]

    def query(self, expr: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series of an expression, now."""
        data = self.get("query", query=expr)
        assert data["resultType"] == "vector", (expr, data["resultType"])
        return [(series["metric"], float(series["value"][1])) for series in data["result"]]


@contextlib.contextmanager
def prometheus_server(config: Path, folder: Path) -> Iterator[Prometheus]:
    """Prometheus on a free port, its data under ``folder``."""
    binary = need_binary("prometheus")
    for attempt in range(3):  # whoever takes the port between the two has it
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        log = folder / f"prometheus-{attempt}.log"
        command = [
            binary,
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / f'tsdb-{attempt}'}",
            f"--web.listen-address={address}",
        ]
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out)
        try:
            if _ready(process, f"http://{address}"):
                yield Prometheus(f"http://{address}")
                return
        finally:
            process.terminate()
            process.wait(20)
    raise AssertionError(f"Prometheus did not start: {log.read_text()[-2000:]}")


def _ready(process: subprocess.Popen[bytes], url: str) -> bool:
    """Whether it takes queries, or False if it has ended."""
    until = time.monotonic() + 30
    while process.poll() is None:
        assert time.monotonic() < until, "Prometheus was not ready within 30 s"
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{url}/-/ready", timeout=5).close()
            return True
        time.sleep(0.05)
    return False
