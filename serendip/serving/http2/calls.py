"""gRPC calls over HTTP/2: lets in, admits, decodes, counts, calls servicers, errors to statuses.

    headers ──> method? ──> known client? ──> admitted? ──> message ──> servicer ──> answer
     UNIMPLEMENTED └─ UNAUTHENTICATED └─ RESOURCE_EXHAUSTED └──── what was raised ──> status

What is refused by its headers costs no more than they: its message is not waited for. Knows no tier
and no file.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from google.rpc import code_pb2

from serendip.core import DeadlineSpent, InvalidRequest, SerendipError
from serendip.serving.admission import Admission
from serendip.serving.door import Door
from serendip.serving.errors import Trailer, status_of, trailers_of
from serendip.serving.guard import Guard
from serendip.serving.handlers import (
    REQUEST_ID_KEY,
    Call,
    Method,
    Service,
    StreamMethod,
    decoded,
)
from serendip.serving.http2.connection import Receiver, Stream
from serendip.serving.http2.loop_queue import LARGE, LoopQueue
from serendip.serving.http2.messages import (
    PREFIX,
    RESPONSE,
    Head,
    Messages,
    TooLarge,
    failed,
    failed_trailers,
    message,
    ok_trailers,
    too_large,
)
from serendip.serving.records import Records
from serendip.serving.telemetry import ServerMetrics

_HELD = 64 << 20  # bytes of a connection's requests that have not come whole
_TO_COME_S = 60.0  # for a request without a deadline to come whole
_UNREAD = 64  # messages of a stream that its servicer has not asked for


class Calls:
    """Serves our services from connections; their ``Application``.

    Args:
        guard: asked before a request is read; None: anybody may call.
        max_request_bytes, max_response_bytes: of a message; more is RESOURCE_EXHAUSTED.
    """

    def __init__(
        self,
        services: Sequence[Service],
        metrics: ServerMetrics,
        admission: Admission,
        guard: Guard | None = None,
        records: Records | None = None,
        *,
        max_request_bytes: int,
        max_response_bytes: int,
    ) -> None:
        self.max_response_bytes = max_response_bytes
        self.max_held_bytes = max(_HELD, 2 * max_request_bytes)
        self.tasks: set[asyncio.Task[None]] = set()
        self.queue = LoopQueue()
        self._ways: dict[str, _Way] = {}
        for service in services:
            for method in service.methods:
                name = f"/{service.name}/{method.name}"
                kind = method.grpc_type if isinstance(method, StreamMethod) else "unary"
                meter = metrics.calls.meter(name, kind)
                refusals = Door(name, meter, records)
                self._ways[name] = _Way(
                    method,
                    refusals if service.admitted else Door(name, meter, None),
                    refusals,
                    admission if service.admitted else None,
                    guard if service.guarded else None,
                    min(max_request_bytes, service.max_request_bytes or max_request_bytes),
                )

    def open(self, stream: Stream, head: Head) -> Receiver | None:
        """See ``Application``."""
        if head.refusal:
            stream.end(head.refusal)
            return None
        way = self._ways.get(head.path)
        if way is None:  # not counted: a caller must not be able to make label values
            stream.end(failed(code_pb2.UNIMPLEMENTED, "there is no such method here", ()))
            return None
        client = ""
        if way.guard is not None:
            client, refusal = way.guard.admit(head.metadata)
            if refusal is not None:
                way.refuse(stream, head, refusal, client)
                return None
        if way.admission is not None and way.admission.full:
            way.refuse(stream, head, way.admission.refused(), client)
            return None
        if isinstance(way.method, Method):
            return _Unary(self, way, way.method, stream, head, client)
        return _Streaming(self, way, way.method, stream, head, client)

    def run(self, coroutine: Any) -> asyncio.Task[None]:
        """Runs a call's coroutine; it is kept until it has ended."""
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task


class _Way:
    """How one method's calls are taken."""

    __slots__ = ("_refusals", "admission", "door", "guard", "max_bytes", "method")

    def __init__(
        self,
        method: Method | StreamMethod,
        door: Door,
        refusals: Door,
        admission: Admission | None,
        guard: Guard | None,
        max_bytes: int,
    ) -> None:
        self.method = method
        self.max_bytes = max_bytes
        self.door = door
        self._refusals = refusals
        self.admission = admission
        self.guard = guard

    def refuse(self, stream: Stream, head: Head, error: SerendipError, client: str) -> None:
        """Answers a call that is not taken."""
        call, door = Call(None, head.metadata), self._refusals
        begun = door.begin(call)
        name, block = _failure(error, call)
        door.end(begun, call, name, _who(stream, client) if door.asks_who else {}, error)
        stream.end(RESPONSE + block)


class _Exchange:
    """One call that is taken: what both kinds of methods share."""

    __slots__ = (
        "_begun", "_calls", "_client", "_head", "_held", "_messages", "_over", "_stream", "_task",
        "_timer", "_way", "call",
    )  # fmt: skip

    def __init__(self, calls: Calls, way: _Way, stream: Stream, head: Head, client: str) -> None:
        self._calls = calls
        self._way = way
        self._stream = stream
        self._head = head
        self._client = client
        wait_s = head.timeout_s
        self.call = Call(None if wait_s is None else time.monotonic() + wait_s, head.metadata)
        self._messages: Messages | None = None
        self._held = 0  # of the connection's held bytes, this call's
        self._begun: tuple[float, Any] | None = None
        self._over = False
        self._task: asyncio.Task[None] | None = None
        # From the first of it on: what never comes whole, or is never read, ends too.
        left_s = _TO_COME_S if wait_s is None else wait_s
        self._timer = asyncio.get_running_loop().call_later(left_s, self._expire)

    def gone(self) -> None:
        """See ``Receiver``."""
        self._timer.cancel()
        if self._over:
            return
        # A caller whose own clock was first gives up at its deadline.
        late = self.call.deadline is not None and time.monotonic() >= self.call.deadline
        self._give_up("DEADLINE_EXCEEDED" if late else "CANCELLED")

    def _add(self, payload: bytes) -> list[bytes]:
        """The messages that have come whole. Raises as ``Messages.add``, and beyond held bytes."""
        if self._messages is None:
            self._messages = Messages(self._way.max_bytes, self._head.encoding)
        return self._messages.add(payload)

    def _hold_unread(self, n: int) -> None:
        """Counts what has come and is not read: n bytes, and a part. Raises TooLarge."""
        assert self._messages is not None
        self._hold(n + self._messages.held_bytes)
        if self._stream.connection.held_bytes > self._calls.max_held_bytes:
            raise TooLarge("the connection's unread requests are too many bytes together")

    def _hold(self, held_bytes: int) -> None:
        self._stream.connection.held_bytes += held_bytes - self._held
        self._held = held_bytes

    def _begin(self) -> None:
        self._begun = self._way.door.begin(self.call)

    def _start(self, coroutine: Any) -> None:
        self._task = self._calls.run(coroutine)
        if self.call.deadline is None:
            self._timer.cancel()

    def _expire(self) -> None:
        if not self._over:
            self._give_up("DEADLINE_EXCEEDED")
            self._close_by(_failure(DeadlineSpent("the deadline passed"), self.call)[1])
        if self._stream.waits:  # its answer, for windows that the caller keeps shut
            self._stream.cancel()

    def _give_up(self, code: str) -> None:
        self.call.cancelled = True
        self._end(code)
        if self._task is not None:
            self._task.cancel()

    def _fail(self, error: BaseException) -> None:
        """Ends the call by an error, once."""
        if self._over:
            return
        if self._begun is None:
            self._begin()
        name, block = _failure(error, self.call)
        self._end(name, error)
        self._close_by(block)

    def _close_by(self, block: bytes) -> None:
        self._stream.end(RESPONSE + block)

    def _end(self, code: str, error: BaseException | None = None) -> float:
        """Counts the end, once; returns the seconds that it took."""
        self._over = True
        self._hold(0)
        if self._begun is None:
            return 0.0
        door = self._way.door
        who = _who(self._stream, self._client) if door.asks_who else {}
        return door.end(self._begun, self.call, code, who, error)


class _Unary(_Exchange):
    """One request, one response."""

    __slots__ = ("_found", "_large", "_method", "_raw", "_waits")

    def __init__(
        self, calls: Calls, way: _Way, method: Method, stream: Stream, head: Head, client: str
    ) -> None:
        super().__init__(calls, way, stream, head, client)
        self._method = method
        self._found = 0
        self._large = self._waits = False
        self._raw: bytes | None = None

    def data(self, payload: bytes, ended: bool) -> None:
        """See ``Receiver``."""
        if self._over:
            return
        n = len(payload) - 5
        if (
            ended
            and self._messages is None
            and 0 <= n <= self._way.max_bytes
            and PREFIX.unpack_from(payload) == (0, n)
        ):  # nearly always: the whole request in one frame, not packed
            self._answer(payload[5:])
            return
        try:
            for raw in self._add(payload):
                if self._raw is not None:
                    raise InvalidRequest("the call brought more than one message")
                self._raw = raw
            self._hold_unread(0 if self._raw is None else len(self._raw))
            if ended:
                whole, self._raw = self._raw, None
                if whole is None or self._held > len(whole):
                    raise InvalidRequest("the call brought no whole message")
                self._messages = None
                self._hold(0)
                self._answer(whole)
        except SerendipError as error:
            self._fail(error)

    def _answer(self, raw: bytes) -> None:
        self._begin()
        call, method, admission = self.call, self._method, self._way.admission
        now_s = time.monotonic()
        try:
            if call.deadline is not None and call.deadline <= now_s:
                raise DeadlineSpent("the deadline passed before the call was read")
            if admission is not None:
                queue = self._calls.queue
                self._large = len(raw) > LARGE
                self._found = admission.enter(call.deadline, queue.wait_s(self._large))
                queue.join(now_s, self._large)
                self._waits = True
            self._start(self._run(decoded(method, raw)))
        except Exception as error:
            self._fail(error)

    async def _run(self, request: Any) -> None:
        deadline = self.call.deadline
        try:
            if self._waits:
                now_s = await self._calls.queue.take(self._large)
                self._leave_queue()
                if deadline is not None and deadline <= now_s:
                    # Calls that take long kept the event loop from its timers.
                    raise DeadlineSpent("the deadline passed before the call had its turn")
            response = self._method.encode(await self._method.handle(request, self.call))
            if not self._over:
                self._respond(response)
        except asyncio.CancelledError:
            if not self._over:  # not the caller's doing: the server ends
                self.gone()
                self._stream.cancel()
        except Exception as error:
            self._fail(error)

    def _respond(self, response: bytes) -> None:
        if len(response) > self._calls.max_response_bytes:
            raise too_large(len(response), self._calls.max_response_bytes)
        self._end("OK")
        trailers = ok_trailers(self.call.request_id.encode())
        self._stream.answer(RESPONSE, message(response), trailers)

    def _end(self, code: str, error: BaseException | None = None) -> float:
        seconds = super()._end(code, error)
        self._leave_queue()
        if self._found:
            assert self._way.admission is not None
            self._way.admission.leave(self._found, seconds if code == "OK" else None)
            self._found = 0
        return seconds

    def _leave_queue(self) -> None:
        if self._waits:
            self._waits = False
            self._calls.queue.leave(self._large)


class _Streaming(_Exchange):
    """Requests and responses one after another."""

    __slots__ = ("_method", "_queued", "_requests", "_sent")

    def __init__(
        self, calls: Calls, way: _Way, method: StreamMethod, stream: Stream, head: Head, client: str
    ) -> None:
        super().__init__(calls, way, stream, head, client)
        self._method = method
        self._requests: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._queued = 0
        self._sent = False
        self._begin()
        self._start(self._run())

    def data(self, payload: bytes, ended: bool) -> None:
        """See ``Receiver``."""
        if self._over:
            return
        try:
            for raw in self._add(payload):
                self._requests.put_nowait(raw)
                self._queued += len(raw)
            self._hold_unread(self._queued)
            if self._requests.qsize() > _UNREAD:
                raise TooLarge("messages come faster than they are answered")
        except SerendipError as error:
            self._fail(error)
            if self._task is not None:
                self._task.cancel()
            return
        if ended:
            self._requests.put_nowait(None)

    async def _run(self) -> None:
        stream = self._stream
        try:
            async with aclosing(self._method.handle(self._read(), self.call)) as responses:  # type: ignore[type-var]
                async for response in responses:
                    stream.send(
                        b"" if self._sent else RESPONSE, message(self._method.encode(response))
                    )
                    self._sent = True
                    await stream.drained()
        except asyncio.CancelledError:
            if not self._over:
                self.gone()
                stream.cancel()
        except Exception as error:
            self._fail(error)
        else:
            if not self._over:
                self._end("OK")
                trailers = ok_trailers(self.call.request_id.encode())
                stream.end(trailers if self._sent else RESPONSE + trailers)

    async def _read(self) -> AsyncIterator[Any]:
        while (raw := await self._requests.get()) is not None:
            self._queued -= len(raw)
            if not self._over:
                self._hold(self._held - len(raw))
            yield decoded(self._method, raw)

    def _close_by(self, block: bytes) -> None:
        self._stream.end(block if self._sent else RESPONSE + block)


def _failure(error: BaseException, call: Call) -> tuple[str, bytes]:
    """The name of the status that an error becomes, and its block."""
    trailers: tuple[Trailer, ...]
    if isinstance(error, TooLarge):
        code, said, trailers = code_pb2.RESOURCE_EXHAUSTED, str(error), ()
    else:
        status = status_of(error, call.request_id)
        code, said, trailers = status.code, status.message, trailers_of(status, error)
    block = failed_trailers(code, said, (*trailers, (REQUEST_ID_KEY, call.request_id)))
    return code_pb2.Code.Name(code), block


def _who(stream: Stream, client: str) -> dict[str, str]:
    """Who calls: its token's name, or else its certificate's; and from which address."""
    connection = stream.connection
    address = connection.peer
    if not client:
        subject = connection.peer_certificate.get("subject", ())
        names = [value for part in subject for key, value in part if key == "commonName"]
        client = names[0] if names else ""
    return {"client": client, "peer": address} if client else {"peer": address}
