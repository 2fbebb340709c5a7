"""Puts the planner server together: release, servicers, life cycle, reload."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial

from prometheus_client import CollectorRegistry

from planner_server.live import LivePlanner
from planner_server.live_metrics import LiveMetrics
from planner_server.loading import Loader, Source
from planner_server.recommend import RecommenderService
from planner_server.release import Serving
from planner_server.service import PlannerService, services, show_versions
from serendip.artifacts import Artifacts
from serendip.serving.follow import Follower
from serendip.serving.server import Running, ServerOptions, serve_until_signal
from serendip.serving.turns import Turns
from serendip.serving.upstream import OpenUpstream, Upstream
from serendip.serving.watched_file import refreshing

_LOOK_S = 0.2


@contextlib.asynccontextmanager
async def servicers(
    serving: Serving,
    retriever: OpenUpstream | None,
    registry: CollectorRegistry | None = None,
    *,
    request_bytes: int = ServerOptions.max_request_bytes,
) -> AsyncIterator[tuple[PlannerService, RecommenderService | None]]:
    """The servicers over an opened release; closes what they hold at the end.

    Args:
        retriever: None: no Recommend.
        registry: takes their metrics; a new one if None.
        request_bytes: what the front takes.
    """
    recommends = retriever is not None
    planner = PlannerService(serving, registry, recommends=recommends, request_bytes=request_bytes)
    del serving  # only the service holds it: a name here would hold it after it is swapped out
    try:
        if retriever is None:
            yield planner, None
        else:
            with refreshing(retriever.watched):
                async with retriever.in_loop() as channel:
                    yield (
                        planner,
                        RecommenderService(planner, channel, registry, retriever.metadata),
                    )
    finally:
        if planner.serving.live is not None:
            await planner.serving.live.close()
        planner.serving.store.close()


async def run(
    source: Source,
    upstream: Upstream,
    poll_s: float,
    options: ServerOptions,
    turns: int | None = None,
) -> None:
    """Opens the current release, serves it and those that follow it until a signal.

    Args:
        upstream: the retriever; without an address there is no Recommend.
        poll_s: seconds between two looks at the current release.
        turns: a descriptor, see turns.Turns; for one of several worker processes.

    Raises:
        SerendipError: there is no release, it cannot be opened, a file that a flag names cannot be
            used, or a port cannot be bound.
    """
    registry = CollectorRegistry()
    retriever = upstream.open(registry)
    metrics = None if source.live is None else LiveMetrics(registry)
    loader = Loader(source, retriever, Turns(turns), metrics)
    current = partial(Artifacts(source.artifacts).current_version, "release")
    followers: list[Follower[Serving]] = []
    retiring: dict[asyncio.Task[None], LivePlanner] = {}
    opened = source.open(metrics=metrics)
    served = servicers(opened, retriever, registry, request_bytes=options.max_request_bytes)
    async with served as (planner, recommender):
        del opened  # or it would be held after it is swapped out

        def waiting() -> int:
            live = planner.serving.live
            return 0 if live is None else live.waiting

        if metrics is not None:
            metrics.batch.watch(waiting)

        def on_ready(running: Running) -> None:
            def swap(new: Serving) -> None:
                live = planner.serving.live
                planner.swap(new)
                show_versions(running, new)
                if live is not None:
                    task = asyncio.create_task(_retire(live))
                    retiring[task] = live
                    task.add_done_callback(retiring.pop)

            show_versions(running, planner.serving)
            follower = Follower(
                current, planner.serving, loader.load, swap, registry, poll_s=poll_s
            )
            follower.begin()
            followers.append(follower)

        try:
            await serve_until_signal(
                "planner",
                services(planner, recommender),
                options,
                registry=registry,
                on_ready=on_ready,
            )
        finally:
            loader.close()
            for follower in followers:
                follower.close()
            for task, live in [*retiring.items()]:
                task.cancel()
                await live.close()


async def _retire(live: LivePlanner) -> None:
    """Closes a planner that is asked no more, once it has answered who asked before."""
    await asyncio.sleep(_LOOK_S)  # calls that have read who serves, and not asked yet
    while live.busy:
        await asyncio.sleep(_LOOK_S)
    await live.close()
