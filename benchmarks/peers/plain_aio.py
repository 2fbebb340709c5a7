"""The retriever on grpc.aio without a batcher: one run a request, in the event loop.

    python -m peers.plain_aio ROOT
    python -m peers.plain_aio ROOT --echo

The same protos, the same ranker. With --echo the ranker is left out: every call is answered with
the bytes of one response, which shows what grpc.aio itself takes.
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
from serving.material import SIZES, one_user

from retriever_server.release import open_release
from serendip.artifacts import Artifacts
from serendip.core import SerendipError
from serendip.v1 import retriever_pb2, retriever_pb2_grpc
from serendip.wire import query_from_proto, retrieval_to_proto

ANSWERS = Counter("plain_answers", "Calls answered.")


class Plain(retriever_pb2_grpc.RetrieverServicer):
    """Decode, run, encode."""

    def __init__(self, root: Path) -> None:
        self.ranker = open_release(Artifacts(root)).newest

    async def Retrieve(self, request: Any, context: Any) -> Any:
        (found,) = self.ranker.retrieve([query_from_proto(request)])
        if isinstance(found, SerendipError):
            raise found
        ANSWERS.inc()
        return retrieval_to_proto(found, self.ranker.versions)


def echo(server: Any, root: Path) -> None:
    """Answers Retrieve with the bytes of one user's response."""
    ranker = open_release(Artifacts(root)).newest
    (found,) = ranker.retrieve([one_user(next(s for s in SIZES.values() if s.name == root.name))])
    assert not isinstance(found, SerendipError)
    said = retrieval_to_proto(found, ranker.versions).SerializeToString()

    async def answer(request: bytes, context: Any) -> bytes:
        ANSWERS.inc()
        return said

    handler = grpc.unary_unary_rpc_method_handler(answer)
    service = retriever_pb2.DESCRIPTOR.services_by_name["Retriever"].full_name
    methods = {"Retrieve": handler}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))


async def main() -> None:
    """Serves until SIGTERM."""
    root = Path(sys.argv[1])
    server = grpc.aio.server()
    if "--echo" in sys.argv:
        echo(server, root)
    else:
        add: Any = retriever_pb2_grpc.add_RetrieverServicer_to_server
        add(Plain(root), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with socket.create_server(("127.0.0.1", 0)) as free:
        metrics = free.getsockname()[1]
    start_http_server(metrics, "127.0.0.1")
    page = f"http://127.0.0.1:{metrics}/metrics"
    print(f"plain ready on 127.0.0.1:{port}, metrics {page}", flush=True)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    await server.stop(1)


if __name__ == "__main__":
    asyncio.run(main())
