"""The plan store: plans on disk or in Redis, keyed by item, as serialised protos.

What every store promises, and how a plan becomes bytes and plan again. A plan goes on the wire as
it lies here. Knows no model and no engine: those are lmdb_store, redis_store, and followed_store,
which goes from version to version.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from itertools import islice
from typing import Any, Protocol

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from serendip.core import (
    MAX_ID_BYTES,
    CorruptArtifact,
    InvalidData,
    Plan,
    SerendipError,
    check_id,
)
from serendip.progress import Tick
from serendip.v1 import planner_pb2
from serendip.wire_bytes import LENGTH_PREFIXED, key
from serendip.wire_plans import plan_from_proto, plan_to_proto

_TICK_EVERY = 4096
_PLANNED_AT = bytes([key("planned_at", planner_pb2.Plan, LENGTH_PREFIXED)])
_REMEDY = "Publish the plans again (serendip plan)."


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What a store holds: one version, whole.

    Attributes:
        version: of the plans artefact.
        tree_version, planner_version: what the plans were made from and by.
        count: plans in it.
    """

    version: str
    tree_version: str
    planner_version: str
    count: int

    def encode(self) -> bytes:
        """As JSON, to lie beside the plans."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def decode(cls, data: bytes, where: str) -> StoreInfo:
        """Reads what ``encode`` wrote. Raises CorruptArtifact naming ``where`` if it did not."""
        try:
            found: Mapping[str, Any] = json.loads(data)
            info = cls(**{f.name: found[f.name] for f in fields(cls)})
        except (ValueError, TypeError, KeyError) as e:
            raise CorruptArtifact("does not say what it holds", field=where, remedy=_REMEDY) from e
        if not isinstance(info.count, int) or info.count < 0:
            raise CorruptArtifact("count is none", field=where, value=info.count, remedy=_REMEDY)
        return info


class PlanStore(Protocol):
    """Reads one version; safe to share between threads, to be opened after a fork."""

    def get(self, item_id: str) -> bytes | None:
        """The item's serialised serendip.v1.Plan, or None.

        Raises:
            InvalidRequest: not 1 to 256 bytes.
            NotFound: the version is in the store no more.
            NotReady: the store cannot be reached, or is closed.
        """

    def get_many(self, item_ids: Sequence[str]) -> list[bytes | None]:
        """One plan or None an item, in order, all of one version. Raises as ``get``."""

    def info(self) -> StoreInfo:
        """What the store holds."""

    def close(self) -> None:
        """Lets go of it; to be called once nobody reads."""


def encode_plan(plan: Plan) -> bytes:
    """The serialised serendip.v1.Plan; ``planned_at`` stands first, for ``planned_at_s``."""
    message = plan_to_proto(plan)
    when = planner_pb2.Plan(planned_at=message.planned_at).SerializeToString()
    message.ClearField("planned_at")
    data: bytes = when + message.SerializeToString(deterministic=True)
    return data


def planned_at_s(data: bytes) -> int:
    """Unix time at which a serialised plan was made, in seconds.

    Reads its first bytes alone, if they are what ``encode_plan`` puts there. Raises
    CorruptArtifact where they are not, and the whole is no plan either.
    """
    if data.startswith(_PLANNED_AT) and len(data) > 1 and data[1] < 0x80:
        return _seconds(data[2 : 2 + data[1]])
    seconds: int = plan_message(data).planned_at.seconds
    return seconds


# The plans of a bulk chunk were made at the same moment.
@lru_cache(maxsize=1 << 14)
def _seconds(timestamp: bytes) -> int:
    try:
        seconds: int = Timestamp.FromString(timestamp).seconds
    except DecodeError as e:
        raise CorruptArtifact("no plan in it", field="plan store", remedy=_REMEDY) from e
    return seconds


def plan_message(data: bytes) -> planner_pb2.Plan:
    """The message of a serialised serendip.v1.Plan. Raises CorruptArtifact if it is none."""
    try:
        return planner_pb2.Plan.FromString(data)
    except DecodeError as e:
        raise CorruptArtifact("no plan in it", field="plan store", remedy=_REMEDY) from e


def decode_plan(data: bytes) -> Plan:
    """The plan of a serialised serendip.v1.Plan. Raises CorruptArtifact if it is none."""
    message = plan_message(data)
    try:
        return plan_from_proto(message)
    except SerendipError as e:
        raise CorruptArtifact(e.message, field="plan store", remedy=_REMEDY) from e


# --- what every store's writer and reader does ------------------------------------------------


def key_of(item_id: str, field: str) -> bytes:
    """The key of an item. Raises InvalidRequest naming ``field`` unless it is 1 to 256 bytes."""
    key = item_id.encode()
    if not 0 < len(key) <= MAX_ID_BYTES:
        check_id(item_id, field)
    return key


def checked_rows(plans: Iterable[tuple[str, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """Keys and plans. Raises InvalidRequest at an item ID that is none."""
    for item_id, plan in plans:
        yield key_of(item_id, "item_id"), plan


def distinct(rows: Iterable[tuple[bytes, bytes]], count: int) -> Iterator[tuple[bytes, bytes]]:
    """Sorted rows as they are. Raises InvalidData at a key that comes twice, and at the end if
    there were not ``count`` of them.
    """
    last, seen = b"", 0
    for row in rows:
        if row[0] == last:
            raise InvalidData(
                "an item has one plan",
                field="item_id",
                value=last.decode(),
                remedy="Leave one of its rows.",
            )
        last = row[0]
        seen += 1
        yield row
    if seen != count:
        raise InvalidData(f"must be {count} plans", field="plans", value=seen)


def ticked(rows: Iterable[tuple[bytes, bytes]], tick: Tick) -> Iterator[tuple[bytes, bytes]]:
    """The rows as they are, counted on a progress display."""
    rows = iter(rows)
    while batch := list(islice(rows, _TICK_EVERY)):
        yield from batch
        tick(len(batch))
