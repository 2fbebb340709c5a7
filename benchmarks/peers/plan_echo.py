"""grpc.aio that answers Plan with bytes it was given: what a look-up would cost without looking up.

    python -m peers.plan_echo FOLDER

Each FOLDER/NAME.request is answered with FOLDER/NAME.response.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import grpc
from prometheus_client import Counter, start_http_server

ANSWERS = Counter("plain_answers", "Calls answered.")


async def main() -> None:
    """Serves until SIGTERM."""
    folder = Path(sys.argv[1])
    said = {
        path.read_bytes(): path.with_suffix(".response").read_bytes()
        for path in folder.glob("*.request")
    }

    async def answer(request: bytes, context: Any) -> bytes:
        ANSWERS.inc()
        return said[request]

    server = grpc.aio.server()
    methods = {"Plan": grpc.unary_unary_rpc_method_handler(answer)}
    handler = grpc.method_handlers_generic_handler("serendip.v1.Planner", methods)
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with socket.create_server(("127.0.0.1", 0)) as free:
        metrics = free.getsockname()[1]
    start_http_server(metrics, "127.0.0.1")
    page = f"http://127.0.0.1:{metrics}/metrics"
    print(f"echo ready on 127.0.0.1:{port}, metrics {page}", flush=True)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    await server.stop(1)


if __name__ == "__main__":
    asyncio.run(main())
