"""Server reflection that grpcurl and ghz can both use. Knows no service of ours.

ghz asks for the file of a *method* ("serendip.v1.Retriever.Retrieve"), which Python's descriptor
pool cannot find; the pool here answers with the file of the method's service.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from grpc_reflection.v1alpha import reflection, reflection_pb2

from serendip.serving.handlers import Service, StreamMethod, encoded

REFLECTION_NAME: str = reflection.SERVICE_NAME
_MAX_BYTES = 4096  # of a request, which is a name


class MethodAwarePool:
    """A descriptor pool that also finds the file of a method; else the pool it is given."""

    def __init__(self, pool: descriptor_pool.DescriptorPool | None = None) -> None:
        self._pool = pool if pool is not None else descriptor_pool.Default()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:
        """Raises KeyError if no message, enum, service, field or method has that full name."""
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            service_name, _, method = symbol.rpartition(".")
            service = self._pool.FindServiceByName(service_name)
            if method not in service.methods_by_name:
                raise
            return service.file


def reflection_service(service_names: Sequence[str]) -> Service:
    """Reflection of ``service_names`` (full names) and of itself."""
    servicer: Any = reflection.aio.ReflectionServicer(
        (*service_names, REFLECTION_NAME), pool=MethodAwarePool()
    )
    method = StreamMethod(
        "ServerReflectionInfo",
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        encoded,
        "bidi_stream",
    )
    return Service(REFLECTION_NAME, (method,), admitted=False, max_request_bytes=_MAX_BYTES)
