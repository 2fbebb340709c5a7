"""A retriever that does what the request's tree_version says; a toy for tests of serving."""

from __future__ import annotations

import asyncio
import time

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
from serendip.serving.handlers import Call, Service, service_of
from serendip.v1 import common_pb2, retriever_pb2

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


class Toy:
    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.release = asyncio.Event()
        self.cancelled = 0

    async def Retrieve(
        self, request: retriever_pb2.RetrieveRequest, call: Call
    ) -> retriever_pb2.RetrieveResponse | bytes:
        behaviour = request.tree_version
        if behaviour == "wait":
            self.entered.set()
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        elif behaviour == "call":
            left = -1.0 if call.deadline is None else call.deadline - time.monotonic()
            return retriever_pb2.RetrieveResponse(
                candidates=[common_pb2.Candidate(item_id=f"{k}={v}") for k, v in call.metadata],
                unknown_history_items=round(left * 1000),
            )
        elif behaviour == "bytes":
            return retriever_pb2.RetrieveResponse(unknown_history_items=3).SerializeToString()
        elif behaviour in ERRORS:
            raise ERRORS[behaviour]
        return retriever_pb2.RetrieveResponse(unknown_history_items=request.k)

    def services(self) -> list[Service]:
        return [service_of(retriever_pb2.DESCRIPTOR.services_by_name["Retriever"], self)]


def request(behaviour: str, k: int = 7) -> retriever_pb2.RetrieveRequest:
    return retriever_pb2.RetrieveRequest(tree_version=behaviour, k=k)
