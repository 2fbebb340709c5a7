"""Several processes behind one port: started, kept alive, and ended together.

    parent (holds the port) ──exec──> worker 0 ──┐ SO_REUSEPORT: the kernel spreads connections
          │ SIGTERM, SIGINT, SIGHUP ─> worker 1 ──┤
          └── a worker that ends is started again ┘   a parent that ends takes its workers along

Workers are programs of their own, never forks: a process that has threads must not be forked.
Knows no gRPC and no tier; a worker is known by its command line and by its ready line alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from serendip.core import InvalidRequest

_FIRST_DELAY_S, _LAST_DELAY_S = 0.1, 10.0
_STEADY_S = 30.0  # a worker that ran so long is started again at once
_READY = re.compile(r"ready on (\S+?)(?:, metrics (\S+))?$")


@dataclass(frozen=True)
class Workers:
    """Which processes to keep.

    Attributes:
        name: of the server, for people.
        command: what each is started with; ``--port``, ``--metrics-port`` and ``--worker`` are
            added. A worker prints the line of Running.line when it is ready, ends gracefully at
            SIGTERM, and calls ``end_with_parent``.
        count: how many; at least 1.
        metrics_port: of worker 0, the others follow; 0: each takes a free one; None: none.
        stop_s: seconds that a worker may take to end before it is killed.
        inherited: descriptors that workers get.
    """

    name: str
    command: tuple[str, ...]
    count: int
    host: str = "127.0.0.1"
    port: int = 0
    metrics_port: int | None = None
    stop_s: float = 30.0
    inherited: tuple[int, ...] = ()


def supervise(workers: Workers) -> int:
    """Keeps the workers until SIGTERM or SIGINT; returns the exit code.

    Prints one line to standard output when all are ready, as one server would: with several pages
    of metrics, their URLs joined by commas. A worker that ends is told of on standard error, and
    started again after 0.1 s, 0.2 s, up to 10 s. SIGHUP is passed on.

    Returns:
        0 if all workers drained; the code of a worker that did not become ready at the start, for
        which all are stopped; 1 if one had to be killed.

    Raises:
        InvalidRequest: the port cannot be bound.
    """
    with hold_port(workers.host, workers.port) as port:
        return asyncio.run(_Supervisor(workers, port).run())


@contextlib.contextmanager
def hold_port(host: str, port: int) -> Iterator[int]:
    """Holds a port, so that nobody else takes it between two workers; it takes no connection.

    Args:
        port: 0 takes a free one.

    Raises:
        InvalidRequest: somebody has it.
    """
    with contextlib.ExitStack() as stack:
        try:
            (family, kind, _, _, address), *_ = socket.getaddrinfo(
                host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            # Among programs that all share ports, binding tells nothing: ask without sharing.
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((address[0], port, *address[2:]))
                address = (address[0], probe.getsockname()[1], *address[2:])
            held = stack.enter_context(socket.socket(family, kind))
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind(address)
        except (OSError, OverflowError) as error:
            raise InvalidRequest(
                f"cannot listen on {host} ({error})",
                field="port",
                value=port,
                remedy="Stop what has it, choose another port, or 0 for any free one.",
            ) from error
        yield int(address[1])


def end_with_parent() -> None:
    """Ends this process gracefully when the process that started it is gone, however it went.

    For a worker, whose standard input is a pipe that its parent never writes to and never closes.
    """

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()


class _Supervisor:
    def __init__(self, workers: Workers, port: int) -> None:
        self._workers = workers
        self._port = port
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._metrics: dict[int, str] = {}  # URL of each worker's page
        self._stopping = asyncio.Event()
        self._code = 0

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._pass_on, signal.SIGHUP)
        keepers: list[asyncio.Task[None]] = []
        # The first one alone: what stops it would stop all, and is then said once.
        for first in (True, False):
            indices = range(1) if first else range(1, self._workers.count)
            ready = [loop.create_future() for _ in indices]
            keepers += [
                asyncio.create_task(self._keep(index, told))
                for index, told in zip(indices, ready, strict=True)
            ]
            await self._until_stopped(ready)
        if not self._stopping.is_set():
            print(self._line(), flush=True)
        await self._stopping.wait()
        self._pass_on(signal.SIGTERM)
        _, late = await asyncio.wait(keepers, timeout=self._workers.stop_s)
        if late:
            self._pass_on(signal.SIGKILL)
            await asyncio.wait(late)
            self._code = self._code or 1
        return self._code

    async def _until_stopped(self, ready: Sequence[asyncio.Future[None]]) -> None:
        stopping = asyncio.create_task(self._stopping.wait())
        every = asyncio.gather(*ready)
        await asyncio.wait((stopping, every), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()

    async def _keep(self, index: int, ready: asyncio.Future[None]) -> None:
        delay_s = _FIRST_DELAY_S
        while not self._stopping.is_set():
            began = time.monotonic()
            process = await self._start(index)
            assert process.stdout is not None
            async for line in process.stdout:
                if found := _READY.search(line.decode().strip()):
                    self._metrics[index] = found[2] or ""
                    if not ready.done():
                        ready.set_result(None)
            code = await process.wait()
            del self._processes[index]
            if self._stopping.is_set():
                if code and code != -signal.SIGTERM:  # that is one which was not ready yet
                    self._code = self._code or 1
                return
            if not ready.done():
                self._code = code if code > 0 else 1
                self._stopping.set()
                return
            if time.monotonic() - began > _STEADY_S:
                delay_s = _FIRST_DELAY_S
            self._say(f"worker {index} ({process.pid}) ended with {code}: again in {delay_s:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay_s)
            delay_s = min(2 * delay_s, _LAST_DELAY_S)

    async def _start(self, index: int) -> asyncio.subprocess.Process:
        arguments = ["--port", str(self._port), "--worker", str(index)]
        if (page := self._metrics_port(index)) is not None:
            arguments += ["--metrics-port", str(page)]
        process = await asyncio.create_subprocess_exec(
            *self._workers.command,
            *arguments,
            stdin=asyncio.subprocess.PIPE,  # see end_with_parent
            stdout=asyncio.subprocess.PIPE,
            pass_fds=self._workers.inherited,
        )
        self._processes[index] = process
        if self._stopping.is_set():  # it was not among those that the signal was passed on to
            process.terminate()
        return process

    def _metrics_port(self, index: int) -> int | None:
        first = self._workers.metrics_port
        if first:
            return first + index
        if first == 0 and (url := self._metrics.get(index)):
            # Who scrapes it has been told this one.
            return int(url.rpartition(":")[2].partition("/")[0])
        return first

    def _pass_on(self, number: signal.Signals) -> None:
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    def _line(self) -> str:
        host = self._workers.host
        text = f"{self._workers.name} ready on {f'[{host}]' if ':' in host else host}:{self._port}"
        pages = ",".join(url for _, url in sorted(self._metrics.items()) if url)
        return f"{text}, metrics {pages}" if pages else text

    def _say(self, text: str) -> None:
        print(f"{self._workers.name}: {text}", file=sys.stderr, flush=True)
