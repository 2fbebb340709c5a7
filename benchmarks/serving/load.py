"""Unary gRPC calls by h2load, which repeats one body, counts answers and looks at no grpc-status.

So every run is held against the server's own count of OK answers.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving.servers import LOAD_CORE, Server

HOW_TO_INSTALL = "the load tool h2load is missing: apt-get install nghttp2-client"
_LONGEST_S = 120
_SETTLES_S = 5
_MOST_OPEN = 100  # calls that an open loop lets wait on one connection; servers allow no more


@dataclass(frozen=True)
class Load:
    """How hard a server is asked.

    Attributes:
        streams: calls in flight on each connection.
        rate: calls a second in all, whatever the server does; None: a new call for each answer.
    """

    connections: int
    streams: int
    rate: int | None = None

    def __str__(self) -> str:
        return f"at {self.rate:,}/s" if self.rate else f"c={self.connections * self.streams}"


ONE, SIXTEEN, MANY = Load(1, 1), Load(4, 4), Load(4, 16)
FEW = Load(2, 1)  # of calls with many users each


def at_rate(rate: int) -> Load:
    return Load(4, _MOST_OPEN, rate)


@dataclass(frozen=True)
class Ran:
    """One run.

    Attributes:
        rate: answers a second.
        cpu_us: CPU time of the server an answer.
    """

    calls: int
    rate: float
    p50_ms: float
    p99_ms: float
    cpu_us: float


class Void(Exception):
    """The server did not answer as many calls with OK as the load tool counted answers."""


def missing() -> bool:
    """Whether there is no h2load."""
    return shutil.which("h2load") is None


def framed(message: bytes) -> bytes:
    """A gRPC message as it goes over HTTP/2: not compressed, length, bytes."""
    return struct.pack(">BI", 0, len(message)) + message


def _settled(server: Server, expected: int) -> int:
    """What a server has counted, once it has counted so many; some count after they answer."""
    until = time.monotonic() + _SETTLES_S
    while (answered := server.answered()) < expected and time.monotonic() < until:
        time.sleep(0.05)
    return answered


def run(
    server: Server, method: str, message: bytes, load: Load, calls: int, core: int = LOAD_CORE
) -> Ran:
    """Makes so many calls, from one core. Raises Void."""
    with tempfile.TemporaryDirectory() as folder:
        body, log = Path(folder) / "body", Path(folder) / "log"
        body.write_bytes(framed(message))
        command = ["taskset", "-c", str(core), "h2load", "-t", "1", "-n", str(calls)]
        command += ["-c", str(load.connections), "-m", str(load.streams), "-d", str(body)]
        command += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
        if load.rate:
            command += ["--rps", f"{load.rate / load.connections:g}"]
        command += ["--log-file", str(log), f"http://{server.address}{method}"]
        before, cpu = server.answered(), server.cpu_s()
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST_S)
        cpu = server.cpu_s() - cpu
        answered = _settled(server, before + calls) - before
        said = re.search(r"finished in \S+, ([\d.]+) req/s", ended.stdout)
        counted = re.search(r"(\d+) succeeded", ended.stdout)
        if not said or not counted or not int(counted[1]) == answered == calls:
            raise Void(
                f"{server.kind.name}, {load}: {calls} calls, h2load counted "
                f"{counted[1] if counted else 'none'}, the server {answered} OK"
            )
        micros = np.array([int(line.split("\t")[2]) for line in log.read_text().splitlines()])
    p50, p99 = np.percentile(micros, [50, 99]) / 1000
    return Ran(calls, float(said[1]), float(p50), float(p99), cpu / calls * 1e6)
