"""A real Redis of the tests' own: Debian's redis-server."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_UNPACKED = Path(__file__).parents[1] / ".tools" / "redis" / "usr"


def need_redis() -> None:
    """Skips, and says so, without the binary or redis-py."""
    pytest.importorskip("redis", reason="redis-py is not installed (extra redis)")
    if _binary() is None:
        pytest.skip(
            "no redis-server here (./build.sh test fetches Debian's where there is apt-get)"
        )


def _binary() -> str | None:
    return shutil.which("redis-server", path=_UNPACKED / "bin") or shutil.which("redis-server")


def _environment() -> dict[str, str]:
    """Ours, and where the libraries lie that were unpacked beside the binary."""
    libraries = [str(folder) for folder in _UNPACKED.glob("lib/*-linux-gnu*")]
    if not libraries:
        return dict(os.environ)
    before = os.environ.get("LD_LIBRARY_PATH")
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(filter(None, (*libraries, before)))}


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    """Debian's redis-server on a socket of its own, without persistence; its URL."""
    folder = Path(tempfile.mkdtemp(prefix="redis-"))  # a socket's path must be short
    socket = folder / "s"
    binary = _binary() or "redis-server"
    command = [binary, "--port", "0", "--unixsocket", str(socket), "--save", ""]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--dir", str(folder)], stdout=log, stderr=log, env=_environment()
        )
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
