"""Live plans: the model behind a bounded queue, batched over calls.

A look-up never waits here: only what the store lacks is submitted. Knows no gRPC.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from serendip.core import Constraint, DeadlineSpent, Item, Plan, SerendipError
from serendip.planning.prompt import STYLES, Content, check_pictures, load_content
from serendip.planning.views import View
from serendip.serving.batching import Batcher

if TYPE_CHECKING:
    from serendip.planning.planner import Planner

_MAX_BATCH = 16
_MAX_WAITING = 256
_MAX_WAIT_S = 10.0


@dataclass(frozen=True)
class LiveQuery:
    """One plan to be made.

    Attributes:
        source: an item of the catalogue, or content whose pictures are decoded already.
        own: the item's cluster at the planning level, or None.
        exclude: further clusters that may not be planned.
    """

    source: Item | Content
    own: int | None = None
    exclude: tuple[int, ...] = ()
    constraint: Constraint = Constraint.NOT_OWN


Ready = tuple[int, LiveQuery, Content, View]


class LivePlanner:
    """Plans by the model, on one worker thread.

    Attributes:
        batch_s: seconds that a batch takes, by the recent ones; 0 before the first.
    """

    def __init__(
        self,
        planner: Planner,
        *,
        threads: int = 1,
    ) -> None:
        import torch  # not for servers that plan nothing live

        torch.set_num_threads(threads)
        self.planner = planner
        self.batch_s = 0.0
        self._batcher: Batcher[LiveQuery, Plan] = Batcher(
            self._run,
            max_batch=_MAX_BATCH,
            max_waiting=_MAX_WAITING,
            max_wait_s=_MAX_WAIT_S,
            name="live",
        )

    async def plan(self, query: LiveQuery, deadline: float | None) -> Plan:
        """Makes a plan.

        Args:
            deadline: time.monotonic() in seconds after which nobody wants it.

        Raises:
            MediaError: the item's media cannot be read.
            InvalidRequest: no picture where the style looks, or no cluster left.
            DeadlineSpent: it was not there at the deadline.
            Overloaded, NotReady: as Batcher.submit.
        """
        try:
            async with asyncio.timeout_at(deadline):  # an event loop's time is monotonic
                return await self._batcher.submit(query, deadline)
        except TimeoutError:
            raise DeadlineSpent("the plan was not made in time") from None

    @property
    def busy(self) -> bool:
        """Whether a plan is being made, or waits to be."""
        return self._batcher.busy

    def warm(self) -> None:
        """Makes one plan, so that the first caller waits no longer than the others.

        Raises:
            Exception: it cannot: no checkpoint to serve with.
        """
        blank = np.zeros((64, 64, 3), np.uint8)
        frames = (blank,) * self.planner.config.frames
        self.planner.plan([Content("warm-up", cover=blank, frames=frames)], [None])

    async def close(self) -> None:
        """Ends the worker; to be called after the drain."""
        await self._batcher.close()

    def _run(self, queries: list[LiveQuery]) -> Sequence[Plan | Exception]:
        began = time.monotonic()
        plans = self._plans(queries)
        took_s = time.monotonic() - began
        self.batch_s = took_s if not self.batch_s else 0.5 * (self.batch_s + took_s)
        return plans

    def _plans(self, queries: list[LiveQuery]) -> Sequence[Plan | Exception]:
        results: list[Plan | Exception | None] = [None] * len(queries)
        ready: list[Ready] = []
        for at, query in enumerate(queries):
            try:
                ready.append((at, query, self._content(query), self._view(query)))
            except SerendipError as e:
                results[at] = e
        if ready:
            for (at, _, _, _), plan in zip(ready, self._plan(ready), strict=True):
                results[at] = plan
        return [r for r in results if r is not None]

    def _plan(self, rows: Sequence[Ready]) -> list[Plan | Exception]:
        """Plans rows together; if that fails, one by one, so that only the cause fails."""
        try:
            return list(
                self.planner.plan(
                    [content for _, _, content, _ in rows],
                    [query.own for _, query, _, _ in rows],
                    item_ids=[
                        q.source.item_id if isinstance(q.source, Item) else ""
                        for _, q, _, _ in rows
                    ],
                    views=[view for _, _, _, view in rows],
                )
            )
        except Exception as e:
            if len(rows) == 1:
                return [e]
            return [self._plan([row])[0] for row in rows]

    def _content(self, query: LiveQuery) -> Content:
        config = self.planner.config
        style = STYLES[config.style]
        if isinstance(query.source, Item):
            return load_content(query.source, style, config.frames)
        content = query.source.thinned(config.frames)
        check_pictures(content, style)
        return content

    def _view(self, query: LiveQuery) -> View:
        return self.planner.view(query.own, exclude=query.exclude, constraint=query.constraint)
