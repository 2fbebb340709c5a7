"""Puts the planner server together: release, servicers, life cycle."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

from planner_server.release import Serving, open_release
from planner_server.service import PlannerService, RecommenderService, services, show_versions
from serendip.artifacts import Artifacts
from serendip.serving.server import ServerOptions, serve_until_signal

# A retriever that comes back is found again within a second, not after a long backoff.
_CHANNEL = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000))


@contextlib.asynccontextmanager
async def servicers(
    serving: Serving, retriever: str
) -> AsyncIterator[tuple[PlannerService, RecommenderService | None]]:
    """The servicers over an opened release; closes what they hold at the end.

    Args:
        retriever: HOST:PORT, or empty: no Recommend.
    """
    planner = PlannerService(serving)
    channel = grpc.aio.insecure_channel(retriever, _CHANNEL) if retriever else None
    try:
        yield planner, None if channel is None else RecommenderService(planner, channel)
    finally:
        if channel is not None:
            await channel.close()
        if serving.live is not None:
            await serving.live.close()
        serving.store.close()


async def run(
    artifacts: Path,
    catalogue: Path | None,
    retriever: str,
    live: bool,
    redis: str,
    options: ServerOptions,
) -> None:
    """Opens the current release and serves it until a signal."""
    serving = open_release(Artifacts(artifacts), catalogue, live=live, redis=redis)
    async with servicers(serving, retriever) as (planner, recommender):
        await serve_until_signal(
            "planner",
            services(planner, recommender),
            options,
            on_ready=lambda running: show_versions(running, serving),
        )
