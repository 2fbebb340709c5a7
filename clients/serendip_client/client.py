"""The two clients: they hold the channels and drive operations; they know no message."""

from __future__ import annotations

import functools
import inspect
import json
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import grpc

from serendip.core import DeadlineSpent, InvalidRequest, SerendipError
from serendip.v1 import planner_pb2_grpc, recommender_pb2_grpc, retriever_pb2_grpc
from serendip.wire import error_from_rpc
from serendip_client import operations
from serendip_client.operations import Call, Operation

P = ParamSpec("P")
T = TypeVar("T")

# 256 users with 1,000 candidates each fit.
MAX_RESPONSE_BYTES = 64 << 20

# A server that is away is tried again, for at most about 0.3 s; nothing else is: a full queue is
# not helped by more calls, and what an answer was lost of may have been done.
SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 3,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)
_CHANNEL_OPTIONS = (
    ("grpc.service_config", SERVICE_CONFIG),
    ("grpc.enable_retries", 1),
    ("grpc.max_receive_message_length", MAX_RESPONSE_BYTES),
)


class _Connection:
    """What both clients hold: addresses, a channel a target, a stub a service."""

    _make_insecure: Callable[..., Any]
    _make_secure: Callable[..., Any]

    def __init__(
        self,
        planner: str,
        retriever: str | None = None,
        *,
        timeout_s: float = 5.0,
        credentials: Any = None,
        token: str | None = None,
    ) -> None:
        self._targets = {"planner": planner, "recommender": planner, "retriever": retriever}
        self._timeout_s = timeout_s
        self._credentials = credentials
        self._metadata = (("authorization", f"Bearer {token}"),) if token else None
        self._channels: dict[str, Any] = {}
        self._stubs: dict[str, Any] = {}

    def _invoke(self, call: Call, timeout_s: float) -> Any:
        """Begins a call: the response of a blocking channel, an awaitable of an asyncio one."""
        stub = self._stubs.get(call.service)
        if stub is None:  # made at the first use, so within the event loop that it belongs to
            stub = self._stubs[call.service] = _STUBS[call.service](self._channel(call.service))
        return getattr(stub, call.method)(call.request, timeout=timeout_s, metadata=self._metadata)

    def _channel(self, service: str) -> Any:
        target = self._targets[service]
        if target is None:
            raise InvalidRequest(
                "the client was given no retriever",
                field="retriever",
                remedy="Name its address when the client is made.",
            )
        if target not in self._channels:
            if self._credentials is None:
                channel = self._make_insecure(target, options=_CHANNEL_OPTIONS)
            else:
                channel = self._make_secure(target, self._credentials, options=_CHANNEL_OPTIONS)
            self._channels[target] = channel
        return self._channels[target]


_STUBS: dict[str, Callable[[Any], Any]] = {
    "planner": planner_pb2_grpc.PlannerStub,
    "recommender": recommender_pb2_grpc.RecommenderStub,
    "retriever": retriever_pb2_grpc.RetrieverStub,
}


class _Clock:
    """What is left of an operation's timeout."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s

    def left(self, call: Call) -> float:
        if call.new_deadline:
            return self._timeout_s
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise DeadlineSpent(f"{self._timeout_s:g} s passed before {call.method} was called")
        return left


def _error(error: Any) -> SerendipError:
    return error_from_rpc(
        error.code().value[0], error.details() or "", error.trailing_metadata() or ()
    )


def _sync(
    operation: Callable[P, Operation[T]],
) -> Callable[Concatenate[SerendipClient, P], T]:
    """A method that drives the operation to its end, blocking."""

    @functools.wraps(operation)
    def method(self: SerendipClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._drive(operation(*args, **kwargs))

    _show_self(method, operation)
    return method


def _async(
    operation: Callable[P, Operation[T]],
) -> Callable[Concatenate[AsyncSerendipClient, P], Awaitable[T]]:
    """A method that drives the operation to its end, in the event loop."""

    @functools.wraps(operation)
    async def method(self: AsyncSerendipClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._drive(operation(*args, **kwargs))

    _show_self(method, operation)
    return method


def _show_self(method: Any, operation: Callable[..., Operation[Any]]) -> None:
    # help() and editors follow the operation's signature, and drop its first parameter as self.
    shown = inspect.signature(operation)
    self_ = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    method.__signature__ = shown.replace(
        parameters=[self_, *shown.parameters.values()],
        return_annotation=str(shown.return_annotation).removeprefix("Operation[")[:-1],
    )


class SerendipClient(_Connection):
    """Calls planner and retriever, blocking; threads may share one.

    Errors of the servers are raised as serendip.core's; the gRPC error is the ``__cause__``.

    Args:
        planner: HOST:PORT of a planner server, or any target that gRPC resolves.
        retriever: of a retriever server; needed by ``retrieve``, ``retrieve_batch``,
            ``retriever_info`` and ``recommend(via="client")`` alone.
        timeout_s: seconds that a method may take, all its calls and tries together.
        credentials: grpc.ChannelCredentials; None is plain text.
        token: sent with every call as ``authorization: Bearer TOKEN``.
    """

    _make_insecure = staticmethod(grpc.insecure_channel)
    _make_secure = staticmethod(grpc.secure_channel)

    plan = _sync(operations.plan)
    plan_content = _sync(operations.plan_content)
    resolve = _sync(operations.resolve)
    list_clusters = _sync(operations.list_clusters)
    get_cluster = _sync(operations.get_cluster)
    retrieve = _sync(operations.retrieve)
    retrieve_batch = _sync(operations.retrieve_batch)
    retriever_info = _sync(operations.retriever_info)
    recommend = _sync(operations.recommend)

    def close(self) -> None:
        """Closes the channels; calls in flight fail."""
        for channel in self._channels.values():
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _drive(self, operation: Operation[T]) -> T:
        clock = _Clock(self._timeout_s)
        try:
            call = next(operation)
            while True:
                try:
                    response = self._invoke(call, clock.left(call))
                except grpc.RpcError as error:
                    raise _error(error) from error
                call = operation.send(response)
        except StopIteration as done:
            result: T = done.value
            return result


class AsyncSerendipClient(_Connection):
    """SerendipClient for asyncio: the same arguments, methods, results and errors.

    It belongs to the event loop of its first call.
    """

    _make_insecure = staticmethod(grpc.aio.insecure_channel)
    _make_secure = staticmethod(grpc.aio.secure_channel)

    plan = _async(operations.plan)
    plan_content = _async(operations.plan_content)
    resolve = _async(operations.resolve)
    list_clusters = _async(operations.list_clusters)
    get_cluster = _async(operations.get_cluster)
    retrieve = _async(operations.retrieve)
    retrieve_batch = _async(operations.retrieve_batch)
    retriever_info = _async(operations.retriever_info)
    recommend = _async(operations.recommend)

    async def close(self) -> None:
        """Closes the channels; calls in flight fail."""
        for channel in self._channels.values():
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _drive(self, operation: Operation[T]) -> T:
        clock = _Clock(self._timeout_s)
        try:
            call = next(operation)
            while True:
                try:
                    response = await self._invoke(call, clock.left(call))
                except grpc.RpcError as error:
                    raise _error(error) from error
                call = operation.send(response)
        except StopIteration as done:
            result: T = done.value
            return result
