"""The servers of the bench as processes on one core: started, watched, ended.

Every one prints ``NAME ready on HOST:PORT, metrics URL`` when it is, and counts the calls that it
answered with OK on its metrics page.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.process import cpu_seconds
from peers import environment

SERVER_CORE, LOAD_CORE = 0, 1
_READY = re.compile(r"ready on (\S+?):(\d+), metrics (\S+)")
_LONGEST_START_S = 180

MLSERVER = environment.Apart(
    "mlserver",
    sys.executable,
    ("mlserver==1.7.1", "onnxruntime-gpu==1.31.1", "pyarrow==26.0.1", "numba==0.68.1"),
)
# Triton's stub process is linked against Debian's libpython. PyTriton keeps numpy below 2.
PYTRITON = environment.Apart(
    "pytriton",
    "/usr/bin/python3.11",
    ("nvidia-pytriton==0.7.0", "onnxruntime-gpu==1.31.1", "pyarrow==21.0.0", "numba==0.68.1"),
)


@dataclass(frozen=True)
class Kind:
    """How a server is started and counted.

    Attributes:
        method: of one user's call, as HTTP/2 has it.
        counter: a regular expression for the line of its metrics page that counts OK answers.
        apart: the environment that it runs in; None for the project's own.
    """

    name: str
    command: tuple[str, ...]
    method: str
    counter: str
    apart: environment.Apart | None = None


RETRIEVE = "/serendip.v1.Retriever/Retrieve"
RETRIEVE_BATCH = "/serendip.v1.Retriever/RetrieveBatch"
MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"


def ours(root: Path) -> Kind:
    """This project's retriever server."""
    return Kind(
        "retriever server",
        (
            *(sys.executable, "-m", "retriever_server", "--artifacts", str(root)),
            *("--port", "0", "--metrics-port", "0", "--user-cache", "0"),
        ),
        RETRIEVE,
        r'grpc_server_handled_total\{(?=[^}]*grpc_code="OK")(?=[^}]*grpc_method="Retrieve(Batch)?")',
    )


def plain(root: Path, *, echo: bool = False) -> Kind:
    """grpc.aio without a batcher; or, with ``echo``, without any work."""
    return Kind(
        "grpc.aio, no work" if echo else "grpc.aio, one by one",
        (sys.executable, "-m", "peers.plain_aio", str(root), *(["--echo"] if echo else [])),
        RETRIEVE,
        "plain_answers_total",
    )


def mlserver(root: Path, batch: int, window_us: int) -> Kind:
    """MLServer with a custom runtime."""
    return Kind(
        "MLServer",
        (str(MLSERVER.python), "-m", "peers.on_mlserver", str(root), str(batch), str(window_us)),
        MODEL_INFER,
        r'grpc_server_handled_total\{(?=[^}]*code="OK")(?=[^}]*grpc_method="ModelInfer")',
        MLSERVER,
    )


def pytriton(root: Path, batch: int, window_us: int) -> Kind:
    """PyTriton with a Python callable."""
    return Kind(
        "PyTriton",
        (str(PYTRITON.python), "-m", "peers.on_pytriton", str(root), str(batch), str(window_us)),
        MODEL_INFER,
        "nv_inference_request_success",
        PYTRITON,
    )


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    kind: Kind
    process: subprocess.Popen[bytes]
    address: str
    page: str

    def answered(self) -> int:
        """Calls that it has answered with OK, by its own count."""
        with urllib.request.urlopen(self.page, timeout=10) as response:
            lines = response.read().decode().splitlines()
        return sum(int(float(x.split()[-1])) for x in lines if re.match(self.kind.counter, x))

    def cpu_s(self) -> float:
        """CPU seconds of its process and all that belong to it."""
        return cpu_seconds(self.process.pid)


@contextlib.contextmanager
def running(kinds: Sequence[Kind], *, pinned: bool = True) -> Iterator[list[Server]]:
    """Starts servers side by side; stops them when the block ends.

    Args:
        pinned: whether on SERVER_CORE; else on whichever core the system gives them.

    Raises:
        RuntimeError: one does not come up; with the end of what it said.
    """
    with contextlib.ExitStack() as stack:
        begun = [_begin(kind, stack, pinned) for kind in kinds]
        yield [_wait(kind, process, log) for kind, process, log in begun]


def _begin(
    kind: Kind, stack: contextlib.ExitStack, pinned: bool
) -> tuple[Kind, subprocess.Popen[bytes], Path]:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-serve-")))
    log = folder / "log"
    variables = environment.variables() | {
        "OPENBLAS_NUM_THREADS": "1",
        "METRICS_FOLDER": str(folder),
    }
    process = subprocess.Popen(
        [*(["taskset", "-c", str(SERVER_CORE)] if pinned else []), *kind.command],
        stdout=log.open("wb"),
        stderr=subprocess.STDOUT,
        env=variables,
        cwd=folder,
        start_new_session=True,
    )
    stack.callback(_end, process)
    return kind, process, log


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(15)
    with contextlib.suppress(ProcessLookupError):  # what it may have left behind
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _wait(kind: Kind, process: subprocess.Popen[bytes], log: Path) -> Server:
    until = time.monotonic() + _LONGEST_START_S
    while time.monotonic() < until:
        ready = _READY.search(log.read_text(errors="replace"))
        if ready:
            host, port, page = ready.groups()
            return Server(kind, process, f"{host}:{port}", page)
        if process.poll() is not None:
            break
        time.sleep(0.1)
    said = log.read_text(errors="replace").strip().splitlines()[-5:]
    raise RuntimeError(f"{kind.name} does not come up: {' / '.join(said)}")
