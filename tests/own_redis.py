"""A real Redis of the tests' own: Debian's redis-server."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


def need_redis() -> None:
    """Skips, and says so, without the binary or redis-py."""
    pytest.importorskip("redis", reason="redis-py is not installed (extra redis)")
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server here (Debian: apt-get install redis-server)")


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
