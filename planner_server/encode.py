"""Rows of plans as the bytes of their response; a stored plan goes on the wire as it lies.

Knows no store and no model.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from serendip.core import PlanSource, Versions
from serendip.serving.errors import OK_STATUS
from serendip.v1 import planner_pb2
from serendip.wire import versions_to_proto
from serendip.wire_bytes import LENGTH_PREFIXED, VARINT, key, varint
from serendip.wire_plans import source_to_proto

_ROW = key("rows", planner_pb2.PlanResponse, LENGTH_PREFIXED)
_LEFT_OUT = key("left_out", planner_pb2.PlanRow, VARINT)
_PLAN = bytes([key("plan", planner_pb2.PlanRow, LENGTH_PREFIXED)])


def head_of(source: PlanSource, versions: Versions) -> bytes:
    """What all PlanRows of one source and its versions have in common: OK and these."""
    row = planner_pb2.PlanRow(
        status=OK_STATUS,
        source=source_to_proto(source),
        versions=versions_to_proto(versions),
    )
    data: bytes = row.SerializeToString()
    return data


def encode_stored(plan: bytes, head: bytes, age_s: int) -> bytes:
    """The PlanRow of a stored plan, of which nothing is left out.

    Args:
        plan: a serialised serendip.v1.Plan.
        head: of ``head_of``.
        age_s: whole seconds since it was made; below 0, where clocks differ, it is 0.
    """
    return _before_plan(head, age_s, len(plan)) + plan


def encode_row(plan: bytes, head: bytes, age_s: int | None, left_out: int) -> bytes:
    """The PlanRow of a plan that options were applied to.

    Args:
        plan, head, age_s: as ``encode_stored``'s; None: it has no age.
        left_out: clusters that the options left out.
    """
    row = _before_plan(head, age_s, len(plan)) + plan
    return b"%b%c%b" % (row, _LEFT_OUT, varint(left_out)) if left_out else row


def encode_response(rows: Iterable[bytes]) -> bytes:
    """A PlanResponse of serialised PlanRows."""
    parts: list[bytes] = []
    for row in rows:
        parts += (_before(len(row)), row)
    return b"".join(parts)


# The plans of a bulk chunk are of the same second, and plans are of some hundred lengths.
@lru_cache(maxsize=1 << 16)
def _before_plan(head: bytes, age_s: int | None, length: int) -> bytes:
    """What stands before a plan of so many bytes in its PlanRow."""
    row = planner_pb2.PlanRow()
    if age_s is not None:
        row.age.FromSeconds(max(0, age_s))
    return b"".join((head, row.SerializeToString(), _PLAN, varint(length)))


@lru_cache(maxsize=1 << 14)
def _before(length: int) -> bytes:
    """What stands before a row of so many bytes."""
    return b"%c%b" % (_ROW, varint(length))
