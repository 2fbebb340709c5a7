"""Puts the retriever server together: release, servicer, life cycle, reload."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry

from retriever_server.loading import Loader
from retriever_server.release import open_current, warm
from retriever_server.service import MAX_BATCH, RetrieverService, Serving, show_versions
from retriever_server.withheld import WithheldFile
from serendip.artifacts import Artifacts
from serendip.serving import server as life
from serendip.serving.follow import Follower
from serendip.serving.server import Running, ServerOptions
from serendip.serving.turns import Turns


@dataclass(frozen=True)
class RetrieverOptions:
    """What is the retriever's own.

    Attributes:
        artifacts: the folder with the artefacts, whose current release is followed.
        max_batch: most rows that are run together.
        user_cache: user vectors kept, by history; 0: none.
        poll_s: seconds between two looks at the current release and at the withheld items.
        withhold: file of item IDs, one a line, that are never returned; None: none.
    """

    artifacts: Path
    max_batch: int = MAX_BATCH
    user_cache: int = 0
    poll_s: float = 1.0
    withhold: Path | None = None


@contextlib.asynccontextmanager
async def serve(
    serving: Serving, options: ServerOptions | None = None, *, max_batch: int = MAX_BATCH
) -> AsyncIterator[Running]:
    """Serves what is given, and follows nothing, while the block runs.

    Raises:
        InvalidRequest: a port cannot be bound.
    """
    registry = CollectorRegistry()
    service = RetrieverService(serving, registry, max_batch=max_batch)
    try:
        async with life.serve(
            "retriever", service.services(), options, registry=registry
        ) as running:
            show_versions(running.metrics, serving)
            yield running
    finally:
        await service.close()


async def run(
    options: RetrieverOptions, server_options: ServerOptions, turns: int | None = None
) -> None:
    """Opens the current release, serves it and those that follow it until a signal.

    Args:
        turns: a descriptor, see turns.Turns; for one of several worker processes.

    Raises:
        SerendipError: there is no release, it cannot be opened, the file of withheld items cannot
            be read, or a port cannot be bound.
    """
    registry = CollectorRegistry()
    withheld = None if options.withhold is None else WithheldFile(options.withhold, registry)
    # Only the service holds what it serves: a name here would hold it after it is swapped out.
    service = RetrieverService(_open(options, withheld), registry, max_batch=options.max_batch)
    artifacts = Artifacts(options.artifacts)
    loader = Loader(
        artifacts,
        max_batch=options.max_batch,
        user_cache=options.user_cache,
        withheld=withheld,
        turns=Turns(turns),
    )
    followers: list[Follower[Serving]] = []

    def on_ready(running: Running) -> None:
        def swap(new: Serving) -> None:
            service.swap(new)
            show_versions(running.metrics, new)

        show_versions(running.metrics, service.serving)
        follower = Follower(
            partial(artifacts.current_version, "release"),
            service.serving,
            loader.load,
            swap,
            registry,
            look=loader.look,
            poll_s=options.poll_s,
        )
        follower.begin()
        followers.append(follower)

    try:
        await life.serve_until_signal(
            "retriever", service.services(), server_options, registry=registry, on_ready=on_ready
        )
    finally:
        loader.close()
        for follower in followers:
            follower.close()
        await service.close()


def _open(options: RetrieverOptions, withheld: WithheldFile | None) -> Serving:
    serving = open_current(Artifacts(options.artifacts), user_cache=options.user_cache)
    for ranker in serving.rankers.values():
        if withheld is not None:
            ranker.withhold(withheld.ids)
        warm(ranker, options.max_batch)
    return serving
