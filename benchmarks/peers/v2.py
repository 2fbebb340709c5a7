"""Requests in the open inference protocol, and a client of it, in a tensor server's environment.

    python -m peers.v2 body USERS
    python -m peers.v2 ask USERS ADDRESS

USERS is a JSON file of [{"history": [number...], "nodes": [node...]}...]. ``body`` writes the
first user's request to standard output; ``ask`` prints every user's answer as one line of JSON,
[[[number...], [score...]]...], asked with some in flight.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from serving.material import CLUSTERS

from peers.tensors import MODEL, NO_NODE

try:
    from tritonclient.grpc import service_pb2 as pb
except ImportError:
    from mlserver.grpc import dataplane_pb2 as pb

METHOD = "/inference.GRPCInferenceService/ModelInfer"
IN_FLIGHT = 16


def request(user: dict[str, list[int]]) -> Any:
    """A batch of one row."""
    history = user["history"]
    nodes = user["nodes"] + [NO_NODE] * (CLUSTERS - len(user["nodes"]))
    made = pb.ModelInferRequest(model_name=MODEL)
    for name, datatype, values in (("history", "INT64", history), ("nodes", "INT32", nodes)):
        made.inputs.add(name=name, datatype=datatype, shape=[1, len(values)])
        dtype = np.int64 if datatype == "INT64" else np.int32
        made.raw_input_contents.append(np.array(values, dtype).tobytes())
    return made


def read(response: Any) -> tuple[list[int], list[float]]:
    """Item numbers and scores of a batch of one row."""
    items, scores = response.raw_output_contents
    assert [output.name for output in response.outputs] == ["items", "scores"]
    return np.frombuffer(items, np.int64).tolist(), np.frombuffer(scores, np.float32).tolist()


async def ask(users: list[dict[str, list[int]]], address: str) -> list[Any]:
    """Every user's answer, in order."""
    turns = asyncio.Semaphore(IN_FLIGHT)
    async with grpc.aio.insecure_channel(address) as channel:
        infer = channel.unary_unary(
            METHOD,
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )

        async def one(user: dict[str, list[int]]) -> Any:
            async with turns:
                return read(await infer(request(user)))

        return await asyncio.gather(*(one(user) for user in users))


def main() -> None:
    """See the module."""
    verb, path, *rest = sys.argv[1:]
    users = json.loads(Path(path).read_text())
    if verb == "body":
        sys.stdout.buffer.write(request(users[0]).SerializeToString())
    else:
        print(json.dumps(asyncio.run(ask(users, *rest))))


if __name__ == "__main__":
    main()
