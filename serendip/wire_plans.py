"""Plans between the protos and the border types of core: a part of wire.py.

Knows no other tier's message, no channel and no artefact.
"""

from __future__ import annotations

from serendip.core import (
    Constraint,
    InvalidRequest,
    Plan,
    PlannedCluster,
    PlanSource,
    SerendipError,
)
from serendip.v1 import common_pb2, planner_pb2

_SOURCE_TO_PROTO = {
    PlanSource.STORE: planner_pb2.PLAN_SOURCE_STORE,
    PlanSource.LIVE: planner_pb2.PLAN_SOURCE_LIVE,
    PlanSource.FALLBACK: planner_pb2.PLAN_SOURCE_FALLBACK,
}
_SOURCE_FROM_PROTO = {number: source for source, number in _SOURCE_TO_PROTO.items()}


def source_to_proto(source: PlanSource | None) -> planner_pb2.PlanSource:
    """None, where there is no plan, is PLAN_SOURCE_UNSPECIFIED."""
    if source is None:
        return planner_pb2.PLAN_SOURCE_UNSPECIFIED
    return _SOURCE_TO_PROTO[source]


def source_from_proto(number: planner_pb2.PlanSource) -> PlanSource | None:
    """None for PLAN_SOURCE_UNSPECIFIED, and for a source that a newer server may name."""
    return _SOURCE_FROM_PROTO.get(number)


_CONSTRAINT_TO_PROTO = {
    Constraint.NOT_OWN: planner_pb2.CONSTRAINT_NOT_OWN,
    Constraint.SIBLINGS: planner_pb2.CONSTRAINT_SIBLINGS,
    Constraint.NONE: planner_pb2.CONSTRAINT_NONE,
}
_CONSTRAINT_FROM_PROTO = {number: c for c, number in _CONSTRAINT_TO_PROTO.items()} | {
    planner_pb2.CONSTRAINT_UNSPECIFIED: Constraint.NOT_OWN
}


def constraint_to_proto(constraint: Constraint | str) -> planner_pb2.Constraint:
    """Raises InvalidRequest unless it is a Constraint, or the value of one."""
    try:
        return _CONSTRAINT_TO_PROTO[Constraint(constraint)]
    except ValueError:
        raise _no_constraint(constraint) from None


def constraint_from_proto(number: planner_pb2.Constraint) -> Constraint:
    """Raises InvalidRequest for a number that is none."""
    found = _CONSTRAINT_FROM_PROTO.get(number)
    if found is None:
        raise _no_constraint(number)
    return found


def _no_constraint(value: object) -> InvalidRequest:
    return InvalidRequest(
        "is no constraint",
        field="constraint",
        value=value,
        remedy="Known are " + ", ".join(c.value for c in Constraint) + ".",
    )


def plan_to_proto(plan: Plan) -> planner_pb2.Plan:
    message = planner_pb2.Plan(
        context_item_id=plan.context_item_id,
        clusters=[
            common_pb2.PlannedCluster(
                node_id=c.node_id,
                description=c.description,
                score=c.score,
                serendipitous=c.serendipitous,
            )
            for c in plan.clusters
        ],
        own_node_id=plan.own_node_id,
        reasoning=plan.reasoning,
        tree_version=plan.tree_version,
        planner_version=plan.planner_version,
    )
    message.planned_at.FromMilliseconds(plan.planned_at_ms)
    return message


def plan_from_proto(message: planner_pb2.Plan) -> Plan:
    """Reads a plan.

    Raises:
        SerendipError: a cluster named twice, more than 8 of them, or a score that is no number.
    """
    try:
        return Plan(
            context_item_id=message.context_item_id,
            clusters=tuple(
                [
                    PlannedCluster(c.node_id, c.description, c.score, c.serendipitous)
                    for c in message.clusters
                ]
            ),
            own_node_id=message.own_node_id if message.HasField("own_node_id") else None,
            reasoning=message.reasoning,
            tree_version=message.tree_version,
            planner_version=message.planner_version,
            planned_at_ms=message.planned_at.ToMilliseconds(),
        )
    except ValueError as error:
        raise SerendipError(f"the answer is no plan: {error}", field="plan") from error
