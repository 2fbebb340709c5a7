"""How a server's program runs: one process, or several behind one port; and how it ends.

    flags ──> one process: check them, serve until a signal ──> exit 0
          └─> --workers N: supervise N of the same program ──> exit 0
              whatever a person can mend: one line on standard error ──> exit 2

Knows no tier.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING

from serendip.core import SerendipError
from serendip.serving.flags import ServerFlags
from serendip.serving.logs import configure_logging
from serendip.serving.supervisor import Workers, end_with_parent, supervise

if TYPE_CHECKING:
    from serendip.serving.server import ServerOptions

_TO_CLOSE_S = 20  # what a worker may take to end beside waiting for its calls

Serve = Callable[["ServerOptions", int | None], Coroutine[None, None, None]]


def run_server(module: str, flags: ServerFlags, serve: Serve) -> int:
    """Runs a server until it is told to stop; returns the exit code.

    Args:
        module: what workers are started by, ``python -m MODULE`` with this program's arguments.
        serve: serves with options until a signal. It loads what it needs by itself: the process
            that only keeps workers loads none of it. It is also told a descriptor, see
            turns.Turns; None for a process that stands alone.
    """
    # One process a core: read by numpy's BLAS when it is loaded.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # gRPC has lines of its own, which are no JSON, for every caller that fails at its handshake.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    configure_logging(flags.log_format)
    try:
        if flags.workers > 1 and flags.worker is None:
            return _supervise(module, flags)
        if flags.worker is not None:
            end_with_parent()
        asyncio.run(serve(flags.options(), flags.turns))
    except SerendipError as e:
        print(f"{module}: {e}", file=sys.stderr)
        return 2
    return 0


def _supervise(module: str, flags: ServerFlags) -> int:
    with tempfile.TemporaryFile() as turns:
        own = (sys.executable, "-m", module, *sys.argv[1:])
        return supervise(
            Workers(
                name=module.removesuffix("_server"),
                command=(*own, "--turns", str(turns.fileno())),
                count=flags.workers,
                host=flags.host,
                port=flags.port,
                metrics_port=flags.metrics_port,
                stop_s=flags.lame_s + flags.grace_s + _TO_CLOSE_S,
                inherited=(turns.fileno(),),
            )
        )
