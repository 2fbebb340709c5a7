"""Plans to fill stores with, whose version can be told from the plan."""

from __future__ import annotations

from serendip.core import Plan, PlannedCluster
from serendip.planning.plan_store import StoreInfo, encode_plan

TREE, PLANNER = "a" * 12, "b" * 12


def make_plan(item_id: str, version: str = "0" * 12, score: float = -0.5) -> Plan:
    """A plan whose reasoning names the version that it belongs to."""
    cluster = PlannedCluster(7, "bread: rye", score, True)
    return Plan(item_id, (cluster,), 3, version, TREE, PLANNER, 1_750_000_000_000)


def plans_of(count: int, version: str = "0" * 12) -> list[tuple[str, bytes]]:
    """Plans of i0, i1, ..., which is not the order of their keys."""
    ids = [f"i{n}" for n in range(count)]
    return [(item_id, encode_plan(make_plan(item_id, version))) for item_id in ids]


def info_of(count: int, version: str = "0" * 12) -> StoreInfo:
    return StoreInfo(version, TREE, PLANNER, count)
