"""Plan stores to test with: plans whose version can be told from every byte, and a real Redis."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from serendip.core import Plan, PlannedCluster
from serendip.planning.plan_store import StoreInfo, encode_plan

TREE, PLANNER = "a" * 12, "b" * 12


def make_plan(item_id: str, version: str = "0" * 12, score: float = -0.5) -> Plan:
    """A plan whose reasoning names the version that it belongs to."""
    cluster = PlannedCluster(7, "bread: rye", score, True)
    return Plan(item_id, (cluster,), 3, version, TREE, PLANNER, 1_750_000_000_000)


def plans_of(count: int, version: str = "0" * 12) -> list[tuple[str, bytes]]:
    """Plans of i0, i1, ..., which is not the order of their keys."""
    ids = [f"i{n}" for n in range(count)]
    return [(item_id, encode_plan(make_plan(item_id, version))) for item_id in ids]


def info_of(count: int, version: str = "0" * 12) -> StoreInfo:
    return StoreInfo(version, TREE, PLANNER, count)


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    """Debian's redis-server on a socket of its own, without persistence; its URL."""
    folder = Path(tempfile.mkdtemp(prefix="redis-"))  # a socket's path must be short
    socket = folder / "s"
    command = ["redis-server", "--port", "0", "--unixsocket", str(socket), "--save", ""]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--dir", str(folder)], stdout=log, stderr=log)
    try:
        until = time.monotonic() + 20
        while not socket.exists():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < until, "redis-server did not start"
            time.sleep(0.01)
        yield f"unix://{socket}"
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(folder)
