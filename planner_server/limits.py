"""What requests to the planner may be at most: the checks' own numbers, for whoever asks.

Knows no servicer.
"""

from __future__ import annotations

from serendip.core import MAX_PLANNED_CLUSTERS, REQUEST_BOUNDS
from serendip.v1 import planner_pb2
from serendip.wire import MAX_CONTEXT_ITEMS, MAX_EXCLUDED

MAX_TITLE_BYTES = 2000
MAX_TEXT_BYTES = 20_000
MAX_FRAMES = 32
MAX_TEXTS = 1024
MAX_PAGE = 1000


def limits(request_bytes: int) -> planner_pb2.PlannerLimits:
    """As GetInfo tells them.

    Args:
        request_bytes: what the front takes.
    """
    return planner_pb2.PlannerLimits(
        context_items=MAX_CONTEXT_ITEMS,
        clusters=MAX_PLANNED_CLUSTERS,
        excluded_nodes=MAX_EXCLUDED,
        texts=MAX_TEXTS,
        page_size=MAX_PAGE,
        frames=MAX_FRAMES,
        image_bytes=REQUEST_BOUNDS.image_bytes,
        pixels=REQUEST_BOUNDS.pixels,
        video_bytes=REQUEST_BOUNDS.video_bytes,
        video_seconds=REQUEST_BOUNDS.video_seconds,
        request_bytes=request_bytes,
    )
