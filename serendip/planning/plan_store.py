"""The plan store: plans on disk, keyed by item, as serialised protos. One LMDB file a version.

Knows no model; a plan goes on the wire as it lies here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

import lmdb

from serendip.core import CorruptArtifact, Plan
from serendip.v1 import planner_pb2
from serendip.wire import plan_from_proto, plan_to_proto

FILE = "plans.lmdb"
_MAP_BYTES = 1 << 40  # address space, not disk
_BATCH = 10_000


def encode_plan(plan: Plan) -> bytes:
    """The serialised serendip.v1.Plan."""
    data: bytes = plan_to_proto(plan).SerializeToString(deterministic=True)
    return data


def decode_plan(data: bytes) -> Plan:
    """The plan of a serialised serendip.v1.Plan."""
    return plan_from_proto(planner_pb2.Plan.FromString(data))


def write_plans(path: Path, plans: Iterable[Plan]) -> int:
    """Writes a new store at ``path``; returns how many plans it holds.

    The file appears under its name only when it is whole.
    """
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    count = 0
    with lmdb.open(str(partial), map_size=_MAP_BYTES, subdir=False, lock=False) as env:
        txn = env.begin(write=True)
        for plan in plans:
            txn.put(plan.context_item_id.encode(), encode_plan(plan))
            count += 1
            if count % _BATCH == 0:
                txn.commit()
                txn = env.begin(write=True)
        txn.commit()
        env.sync(True)
    os.replace(partial, path)
    return count


class PlanStore:
    """Reads a store; safe to share between threads."""

    def __init__(self, path: Path) -> None:
        """Opens a store read-only. Raises CorruptArtifact if it is none."""
        try:
            self._env = lmdb.open(
                str(path), readonly=True, subdir=False, lock=False, map_size=_MAP_BYTES
            )
        except lmdb.Error as e:
            raise CorruptArtifact(
                f"no plan store ({e})",
                field=str(path),
                remedy="Publish the plans again (serendip plan).",
            ) from e

    def get(self, item_id: str) -> Plan | None:
        """The item's plan, or None."""
        return self.get_many([item_id])[0]

    def get_many(self, item_ids: Sequence[str]) -> list[Plan | None]:
        """One plan or None an item, in order, all from one snapshot."""
        with self._env.begin(buffers=True) as txn:
            found = [txn.get(item_id.encode()) for item_id in item_ids]
            return [None if raw is None else decode_plan(bytes(raw)) for raw in found]

    def __len__(self) -> int:
        entries: int = self._env.stat()["entries"]
        return entries

    def close(self) -> None:
        self._env.close()

    def __enter__(self) -> PlanStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
