"""Which plans keep their meaning when the tree is rebuilt. Knows no model."""

from __future__ import annotations

from contextlib import closing

from serendip.artifacts import Artifact, Artifacts
from serendip.core import NotFound, Plan
from serendip.planning.lmdb_store import FILE, LmdbStore
from serendip.planning.plan_store import decode_plan
from serendip.tree.node_map import FILE as NODE_MAP
from serendip.tree.node_map import NodeMap


def survives(plan: Plan, mapped: NodeMap) -> bool:
    """Whether the plan's own cluster and its best one have successors of mostly the same items,
    and two of them.

    Such a plan is stale all the same: it carries the old tree_version, and is made again.
    """
    own, best = plan.own_node_id, plan.clusters[0].node_id
    kept = mapped.survives(best) and (own is None or mapped.survives(own))
    return kept and (own is None or mapped.node[own] != mapped.node[best])


def surviving_plans(artifacts: Artifacts, rebuilt: Artifact) -> tuple[int, int] | None:
    """(plans that survive, plans in all) of the current plans under a rebuilt tree.

    None if that tree has no predecessor, or the current plans are not of it.
    """
    try:
        before = artifacts.open("tree", str(rebuilt.facts["rebuilt_from"]))
        plans = artifacts.current("plans")
    except (KeyError, NotFound):
        return None
    if plans.tree_version != before.tree_version:
        return None
    mapped = NodeMap.load(rebuilt.file(NODE_MAP))
    kept = total = 0
    with closing(LmdbStore(plans.file(FILE))) as store:
        for _, data in store.rows():
            plan = decode_plan(data)
            total += 1
            kept += bool(plan.clusters) and survives(plan, mapped)
    return kept, total
