"""A real server in this process, on a free port, for tests that call it blocking."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry

from serendip.serving.handlers import Service
from serendip.serving.server import Running, ServerOptions, serve


@contextlib.contextmanager
def in_thread(
    services: Callable[[], Sequence[Service]],
    options: ServerOptions | None = None,
    *,
    name: str = "test",
    registry: CollectorRegistry | None = None,
) -> Iterator[Running]:
    """Serves from a thread with an event loop of its own while the block runs.

    Args:
        services: makes them, inside that loop.
    """
    ready = threading.Event()
    started: list[Running] = []
    failed: list[BaseException] = []
    stop: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def main() -> None:
        stopped = asyncio.Event()
        stop.append((asyncio.get_running_loop(), stopped))
        async with serve(name, services(), options, registry=registry) as running:
            started.append(running)
            ready.set()
            await stopped.wait()

    def work() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=work, name=f"{name}-server", daemon=True)
    thread.start()
    if not ready.wait(10):
        raise TimeoutError("the server did not start")
    if failed:
        raise failed[0]
    try:
        yield started[0]
    finally:
        loop, stopped = stop[0]
        loop.call_soon_threadsafe(stopped.set)
        thread.join(30)
        assert not thread.is_alive(), "the server did not stop"
        if failed:
            raise failed[0]


def replace_file(path: Path, data: str | bytes) -> None:
    """Puts a file in the place of another, as an operator should: whole or not at all."""
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(data.encode() if isinstance(data, str) else data)
    new.replace(path)
