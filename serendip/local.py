"""Both servers as processes of this machine: started, awaited, and ended by their own IDs.

Knows the servers by their command lines alone.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import IO

from serendip.core import NotReady

_READY = re.compile(r"ready on (\S+?)(?:, metrics (\S+))?$")
_START_S = 120.0
_STOP_S = 20.0


@dataclass(frozen=True)
class ServerProcess:
    """A server that is ready.

    Attributes:
        address: HOST:PORT for gRPC.
        metrics: URL of its /metrics.
    """

    name: str
    process: subprocess.Popen[str]
    address: str
    metrics: str

    def stop(self) -> int:
        """Asks it to drain and end; returns its exit code."""
        self.process.terminate()
        try:
            return self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def start_server(name: str, *arguments: str, log: Path) -> ServerProcess:
    """Starts ``python -m NAME ARGUMENTS`` and waits until it is ready.

    Args:
        log: takes what the server writes to standard error.

    Raises:
        NotReady: it ended, or was not ready in time; says what it printed.
    """
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", name, *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
    lines: Queue[str] = Queue()
    threading.Thread(target=_forward, args=(process.stdout, lines.put), daemon=True).start()
    try:
        while line := lines.get(timeout=_START_S):
            if found := _READY.search(line.strip()):
                return ServerProcess(name, process, found[1], found[2] or "")
        process.wait()
        raise NotReady(f"{name} ended: {log.read_text()[-2000:].strip()}")
    except Empty:
        process.terminate()
        raise NotReady(f"{name} was not ready within {_START_S:g} s; see {log}") from None
    except BaseException:
        process.terminate()
        raise


def _forward(stream: IO[str] | None, put: Callable[[str], object]) -> None:
    """Reads a pipe to its end, so that the server never blocks on it; "" marks the end."""
    assert stream is not None
    for line in stream:
        put(line)
    put("")


@contextmanager
def both_servers(
    artifacts: Path, data: Path, host: str = "127.0.0.1", ports: tuple[int, int] = (0, 0)
) -> Iterator[tuple[ServerProcess, ServerProcess]]:
    """As start_both, but the servers end with the block."""
    servers = start_both(artifacts, data, host, ports)
    try:
        yield servers
    finally:
        for server in servers:
            server.stop()


def start_both(
    artifacts: Path, data: Path, host: str = "127.0.0.1", ports: tuple[int, int] = (0, 0)
) -> tuple[ServerProcess, ServerProcess]:
    """Starts (planner server, retriever server) on the current release.

    Their logs are planner_server.log and retriever_server.log in the folder of the artefacts.

    Args:
        data: the folder whose media live plans may read.
        ports: gRPC ports of planner and retriever; 0 takes a free one. Metrics are 1000 above.
    """

    def start(name: str, port: int, *more: str) -> ServerProcess:
        network = ["--host", host, "--port", str(port)]
        network += ["--metrics-port", str(port + 1000 if port else 0)]
        log = artifacts / f"{name}.log"
        return start_server(name, "--artifacts", str(artifacts), *network, *more, log=log)

    retriever = start("retriever_server", ports[1])
    try:
        more = ("--catalogue", str(data), "--retriever", retriever.address)
        return start("planner_server", ports[0], *more), retriever
    except BaseException:
        retriever.stop()
        raise


def wait_for_end(servers: tuple[ServerProcess, ...]) -> None:
    """Returns when SIGTERM or SIGINT comes, or when a server ends by itself.

    Raises:
        NotReady: a server ended by itself.
    """
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    while not stopped.wait(0.5):
        for server in servers:
            if server.process.poll() is not None:
                raise NotReady(f"{server.name} ended with {server.process.returncode}")
