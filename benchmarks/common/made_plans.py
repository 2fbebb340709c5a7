"""Plans made up for the benches: real encoding, pseudo-words, item IDs of 10 bytes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np

from common import descriptions
from serendip.core import Plan, PlannedCluster
from serendip.planning.plan_store import StoreInfo, encode_plan

TREE, PLANNER = "a" * 12, "b" * 12
MODELS = 10_000  # different plans, but for the item ID


def item_id(n: int) -> str:
    """An item ID of 10 bytes."""
    return f"i{n:09d}"


@cache
def models() -> list[bytes]:
    """Serialised plans that lack the item ID."""
    texts = descriptions.texts("words", MODELS)
    rng = np.random.default_rng(0)
    found = []
    for own in range(MODELS):
        nodes = list(dict.fromkeys(rng.integers(0, MODELS, 16).tolist()))[:8]
        scores = np.sort(-rng.exponential(2, 8))[::-1].tolist()
        clusters = tuple(
            PlannedCluster(n, texts[n], s, bool(rng.random() < 0.5))
            for n, s in zip(nodes, scores, strict=True)
        )
        reasoning = f"Topic: {texts[own]}\nLook: {texts[own - 1]}\nNext: {texts[nodes[0]]}"
        found.append(
            encode_plan(Plan("", clusters, own, reasoning, TREE, PLANNER, 1_750_000_000_000))
        )
    return found


def plans(count: int, stride: int = 7_368_787) -> Iterator[tuple[str, bytes]]:
    """Item IDs and serialised plans: with a large prime in no order, with 1 in that of the IDs."""
    lacking = models()
    for n in range(count):
        at = n * stride % count
        name = item_id(at)
        yield name, lacking[at % MODELS] + b"\n" + bytes([len(name)]) + name.encode()


def info(count: int, named: str = "0" * 12) -> StoreInfo:
    return StoreInfo(named, TREE, PLANNER, count)
