"""The retriever on MLServer: a custom runtime behind its gRPC endpoint and adaptive batching.

python -m peers.on_mlserver ROOT BATCH WINDOW_US
"""

from __future__ import annotations

import asyncio
import os
import sys
from itertools import chain
from pathlib import Path

import grpc
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.grpc import dataplane_pb2, dataplane_pb2_grpc
from mlserver.settings import ModelParameters
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput
from serving.material import K

from peers.tensors import MODEL, NumberedRanker, free_ports


class Runtime(MLModel):
    """History and nodes in, items and scores out; a batch is its requests, one after the other."""

    async def load(self) -> bool:
        self._ranker = NumberedRanker(Path(self.settings.parameters.uri))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        inputs = {given.name: given for given in payload.inputs}
        histories, nodes = (rows(inputs[name]) for name in ("history", "nodes"))
        items, scores = self._ranker.retrieve(histories, nodes)
        shape = [len(items), K]
        return InferenceResponse(
            model_name=self.name,
            outputs=[
                ResponseOutput(
                    name="items", shape=shape, datatype="INT64", data=list(chain(*items))
                ),
                ResponseOutput(
                    name="scores", shape=shape, datatype="FP32", data=list(chain(*scores))
                ),
            ],
        )


def rows(given: object) -> list[list[int]]:
    """A flat tensor as rows."""
    count, width = given.shape
    flat = given.data.root
    return [flat[at : at + width] for at in range(0, count * width, width)]


async def say_when_ready(port: int, metrics: int) -> None:
    """Prints the ready line once the model answers."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = dataplane_pb2_grpc.GRPCInferenceServiceStub(channel)
        while True:
            try:
                answer = await stub.ModelReady(dataplane_pb2.ModelReadyRequest(name=MODEL))
                if answer.ready:
                    break
            except grpc.aio.AioRpcError:
                pass
            await asyncio.sleep(0.1)
    page = f"http://127.0.0.1:{metrics}/metrics"
    print(f"mlserver ready on 127.0.0.1:{port}, metrics {page}", flush=True)


async def main() -> None:
    """Serves until SIGTERM."""
    root, most, window_us = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    http, port, metrics = free_ports(3)
    folder = os.environ["METRICS_FOLDER"]
    server = MLServer(
        Settings(
            debug=False,
            parallel_workers=0,
            host="127.0.0.1",
            http_port=http,
            grpc_port=port,
            metrics_port=metrics,
            metrics_dir=folder,
        )
    )
    model = ModelSettings(
        name=MODEL,
        implementation=Runtime,
        max_batch_size=most,
        max_batch_time=window_us / 1e6,
        parameters=ModelParameters(uri=root),
    )
    ready = asyncio.create_task(say_when_ready(port, metrics))
    await server.start([model])
    ready.cancel()


if __name__ == "__main__":
    asyncio.run(main())
