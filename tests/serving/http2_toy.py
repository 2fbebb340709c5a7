"""The toy server for tests of the HTTP/2 front, and a raw call that it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import toy
from raw_http2 import Peer, asked, message
from running import in_thread

from serendip.serving.handlers import Service
from serendip.serving.server import Running, ServerOptions
from serendip.v1 import retriever_pb2

PATH = f"/{toy.NAME}/Retrieve"
OK = message(toy.request("ok").SerializeToString())


class Servicer(toy.Toy):
    """The toy, and a way to its event."""

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()

    def let_go(self) -> None:
        """Ends all calls that wait; any thread's."""
        self._loop.call_soon_threadsafe(self.release.set)


@contextmanager
def server(**options: Any) -> Iterator[tuple[Running, Servicer]]:
    servicers: list[Servicer] = []

    def services() -> list[Service]:
        servicers.append(Servicer())
        return servicers[0].services()

    with in_thread(services, ServerOptions(**options)) as running:
        yield running, servicers[0]


def answers(peer: Peer, stream: int) -> None:
    fields, body = peer.answer(stream)
    assert fields["grpc-status"] == "0"
    assert retriever_pb2.RetrieveResponse.FromString(body[5:]).unknown_history_items == 7


def still_answers(running: Running) -> None:
    """The server is well, whatever a connection of it has come to."""
    with Peer(running.address) as peer:
        peer.call(1, asked(PATH), OK)
        answers(peer, 1)
