"""A retriever that does what the request's tree_version says; a toy for tests of serving."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc

from serendip.core import (
    CorruptArtifact,
    DeadlineSpent,
    InvalidData,
    InvalidRequest,
    MediaError,
    NotFound,
    NotReady,
    Overloaded,
    WrongTree,
)
from serendip.v1 import retriever_pb2, retriever_pb2_grpc

NAME = "serendip.v1.Retriever"
SECRET = "the password is swordfish"

ERRORS: dict[str, Exception] = {
    "invalid_request": InvalidRequest("must lie in 1 to 9", field="k", value=0, remedy="Set k."),
    "invalid_data": InvalidData("is no text", field="title", row=3),
    "media": MediaError("is no JPEG", field="thumbnail"),
    "not_found": NotFound("is unknown", field="node_ids", value=77),
    "wrong_tree": WrongTree("is not open here, but: abc", field="tree_version", value="x"),
    "overloaded": Overloaded("9 rows are waiting", retry_after_s=0.25),
    "deadline": DeadlineSpent("the deadline passed"),
    "not_ready": NotReady("no release yet"),
    "corrupt": CorruptArtifact(SECRET, field="tree/nodes.parquet"),
    "bug": ZeroDivisionError(SECRET),
}


class Toy(retriever_pb2_grpc.RetrieverServicer):
    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.release = asyncio.Event()
        self.cancelled = 0

    async def Retrieve(
        self, request: retriever_pb2.RetrieveRequest, context: Any
    ) -> retriever_pb2.RetrieveResponse:
        behaviour = request.tree_version
        if behaviour == "wait":
            self.entered.set()
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        elif behaviour == "abort":
            await context.abort(grpc.StatusCode.DATA_LOSS, "by hand")
        elif behaviour in ERRORS:
            raise ERRORS[behaviour]
        return retriever_pb2.RetrieveResponse(unknown_history_items=request.k)

    def register(self, server: Any) -> Sequence[str]:
        retriever_pb2_grpc.add_RetrieverServicer_to_server(self, server)
        return (NAME,)


def request(behaviour: str, k: int = 7) -> retriever_pb2.RetrieveRequest:
    return retriever_pb2.RetrieveRequest(tree_version=behaviour, k=k)
