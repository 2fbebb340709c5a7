"""The two clients: they hold the channels and drive operations; they know no message.

operation ──call──> try ──slow──> a second one beside it, if the client hedges
    ^                │
    │                ├── RESOURCE_EXHAUSTED with a pushback: again, when it says
    │                └── UNAVAILABLE: again, by the channel itself (SERVICE_CONFIG)
    └── response, or typed error
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import queue
import threading
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import grpc

from serendip.core import DeadlineSpent, InvalidRequest
from serendip.v1 import planner_pb2_grpc, recommender_pb2_grpc, retriever_pb2_grpc
from serendip_client import operations, recommending
from serendip_client.calls import Call, Operation
from serendip_client.hedging import Hedging
from serendip_client.retries import SERVICE_CONFIG, TRIES, is_final, likeliest, pushback_s, typed

P = ParamSpec("P")
T = TypeVar("T")

# 256 users with 1,000 candidates each fit.
MAX_RESPONSE_BYTES = 64 << 20

_CHANNEL_OPTIONS = (
    ("grpc.service_config", SERVICE_CONFIG),
    ("grpc.enable_retries", 1),
    ("grpc.max_receive_message_length", MAX_RESPONSE_BYTES),
)
# A hedge on the connection of the slow call would reach the same process: its own may reach another
# behind the same port or balancer.
_OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)


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
        hedge: bool = False,
        hedge_after_s: float | None = None,
    ) -> None:
        self._targets = {"planner": planner, "recommender": planner, "retriever": retriever}
        self._timeout_s = timeout_s
        self._credentials = credentials
        self._metadata = (("authorization", f"Bearer {token}"),) if token else None
        self._hedging = None
        if hedge or hedge_after_s is not None:
            self._hedging = Hedging(hedge_after_s)
        self._channels: dict[tuple[str, bool], Any] = {}
        self._callables: dict[tuple[str, bool, bool], Any] = {}
        self._making = threading.Lock()

    def _callable(self, call: Call, second: bool = False) -> Any:
        """What begins a call; made at the first use, so within the event loop it belongs to.

        Args:
            second: of a hedge.
        """
        key = (call.path, call.raw, second)
        found = self._callables.get(key)
        if found is None:
            with self._making:  # threads share a client, and a channel is closed with it
                channel = self._channel(call.service, second)
                if call.raw:
                    found = channel.unary_unary(call.path)
                else:
                    found = getattr(_STUBS[call.service](channel), call.method)
                self._callables[key] = found
        return found

    def _options(self, timeout_s: float) -> dict[str, Any]:
        return {"timeout": timeout_s, "metadata": self._metadata}

    def _channel(self, service: str, second: bool) -> Any:
        target = self._targets[service]
        if target is None:
            raise InvalidRequest(
                "the client was given no retriever",
                field="retriever",
                remedy="Name its address when the client is made.",
            )
        if (target, second) not in self._channels:
            options = _CHANNEL_OPTIONS + (_OWN_CONNECTION if second else ())
            if self._credentials is None:
                channel = self._make_insecure(target, options=options)
            else:
                channel = self._make_secure(target, self._credentials, options=options)
            self._channels[target, second] = channel
        return self._channels[target, second]


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
        return left * call.share


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
            ``retriever_info`` and ``via="client"`` alone.
        timeout_s: seconds that a method may take, all its calls and tries together.
        credentials: grpc.ChannelCredentials; None is plain text.
        token: sent with every call as ``authorization: Bearer TOKEN``.
        hedge: whether a call that takes longer than 95 of 100 recent ones of its method is made a
            second time; the first answer counts, the other call is cancelled. At most a call in
            ten is, and PlanContent never.
        hedge_after_s: hedge after so many seconds instead.

    Raises:
        InvalidRequest: hedge_after_s is not above 0.
    """

    _make_insecure = staticmethod(grpc.insecure_channel)
    _make_secure = staticmethod(grpc.secure_channel)

    plan = _sync(operations.plan)
    plan_content = _sync(operations.plan_content)
    resolve = _sync(operations.resolve)
    list_clusters = _sync(operations.list_clusters)
    get_cluster = _sync(operations.get_cluster)
    planner_info = _sync(operations.planner_info)
    retrieve = _sync(operations.retrieve)
    retrieve_batch = _sync(operations.retrieve_batch)
    retriever_info = _sync(operations.retriever_info)
    recommend = _sync(recommending.recommend)
    recommend_batch = _sync(recommending.recommend_batch)

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
                    response = self._answer(call, clock)
                except grpc.RpcError as error:
                    call = operation.throw(typed(error))
                else:
                    call = operation.send(response)
        except StopIteration as done:
            result: T = done.value
            return result

    def _answer(self, call: Call, clock: _Clock) -> Any:
        for left in reversed(range(TRIES)):
            timeout_s = clock.left(call)
            try:
                if self._hedging is None:
                    return self._callable(call)(call.request, **self._options(timeout_s))
                return self._hedged(self._hedging, call, timeout_s)
            except grpc.RpcError as error:
                wait_s = pushback_s(error)
                if not left or wait_s is None or wait_s >= clock.left(call):
                    raise
            time.sleep(wait_s)
        raise AssertionError("unreachable: the last try returns or raises")

    def _hedged(self, hedging: Hedging, call: Call, timeout_s: float) -> Any:
        began = time.monotonic()
        ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        begun: list[Any] = []

        def begin(second: bool) -> None:
            left_s = max(0.0, timeout_s - (time.monotonic() - began))
            future = self._callable(call, second).future(call.request, **self._options(left_s))
            begun.append(future)
            future.add_done_callback(ended.put)

        after_s = hedging.begin(call.method)
        try:
            begin(second=False)
            failed: list[Any] = []
            while True:
                try:
                    future = ended.get(timeout=after_s if len(begun) == 1 else None)
                except queue.Empty:
                    after_s = None
                    if hedging.spend():
                        begin(second=True)
                    continue
                error = future.exception()
                if error is None:
                    hedging.answered(call.method, time.monotonic() - began)
                    return future.result()
                failed.append(error)
                if len(failed) == len(begun) or is_final(error):
                    raise likeliest(failed)
        finally:
            for future in begun:
                future.cancel()


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
    planner_info = _async(operations.planner_info)
    retrieve = _async(operations.retrieve)
    retrieve_batch = _async(operations.retrieve_batch)
    retriever_info = _async(operations.retriever_info)
    recommend = _async(recommending.recommend)
    recommend_batch = _async(recommending.recommend_batch)

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
                    response = await self._answer(call, clock)
                except grpc.RpcError as error:
                    call = operation.throw(typed(error))
                else:
                    call = operation.send(response)
        except StopIteration as done:
            result: T = done.value
            return result

    async def _answer(self, call: Call, clock: _Clock) -> Any:
        for left in reversed(range(TRIES)):
            timeout_s = clock.left(call)
            try:
                if self._hedging is None:
                    return await self._callable(call)(call.request, **self._options(timeout_s))
                return await self._hedged(self._hedging, call, timeout_s)
            except grpc.RpcError as error:
                wait_s = pushback_s(error)
                if not left or wait_s is None or wait_s >= clock.left(call):
                    raise
            await asyncio.sleep(wait_s)
        raise AssertionError("unreachable: the last try returns or raises")

    async def _hedged(self, hedging: Hedging, call: Call, timeout_s: float) -> Any:
        began = time.monotonic()
        begun: list[asyncio.Task[Any]] = []

        async def answer(second: bool) -> Any:
            left_s = max(0.0, timeout_s - (time.monotonic() - began))
            return await self._callable(call, second)(call.request, **self._options(left_s))

        after_s = hedging.begin(call.method)
        try:
            begun.append(asyncio.create_task(answer(second=False)))
            open_ = set(begun)
            failed: list[BaseException] = []
            while True:
                ended, open_ = await asyncio.wait(
                    open_,
                    timeout=after_s if len(begun) == 1 else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not ended:
                    after_s = None
                    if hedging.spend():
                        begun.append(asyncio.create_task(answer(second=True)))
                        open_.add(begun[-1])
                    continue
                for task in ended:
                    error = task.exception()
                    if error is None:
                        hedging.answered(call.method, time.monotonic() - began)
                        return task.result()
                    if not isinstance(error, grpc.RpcError):  # of this side: another fails alike
                        raise error
                    failed.append(error)
                if not open_ or is_final(failed[-1]):
                    raise likeliest(failed)
        finally:
            for task in begun:
                task.cancel()
            await asyncio.gather(*begun, return_exceptions=True)
